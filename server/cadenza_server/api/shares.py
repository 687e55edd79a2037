"""`ShareService`: who may use how much, and who did. Everybody sees the tree; operators change shares."""

from collections.abc import Callable, Sequence
from typing import Final

from cadenza.v1 import share_service_pb2, share_service_pb2_grpc

from cadenza_server.api.callers import Context, current_caller
from cadenza_server.api.conversion import to_duration, to_share_node, to_timestamp
from cadenza_server.api.fields import check_page_size, check_user, invalid, make_key
from cadenza_server.api.paging import cut_page
from cadenza_server.api.scope import Scope
from cadenza_server.model.commands import SetShares
from cadenza_server.model.errors import Code, Refusal
from cadenza_server.model.paths import ancestors, path_order
from cadenza_server.model.settings import SHARES_MAX, SHARES_MIN

SETTINGS_MAX: Final = 1_000
"""Paths in one `SetShares`: a call must not keep the others waiting."""


class ShareServicer(share_service_pb2_grpc.ShareServiceServicer):
    """Shares and usage. `half_life` in nanoseconds."""

    def __init__(self, scope: Scope, half_life: int) -> None:
        self._engine = scope.engine
        self._half_life = half_life

    async def ListShares(
        self, request: share_service_pb2.ListSharesRequest, context: Context
    ) -> share_service_pb2.ListSharesResponse:
        """The tree in the order of paths."""
        parent = check_user(request.parent, "parent") if request.parent else None
        page, token = cut_page(
            self._engine.share_paths(parent),
            path_order,
            check_page_size(request.page_size),
            request.page_token,
            f"{request.parent}\n{request.device}",
        )
        return share_service_pb2.ListSharesResponse(
            nodes=[to_share_node(view) for view in self._engine.usage_views(page, device=request.device or None)],
            next_page_token=token,
            time=to_timestamp(self._engine.now()),
            half_life=to_duration(self._half_life),
        )

    async def GetShares(
        self, request: share_service_pb2.GetSharesRequest, context: Context
    ) -> share_service_pb2.GetSharesResponse:
        """One node."""
        (view,) = self._engine.usage_views([check_user(request.path, "path")])
        return share_service_pb2.GetSharesResponse(node=to_share_node(view))

    async def SetShares(
        self, request: share_service_pb2.SetSharesRequest, context: Context
    ) -> share_service_pb2.SetSharesResponse:
        """New weights."""
        caller = current_caller()
        if not request.settings:
            raise invalid("settings", "there are none: name at least one path and its shares")
        if not caller.operator:
            raise Refusal(Code.PERMISSION_DENIED, "NOT_OPERATOR", "only operators change shares: ask one")
        if len(request.settings) > SETTINGS_MAX:
            raise invalid("settings", f"there are {len(request.settings)}: a call takes {SETTINGS_MAX}: make several")
        commands: list[SetShares] = []
        paths: set[str] = set()
        for index, setting in enumerate(request.settings):
            field = f"settings[{index}]"
            path = check_user(setting.path, f"{field}.path")
            if not SHARES_MIN <= setting.shares <= SHARES_MAX:
                raise invalid(
                    f"{field}.shares", f"{setting.shares:g} is out of range: {SHARES_MIN:g} to {SHARES_MAX:g}"
                )
            if path in paths:
                raise invalid(f"{field}.path", f"{path!r} is there twice: name each path once")
            paths.add(path)
            commands.append(SetShares(path=path, caller=caller, shares=setting.shares))
        _refuse_conflicts(commands, self._engine.is_user)
        key = make_key(caller, "SetShares", request.request_id, request)
        await self._engine.execute_all(commands, request=key)
        return share_service_pb2.SetSharesResponse(
            nodes=[to_share_node(view) for view in self._engine.usage_views(command.path for command in commands)]
        )


def _refuse_conflicts(commands: Sequence[SetShares], is_user: Callable[[str], bool]) -> None:
    """So that all are set or none: what the scheduler would refuse of one is found before any is set."""
    for index, command in enumerate(commands):
        for account in ancestors(command.path):
            if is_user(account):
                raise invalid(
                    f"settings[{index}].path",
                    f"{account!r} is a user, so nothing can be below it: users are leaves of the tree",
                    "PATH_CONFLICT",
                )
