"""Paths in the share tree: `lab/alice` is user `alice` in account `lab` (semantics 1)."""

import re
from typing import Final

PARTS_MAX: Final = 8
PART_LENGTH_MAX: Final = 64

_PART: Final = re.compile(r"[A-Za-z0-9._@-]{1,64}")


def check_path(path: str) -> str:
    """Return `path` if it is one; raise `ValueError` with a sentence that says what is wrong otherwise."""
    parts = path.split("/")
    if len(parts) > PARTS_MAX:
        raise ValueError(f"{path!r} has {len(parts)} parts: a path has 1 to {PARTS_MAX}, joined by '/'")
    for part in parts:
        if not _PART.fullmatch(part):
            raise ValueError(
                f"{path!r} is not a path: each part has 1 to {PART_LENGTH_MAX} of letters, digits and '. _ @ -', "
                "joined by '/'"
            )
    return path


def ancestors(path: str) -> list[str]:
    """The accounts above `path`, outermost first, without itself: `a/b/c` gives `["a", "a/b"]`."""
    parts = path.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts))]


def path_order(path: str) -> str:
    """What paths are sorted by: their parts, so that an account comes right before what is below it."""
    return path.replace("/", "\x00")


def covers(holder: str, path: str) -> bool:
    """Whether `path` is `holder` or below it."""
    return path == holder or path.startswith(holder + "/")
