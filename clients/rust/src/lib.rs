//! A client of the Cadenza scheduling server: connections, refusals by reason, watches that go on, tensors and counts.
//! Messages and service clients are in [`v1`], generated from the contract.

use std::{collections::BTreeMap, time::Duration};

use tonic::{
    metadata::{Ascii, MetadataValue},
    service::{interceptor::InterceptedService, Interceptor},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
    Code, Request, Status,
};
use tonic_types::{ErrorInfo, StatusExt};

/// Messages and service clients of the contract.
#[allow(clippy::all)]
pub mod v1 {
    tonic::include_proto!("cadenza.v1");
}

/// The contract, and `google/rpc/error_details.proto`, as a serialised `FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Domain of the server's `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "cadenza";

/// Who calls, and how the server is reached.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Path in the share tree, such as `lab/alice`: for servers that trust names.
    pub user: Option<String>,
    /// For servers with tokens; it says who calls.
    pub token: Option<String>,
    /// PEM of the authority that signed the server's certificate; without it, no TLS.
    pub ca: Option<Vec<u8>>,
}

/// Adds who calls to the metadata of every call.
#[derive(Clone, Debug, Default)]
pub struct Identify(Option<(&'static str, MetadataValue<Ascii>)>);

impl Interceptor for Identify {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some((key, value)) = &self.0 {
            request.metadata_mut().insert(*key, value.clone());
        }
        Ok(request)
    }
}

type Service = InterceptedService<Channel, Identify>;

/// One connection to a server. Cheap to clone; clones share the connection.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    identify: Identify,
}

macro_rules! services {
    ($($name:ident: $module:ident :: $client:ident),* $(,)?) => {$(
        /// The service's generated client; results may be larger than tonic takes unless told otherwise.
        pub fn $name(&self) -> v1::$module::$client<Service> {
            v1::$module::$client::with_interceptor(self.channel.clone(), self.identify.clone())
                .max_decoding_message_size(usize::MAX)
        }
    )*};
}

impl Client {
    /// A client of the server at `target`, `HOST:PORT`. The connection is made with the first call.
    pub fn new(target: &str, options: Options) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let channel = match options.ca {
            None => Endpoint::from_shared(format!("http://{target}"))?,
            Some(pem) => Endpoint::from_shared(format!("https://{target}"))?
                .tls_config(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)))?,
        };
        let identity = match (options.token, options.user) {
            (Some(token), _) => Some(("authorization", format!("Bearer {token}").parse()?)),
            (None, Some(user)) => Some(("cadenza-user", user.parse()?)),
            (None, None) => None,
        };
        Ok(Self { channel: channel.connect_lazy(), identify: Identify(identity) })
    }

    services! {
        server: server_service_client::ServerServiceClient,
        sessions: session_service_client::SessionServiceClient,
        jobs: job_service_client::JobServiceClient,
        devices: device_service_client::DeviceServiceClient,
        reservations: reservation_service_client::ReservationServiceClient,
        shares: share_service_client::ShareServiceClient,
    }

    /// Calls `see` for every change of a job until it is final. A stream that breaks goes on after the last event seen.
    pub async fn watch(&self, job_id: &str, mut see: impl FnMut(v1::Event)) -> Result<(), Status> {
        let mut request = v1::WatchJobRequest { job_id: job_id.into(), include_results: true, ..Default::default() };
        loop {
            let broken = match self.jobs().watch_job(request.clone()).await {
                Err(status) => status,
                Ok(answer) => {
                    let mut stream = answer.into_inner();
                    loop {
                        match stream.message().await {
                            Ok(None) => return Ok(()),
                            Ok(Some(message)) => {
                                if let Some(event) = message.event {
                                    request.resume_after = Some(event.event_number);
                                    see(event);
                                }
                            }
                            Err(status) => break status,
                        }
                    }
                }
            };
            let reason = reason(&broken).map(|info| info.reason).unwrap_or_default();
            match (request.resume_after, reason.as_str(), broken.code()) {
                (Some(_), "RESUME_TOO_OLD", _) => request.resume_after = None, // begin again with a snapshot
                (Some(_), "WATCH_TOO_SLOW", _) => {}
                // the server restarts, perhaps
                (Some(_), _, Code::Unavailable) => tokio::time::sleep(Duration::from_secs(1)).await,
                _ => return Err(broken),
            }
        }
    }
}

/// Why a call was refused: `reason` is a name of [`v1::ErrorReason`] without its prefix, `metadata` what it is about.
/// None if the status is no refusal of the server.
pub fn reason(status: &Status) -> Option<ErrorInfo> {
    status.get_details_error_info().filter(|info| info.domain == DOMAIN)
}

/// An array of doubles as the contract carries it: C order, little-endian.
pub fn tensor(shape: &[i64], values: &[f64]) -> v1::Tensor {
    v1::Tensor {
        dtype: v1::Dtype::Float64.into(),
        shape: shape.into(),
        data: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    }
}

/// The elements of a tensor of doubles.
pub fn floats(data: &[u8]) -> Vec<f64> {
    data.chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().expect("8 bytes"))).collect()
}

/// How often each value of a register was measured; bit 0 is the right-most character.
pub fn counts(bits: &v1::BitArray) -> BTreeMap<String, usize> {
    let width = bits.num_bits as usize;
    let mut counts = BTreeMap::new();
    for shot in bits.data.chunks_exact(width.div_ceil(8).max(1)) {
        let word: String = shot.iter().map(|byte| format!("{byte:08b}")).collect();
        *counts.entry(word[word.len() - width..].to_owned()).or_default() += 1;
    }
    counts
}

/// The named array of a PUB's result: a register, `evs` or `stds`.
pub fn field<'a>(result: &'a v1::PubResult, name: &str) -> Option<&'a v1::data_field::Value> {
    result.fields.iter().find(|field| field.name == name)?.value.as_ref()
}
