"""The Cadenza server: gRPC services in front of a compiled queue, and workers that run Qiskit Aer."""
