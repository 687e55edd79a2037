"""Why a store cannot be used."""


class StoreError(Exception):
    """The store cannot be opened, read or written; the message says why and what to do."""


class StoreInUse(StoreError):  # noqa: N818  (a state that the other server is in, not our error)
    """Another server has the data directory; the message says which."""
