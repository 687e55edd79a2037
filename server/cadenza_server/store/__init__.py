"""Durable state: schema, migrations, group commit, reads."""

from cadenza_server.store.errors import StoreError, StoreInUse
from cadenza_server.store.store import Store

__all__ = ["Store", "StoreError", "StoreInUse"]
