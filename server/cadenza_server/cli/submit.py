"""`cadenza submit`: one circuit from a file, as one job."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cadenza_server.cli import job_view, output
from cadenza_server.cli.circuit_file import check_circuit, parse_observable, parse_parameters, read_circuit
from cadenza_server.cli.connection import INTERRUPTED, calls_server
from cadenza_server.cli.failure import fail
from cadenza_server.cli.jobs import follow
from cadenza_server.cli.times import check_length

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cadenza import Client
    from cadenza.v1.circuit_pb2 import Circuit
    from cadenza.v1.job_pb2 import Job
    from cadenza.v1.program_pb2 import ExecutionOptions, Program

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        rich_help_panel="Jobs",
        epilog="Examples:\ncadenza submit bell.qasm --device aer --shots 1000 --wait\n"
        "cadenza submit ansatz.qasm --device aer --parameter theta=0.5 --observable '0.5*ZZ - 1.2*XI' --wait\n"
        "cadenza submit circuit.qpy --session SESSION --tag vqe --json | jq -r .job_id",
    )(submit)


@calls_server
def submit(
    client: "Client",
    file: Annotated[Path, typer.Argument(metavar="FILE", help="OpenQASM 2 or 3, or QPY; - for the standard input.")],
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="Where it shall run. May be left out if there is only one.")
    ] = "",
    session: Annotated[str, typer.Option(metavar="SESSION", help="The session that it belongs to.")] = "",
    shots: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How often it is run. Default: the device's.")
    ] = None,
    observable: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="Estimate this and return no counts: ZZ, or 0.5*ZZ - 1.2*XI. May be repeated."
        ),
    ] = None,
    precision: Annotated[
        float | None, typer.Option(min=0.0, metavar="NUMBER", help="Standard error of observables to aim at; 0: exact.")
    ] = None,
    parameter: Annotated[
        list[str] | None, typer.Option(metavar="NAME=NUMBER", help="A parameter's value. May be repeated.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Seed of all random choices.")] = None,
    transpile_level: Annotated[
        int | None, typer.Option(min=0, max=3, metavar="N", help="How much the worker optimises, 0 to 3.")
    ] = None,
    priority: Annotated[
        int, typer.Option(min=-100, max=100, metavar="N", help="Orders your own jobs; higher goes first.")
    ] = 0,
    tag: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="To find it by. May be repeated.")] = None,
    max_execution_time: Annotated[
        str | None, typer.Option(metavar="LENGTH", help="Its limit on the device, such as 90s.")
    ] = None,
    estimate_hint: Annotated[
        str | None, typer.Option(metavar="LENGTH", help="Your guess of its time on the device; advice.")
    ] = None,
    job_id: Annotated[
        str, typer.Option("--id", metavar="JOB", help="The job's id. Default: the server makes one.")
    ] = "",
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Parse the circuit here first; takes a second to load Qiskit.")
    ] = True,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait, and print the result.")] = False,
    json: JsonOption = False,
) -> None:
    """Submit a circuit as a job. When it is accepted, it is on the server's disk.

    With --json it prints the job; with --wait too, what `cadenza job --json` prints. The exit code after --wait is 0
    only if the job succeeded. Ctrl-C ends the waiting, not the job.
    """
    if shots is not None and observable:
        fail("--shots is for counts; with --observable say --precision", 2)
    if precision is not None and not observable:
        fail("--precision is for observables: give --observable, or --shots", 2)
    limit = check_length("--max-execution-time", max_execution_time)
    hint = check_length("--estimate-hint", estimate_hint)
    values = parse_parameters(parameter or ())
    circuit = read_circuit(file)
    options = make_options(seed, transpile_level)
    program = make_program(circuit, values, observable or (), shots, precision, options)
    if check:
        parsed = check_circuit(file, circuit, values, observable or ())
        if not session:
            _check_qubits(client, device, parsed.num_qubits)
    job = client.submit_job(
        program,
        device=device or ("" if session else _only_device(client)),
        session_id=session,
        priority=priority,
        tags=tag or (),
        max_execution_time=limit,
        estimate_hint=hint,
        job_id=job_id,
    )
    if not wait:
        job_view.announce(job, json)
        return
    _wait(client, job, json)


def make_options(seed: int | None, transpile_level: int | None) -> "ExecutionOptions":
    """How to execute; what is None is the device's default."""
    from cadenza.v1.program_pb2 import ExecutionOptions

    return ExecutionOptions(seed=seed, transpile_level=transpile_level)


def make_program(
    circuit: "Circuit",
    values: "Mapping[str, float]",
    observables: "Sequence[str]",
    shots: int | None,
    precision: float | None,
    options: "ExecutionOptions",
) -> "Program":
    """A Sampler's call with one PUB, or an Estimator's if there are observables."""
    import struct

    from cadenza.v1.program_pb2 import (
        EstimatorJob,
        EstimatorPub,
        ObservablesArray,
        Program,
        SamplerJob,
        SamplerPub,
    )
    from cadenza.v1.tensor_pb2 import DTYPE_FLOAT64, Tensor

    tensor = None
    if values:
        data = struct.pack(f"<{len(values)}d", *values.values())
        tensor = Tensor(dtype=DTYPE_FLOAT64, shape=[len(values)], data=data)
    if not observables:
        pub = SamplerPub(circuit=circuit, parameter_values=tensor, parameter_names=list(values), shots=shots)
        return Program(sampler=SamplerJob(pubs=[pub], options=options))
    array = ObservablesArray(
        shape=[len(observables)] if len(observables) > 1 else [],
        observables=[parse_observable(each) for each in observables],
    )
    estimated = EstimatorPub(
        circuit=circuit,
        observables=array,
        parameter_values=tensor,
        parameter_names=list(values),
        precision=precision,
    )
    return Program(estimator=EstimatorJob(pubs=[estimated], options=options))


def _only_device(client: "Client") -> str:
    names = [each.name for each in client.list_devices()]
    if len(names) != 1:
        fail("say where it shall run: " + ", ".join(f"--device {name}" for name in names), 2)
    return names[0]


def _check_qubits(client: "Client", device: str, num_qubits: int) -> None:
    found = client.get_device(device or _only_device(client))
    if num_qubits > found.num_qubits:
        fail(f"the circuit has {num_qubits} qubits, {found.name} has {found.num_qubits}: choose another device", 2)


def _wait(client: "Client", job: "Job", json: bool) -> None:
    """Wait for the final state and print all; the exit code says whether it succeeded."""
    try:
        if json:
            with client.watch_job(job.job_id) as changes:
                for _ in changes:
                    pass
        else:
            follow(client, job.job_id, json)
    except KeyboardInterrupt:
        typer.echo(f"\n{job.job_id} goes on; `cadenza job {job.job_id}` shows it.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    ended = client.get_job(job.job_id)
    if json:
        output.print_json(job_view.read_document(client, ended))
    else:
        typer.echo("")
        job_view.print_job(client, ended, output.make_console(), with_events=False)
    if output.enum_word(ended, "state") != "succeeded":
        fail(job_view.job_sentence(ended) + (f": {ended.detail}" if ended.detail else ""))
