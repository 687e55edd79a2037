"""How the server is reached, and as whom."""

from dataclasses import dataclass
from pathlib import Path

import grpc
from cadenza import Tls
from google.rpc import error_details_pb2
from grpc_status import rpc_status


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the server is. Goes from process to process."""

    target: str
    watcher: str = "operator"
    """Who looks at the server's devices and record, where names are trusted; an operator sees everybody's jobs."""
    token: str | None = None
    tls_ca: Path | None = None

    def open(self) -> grpc.aio.Channel:
        """A channel with a connection of its own."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 64 * 2**20)]
        if self.tls_ca is not None:
            return grpc.aio.secure_channel(self.target, Tls(ca=self.tls_ca).credentials(), options)
        return grpc.aio.insecure_channel(self.target, options)

    def metadata(self, user: str | None) -> tuple[tuple[str, str], ...]:
        """Who calls: by the token where there is one, so that all users are one; else by name, None the watcher."""
        if self.token is not None:
            return (("authorization", f"Bearer {self.token}"),)
        return (("cadenza-user", user or self.watcher),)


def describe(error: grpc.RpcError) -> str:
    """The code of an error, and its reason if it has one: `RESOURCE_EXHAUSTED QUOTA_USER_JOBS`."""
    code = error.code().name
    try:
        status = rpc_status.from_call(error)
    except ValueError:
        status = None
    for detail in [] if status is None else status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.reason:
            return f"{code} {info.reason}"
    return str(code)
