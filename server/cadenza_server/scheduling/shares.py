"""The share tree by path: which path is an account, which a user, and their nodes in the queue (semantics 1 and 6)."""

from collections.abc import Iterator, KeysView
from enum import StrEnum
from typing import Final

from _fastqueue import ROOT, Queue
from cadenza_server.model.errors import Code, Refusal
from cadenza_server.model.events import UsageSettled
from cadenza_server.model.paths import ancestors
from cadenza_server.scheduling.company import Company


class NodeKind(StrEnum):
    """What a path is. A path that only has shares yet may become either."""

    UNDECIDED = "UNDECIDED"
    ACCOUNT = "ACCOUNT"
    USER = "USER"


class Node:
    """One path. `chain`: paths and handles of itself and of every node above it up to the root, whose path is ""."""

    __slots__ = ("chain", "handle", "kind", "path")

    def __init__(self, path: str, handle: int, above: tuple[tuple[str, int], ...]) -> None:
        self.path: Final = path
        self.handle: Final = handle
        self.chain: Final = ((path, handle), *above)
        self.kind = NodeKind.UNDECIDED


class ShareTree:
    """All nodes. It only grows; what a refused command names is not added."""

    __slots__ = ("_by_handle", "_nobody", "_nodes", "_queue")

    def __init__(self, queue: Queue) -> None:
        self._queue: Final = queue
        self._nodes: dict[str, Node] = {}
        self._by_handle: dict[int, Node] = {}
        self._nobody = -1

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    @property
    def paths(self) -> KeysView[str]:
        """All paths, in the order in which they came."""
        return self._nodes.keys()

    def find(self, path: str) -> Node | None:
        """Return the node of a path, if there is one."""
        return self._nodes.get(path)

    def path(self, handle: int) -> str:
        """Return the path of a handle."""
        return self._by_handle[handle].path

    def check_user(self, path: str, company: Company) -> None:
        """Refuse a path that cannot be a user, because it is an account or lies below a user."""
        node = self._nodes.get(path)
        if (node is not None and node.kind is NodeKind.ACCOUNT) or path in company.accounts:
            raise _conflict(path, f"{path!r} is an account and cannot be a user, too")
        if node is None or node.kind is NodeKind.UNDECIDED:
            self.check_place(path, company)

    def check_place(self, path: str, company: Company) -> None:
        """Refuse a path that lies below a user."""
        for above in ancestors(path):
            node = self._nodes.get(above)
            if (node is not None and node.kind is NodeKind.USER) or above in company.users:
                raise _conflict(path, f"{above!r} is a user, and users have nobody below them: {path!r} cannot be")

    def add(self, path: str) -> tuple[Node, list[str]]:
        """Add a path that was checked, and the accounts above it; return its node and the paths that are new."""
        new = []
        chain: tuple[tuple[str, int], ...] = (("", ROOT),)
        for each in (*ancestors(path), path):
            node = self._nodes.get(each)
            if node is None:
                node = Node(each, self._queue.add_node(chain[0][1]), chain)
                self._nodes[each] = self._by_handle[node.handle] = node
                new.append(each)
            if each != path:
                node.kind = NodeKind.ACCOUNT
            chain = node.chain
        return self._nodes[path], new

    def holder(self, path: str) -> int:
        """Return the handle of a holder's node; if the path has none, that of a node that nobody is below."""
        node = self._nodes.get(path)
        if node is not None:
            return node.handle
        if self._nobody < 0:
            self._nobody = self._queue.add_node(ROOT)
        return self._nobody

    def settled(self, node: Node) -> UsageSettled:
        """Say what is settled now on a user and on every account above."""
        raw = self._queue.raw_usage
        nodes = []
        for path, handle in node.chain:
            settled, _, exponent = raw(handle)
            nodes.append((path, settled, exponent))
        return UsageSettled(nodes=tuple(nodes))

    def usage_per_share(self, handle: int, now: int) -> float:
        """Return u / w of a node, decayed to `now`: device seconds per share."""
        settled, in_flight = self._queue.usage(handle, now)
        return (settled + in_flight) / self._queue.shares(handle)


def _conflict(path: str, message: str) -> Refusal:
    return Refusal(
        Code.INVALID_ARGUMENT,
        "PATH_CONFLICT",
        f"{message}; a path is an account or a user, never both: choose another one",
        metadata={"path": path},
    )
