//! Plays the checks of tests/conformance and prints one line of JSON for each; see checks.yaml there.
//!
//!     cargo run --example conformance CHECKS.json

use std::{collections::HashMap, env, fs, process::ExitCode, time::Instant};

use base64::{prelude::BASE64_STANDARD, Engine};
use cadenza::{floats, reason, v1, Client, Options, DESCRIPTORS};
use prost_reflect::{
    prost::{self, Message},
    DescriptorPool, DynamicMessage, MessageDescriptor,
};
use serde_json::{json, Map, Value};
use std::time::Duration;
use tokio::time::{timeout_at, Instant as Moment};
use tokio_stream::{Stream, StreamExt};
use tonic::{metadata::MetadataKey, Code, Request, Response, Status};

const CALL_SECONDS_MAX: f64 = 30.0;
const TOLERANCE: f64 = 1e-6;

/// A call was refused, or something else is wrong.
enum Failure {
    Refused(Status),
    Wrong(String),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Refused(status)
    }
}

impl From<String> for Failure {
    fn from(problem: String) -> Self {
        Self::Wrong(problem)
    }
}

type Answers = std::pin::Pin<Box<dyn Stream<Item = Result<Value, Status>>>>;

struct Open {
    answers: Answers,
    deadline: Moment,
}

enum Reply {
    One(Value),
    Many(Answers),
}

/// Turns messages into JSON and back.
#[derive(Clone)]
struct Codec(DescriptorPool);

impl Codec {
    fn descriptor(&self, name: &str) -> MessageDescriptor {
        self.0.get_message_by_name(&format!("cadenza.v1.{name}")).expect("a message of the contract")
    }

    fn parse<T: Message + Default>(&self, name: &str, value: Value) -> Result<T, String> {
        let message = DynamicMessage::deserialize(self.descriptor(name), value).map_err(|e| e.to_string())?;
        message.transcode_to().map_err(|e| e.to_string())
    }

    fn show(&self, name: &str, message: &impl Message) -> Value {
        let mut shown = DynamicMessage::new(self.descriptor(name));
        shown.transcode_from(message).expect("the same contract");
        serde_json::to_value(shown).expect("JSON")
    }

    fn request<T: Message + Default>(
        &self,
        name: &str,
        step: &Map<String, Value>,
        user: &str,
    ) -> Result<Request<T>, String> {
        let value = step.get("request").cloned().unwrap_or_else(|| json!({}));
        dress(self.parse::<T>(name, value)?, step, user)
    }
}

/// The request with the deadline and the metadata of the step.
fn dress<T>(message: T, step: &Map<String, Value>, user: &str) -> Result<Request<T>, String> {
    let mut request = Request::new(message);
    request.set_timeout(Duration::from_secs_f64(seconds(step)));
    let user = step.get("user").map_or(user, |user| user.as_str().unwrap_or_default());
    let mut pairs: Vec<(&str, &str)> = vec![];
    if !user.is_empty() {
        pairs.push(("cadenza-user", user));
    }
    for (key, value) in step.get("metadata").and_then(Value::as_object).into_iter().flatten() {
        pairs.push((key, value.as_str().unwrap_or_default()));
    }
    for (key, value) in pairs {
        let key = MetadataKey::from_bytes(key.as_bytes()).map_err(|e| e.to_string())?;
        request.metadata_mut().insert(key, value.parse().map_err(|_| "metadata")?);
    }
    Ok(request)
}

fn seconds(step: &Map<String, Value>) -> f64 {
    step.get("timeout_s").and_then(Value::as_f64).unwrap_or(CALL_SECONDS_MAX)
}

