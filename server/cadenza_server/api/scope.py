"""What the services share: the engine, what is known of devices and sessions, and who may list what."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from cadenza_server.api.programs import DeviceFacts
from cadenza_server.api.watching import WatchCounter
from cadenza_server.engine import Engine
from cadenza_server.model.commands import Caller
from cadenza_server.model.errors import Refusal, not_found
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
        self._devices: OrderedDict[str, str] = OrderedDict()

    def facts(self, device: str, field: str) -> DeviceFacts:
        """What programs for the device that `field` names are checked against. Raises `Refusal` UNKNOWN_DEVICE."""
        try:
            return self._facts[device]
        except KeyError:
            refusal = not_found("device", device)
            refusal.field = field
            raise refusal from None

    async def find_device(self, session: str, field: str) -> str:
        """The device of the session that `field` names. Raises `Refusal` UNKNOWN_SESSION."""
        device = self._devices.get(session)
        if device is None:
            try:
                device = (await self.engine.get_session(session)).device
            except Refusal as refusal:
                refusal.field = field
                raise
            self.remember(session, device)
        return device

    def remember(self, session: str, device: str) -> None:
        """A session that is in use is on this device."""
        self._devices[session] = device
        if len(self._devices) > SESSIONS_REMEMBERED_MAX:
            self._devices.popitem(last=False)


def owner_shown(caller: Caller) -> str | None:
    """Whose things a list may show; None: everybody's."""
    return None if caller.operator else caller.path
