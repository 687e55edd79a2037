"""Where a picture is drawn, checked before the work that it shows is done."""

import os
from pathlib import Path
from typing import Final

from cadenza_server.cli.failure import fail

PICTURES: Final = (".svg", ".png", ".pdf")
"""What can be drawn."""


def check_picture(option: str, path: Path) -> Path:
    """`path`, if a picture can be drawn there; else the command ends with exit code 2."""
    if path.suffix.lower() not in PICTURES:
        fail(f"{option} {path}: a picture's name ends in one of {', '.join(PICTURES)}", 2)
    if not path.parent.is_dir():
        fail(f"{option} {path}: there is no folder {path.parent}", 2)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        fail(f"{option} {path}: it cannot be written", 2)
    return path