/// Calls the RPC of a step by its generated client.
async fn call(codec: &Codec, client: &Client, step: &Map<String, Value>, user: &str) -> Result<Reply, Failure> {
    macro_rules! unary {
        ($service:ident . $method:ident, $name:literal) => {{
            let request = codec.request(concat!($name, "Request"), step, user)?;
            let answer = client.$service().$method(request).await?.into_inner();
            Ok(Reply::One(codec.show(concat!($name, "Response"), &answer)))
        }};
    }
    macro_rules! stream {
        ($service:ident . $method:ident, $name:literal) => {{
            let request = codec.request(concat!($name, "Request"), step, user)?;
            Ok(many(codec, client.$service().$method(request).await?, concat!($name, "Response")))
        }};
    }
    match step["call"].as_str().unwrap_or_default() {
        "ServerService/GetServerInfo" => unary!(server.get_server_info, "GetServerInfo"),
        "SessionService/CreateSession" => unary!(sessions.create_session, "CreateSession"),
        "SessionService/GetSession" => unary!(sessions.get_session, "GetSession"),
        "SessionService/ListSessions" => unary!(sessions.list_sessions, "ListSessions"),
        "SessionService/CloseSession" => unary!(sessions.close_session, "CloseSession"),
        "SessionService/CancelSession" => unary!(sessions.cancel_session, "CancelSession"),
        "SessionService/WatchSession" => stream!(sessions.watch_session, "WatchSession"),
        "SessionService/ListSessionEvents" => unary!(sessions.list_session_events, "ListSessionEvents"),
        "JobService/SubmitJob" => unary!(jobs.submit_job, "SubmitJob"),
        "JobService/SubmitJobs" => unary!(jobs.submit_jobs, "SubmitJobs"),
        "JobService/SubmitJobStream" => {
            let requests: Vec<v1::SubmitJobStreamRequest> = step["requests"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|one| codec.parse("SubmitJobStreamRequest", one.clone()))
                .collect::<Result<_, _>>()?;
            let answer = client.jobs().submit_job_stream(dress(tokio_stream::iter(requests), step, user)?).await?;
            Ok(many(codec, answer, "SubmitJobStreamResponse"))
        }
        "JobService/GetJob" => unary!(jobs.get_job, "GetJob"),
        "JobService/ListJobs" => unary!(jobs.list_jobs, "ListJobs"),
        "JobService/UpdateJobPriority" => unary!(jobs.update_job_priority, "UpdateJobPriority"),
        "JobService/CancelJob" => unary!(jobs.cancel_job, "CancelJob"),
        "JobService/WatchJob" => stream!(jobs.watch_job, "WatchJob"),
        "JobService/GetJobResult" => unary!(jobs.get_job_result, "GetJobResult"),
        "JobService/StreamJobResult" => stream!(jobs.stream_job_result, "StreamJobResult"),
        "JobService/GetJobPayload" => unary!(jobs.get_job_payload, "GetJobPayload"),
        "JobService/ListJobEvents" => unary!(jobs.list_job_events, "ListJobEvents"),
        "JobService/ListRuns" => unary!(jobs.list_runs, "ListRuns"),
        "DeviceService/ListDevices" => unary!(devices.list_devices, "ListDevices"),
        "DeviceService/GetDevice" => unary!(devices.get_device, "GetDevice"),
        "DeviceService/SubmitCalibration" => unary!(devices.submit_calibration, "SubmitCalibration"),
        "ReservationService/CreateReservation" => unary!(reservations.create_reservation, "CreateReservation"),
        "ReservationService/GetReservation" => unary!(reservations.get_reservation, "GetReservation"),
        "ReservationService/ListReservations" => unary!(reservations.list_reservations, "ListReservations"),
        "ReservationService/DeleteReservation" => unary!(reservations.delete_reservation, "DeleteReservation"),
        "ShareService/ListShares" => unary!(shares.list_shares, "ListShares"),
        "ShareService/GetShares" => unary!(shares.get_shares, "GetShares"),
        "ShareService/SetShares" => unary!(shares.set_shares, "SetShares"),
        other => Err(Failure::Wrong(format!("there is no {other} in this client"))),
    }
}

fn many<T: Message + 'static>(codec: &Codec, answer: Response<tonic::Streaming<T>>, name: &'static str) -> Reply {
    let codec = codec.clone();
    Reply::Many(Box::pin(answer.into_inner().map(move |message| message.map(|message| codec.show(name, &message)))))
}

/// Plays one check: its steps, one after the other, with what they saved.
struct Player<'a> {
    codec: &'a Codec,
    clients: &'a mut HashMap<String, Client>,
    variables: Map<String, Value>,
    streams: HashMap<String, Open>,
}

