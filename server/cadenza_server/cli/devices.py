"""`cadenza devices`, `queue` and `calibrate`: what there is, who has it, who waits."""

import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cadenza_server.cli import output
from cadenza_server.cli.connection import calls_server
from cadenza_server.cli.job_view import announce
from cadenza_server.cli.output import ABSENT
from cadenza_server.cli.times import check_length
from cadenza_server.cli.waiting import time_shower

if TYPE_CHECKING:
    from cadenza import Client
    from cadenza.v1.device_pb2 import Device, DeviceProperties
    from cadenza.v1.reservation_pb2 import Reservation
    from cadenza.v1.share_pb2 import ShareNode
    from rich.console import RenderableType

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")]

REFRESH_SECONDS: Final = 2.0


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(
        rich_help_panel="Devices",
        epilog="Examples:\ncadenza devices\ncadenza devices aer_noisy\ncadenza devices --json | jq -r .name",
    )(devices)
    app.command(
        "check-gpu",
        rich_help_panel="For operators",
        epilog="Example:\ncadenza check-gpu",
    )(check_gpu)
    app.command(
        rich_help_panel="Devices",
        epilog="Examples:\ncadenza queue\ncadenza queue aer --watch",
    )(queue)
    app.command(
        rich_help_panel="For operators",
        epilog="Examples:\ncadenza calibrate aer_noisy\ncadenza calibrate aer_noisy --duration 90s",
    )(calibrate)


@calls_server
def devices(
    client: "Client",
    name: Annotated[str | None, typer.Argument(help="One device, with its properties and settings.")] = None,
    json: JsonOption = False,
) -> None:
    """List the devices, or show one.

    UNTIL: when a held device is let go of unless its session submits another job, or when a reservation ends. EST OFF:
    the factor by which half of the latest runs were at most longer or shorter than estimated; 1x is exact.
    """
    now = datetime.now(UTC)
    if name is None:
        found = client.list_devices()
        if json:
            for each in found:
                output.print_json(each)
        else:
            output.make_console().print(_devices_table(found, _find_windows(client, found), now))
        return
    device = client.get_device(name)
    if json:
        output.print_json(device)
        return
    console = output.make_console()
    console.print(output.make_facts(_device_facts(device, _find_windows(client, [device]), now)))
    console.print("\nScheduling", style="bold")
    console.print(output.make_facts(_setting_facts(device)))
    if device.properties.qubits or device.properties.gates:
        console.print(f"\nProperties in epoch {device.properties.epoch}, median (least to most)", style="bold")
        console.print(output.make_facts(_property_facts(device.properties)))


def check_gpu() -> None:
    """Say whether devices on this machine can compute on a GPU, and run a circuit on it.

    No server is needed. Without a GPU it says why, and ends with 1.
    """
    from cadenza_server.execution.accelerators import ask_aer, try_gpu

    offer = ask_aer()
    packages = ", ".join(f"{name} {version}" for name, version in offer.packages.items()) or "none"
    output.make_console().print(
        output.make_facts(
            (
                ("installed", packages),
                ("Aer computes on", ", ".join(offer.devices) or ABSENT),
                ("GPUs that the driver shows", offer.gpu_count),
            )
        )
    )
    problem = offer.explain() or try_gpu()
    for text in (problem, offer.warn()):
        if text:
            typer.echo(text, err=True)
    if problem:
        raise typer.Exit(1)
    typer.echo('A circuit ran on the GPU: set accelerator = "gpu" or "auto" for a device.')


@calls_server
def queue(
    client: "Client",
    device: Annotated[str | None, typer.Argument(help="Only this device.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until Ctrl-C.")] = False,
    json: JsonOption = False,
) -> None:
    """Show who has each device and who waits for it.

    The order is calibration, then the active session, then fair share: at each level of the share tree the one with the
    least usage over shares goes first. Usage is decayed device seconds, all devices together. `cadenza job JOB` says
    why a job waits.
    """
    if json:
        for _ in _rounds(watch):
            for found, nodes in _read_queues(client, device):
                waiting = [output.message_to_dict(node) for node in nodes]
                output.print_json({"device": output.message_to_dict(found), "shares": waiting})
        return
    console = output.make_console(bound=watch)
    if not watch:
        console.print(_show_queues(client, device))
        return
    from rich.live import Live

    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        for _ in _rounds(watch):
            live.update(_show_queues(client, device), refresh=True)


