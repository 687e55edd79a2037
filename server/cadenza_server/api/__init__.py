"""The gRPC skin: validate, authorise, convert, map errors. It decides nothing; one file a service."""
