"""Names that clients choose for what they make: each is given once, for ever."""

import asyncio
from collections.abc import Callable, Collection
from functools import partial


class Names:
    """Keeps apart the calls that are on their way with the same name.

    A name that is in the store is taken, and so is one that lives in the scheduler. But what has been accepted and is
    over already, and is not on disk yet, is in neither: whoever comes with its name has to wait for its commit.
    """

    def __init__(self) -> None:
        self._claims: dict[str, asyncio.Future[None]] = {}

    async def claim(self, names: Collection[str]) -> Callable[[], None]:
        """Wait until no other call has any of `names`, and have them until the returned function is called."""
        while others := [self._claims[name] for name in names if name in self._claims]:
            await asyncio.wait(others)
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._claims.update(dict.fromkeys(names, ended))
        return partial(self._release, names, ended)

    def _release(self, names: Collection[str], ended: "asyncio.Future[None]") -> None:
        for name in names:
            if self._claims.get(name) is ended:
                del self._claims[name]
        if not ended.done():
            ended.set_result(None)
