"""The contract as Python: messages and services, generated from `proto/cadenza/v1` by `proto/generate.py`.

Each `.proto` file is one module: `from cadenza.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc`. Nothing is
imported here, so that a program loads only what it uses. Services are used with `grpc` and with `grpc.aio` alike.
"""
