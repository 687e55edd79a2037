"""The Python library of Cadenza, a self-hosted gRPC scheduling server for quantum jobs."""
