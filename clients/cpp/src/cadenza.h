// A client of the Cadenza scheduling server: connections, refusals by reason, watches that go on, tensors and counts.
// Messages and stubs are generated from the contract.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "cadenza/v1/device_service.grpc.pb.h"
#include "cadenza/v1/job_service.grpc.pb.h"
#include "cadenza/v1/reservation_service.grpc.pb.h"
#include "cadenza/v1/server_service.grpc.pb.h"
#include "cadenza/v1/session_service.grpc.pb.h"
#include "cadenza/v1/share_service.grpc.pb.h"
#include "google/rpc/error_details.pb.h"

namespace cadenza {

// Who calls, and how the server is reached. Empty: not given.
struct Options {
  std::string user;     // path in the share tree, such as lab/alice: for servers that trust names
  std::string token;    // for servers with tokens; it says who calls
  std::string ca_file;  // PEM file of the authority that signed the server's certificate; empty: no TLS
};

// One connection to a server, and the stubs of its services.
class Client {
 public:
  // A client of the server at `target`, HOST:PORT. The connection is made with the first call.
  explicit Client(const std::string& target, Options options = {});

  // The context of one call: it says who calls, and ends the call after `seconds`.
  std::unique_ptr<grpc::ClientContext> context(double seconds = 30) const;

  // Shows `see` every change of a job until it is final. A stream that breaks goes on after the last event seen.
  grpc::Status watch(const std::string& job_id, const std::function<void(const v1::Event&)>& see, double seconds = 3600);

  const std::shared_ptr<grpc::Channel> channel;
  const std::unique_ptr<v1::ServerService::Stub> server;
  const std::unique_ptr<v1::SessionService::Stub> sessions;
  const std::unique_ptr<v1::JobService::Stub> jobs;
  const std::unique_ptr<v1::DeviceService::Stub> devices;
  const std::unique_ptr<v1::ReservationService::Stub> reservations;
  const std::unique_ptr<v1::ShareService::Stub> shares;

 private:
  const Options options_;
};

// Why the server refused a call: `reason` is a name of ErrorReason without its prefix. Nothing: it did not.
std::optional<google::rpc::ErrorInfo> refusal(const grpc::Status& status);

// An array of doubles as the contract carries it: C order, little-endian.
v1::Tensor make_tensor(const std::vector<std::int64_t>& shape, const std::vector<double>& values);

// The elements of a tensor of doubles, from its data.
std::vector<double> floats(const std::string& data);

// How often each value of a register was measured; bit 0 is the right-most character.
std::map<std::string, int> counts(const v1::BitArray& bits);

// The named array of a PUB's result: a register, `evs` or `stds`; null if there is none.
const v1::DataField* field(const v1::PubResult& result, const std::string& name);

}  // namespace cadenza
