"""Jobs, their runs, results and events as commands print them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import typer

from cadenza_server.cli import output
from cadenza_server.cli.output import ABSENT
from cadenza_server.cli.waiting import explain

if TYPE_CHECKING:
    from cadenza import Client
    from cadenza.v1.device_pb2 import DeviceProperties
    from cadenza.v1.event_pb2 import Event
    from cadenza.v1.job_pb2 import Job, Run
    from cadenza.v1.result_pb2 import BitArray, DataField, JobResult, PubResult
    from cadenza.v1.tensor_pb2 import Tensor
    from rich.console import Console, RenderableType

FINAL_STATES: Final = ("succeeded", "failed", "cancelled")

ROWS_MAX: Final = 32
"""Rows of one array of a result that people are shown; `--json` has all."""

SHOWN_BYTES_MAX: Final = 32 * 1024 * 1024
"""Results above this size are fetched for programs only."""


def announce(job: "Job", json: bool) -> None:
    """What a command says of a job that was just accepted."""
    if json:
        output.print_json(job)
    else:
        typer.echo(f"{job.job_id} is queued on {job.device}. `cadenza job {job.job_id} --watch` follows it.")


def job_reason(job: "Job") -> str:
    """State, and the reason where there is one: `failed (EXECUTION_ERROR)`."""
    reason = output.enum_reason(job, "reason")
    state = output.enum_word(job, "state")
    return f"{state} ({reason})" if reason else state


def job_sentence(job: "Job") -> str:
    """What has become of it: `job-1 has failed (EXECUTION_ERROR)`."""
    reason = output.enum_reason(job, "reason")
    state = output.enum_word(job, "state")
    verb = {"running": "runs", "succeeded": "has succeeded", "failed": "has failed", "cancelled": "was cancelled"}
    return f"{job.job_id} {verb.get(state, f'is {state}')}" + (f" ({reason})" if reason else "")


def read_document(client: "Client", job: "Job", *, with_events: bool = False) -> dict[str, Any]:
    """All about a job, for programs: the contract's `job` and `runs`, and `result`, which is null if there is none.

    In `result`, bits are counts of bit strings, one mapping a set of parameter values, and tensors are nested lists.
    """
    document: dict[str, Any] = {
        "job": output.message_to_dict(job),
        "runs": [output.message_to_dict(run) for run in client.list_runs(job_id=job.job_id)],
        "result": None,
    }
    if job.HasField("result_bytes"):
        document["result"] = result_to_dict(client.get_job_result(job.job_id))
    if with_events:
        document["events"] = [output.message_to_dict(each) for each in client.list_job_events(job.job_id)]
    return document


def print_job(client: "Client", job: "Job", console: "Console", *, with_events: bool) -> None:
    """All about a job, for people."""
    now = datetime.now(UTC)
    console.print(output.make_facts(_job_facts(job, explain(client, job), now)))
    runs = client.list_runs(job_id=job.job_id)
    if runs:
        console.print("\nRuns", style="bold")
        console.print(_runs_table(runs, now))
    if with_events:
        console.print("\nEvents", style="bold")
        for event in client.list_job_events(job.job_id):
            console.print(event_line(event, now))
    if not job.HasField("result_bytes"):
        return
    if job.result_bytes > SHOWN_BYTES_MAX:
        console.print(f"\nThe result has {job.result_bytes} bytes; `cadenza job {job.job_id} --json` prints it.")
        return
    for part in _result_parts(client.get_job_result(job.job_id)):
        console.print(part)


def _job_facts(job: "Job", why: str, now: datetime) -> list[tuple[str, object]]:
    facts: list[tuple[str, object]] = [
        ("job", job.job_id),
        ("state", job_reason(job)),
        *((("it waits", why),) if why else ()),
        ("detail", output.or_absent(job.detail)),
        ("user", job.user),
        ("device", job.device),
        ("session", output.or_absent(job.session_id)),
        ("class", ", ".join(dict.fromkeys(output.enum_word(job, name) for name in ("job_class", "program_kind")))),
        ("jobs before it", job.queue_position if job.HasField("queue_position") else ABSENT),
        ("priority", job.priority),
        ("seq", job.seq),
        ("tags", " ".join(job.tags) or ABSENT),
        ("submitted", output.time_or_absent(job, "create_time", now)),
        ("started", output.time_or_absent(job, "start_time", now)),
        ("ended", output.time_or_absent(job, "end_time", now)),
        ("limit", output.length_or_absent(job, "max_execution_time")),
        ("estimate", output.length_or_absent(job, "estimate")),
        ("charged", _charged(job)),
        ("epoch", job.epoch if job.HasField("epoch") else ABSENT),
    ]
    if job.HasField("cache_expire_time"):
        facts.append(("must start by", output.format_time(job.cache_expire_time, now)))
    return facts


def _charged(job: "Job") -> str:
    """How much, and to whom: the owner, and with the owner every account above."""
    length = output.length_or_absent(job, "charged")
    return f"{length} to {job.user}" if job.charged.seconds or job.charged.nanos else length


def _runs_table(runs: "Sequence[Run]", now: datetime) -> "RenderableType":
    rows = [
        (
            run.attempt,
            output.enum_word(run, "rule"),
            output.time_or_absent(run, "start_time", now),
            output.length_between(run, "create_time", "start_time"),
            output.length_between(run, "start_time", "end_time"),
            output.enum_word(run, "outcome"),
            output.length_or_absent(run, "estimate"),
            output.length_or_absent(run, "charged") if run.HasField("end_time") else ABSENT,
            run.epoch,
            _chosen_over(run),
        )
        for run in runs
    ]
    numbers = ("WAITED", "TOOK", "ESTIMATE", "CHARGED", "EPOCH")
    header = ("RUN", "RULE", "STARTED", "WAITED", "TOOK", "OUTCOME", "ESTIMATE", "CHARGED", "EPOCH", "CHOSEN OVER")
    return output.make_table(header, rows, right=numbers)


def _chosen_over(run: "Run") -> str:
    """The runner-up of a pick by fair share: the user whose job it was, then the two nodes that were compared, with the
    usages over shares that decided."""
    if not run.runner_up:
        return ABSENT
    if not run.HasField("chosen_usage") or not run.HasField("runner_up_usage"):
        return run.runner_up
    compared = f"{run.chosen} {run.chosen_usage:.3g} <= {run.runner_up} {run.runner_up_usage:.3g}"
    return f"{run.runner_up_user or run.runner_up} ({compared})"


# --- results ----------------------------------------------------------------------------------------------------------


def result_to_dict(result: "JobResult") -> dict[str, Any]:
    """A result for programs; see `read_document`."""
    found: dict[str, Any] = {
        "pubs": [_pub_to_dict(pub) for pub in result.pubs],
        "metadata": output.message_to_dict(result.metadata),
        "execution": output.message_to_dict(result.execution),
    }
    if result.HasField("calibration"):
        found["calibration"] = output.message_to_dict(result.calibration)
    return found


def _pub_to_dict(pub: "PubResult") -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for each in pub.fields:
        if each.WhichOneof("value") == "bits":
            fields[each.name] = {"num_bits": each.bits.num_bits, "counts": list(map(dict, count_bits(each.bits)))}
        else:
            fields[each.name] = _plain(_read_tensor(each.tensor).tolist())
    return {"shape": list(pub.shape), "fields": fields, "metadata": output.message_to_dict(pub.metadata)}


def _plain(values: Any) -> Any:
    if isinstance(values, list):
        return [_plain(each) for each in values]
    if isinstance(values, complex):
        return [output.json_number(values.real), output.json_number(values.imag)]
    return output.json_number(values) if isinstance(values, float) else values


def _read_tensor(tensor: "Tensor") -> Any:
    from cadenza.arrays import array_from_tensor

    return array_from_tensor(tensor)


def count_bits(bits: "BitArray") -> Iterator[dict[str, int]]:
    """How often each bit string was measured, bit 0 on the right: one mapping a set of parameter values, in C order."""
    from cadenza.arrays import bit_array_from_message

    samples, num_bits = bit_array_from_message(bits)
    shots, size = samples.shape[-2:]
    data = samples.tobytes()
    sets = 1
    for axis in samples.shape[:-2]:
        sets *= axis
    for index in range(sets):
        begin = index * shots * size
        if num_bits == 0:
            yield {"": shots}
            continue
        counted = Counter(data[at : at + size] for at in range(begin, begin + shots * size, size))
        yield {format(int.from_bytes(key), f"0{num_bits}b"): counted[key] for key in sorted(counted)}


def _result_parts(result: "JobResult") -> "Iterator[RenderableType]":
    from rich.text import Text

    for index, pub in enumerate(result.pubs):
        many = f" of PUB {index}" if len(result.pubs) > 1 else ""
        numbers = [each for each in pub.fields if each.WhichOneof("value") == "tensor"]
        for each in pub.fields:
            if each.WhichOneof("value") == "bits":
                yield Text(f"\nCounts of {output.clean(each.name)}{many}", style="bold")
                yield from _counts_tables(each.bits)
        if numbers:
            yield Text(f"\nExpectation values{many}", style="bold")
            yield from _numbers_table(numbers)
    if result.HasField("calibration"):
        yield Text("\nMeasured by this calibration", style="bold")
        yield _calibration_note(result.calibration)


def _counts_tables(bits: "BitArray") -> "Iterator[RenderableType]":
    from rich.text import Text

    shots = bits.shape[-1]
    several = len(bits.shape) > 1
    for index, counts in enumerate(count_bits(bits)):
        if index == ROWS_MAX:
            yield Text("... and more sets of parameter values; --json prints all")
            return
        if several:
            yield Text(f"set {index} of parameter values")
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        rows = [(key, count, f"{count / shots:.4f}") for key, count in ordered[:ROWS_MAX]]
        yield output.make_table(("BITS", "COUNT", "SHARE"), rows, right=("COUNT", "SHARE"))
        if len(ordered) > ROWS_MAX:
            yield Text(f"... and {len(ordered) - ROWS_MAX} rarer outcomes; --json prints all")


def _numbers_table(fields: "Sequence[DataField]") -> "Iterator[RenderableType]":
    from rich.text import Text

    arrays = [_read_tensor(each.tensor) for each in fields]
    names = [each.name for each in fields]
    header = ("INDEX", *({"evs": "VALUE", "stds": "STANDARD ERROR"}.get(name, name) for name in names))
    flat = [array.reshape(-1) for array in arrays]
    size = max(len(each) for each in flat)
    rows = []
    for at in range(min(size, ROWS_MAX)):
        place = ",".join(map(str, _unravel(at, arrays[0].shape))) or ABSENT
        rows.append((place, *(f"{each[at]:.8g}" if at < len(each) else ABSENT for each in flat)))
    yield output.make_table(header, rows, right=header[1:])
    if size > ROWS_MAX:
        yield Text(f"... and {size - ROWS_MAX} more; --json prints all")


def _unravel(at: int, shape: Sequence[int]) -> list[int]:
    place: list[int] = []
    for axis in reversed(shape):
        at, rest = divmod(at, axis)
        place.append(rest)
    return place[::-1]


def _calibration_note(properties: "DeviceProperties") -> "RenderableType":
    from rich.text import Text

    qubits, gates = len(properties.qubits), len(properties.gates)
    return Text(f"{qubits} qubits, {gates} gates, for epoch {properties.epoch}; `cadenza devices NAME` shows them")


# --- events -----------------------------------------------------------------------------------------------------------


def event_line(event: "Event", now: datetime) -> str:
    """One change, for people: its local time and a sentence."""
    return output.clean(f"{output.format_time(event.time, now)}  {event_sentence(event)}")


def event_sentence(event: "Event") -> str:
    """What happened."""
    change = event.WhichOneof("change")
    match change:
        case "job_snapshot":
            job = event.job_snapshot.job
            place = f", {job.queue_position} before it" if job.HasField("queue_position") else ""
            return f"{job_sentence(job)}{place}"
        case "session_snapshot":
            session = event.session_snapshot.session
            return f"{session.session_id} is {session_state(session)}"
        case "job_accepted":
            job = event.job_accepted.job
            return f"{job.job_id} is queued on {job.device}"
        case "job_started":
            run = event.job_started.run
            return f"{run.job_id} runs on {run.device}, chosen by {output.enum_word(run, 'rule')}"
        case "job_requeued":
            run = event.job_requeued.run
            return f"{run.job_id} is queued again: {output.enum_word(run, 'outcome')}"
        case "job_ended":
            job = event.job_ended.job
            return job_sentence(job) + (f": {job.detail}" if job.detail else "")
        case "job_priority_changed":
            changed = event.job_priority_changed
            return f"{changed.job_id} has priority {changed.priority}"
        case "job_released":
            return f"{event.job_released.job_id} is a fair-share job now: its session expired"
        case "session_changed":
            session = event.session_changed.session
            state = session_state(session)
            has = " and has the device" if session.active and output.enum_word(session, "state") != "active" else ""
            return f"{session.session_id} is {state}{has}"
        case "session_jobs_ended":
            ended = event.session_jobs_ended
            state, reason = output.enum_word(ended, "state"), output.enum_reason(ended, "reason")
            return f"{ended.job_count} queued jobs of {ended.session_id} are {state} ({reason})"
        case "session_jobs_released":
            released = event.session_jobs_released
            return f"{released.job_count} queued jobs of {released.session_id} are fair-share jobs now: it expired"
        case _:
            return "something that this version does not know"


def session_state(session: Any) -> str:
    """State, and why it is closed: `closed (EXPIRED)`."""
    reason = output.enum_reason(session, "close_reason")
    state = output.enum_word(session, "state")
    return f"{state} ({reason})" if reason else state
