"""Devices: worker processes that execute programs, and the asyncio side that keeps them warm."""
