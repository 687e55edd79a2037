"""Load tests of a Cadenza server: `cadenza-loadtest SCENARIO`.

Arrivals are open-loop: each operation has an intended start that no slow answer moves, and latencies count from it
(G. Tene, *How NOT to Measure Latency*, 2013: a client that waits for one answer before it sends the next call leaves
out just the calls that would have met a stall).
"""