impl Player<'_> {
    async fn play(&mut self, steps: &[Value], user: &str) -> Result<(), String> {
        let user = self.fill(&json!(user));
        for (index, raw) in steps.iter().enumerate() {
            let step = self.fill(raw);
            let step = step.as_object().ok_or("a step is no object")?;
            let outcome = self.step(step, user.as_str().unwrap_or_default()).await;
            outcome.map_err(|problem| {
                format!("step {} ({}): {problem}", index + 1, step.get("call").unwrap_or(&Value::Null))
            })?;
        }
        Ok(())
    }

    async fn step(&mut self, step: &Map<String, Value>, user: &str) -> Result<(), String> {
        let answer = match (self.perform(step, user).await, step.get("refused")) {
            (Err(Failure::Wrong(problem)), _) => return Err(problem),
            (Err(Failure::Refused(status)), None) => return Err(format!("it was refused: {status}")),
            (Err(Failure::Refused(status)), Some(refused)) => {
                return differ(refused, Some(&describe(&status)), "refusal")
            }
            (Ok(answer), Some(_)) => return Err(format!("it was not refused, but answered {}", show(&answer))),
            (Ok(answer), None) => answer,
        };
        if let Some(expected) = step.get("expect") {
            differ(expected, Some(&answer), "answer")?;
        }
        for (name, path) in step.get("save").and_then(Value::as_object).into_iter().flatten() {
            let found = find(path.as_str().unwrap_or_default(), &answer)?.clone();
            self.variables.insert(name.clone(), found);
        }
        Ok(())
    }

    async fn perform(&mut self, step: &Map<String, Value>, user: &str) -> Result<Value, Failure> {
        if let Some(name) = step.get("cancel") {
            self.streams.remove(name.as_str().unwrap_or_default()).ok_or_else(|| "no such stream".to_owned())?;
            return Ok(json!({})); // tonic cancels a stream that is dropped, and nobody is left to be told
        }
        if let Some(name) = step.get("read") {
            let open =
                self.streams.get_mut(name.as_str().unwrap_or_default()).ok_or_else(|| "no such stream".to_owned())?;
            return read(open, step.get("until")).await;
        }
        let client = self.connect(step)?;
        if step.contains_key("assemble") {
            return self.assemble(&client, step, user).await;
        }
        // tonic tells the server the deadline, but does not watch it while it reads a stream.
        let deadline = Moment::now() + Duration::from_secs_f64(seconds(step));
        let called = timeout_at(deadline, call(self.codec, &client, step, user)).await;
        let answers = match called.map_err(|_| Status::deadline_exceeded("no answer in time"))?? {
            Reply::One(answer) => return Ok(answer),
            Reply::Many(answers) => answers,
        };
        let mut open = Open { answers, deadline };
        let answer = read(&mut open, step.get("until")).await?;
        if let Some(name) = step.get("stream") {
            self.streams.insert(name.as_str().unwrap_or_default().into(), open);
        }
        Ok(answer)
    }

    /// Reads a result in two streams, the second beginning where the first was broken off after one piece.
    async fn assemble(&self, client: &Client, step: &Map<String, Value>, user: &str) -> Result<Value, Failure> {
        let request = self.codec.request::<v1::StreamJobResultRequest>("StreamJobResultRequest", step, user)?;
        let job_id = request.get_ref().job_id.clone();
        let mut stream = client.jobs().stream_job_result(request).await?.into_inner();
        let first = stream.message().await?.ok_or_else(|| "there is no first piece".to_owned())?;
        drop(stream);
        let (mut data, mut pieces) = (first.data, 1);
        let rest = v1::StreamJobResultRequest { job_id, offset: data.len() as i64 };
        let mut stream = client.jobs().stream_job_result(dress(rest, step, user)?).await?.into_inner();
        while let Some(piece) = stream.message().await? {
            if piece.offset != data.len() as i64 {
                return Err(format!("a piece begins at {}, not at {}", piece.offset, data.len()).into());
            }
            data.extend(piece.data);
            pieces += 1;
        }
        if data.len() as i64 != first.total_bytes {
            return Err(format!("the pieces have {} bytes together, not {}", data.len(), first.total_bytes).into());
        }
        let result = v1::JobResult::decode(data.as_slice()).map_err(|error: prost::DecodeError| error.to_string())?;
        Ok(json!({"pieces": pieces, "result": self.codec.show("JobResult", &result)}))
    }

    fn connect(&mut self, step: &Map<String, Value>) -> Result<Client, String> {
        let text = |name: &str| self.variables[name].as_str().unwrap_or_default().to_owned();
        let (target, ca) = match (step.contains_key("tls"), step.get("server").and_then(Value::as_str)) {
            (true, _) => (text("tls_target"), Some(fs::read(text("tls_ca")).map_err(|error| error.to_string())?)),
            (false, Some(server)) => (text(&format!("{server}_target")), None),
            (false, None) => (text("target"), None),
        };
        if !self.clients.contains_key(&target) {
            let client = Client::new(&target, Options { ca, ..Default::default() }).map_err(|e| e.to_string())?;
            self.clients.insert(target.clone(), client);
        }
        Ok(self.clients[&target].clone())
    }

    /// `${name}` replaced; a text that is nothing else becomes the variable, whatever its type.
    fn fill(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => {
                if let Some(name) = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) {
                    if let Some(filling) = self.variables.get(name) {
                        return filling.clone();
                    }
                }
                let mut text = text.clone();
                for (name, filling) in &self.variables {
                    if let Some(filling) = filling.as_str() {
                        text = text.replace(&format!("${{{name}}}"), filling);
                    }
                }
                Value::String(text)
            }
            Value::Array(items) => items.iter().map(|item| self.fill(item)).collect(),
            Value::Object(items) => match items.get("$repeat").and_then(Value::as_array) {
                Some(repeat) => {
                    json!(repeat[0].as_str().unwrap_or_default().repeat(repeat[1].as_u64().unwrap_or(0) as usize))
                }
                None => items.iter().map(|(key, item)| (key.clone(), self.fill(item))).collect(),
            },
            other => other.clone(),
        }
    }
}

