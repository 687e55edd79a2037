"""The state diagrams of the documentation, from the transition tables: `python -m tests.documents.state_diagrams`."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeVar

import cadenza_server
from cadenza_server.model.words import JobState, SessionState
from cadenza_server.scheduling.jobs import JOB_TRANSITIONS
from cadenza_server.scheduling.sessions import SESSION_TRANSITIONS

FILE: Final = Path(cadenza_server.__file__).parent / "docs" / "states.md"

TEXT: Final = """# States

The life cycles of jobs and sessions. The diagrams are made from the tables by which the scheduler steps
(`scheduling/jobs.py` and `scheduling/sessions.py`); what is not drawn cannot happen. [semantics.md](semantics.md), 4
and 5.1, says what the words mean. To make them anew: `python -m tests.documents.state_diagrams`.

## Jobs

{jobs}

## Sessions

{sessions}
"""

_State = TypeVar("_State", bound=StrEnum)
_Event = TypeVar("_Event", bound=StrEnum)


def diagram(transitions: Mapping[tuple[_State, _Event], _State], first: _State) -> str:
    """Draw a table as Mermaid: one arrow from a state to another, with every event that takes it there."""
    arrows: dict[tuple[_State, _State], list[str]] = {}
    for (state, event), after in transitions.items():
        arrows.setdefault((state, after), []).append(event)
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {first}"]
    lines += [f"    {state} --> {after}: {', '.join(events)}" for (state, after), events in arrows.items()]
    left = {state for state, _ in transitions}
    lines += [f"    {state} --> [*]" for state in dict.fromkeys(transitions.values()) if state not in left]
    return "\n".join([*lines, "```"])


def page() -> str:
    """The whole page."""
    jobs = diagram(JOB_TRANSITIONS, JobState.QUEUED)
    return TEXT.format(jobs=jobs, sessions=diagram(SESSION_TRANSITIONS, SessionState.OPEN))


if __name__ == "__main__":
    FILE.write_text(page(), encoding="utf-8")
