"""Lists the share tree, of which there may be tens of thousands of nodes: what is not asked for is not looked at."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice

from cadenza_server.engine.views import UsageView
from cadenza_server.engine.writer import Writer
from cadenza_server.model.errors import Code, Refusal
from cadenza_server.model.paths import ancestors, path_order
from cadenza_server.model.settings import SECOND
from cadenza_server.scheduling import Scheduler
from cadenza_server.scheduling.shares import NodeKind


class ShareList:
    """The nodes of the writer's share tree, in the order of paths: accounts before what is below them."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._scheduler: Scheduler | None = None
        """Whose paths are kept in order."""
        self._ordered: list[str] = []

    def paths(self, parent: str | None = None) -> Sequence[str]:
        """All paths, or `parent` and what is below it. Raises `Refusal` UNKNOWN_PATH."""
        scheduler = self._writer.scheduler
        if self._scheduler is not scheduler:  # it was made anew from the store
            self._scheduler, self._ordered = scheduler, []
        there = scheduler.share_paths
        if len(there) > len(self._ordered):  # a tree only grows, and says its nodes in the order of their coming
            new = list(islice(there, len(self._ordered), None))
            self._ordered = sorted([*self._ordered, *new], key=path_order)
        if parent is None:
            return self._ordered
        if parent not in there:
            raise _unknown(parent)
        first = path_order(parent)
        begin = bisect_left(self._ordered, first, key=path_order)
        return self._ordered[begin : bisect_left(self._ordered, first + "\x01", lo=begin, key=path_order)]

    def views(self, paths: Iterable[str], device: str | None = None) -> tuple[UsageView, ...]:
        """These nodes as they are now. `device`: count its jobs only. Raises `Refusal` UNKNOWN_PATH."""
        scheduler, recorder, now = self._writer.scheduler, self._writer.recorder, self._writer.now()
        devices = self._writer.devices if device is None else (device,)
        waiting = recorder.waiting
        below: dict[str, tuple[int, int]] | None = None
        views = []
        for path in paths:
            node = scheduler.node_view(path, now)
            if node is None:
                raise _unknown(path)
            if node.kind is NodeKind.USER:
                counts = [waiting.get((path, name), (0, 0)) for name in devices]
                queued, running = sum(count for count, _ in counts), sum(count for _, count in counts)
            else:
                below = self._count_below(device) if below is None else below
                queued, running = below.get(path, (0, 0))
            views.append(
                UsageView(
                    path=path,
                    is_user=None if node.kind is NodeKind.UNDECIDED else node.kind is NodeKind.USER,
                    shares=node.shares,
                    settled_s=node.settled,
                    in_flight_s=node.in_flight,
                    normalised_s=(node.settled + node.in_flight) / node.shares,
                    charged_s=recorder.charged_ns.get(path, 0) / SECOND,
                    queued=queued,
                    running=running,
                )
            )
        return tuple(views)

    def is_user(self, path: str) -> bool:
        """Whether jobs are submitted as it."""
        node = self._writer.scheduler.node_view(path, self._writer.now())
        return node is not None and node.kind is NodeKind.USER

    def _count_below(self, device: str | None) -> dict[str, tuple[int, int]]:
        """Queued and running jobs of all accounts: one pass over the users who have any, one over their accounts."""
        own: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
        for (user, where), (queued, running) in self._writer.recorder.waiting.items():
            if device in (None, where):
                account, _, _ = user.rpartition("/")
                before = own[account]
                own[account] = before[0] + queued, before[1] + running
        counts: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
        for account, (queued, running) in own.items():
            for path in (*ancestors(account), account):
                before = counts[path]
                counts[path] = before[0] + queued, before[1] + running
        return counts


def _unknown(path: str) -> Refusal:
    message = f"there is no {path!r} in the share tree: list it to see the paths that exist (`cadenza shares`)"
    return Refusal(Code.NOT_FOUND, "UNKNOWN_PATH", message, metadata={"path": path})
