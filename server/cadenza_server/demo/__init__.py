"""`cadenza demo`: several users share one simulated device, and every promise that is made of it is checked."""
