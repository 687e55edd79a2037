"""Why an address cannot be listened on: gRPC says only that it could not."""

import errno
import socket
from typing import Final

_CAUSES: Final = {
    errno.EADDRINUSE: "another program listens there: stop it, or take another port with --listen HOST:PORT",
    errno.EADDRNOTAVAIL: "this machine has no such address: give one of its own with --listen HOST:PORT",
    errno.EACCES: "this user may not take that port: give one from 1024 with --listen HOST:PORT",
}


def explain_bind(host: str, port: int) -> str | None:
    """A sentence that says why nothing can listen on `host` and `port` now, and what to do; None: something can."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        return f"{host!r} is no known name of a machine ({error.strerror}): give an address with --listen HOST:PORT"
    why = None
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            # As gRPC does it: what was closed a moment ago does not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
                probe.listen(1)
            except OSError as error:
                why = _CAUSES.get(error.errno or 0, f"{error.strerror}: take another one with --listen HOST:PORT")
            else:
                return None
    return why
