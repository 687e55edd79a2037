"""Tokens: who a caller is when the server does not trust names (semantics 1).

A token is 32 random bytes, so its SHA-256 cannot be searched for: a slow password hash would protect nothing more, and
would cost every call. The server keeps hashes only.
"""

import hashlib
import hmac
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from cadenza_server.model.commands import Caller

TOKEN_BYTES: Final = 32
PREFIX: Final = "cdz_"
"""Begins every token, so that people and secret scanners know one when they see it."""

_HASH: Final = re.compile(r"sha256:[0-9a-f]{64}")
_ENTROPY_MIN: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEntry:
    """One `[[tokens]]` of the configuration: `hash` is `sha256:` and 64 hex digits."""

    path: str
    operator: bool
    hash: str
    name: str = ""


def make_token(random_bytes: Callable[[int], bytes]) -> str:
    """A new token from `random_bytes(n)`, which must be unpredictable (`secrets.token_bytes`)."""
    material = random_bytes(TOKEN_BYTES)
    if len(material) < _ENTROPY_MIN:
        raise ValueError("a token needs at least 16 random bytes")
    return PREFIX + material.hex()


def hash_token(token: str) -> str:
    """What the configuration holds of a token."""
    return "sha256:" + hashlib.sha256(token.encode()).hexdigest()


def check_hash(text: str) -> str:
    """Return `text` if it is a token's hash; raise `ValueError` with a sentence otherwise."""
    if not _HASH.fullmatch(text):
        raise ValueError("is no hash of a token: `sha256:` and 64 lowercase hex digits, as `cadenza token` prints it")
    return text


class TokenBook:
    """Finds the caller of a token. Safe to use from any thread."""

    def __init__(self, entries: Iterable[TokenEntry]) -> None:
        self._callers = [(entry.hash.encode(), Caller(entry.path, entry.operator)) for entry in entries]

    def __bool__(self) -> bool:
        return bool(self._callers)

    def find(self, token: str) -> Caller | None:
        """The caller whose token this is, or None. Takes the same time whichever entry fits, or none."""
        given = hash_token(token).encode()
        found = None
        for known, caller in self._callers:
            if hmac.compare_digest(given, known):
                found = caller
        return found
