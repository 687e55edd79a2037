"""All that a scheduler decides for some random services, as one number: `python -m tests.simulation.trace SEED`."""

import hashlib
import sys

from tests.simulation.service import play, random_service, service_of_equals


def trace(seed: int) -> str:
    """A digest of every event of a few services, floats to their last bit."""
    digest = hashlib.sha256()
    for service in (random_service(seed), random_service(seed + 1, devices=5), service_of_equals(seed)):
        for instant in play(service).instants:
            digest.update(repr((instant.now, instant.events)).encode())
    return digest.hexdigest()


if __name__ == "__main__":
    print(trace(int(sys.argv[1])))