/// Reads until a message is like `until`; without it, to the end.
async fn read(open: &mut Open, until: Option<&Value>) -> Result<Value, Failure> {
    let mut messages = vec![];
    loop {
        let next = timeout_at(open.deadline, open.answers.next()).await;
        let Some(message) = next.map_err(|_| Status::deadline_exceeded("no message in time"))? else { break };
        messages.push(message?);
        if until.is_some_and(|until| differ(until, messages.last(), "").is_ok()) {
            return Ok(json!({ "messages": messages }));
        }
    }
    match until {
        Some(_) => {
            Err(format!("the stream ended without the message to stop at, after {}", show(&json!(messages))).into())
        }
        None => Ok(json!({ "messages": messages })),
    }
}

fn describe(status: &Status) -> Value {
    let code = match status.code() {
        Code::Cancelled => "CANCELLED".to_owned(), // the others are spelled alike
        other => format!("{other:?}").chars().enumerate().fold(String::new(), |mut name, (index, letter)| {
            if index > 0 && letter.is_uppercase() {
                name.push('_');
            }
            name.push(letter.to_ascii_uppercase());
            name
        }),
    };
    let mut described = json!({ "code": code, "metadata": {} });
    if let Some(info) = reason(status) {
        described["reason"] = json!(info.reason);
        described["metadata"] = json!(info.metadata);
    }
    described
}

fn find<'a>(path: &str, value: &'a Value) -> Result<&'a Value, String> {
    let mut found = Some(value);
    for part in path.split('.') {
        found = found.and_then(|value| match value {
            Value::Array(items) => {
                let index: i64 = part.parse().ok()?;
                items.get((if index < 0 { index + items.len() as i64 } else { index }) as usize)
            }
            other => other.get(part),
        });
    }
    found.ok_or_else(|| format!("there is nothing at {path} to save: {}", show(value)))
}