@calls_server
def calibrate(
    client: "Client",
    device: Annotated[str, typer.Argument(help="The device.")],
    duration: Annotated[
        str | None, typer.Option(metavar="LENGTH", help="How long it takes, such as 90s. Default: the device's own.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Submit a calibration job. If it succeeds, a new epoch of the device begins."""
    job = client.submit_calibration(device, duration=check_length("--duration", duration))
    announce(job, json)


def _rounds(watch: bool) -> Iterator[None]:
    """Once, or again and again: nothing streams the state of a device, so it is asked for."""
    yield
    while watch:
        time.sleep(REFRESH_SECONDS)
        yield


def _find_windows(client: "Client", found: "Iterable[Device]") -> "dict[str, Reservation]":
    """The reservations, by id, whose windows are open on these devices."""
    if not any(each.reservation_id for each in found):
        return {}
    return {each.reservation_id: each for each in client.list_reservations(states=["active"])}


def _devices_table(found: "Iterable[Device]", windows: "Mapping[str, Reservation]", now: datetime) -> "RenderableType":
    rows = [
        (
            each.name,
            each.kind,
            _state(each),
            _until(each, windows, now),
            each.num_qubits,
            "yes" if each.noisy else "no",
            each.epoch,
            output.or_absent(each.running_user),
            output.or_absent(each.active_user),
            each.queue_counts.calibration + each.queue_counts.session + each.queue_counts.fair_share,
            f"{each.estimate_error.factor_p50:.3g}x" if each.HasField("estimate_error") else ABSENT,
        )
        for each in found
    ]
    users = ("RUNS JOB OF", "SESSION OF")
    header = ("DEVICE", "KIND", "STATE", "UNTIL", "QUBITS", "NOISY", "EPOCH", *users, "WAITING", "EST OFF")
    return output.make_table(
        header, rows, right=("QUBITS", "EPOCH", "WAITING", "EST OFF"), optional={"UNTIL": output.ABSENT}
    )


def _until(device: "Device", windows: "Mapping[str, Reservation]", now: datetime) -> str:
    """When it is free for others, if that is known: held or reserved, and nothing runs."""
    state = _state(device)
    if state == "held":
        return output.time_or_absent(device, "active_session_idle_expire_time", now)
    if state == "reserved" and device.reservation_id in windows:
        return output.time_or_absent(windows[device.reservation_id], "end_time", now)
    return ABSENT


def _device_facts(device: "Device", windows: "Mapping[str, Reservation]", now: datetime) -> list[tuple[str, object]]:
    window = windows.get(device.reservation_id)
    reserved = ABSENT
    if device.reservation_id:
        reserved = device.reservation_id
        if window is not None:
            reserved += f", for {window.holder} until {output.format_time(window.end_time, now)}"
    facts: list[tuple[str, object]] = [
        ("device", device.name),
        ("description", output.or_absent(device.description)),
        ("kind", f"{device.kind}, {'simulator' if device.simulator else 'quantum processor'}"),
        ("state", _with_detail(_state(device), device.detail)),
        ("runs now", _of(device.running_job_id, device.running_user)),
        ("since", output.time_or_absent(device, "running_start_time", now)),
        ("active session", _of(device.active_session_id, device.active_user)),
        ("lets go if idle", output.time_or_absent(device, "active_session_idle_expire_time", now)),
        ("session expires", output.time_or_absent(device, "active_session_expire_time", now)),
        ("reservation now", reserved),
        ("waiting", _waiting(device)),
        ("qubits", device.num_qubits),
        ("basis gates", " ".join(device.basis_gates) or ABSENT),
        ("coupling", f"{len(device.coupling_map)} pairs" if device.coupling_map else "all pairs"),
        ("noisy", "yes" if device.noisy else "no"),
        ("methods", " ".join(device.methods) or ABSENT),
        ("computes on", output.or_absent(device.accelerator)),
        ("default shots", device.default_shots),
        ("epoch", device.epoch),
        ("calibrated", output.time_or_absent(device, "calibrate_time", now)),
        ("next calibration", output.time_or_absent(device, "next_calibration_time", now)),
        ("estimates off by", _estimate_error(device)),
    ]
    return facts


def _estimate_error(device: "Device") -> str:
    """How far the estimates of the latest runs were off at most, as a factor and a time: in half of them, in nine of
    ten."""
    if not device.HasField("estimate_error"):
        return ABSENT
    error = device.estimate_error
    middle, most = (output.length_or_absent(error, f"difference_p{percent}") for percent in (50, 90))
    runs = "1 run" if error.run_count == 1 else f"{error.run_count} runs"
    return f"{error.factor_p50:.3g}x or {middle} (half of {runs}), {error.factor_p90:.3g}x or {most} (nine in ten)"


def _setting_facts(device: "Device") -> list[tuple[str, object]]:
    settings = device.settings
    facts: list[tuple[str, object]] = []
    for field in settings.DESCRIPTOR.fields:
        if field.enum_type is not None:
            facts.append((field.name, output.enum_reason(settings, field.name) or ABSENT))
        elif field.message_type is not None:
            facts.append((field.name, output.length_or_absent(settings, field.name)))
        else:
            facts.append((field.name, getattr(settings, field.name)))
    return facts


def _property_facts(properties: "DeviceProperties") -> list[tuple[str, object]]:
    qubits = properties.qubits
    facts = _spread("T1", [each.t1_s * 1e6 for each in qubits if each.HasField("t1_s")], " us")
    facts += _spread("T2", [each.t2_s * 1e6 for each in qubits if each.HasField("t2_s")], " us")
    facts += _spread("readout error", [q.readout_error for q in qubits if q.HasField("readout_error")], "")
    errors: dict[str, list[float]] = defaultdict(list)
    for gate in properties.gates:
        if gate.HasField("error"):
            errors[gate.gate].append(gate.error)
    for name, values in sorted(errors.items()):
        facts += _spread(f"{name} error", values, "")
    return facts


def _spread(label: str, values: Sequence[float], unit: str) -> list[tuple[str, object]]:
    if not values:
        return []
    return [(label, f"{statistics.median(values):.3g}{unit} ({min(values):.3g} to {max(values):.3g})")]


def _read_queues(client: "Client", name: str | None) -> "list[tuple[Device, list[ShareNode]]]":
    """Devices, each with the nodes of the share tree that have jobs for it."""
    found = client.list_devices() if name is None else [client.get_device(name)]
    nodes = [client.list_shares(device=each.name) for each in found]
    return [
        (device, [node for node in tree if node.queued_job_count or node.running_job_count])
        for device, tree in zip(found, nodes, strict=True)
    ]


def _show_queues(client: "Client", name: str | None) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    now = datetime.now(UTC)
    found = _read_queues(client, name)
    reservations = client.list_reservations(device=name or "")
    parts: list[RenderableType] = []
    for device, nodes in found:
        if parts:
            parts.append(Text())
        of_device = [each for each in reservations if each.device == device.name]
        parts.append(Text(f"{device.name}: {who_has(device, of_device, now)}", style="bold"))
        parts.append(Text(f"waiting: {_waiting(device)}"))
        if nodes:
            parts.append(_waiting_table(nodes))
    return Group(*parts)


def _waiting_table(nodes: "Sequence[ShareNode]") -> "RenderableType":
    rows = [
        (
            "  " * node.path.count("/") + node.path.rpartition("/")[2],
            node.queued_job_count,
            node.running_job_count,
            f"{node.shares:g}",
            output.format_usage(node.settled_usage_s + node.in_flight_usage_s),
            output.format_usage(node.normalised_usage_s),
        )
        for node in by_fair_share(nodes)
    ]
    header = ("  WHO", "WAITING", "RUNNING", "SHARES", "USAGE S", "USAGE/SHARES")
    return output.make_table(header, [(f"  {row[0]}", *row[1:]) for row in rows], right=header[1:])


def by_fair_share(nodes: "Sequence[ShareNode]") -> "list[ShareNode]":
    """The nodes as a tree, an account before what is below it, siblings by usage over shares, the least first."""
    known = {node.path for node in nodes}
    below: dict[str, list[ShareNode]] = defaultdict(list)
    for node in nodes:
        parent = node.path.rpartition("/")[0]
        below[parent if parent in known else ""].append(node)

    def walk(parent: str) -> "Iterator[ShareNode]":
        for node in sorted(below[parent], key=lambda each: (each.normalised_usage_s, each.path)):
            yield node
            yield from walk(node.path)

    return list(walk(""))


def _state(device: "Device") -> str:
    """A device that nothing uses is not free for everybody while the window of a reservation is open."""
    state = output.enum_word(device, "state")
    return "reserved" if state == "free" and device.reservation_id else state


def who_has(device: "Device", reservations: "Sequence[Reservation]", now: datetime) -> str:
    """Who uses a device, until when, and why others may have to wait. `reservations`: the device's, by start."""
    from cadenza._waiting import show_owner, show_running, show_until, show_window

    show_time = time_shower(now)
    windows = {each.reservation_id: each for each in reservations}
    held = _state(device) == "held"
    parts = []
    if device.running_job_id:
        parts.append(show_running(device, show_time).removeprefix(f"{device.name} "))
    elif _state(device) not in ("held", "reserved"):
        parts.append(_with_detail(_state(device), device.detail))
    if device.active_session_id:
        verb = "held by" if held else "the active session is"
        parts.append(f"{verb} {show_owner(device)}{show_until(device, show_time)}")
    window = windows.get(device.reservation_id)
    if window is not None:
        parts.append(show_window(window, show_time))
    elif device.reservation_id:
        parts.append(f"reserved ({device.reservation_id})")
    ahead = [each for each in reservations if each.start_time.ToDatetime(tzinfo=UTC) > now]
    if ahead:
        parts.append(f"next reserved for {ahead[0].holder}, from {show_time(ahead[0].start_time)}")
    return "; ".join(parts)


def _waiting(device: "Device") -> str:
    counts = device.queue_counts
    return f"{counts.calibration} calibration, {counts.session} session, {counts.fair_share} fair share"


def _of(name: str, owner: str) -> str:
    if not name:
        return ABSENT
    return f"{name} of {owner}" if owner else name


def _with_detail(state: str, detail: str) -> str:
    return f"{state}: {detail}" if detail else state
