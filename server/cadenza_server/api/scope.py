"""What the services share: the engine, what is known of devices and sessions, and who may list what."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from cadenza_server.api.programs import DeviceFacts
from cadenza_server.api.watching import WatchCounter
from cadenza_server.engine import Engine, SessionView
from cadenza_server.model.commands import Caller
from cadenza_server.model.errors import Refusal, not_found, session_of_other_user
from cadenza_server.model.settings import DeviceSettings

SESSIONS_REMEMBERED_MAX: Final = 100_000


class Scope:
    """The engine with what the skin has to know beside it. A session's device never changes, so it is remembered."""

    def __init__(
        self,
        engine: Engine,
        facts: Mapping[str, DeviceFacts],
        settings: Mapping[str, DeviceSettings],
        watches: WatchCounter,
    ) -> None:
        self.engine = engine
        self.watches = watches
        self.settings = settings
        self._facts = facts
        self._homes: OrderedDict[str, tuple[str, str]] = OrderedDict()
        """Device and owner, by session."""

    def facts(self, device: str, field: str) -> DeviceFacts:
        """What programs for the device that `field` names are checked against. Raises `Refusal` UNKNOWN_DEVICE."""
        try:
            return self._facts[device]
        except KeyError:
            refusal = not_found("device", device)
            refusal.field = field
            raise refusal from None

    async def find_device(self, session: str, field: str, caller: Caller) -> str:
        """The device of the session that `field` names, which a stranger is told nothing of. Raises `Refusal`
        UNKNOWN_SESSION, SESSION_OF_OTHER_USER."""
        home = self._homes.get(session)
        if home is None or not (caller.operator or caller.path == home[1]):
            try:
                view = await self.engine.get_session(session)
            except Refusal as refusal:
                refusal.field = field
                raise
            if not (caller.operator or caller.path == view.user):
                raise session_of_other_user(session)
            home = self.remember(view)
        return home[0]

    def remember(self, session: SessionView) -> tuple[str, str]:
        """A session is in use. Returns its device and owner."""
        home = self._homes[session.session] = session.device, session.user
        if len(self._homes) > SESSIONS_REMEMBERED_MAX:
            self._homes.popitem(last=False)
        return home


def owner_shown(caller: Caller) -> str | None:
    """Whose things a list may show; None: everybody's."""
    return None if caller.operator else caller.path