/// Where `actual` is not what `expected` asks for.
fn differ(expected: &Value, actual: Option<&Value>, place: &str) -> Result<(), String> {
    let seen = || actual.map_or("nothing".to_owned(), show);
    match expected {
        Value::Null if actual.is_none_or(Value::is_null) => Ok(()),
        Value::Array(items) => {
            let found = actual.and_then(Value::as_array).filter(|found| found.len() == items.len());
            let found = found.ok_or_else(|| format!("{place}: {} has not {} elements", seen(), items.len()))?;
            items
                .iter()
                .zip(found)
                .enumerate()
                .try_for_each(|(i, (item, one))| differ(item, Some(one), &format!("{place}.{i}")))
        }
        Value::Object(items) => {
            let mut matchers = items.iter().filter(|(name, _)| name.starts_with('$')).peekable();
            if matchers.peek().is_some() {
                return match matchers.find(|(name, argument)| !matches(name, argument, actual)) {
                    Some((name, argument)) => Err(format!("{place}: {} is not {name} {}", seen(), show(argument))),
                    None => Ok(()),
                };
            }
            let found = actual.and_then(Value::as_object).ok_or_else(|| format!("{place}: {} is no object", seen()))?;
            items.iter().try_for_each(|(key, item)| differ(item, found.get(key), &format!("{place}.{key}")))
        }
        Value::Number(number) if number.as_f64() == actual.and_then(Value::as_f64) => Ok(()),
        other if Some(other) == actual => Ok(()),
        other => Err(format!("{place}: {} is not {}", seen(), show(other))),
    }
}

fn matches(name: &str, argument: &Value, actual: Option<&Value>) -> bool {
    let items = actual.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let data = || BASE64_STANDARD.decode(actual.and_then(Value::as_str).unwrap_or_default()).unwrap_or_default();
    let like = |item: &Value| differ(argument, Some(item), "").is_ok();
    let arguments = argument.as_array().map(Vec::as_slice).unwrap_or_default();
    match name {
        "$present" => Some(actual.is_some()) == argument.as_bool(),
        "$length" => Some(items.len() as u64) == argument.as_u64(),
        "$min" => {
            let number = actual.and_then(|actual| actual.as_f64().or_else(|| actual.as_str()?.parse().ok()));
            number.zip(argument.as_f64()).is_some_and(|(number, least)| number >= least)
        }
        "$in" => arguments.contains(actual.unwrap_or(&Value::Null)),
        "$first" => items.first().is_some_and(like),
        "$last" => items.last().is_some_and(like),
        "$contains" => items.iter().any(like),
        "$bytes" => Some(data().len() as u64) == argument.as_u64(),
        "$bytes_in" => data().iter().all(|byte| arguments.contains(&json!(byte))),
        "$float64s" => {
            let values = floats(&data());
            values.len() == arguments.len()
                && values.iter().zip(arguments).all(|(a, b)| b.as_f64().is_some_and(|b| (a - b).abs() < TOLERANCE))
        }
        other => panic!("there is no matcher {other}"),
    }
}

fn show(value: &Value) -> String {
    value.to_string().chars().take(300).collect()
}

#[tokio::main]
async fn main() -> ExitCode {
    let file = env::args().nth(1).expect("the file with the checks");
    let plan: Value = serde_json::from_str(&fs::read_to_string(file).expect("a file")).expect("JSON");
    let codec = Codec(DescriptorPool::decode(DESCRIPTORS).expect("descriptors"));
    let mut clients = HashMap::new();
    let mut code = ExitCode::SUCCESS;
    for check in plan["checks"].as_array().expect("checks") {
        let began = Instant::now();
        let mut player = Player {
            codec: &codec,
            clients: &mut clients,
            variables: plan["variables"].as_object().expect("variables").clone(),
            streams: HashMap::new(),
        };
        let user = check["user"].as_str().unwrap_or("${run}/ann");
        let problem = player.play(check["steps"].as_array().expect("steps"), user).await.err().unwrap_or_default();
        if !problem.is_empty() {
            code = ExitCode::FAILURE;
        }
        let ms = began.elapsed().as_millis() as u64;
        println!("{}", json!({"check": check["name"], "passed": problem.is_empty(), "ms": ms, "problem": problem}));
    }
    code
}
