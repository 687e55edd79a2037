"""The page of state diagrams is what the transition tables give, and shows all of them."""

from cadenza_server.model.words import JobState, SessionState
from cadenza_server.scheduling.jobs import JOB_TRANSITIONS
from cadenza_server.scheduling.sessions import SESSION_TRANSITIONS

from tests.documents.state_diagrams import FILE, diagram, page


def test_the_page_is_fresh() -> None:
    again = "make it anew: python -m tests.documents.state_diagrams"
    assert FILE.read_text(encoding="utf-8") == page(), again


def test_every_transition_is_drawn_and_nothing_else() -> None:
    drawn = set()
    for line in page().splitlines():
        if ":" in line and " --> " in line:
            states, _, events = line.strip().partition(": ")
            before, after = states.split(" --> ")
            drawn |= {(before, event, after) for event in events.split(", ")}
    tables = [*JOB_TRANSITIONS.items(), *SESSION_TRANSITIONS.items()]
    assert drawn == {(str(before), str(event), str(after)) for (before, event), after in tables}


def test_final_states_and_the_first_are_marked() -> None:
    jobs = diagram(JOB_TRANSITIONS, JobState.QUEUED).splitlines()
    assert "    [*] --> QUEUED" in jobs
    ends = {line.strip() for line in jobs if line.endswith("--> [*]")}
    assert ends == {"SUCCEEDED --> [*]", "FAILED --> [*]", "CANCELLED --> [*]"}
    sessions = diagram(SESSION_TRANSITIONS, SessionState.OPEN).splitlines()
    assert "    [*] --> OPEN" in sessions
    assert [line.strip() for line in sessions if line.endswith("--> [*]")] == ["CLOSED --> [*]"]
