//! An iterative program: opens a session, sends a circuit with a parameter once, then only values of the parameter with
//! the circuit's digest, follows each job, reads expectation values and counts, and closes the session.
//!
//!     cargo run --example sweep [TARGET] [DEVICE]

use std::{env, error::Error, f64::consts::PI, fs, process::ExitCode};

use cadenza::{
    counts, field, floats, reason, tensor,
    v1::{
        circuit::Source, data_field::Value, event::Change, program::Kind, Circuit, CloseSessionRequest,
        CreateSessionRequest, EstimatorJob, EstimatorPub, GetJobResultRequest, Job, JobReason, JobResult, JobSpec,
        JobState, Observable, ObservablesArray, PauliTerm, Program, SamplerJob, SamplerPub, SubmitJobRequest,
    },
    Client, Options,
};
use sha2::{Digest, Sha256};
use tonic::{Code, Status};

const CIRCUIT: &str = r#"OPENQASM 3.0;
include "stdgates.inc";
input angle theta;
qubit[2] q;
ry(theta) q[0];
cx q[0], q[1];
"#;
const MEASUREMENT: &str = "bit[2] c;\nc = measure q;\n";

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let target = arguments.next().unwrap_or_else(|| "127.0.0.1:50051".into());
    let device = arguments.next().unwrap_or_else(|| "aer".into());
    let client = match connect(&target) {
        Ok(client) => client,
        Err(error) => {
            eprintln!("cannot connect to {target}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let Err(status) = sweep(&client, &device).await else { return ExitCode::SUCCESS };
    match reason(&status) {
        Some(info) if info.reason == "UNKNOWN_DEVICE" => {
            eprintln!("there is no device {device}; `cadenza devices` lists them")
        }
        Some(info) => eprintln!("refused, {} {:?}: {}", info.reason, info.metadata, status.message()),
        None => eprintln!("{status}"),
    }
    ExitCode::FAILURE
}

fn connect(target: &str) -> Result<Client, Box<dyn Error + Send + Sync>> {
    let ca = match env::var("CADENZA_TLS_CA") {
        Ok(file) => Some(fs::read(&file).map_err(|error| format!("CADENZA_TLS_CA={file}: {error}"))?),
        Err(_) => None,
    };
    let user = env::var("CADENZA_USER").or_else(|_| env::var("USER")).ok();
    Client::new(target, Options { user, token: env::var("CADENZA_TOKEN").ok(), ca })
}

async fn sweep(client: &Client, device: &str) -> Result<(), Status> {
    let request = CreateSessionRequest { device: device.into(), ..Default::default() };
    let session = client.sessions().create_session(request).await?.into_inner().session.expect("a session");
    println!("session {}", session.session_id);
    let outcome = iterate(client, &session.session_id).await;
    let request = CloseSessionRequest { session_id: session.session_id, ..Default::default() };
    let closed = client.sessions().close_session(request).await;
    outcome.and(closed.map(|_| ())) // what went wrong first is what is told
}

async fn iterate(client: &Client, session: &str) -> Result<(), Status> {
    let mut source = Source::Openqasm3(CIRCUIT.into());
    for step in 0..5 {
        let theta = f64::from(step) * PI / 4.0;
        let terms = ["IZ", "XX"].map(|pauli| PauliTerm { pauli: pauli.into(), coefficient: 0.5 }).into();
        let pub_ = EstimatorPub {
            circuit: Some(Circuit { source: Some(source) }),
            parameter_values: Some(tensor(&[1], &[theta])),
            observables: Some(ObservablesArray { shape: vec![], observables: vec![Observable { terms }] }),
            ..Default::default()
        };
        let job = EstimatorJob { pubs: vec![pub_], ..Default::default() };
        let result = run(client, session, Kind::Estimator(job)).await?;
        if let Some(Value::Tensor(evs)) = field(&result.pubs[0], "evs") {
            println!("theta {theta:.3}  energy {:+.6}", floats(&evs.data)[0]);
        }
        source = Source::Digest(Sha256::digest(CIRCUIT).to_vec()); // the session has it now
    }
    let pub_ = SamplerPub {
        circuit: Some(Circuit { source: Some(Source::Openqasm3(format!("{CIRCUIT}{MEASUREMENT}"))) }),
        parameter_values: Some(tensor(&[1], &[PI / 2.0])),
        shots: Some(1000),
        ..Default::default()
    };
    let job = SamplerJob { pubs: vec![pub_], ..Default::default() };
    let result = run(client, session, Kind::Sampler(job)).await?;
    if let Some(Value::Bits(bits)) = field(&result.pubs[0], "c") {
        println!("counts at pi/2 {:?}", counts(bits));
    }
    Ok(())
}

/// Submits a job to the session and waits for its result.
async fn run(client: &Client, session: &str, kind: Kind) -> Result<JobResult, Status> {
    let job = JobSpec { session_id: session.into(), program: Some(Program { kind: Some(kind) }), ..Default::default() };
    let request = SubmitJobRequest { job: Some(job), ..Default::default() };
    let job_id = client.jobs().submit_job(request).await?.into_inner().job.expect("a job").job_id;
    let mut last: (Option<Job>, Option<JobResult>) = (None, None);
    client
        .watch(&job_id, |event| match event.change {
            Some(Change::JobSnapshot(snapshot)) => last = (snapshot.job, snapshot.result),
            Some(Change::JobEnded(ended)) => last = (ended.job, ended.result),
            _ => {}
        })
        .await?;
    match last {
        (Some(job), _) if job.state() != JobState::Succeeded => Err(Status::new(
            Code::Aborted,
            format!("job {job_id}: {}: {}", JobReason::as_str_name(&job.reason()), job.detail),
        )),
        (_, Some(result)) => Ok(result),
        _ => {
            let answer = client.jobs().get_job_result(GetJobResultRequest { job_id }).await?; // too large to ride along
            Ok(answer.into_inner().result.expect("a result"))
        }
    }
}
