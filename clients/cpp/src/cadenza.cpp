#include "cadenza.h"

#include <bit>
#include <chrono>
#include <cstring>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <thread>

#include "google/rpc/status.pb.h"

namespace cadenza {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are little-endian: swap bytes here");

std::shared_ptr<grpc::Channel> connect(const std::string& target, const Options& options) {
  auto credentials = grpc::InsecureChannelCredentials();
  if (!options.ca_file.empty()) {
    std::ifstream file(options.ca_file);
    if (!file) throw std::runtime_error(options.ca_file + " cannot be read");
    std::stringstream pem;
    pem << file.rdbuf();
    grpc::SslCredentialsOptions ssl;
    ssl.pem_root_certs = pem.str();
    credentials = grpc::SslCredentials(ssl);
  }
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);  // results may have more than 4 MiB
  return grpc::CreateCustomChannel(target, credentials, arguments);
}

}  // namespace

Client::Client(const std::string& target, Options options)
    : channel(connect(target, options)),
      server(v1::ServerService::NewStub(channel)),
      sessions(v1::SessionService::NewStub(channel)),
      jobs(v1::JobService::NewStub(channel)),
      devices(v1::DeviceService::NewStub(channel)),
      reservations(v1::ReservationService::NewStub(channel)),
      shares(v1::ShareService::NewStub(channel)),
      options_(std::move(options)) {}

std::unique_ptr<grpc::ClientContext> Client::context(double seconds) const {
  auto context = std::make_unique<grpc::ClientContext>();
  context->set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(static_cast<long>(seconds * 1000)));
  if (!options_.token.empty()) {
    context->AddMetadata("authorization", "Bearer " + options_.token);
  } else if (!options_.user.empty()) {
    context->AddMetadata("cadenza-user", options_.user);
  }
  return context;
}

grpc::Status Client::watch(const std::string& job_id, const std::function<void(const v1::Event&)>& see, double seconds) {
  v1::WatchJobRequest request;
  request.set_job_id(job_id);
  request.set_include_results(true);
  for (;;) {
    auto call = context(seconds);
    auto reader = jobs->WatchJob(call.get(), request);
    v1::WatchJobResponse message;
    while (reader->Read(&message)) {
      request.set_resume_after(message.event().event_number());
      see(message.event());
    }
    auto status = reader->Finish();
    auto why = refusal(status);
    auto reason = why ? why->reason() : "";
    if (status.ok() || !request.has_resume_after()) return status;
    if (reason == "RESUME_TOO_OLD") {
      request.clear_resume_after();  // begin again with a snapshot
    } else if (status.error_code() == grpc::StatusCode::UNAVAILABLE) {
      std::this_thread::sleep_for(std::chrono::seconds(1));  // the server restarts, perhaps
    } else if (reason != "WATCH_TOO_SLOW") {
      return status;
    }
  }
}

std::optional<google::rpc::ErrorInfo> refusal(const grpc::Status& status) {
  google::rpc::Status details;
  google::rpc::ErrorInfo info;
  if (details.ParseFromString(status.error_details())) {
    for (const auto& detail : details.details()) {
      if (detail.UnpackTo(&info) && info.domain() == "cadenza") return info;
    }
  }
  return std::nullopt;
}

v1::Tensor make_tensor(const std::vector<std::int64_t>& shape, const std::vector<double>& values) {
  v1::Tensor tensor;
  tensor.set_dtype(v1::DTYPE_FLOAT64);
  tensor.mutable_shape()->Assign(shape.begin(), shape.end());
  tensor.set_data(values.data(), values.size() * sizeof(double));
  return tensor;
}

std::vector<double> floats(const std::string& data) {
  std::vector<double> values(data.size() / sizeof(double));
  std::memcpy(values.data(), data.data(), values.size() * sizeof(double));
  return values;
}

std::map<std::string, int> counts(const v1::BitArray& bits) {
  const std::size_t width = bits.num_bits(), size = (width + 7) / 8;
  std::map<std::string, int> counts;
  for (std::size_t at = 0; size && at + size <= bits.data().size(); at += size) {
    std::string word;
    for (std::size_t bit = width; bit-- > 0;) word += '0' + (bits.data()[at + size - 1 - bit / 8] >> bit % 8 & 1);
    ++counts[word];
  }
  return counts;
}

const v1::DataField* field(const v1::PubResult& result, const std::string& name) {
  for (const auto& field : result.fields()) {
    if (field.name() == name) return &field;
  }
  return nullptr;
}

}  // namespace cadenza
