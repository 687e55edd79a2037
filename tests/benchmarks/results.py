"""RESULTS.md: each benchmark writes its own section."""

from pathlib import Path
from typing import Final

RESULTS: Final = Path(__file__).with_name("RESULTS.md")


def write_section(heading: str, text: str) -> None:
    """Put `text` under `heading` ("## ..."), instead of what stood there; what stands under others stays."""
    before, _, after = RESULTS.read_text().partition(heading + "\n")
    _, found, rest = after.partition("\n## ")
    RESULTS.write_text(f"{before.rstrip()}\n\n{heading}\n\n{text}" + (f"\n## {rest}" if found else ""))
