// Plays the checks of tests/conformance and prints one line of JSON for each; see checks.yaml there.
//
//     build/conformance CHECKS.json

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>

#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>
#include <google/protobuf/wrappers.pb.h>

#include "cadenza.h"

namespace v1 = cadenza::v1;
using cadenza::Client;
using google::protobuf::Message;
using Json = google::protobuf::Value;  // protobuf's own JSON values: no other library is needed

constexpr double call_seconds_max = 30, tolerance = 1e-6;
const char* const code_names[] = {
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"};

// A check did not come out as it says.
struct CheckError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A call ended with another code than OK.
struct Refused {
  grpc::Status status;
};

void check(const grpc::Status& status) {
  if (!status.ok()) throw Refused{status};
}

// --- JSON ------------------------------------------------------------------------------------------------------------

std::string print(const Message& message) {
  std::string text;
  auto status = google::protobuf::util::MessageToJsonString(message, &text);
  if (!status.ok()) throw CheckError(status.ToString());
  return text;
}

void parse(const std::string& text, Message* message) {
  auto status = google::protobuf::util::JsonStringToMessage(text, message);
  if (!status.ok()) throw CheckError(status.ToString());
}

Json to_json(const Message& message) {
  Json value;
  parse(print(message), &value);
  return value;
}

Json text_of(const std::string& text) {
  Json value;
  value.set_string_value(text);
  return value;
}

const Json* get(const Json& value, const std::string& key) {
  const auto& fields = value.struct_value().fields();
  auto found = fields.find(key);
  return found == fields.end() ? nullptr : &found->second;
}

std::string show(const Json* value) { return value ? print(*value).substr(0, 300) : "nothing"; }

std::string from_base64(const std::string& text) {
  google::protobuf::BytesValue bytes;
  parse("\"" + text + "\"", &bytes);
  return bytes.value();
}

// --- comparing -------------------------------------------------------------------------------------------------------

std::string differ(const Json& expected, const Json* actual, const std::string& place);

bool is_like(const Json& expected, const Json& actual) { return differ(expected, &actual, "").empty(); }

bool matches(const std::string& name, const Json& argument, const Json* actual) {
  static const Json nothing = [] {
    Json value;
    value.set_null_value({});
    return value;
  }();
  const auto& items = (actual ? *actual : nothing).list_value().values();
  const auto& arguments = argument.list_value().values();
  const auto number = argument.number_value();
  const auto like = [&](const Json& item) { return is_like(argument, item); };
  if (name == "$present") return (actual != nullptr) == argument.bool_value();
  if (name == "$length") return items.size() == number;
  if (name == "$min") {
    if (!actual) return false;
    return (actual->has_string_value() ? std::stod(actual->string_value()) : actual->number_value()) >= number;
  }
  if (name == "$in") {
    return std::any_of(arguments.begin(), arguments.end(), [&](const Json& one) { return is_like(one, actual ? *actual : nothing); });
  }
  if (name == "$first") return !items.empty() && like(items[0]);
  if (name == "$last") return !items.empty() && like(items[items.size() - 1]);
  if (name == "$contains") return std::any_of(items.begin(), items.end(), like);
  const auto data = from_base64(actual ? actual->string_value() : "");
  if (name == "$bytes") return data.size() == number;
  if (name == "$bytes_in") {
    return std::all_of(data.begin(), data.end(), [&](unsigned char byte) {
      return std::any_of(arguments.begin(), arguments.end(), [&](const Json& one) { return one.number_value() == byte; });
    });
  }
  if (name == "$float64s") {
    const auto values = cadenza::floats(data);
    return std::equal(values.begin(), values.end(), arguments.begin(), arguments.end(),
                      [](double a, const Json& b) { return std::abs(a - b.number_value()) < tolerance; });
  }
  throw CheckError("there is no matcher " + name);
}

// Where `actual` (null: nothing) is not what is expected; empty: it is.
std::string differ(const Json& expected, const Json* actual, const std::string& place) {
  const auto wrong = [&](const std::string& what) { return place + ": " + show(actual) + what; };
  switch (expected.kind_case()) {
    case Json::kNullValue:
      return !actual || actual->has_null_value() ? "" : wrong(" is there");
    case Json::kStructValue: {
      bool matched = false;
      for (const auto& [key, argument] : expected.struct_value().fields()) {
        if (key[0] != '$') continue;
        matched = true;
        if (!matches(key, argument, actual)) return wrong(" is not " + key + " " + show(&argument));
      }
      if (matched) return "";
      if (!actual || !actual->has_struct_value()) return wrong(" is no object");
      for (const auto& [key, value] : expected.struct_value().fields()) {
        if (auto found = differ(value, get(*actual, key), place + "." + key); !found.empty()) return found;
      }
      return "";
    }
    case Json::kListValue: {
      const auto& items = expected.list_value().values();
      if (!actual || !actual->has_list_value() || actual->list_value().values_size() != items.size()) {
        return wrong(" has not " + std::to_string(items.size()) + " elements");
      }
      for (int i = 0; i < items.size(); ++i) {
        auto found = differ(items[i], &actual->list_value().values(i), place + "." + std::to_string(i));
        if (!found.empty()) return found;
      }
      return "";
    }
    default:
      return actual && print(*actual) == print(expected) ? "" : wrong(" is not " + show(&expected));
  }
}

void compare(const Json& expected, const Json& actual, const std::string& place) {
  if (auto found = differ(expected, &actual, place); !found.empty()) throw CheckError(found);
}

Json describe(const grpc::Status& status) {
  Json described;
  auto& fields = *described.mutable_struct_value()->mutable_fields();
  fields["code"].set_string_value(code_names[status.error_code()]);
  auto& metadata = *fields["metadata"].mutable_struct_value()->mutable_fields();
  if (auto why = cadenza::refusal(status)) {
    fields["reason"].set_string_value(why->reason());
    for (const auto& [key, value] : why->metadata()) metadata[key].set_string_value(value);
  }
  return described;
}

// --- calling ---------------------------------------------------------------------------------------------------------

// Who reads a stream: its context, the next message (false: there is none), and how it ended.
struct Open {
  std::shared_ptr<grpc::ClientContext> context;
  std::function<bool(Json*)> read;
  std::function<grpc::Status()> finish;
};

using Requests = std::vector<std::string>;
using Unary = std::function<Json(Client&, grpc::ClientContext*, const std::string&)>;
using Stream = std::function<Open(Client&, std::shared_ptr<grpc::ClientContext>, const Requests&)>;

template <class Stub, class Request, class Response>
Unary unary(const std::unique_ptr<Stub> Client::*stub, grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*)) {
  return [=](Client& client, grpc::ClientContext* context, const std::string& json) {
    Request request;
    Response response;
    parse(json, &request);
    check(((client.*stub).get()->*method)(context, request, &response));
    return to_json(response);
  };
}

template <class Response, class Reader>
Open open(std::shared_ptr<grpc::ClientContext> context, std::shared_ptr<Reader> reader) {
  return {context,
          [reader](Json* answer) {
            Response response;
            if (!reader->Read(&response)) return false;
            *answer = to_json(response);
            return true;
          },
          [reader] { return reader->Finish(); }};
}

template <class Stub, class Request, class Response>
Stream stream(const std::unique_ptr<Stub> Client::*stub,
              std::unique_ptr<grpc::ClientReader<Response>> (Stub::*method)(grpc::ClientContext*, const Request&)) {
  return [=](Client& client, std::shared_ptr<grpc::ClientContext> context, const Requests& json) {
    Request request;
    parse(json.at(0), &request);
    return open<Response>(context, std::shared_ptr(((client.*stub).get()->*method)(context.get(), request)));
  };
}

template <class Stub, class Request, class Response>
Stream exchange(const std::unique_ptr<Stub> Client::*stub,
                std::unique_ptr<grpc::ClientReaderWriter<Request, Response>> (Stub::*method)(grpc::ClientContext*)) {
  return [=](Client& client, std::shared_ptr<grpc::ClientContext> context, const Requests& requests) {
    std::shared_ptr both = ((client.*stub).get()->*method)(context.get());
    for (const auto& json : requests) {
      Request request;
      parse(json, &request);
      both->Write(request);
    }
    both->WritesDone();
    return open<Response>(context, both);
  };
}

using Sessions = v1::SessionService::Stub;
using Jobs = v1::JobService::Stub;
using Devices = v1::DeviceService::Stub;
using Reservations = v1::ReservationService::Stub;
using Shares = v1::ShareService::Stub;

const std::map<std::string, Unary> unaries = {
    {"ServerService/GetServerInfo", unary(&Client::server, &v1::ServerService::Stub::GetServerInfo)},
    {"SessionService/CreateSession", unary(&Client::sessions, &Sessions::CreateSession)},
    {"SessionService/GetSession", unary(&Client::sessions, &Sessions::GetSession)},
    {"SessionService/ListSessions", unary(&Client::sessions, &Sessions::ListSessions)},
    {"SessionService/CloseSession", unary(&Client::sessions, &Sessions::CloseSession)},
    {"SessionService/CancelSession", unary(&Client::sessions, &Sessions::CancelSession)},
    {"SessionService/ListSessionEvents", unary(&Client::sessions, &Sessions::ListSessionEvents)},
    {"JobService/SubmitJob", unary(&Client::jobs, &Jobs::SubmitJob)},
    {"JobService/SubmitJobs", unary(&Client::jobs, &Jobs::SubmitJobs)},
    {"JobService/GetJob", unary(&Client::jobs, &Jobs::GetJob)},
    {"JobService/ListJobs", unary(&Client::jobs, &Jobs::ListJobs)},
    {"JobService/UpdateJobPriority", unary(&Client::jobs, &Jobs::UpdateJobPriority)},
    {"JobService/CancelJob", unary(&Client::jobs, &Jobs::CancelJob)},
    {"JobService/GetJobResult", unary(&Client::jobs, &Jobs::GetJobResult)},
    {"JobService/GetJobPayload", unary(&Client::jobs, &Jobs::GetJobPayload)},
    {"JobService/ListJobEvents", unary(&Client::jobs, &Jobs::ListJobEvents)},
    {"JobService/ListRuns", unary(&Client::jobs, &Jobs::ListRuns)},
    {"DeviceService/ListDevices", unary(&Client::devices, &Devices::ListDevices)},
    {"DeviceService/GetDevice", unary(&Client::devices, &Devices::GetDevice)},
    {"DeviceService/SubmitCalibration", unary(&Client::devices, &Devices::SubmitCalibration)},
    {"ReservationService/CreateReservation", unary(&Client::reservations, &Reservations::CreateReservation)},
    {"ReservationService/GetReservation", unary(&Client::reservations, &Reservations::GetReservation)},
    {"ReservationService/ListReservations", unary(&Client::reservations, &Reservations::ListReservations)},
    {"ReservationService/DeleteReservation", unary(&Client::reservations, &Reservations::DeleteReservation)},
    {"ShareService/ListShares", unary(&Client::shares, &Shares::ListShares)},
    {"ShareService/GetShares", unary(&Client::shares, &Shares::GetShares)},
    {"ShareService/SetShares", unary(&Client::shares, &Shares::SetShares)},
};

const std::map<std::string, Stream> streams = {
    {"SessionService/WatchSession", stream(&Client::sessions, &Sessions::WatchSession)},
    {"JobService/WatchJob", stream(&Client::jobs, &Jobs::WatchJob)},
    {"JobService/StreamJobResult", stream(&Client::jobs, &Jobs::StreamJobResult)},
    {"JobService/SubmitJobStream", exchange(&Client::jobs, &Jobs::SubmitJobStream)},
};

// --- playing ---------------------------------------------------------------------------------------------------------

std::map<std::string, std::unique_ptr<Client>> clients;

// One check: its steps, one after the other, with what they saved.
class Player {
 public:
  explicit Player(const Json& variables)
      : variables_(variables.struct_value().fields().begin(), variables.struct_value().fields().end()) {}

  ~Player() {
    for (auto& [name, open] : open_) open.context->TryCancel();
  }

  void play(const Json& steps, const std::string& user) {
    user_ = fill(text_of(user)).string_value();
    int number = 0;
    for (const auto& raw : steps.list_value().values()) {
      const auto step = fill(raw);
      const auto place = "step " + std::to_string(++number) + ": ";
      try {
        play(step);
      } catch (const Refused& refused) {
        throw CheckError(place + "it was refused: " + refused.status.error_message());
      } catch (const CheckError& error) {
        throw CheckError(place + error.what());
      }
    }
  }

 private:
  void play(const Json& step) {
    const auto* refused = get(step, "refused");
    Json answer;
    try {
      answer = perform(step);
    } catch (const Refused& error) {
      if (!refused) throw;
      return compare(*refused, describe(error.status), "refusal");
    }
    if (refused) throw CheckError("it was not refused, but answered " + show(&answer));
    if (const auto* expected = get(step, "expect")) compare(*expected, answer, "answer");
    if (const auto* saves = get(step, "save")) {
      for (const auto& [name, path] : saves->struct_value().fields()) variables_[name] = find(path.string_value(), answer);
    }
  }

  Json perform(const Json& step) {
    if (const auto* name = get(step, "cancel")) return cancel(name->string_value());
    if (const auto* name = get(step, "read")) return read(open_.at(name->string_value()), get(step, "until"));
    const auto& call = get(step, "call")->string_value();
    auto& client = connect(step);
    const auto* request = get(step, "request");
    const auto json = request ? print(*request) : "{}";
    if (get(step, "assemble")) return assemble(client, step, json);
    if (auto found = unaries.find(call); found != unaries.end()) return found->second(client, context(client, step).get(), json);
    Requests requests;
    if (const auto* several = get(step, "requests")) {
      for (const auto& one : several->list_value().values()) requests.push_back(print(one));
    } else {
      requests.push_back(json);
    }
    auto open = streams.at(call)(client, context(client, step), requests);
    const auto* name = get(step, "stream");
    if (name) open_[name->string_value()] = open;
    auto answer = read(open, get(step, "until"));
    if (!name) {
      open.context->TryCancel();
      for (Json rest; open.read(&rest);) {
      }
    }
    return answer;
  }

  // Reads until a message is like `until`; without it, to the end.
  static Json read(Open& open, const Json* until) {
    Json answer;
    auto& messages = *(*answer.mutable_struct_value()->mutable_fields())["messages"].mutable_list_value();
    for (Json message; open.read(&message);) {
      *messages.add_values() = message;
      if (until && is_like(*until, message)) return answer;
    }
    check(open.finish());
    if (until) throw CheckError("the stream ended without the message to stop at, after " + show(&answer));
    return answer;
  }

  // Cancels an open stream; it must end with CANCELLED.
  Json cancel(const std::string& name) {
    auto open = open_.extract(name).mapped();
    open.context->TryCancel();
    for (Json rest; open.read(&rest);) {
    }
    const auto status = open.finish();
    if (status.error_code() != grpc::StatusCode::CANCELLED) {
      throw CheckError(std::string("the cancelled stream ended with ") + code_names[status.error_code()]);
    }
    return {};
  }

  // Reads a result in two streams, the second beginning where the first was broken off after one piece.
  Json assemble(Client& client, const Json& step, const std::string& json) {
    v1::StreamJobResultRequest request;
    parse(json, &request);
    v1::StreamJobResultResponse first, piece;
    {
      auto broken = context(client, step);
      auto reader = client.jobs->StreamJobResult(broken.get(), request);
      if (!reader->Read(&first)) check(reader->Finish());
      broken->TryCancel();
      while (reader->Read(&piece)) {
      }
      reader->Finish();
    }
    std::string data = first.data();
    int pieces = 1;
    request.set_offset(data.size());
    auto whole = context(client, step);
    auto reader = client.jobs->StreamJobResult(whole.get(), request);
    for (; reader->Read(&piece); ++pieces) {
      if (piece.offset() != static_cast<std::int64_t>(data.size())) throw CheckError("a piece begins at a wrong offset");
      data += piece.data();
    }
    check(reader->Finish());
    if (static_cast<std::int64_t>(data.size()) != first.total_bytes()) throw CheckError("the pieces are not the whole");
    v1::JobResult result;
    if (!result.ParseFromString(data)) throw CheckError("the pieces are no result");
    Json answer;
    auto& fields = *answer.mutable_struct_value()->mutable_fields();
    fields["pieces"].set_number_value(pieces);
    fields["result"] = to_json(result);
    return answer;
  }

  Client& connect(const Json& step) {
    const bool secure = get(step, "tls") != nullptr;
    const auto* server = get(step, "server");
    const auto prefix = secure ? "tls_" : server ? server->string_value() + "_" : "";
    const auto& target = variables_.at(prefix + "target").string_value();
    auto& client = clients[target];
    if (!client) client = std::make_unique<Client>(target, cadenza::Options{.ca_file = secure ? variables_.at("tls_ca").string_value() : ""});
    return *client;
  }

  std::shared_ptr<grpc::ClientContext> context(const Client& client, const Json& step) const {
    const auto* seconds = get(step, "timeout_s");
    std::shared_ptr context = client.context(seconds ? seconds->number_value() : call_seconds_max);
    const auto* given = get(step, "user");
    const auto& user = given ? given->string_value() : user_;
    if (!user.empty()) context->AddMetadata("cadenza-user", user);
    if (const auto* metadata = get(step, "metadata")) {
      for (const auto& [key, value] : metadata->struct_value().fields()) context->AddMetadata(key, value.string_value());
    }
    return context;
  }

  // ${name} replaced; a text that is nothing else becomes the variable, whatever its type.
  Json fill(const Json& value) const {
    Json filled = value;
    if (value.has_list_value()) {
      for (auto& item : *filled.mutable_list_value()->mutable_values()) item = fill(item);
    } else if (value.has_struct_value()) {
      if (const auto* repeat = get(value, "$repeat")) {
        std::string text;
        for (int i = 0; i < repeat->list_value().values(1).number_value(); ++i) text += repeat->list_value().values(0).string_value();
        return text_of(text);
      }
      for (auto& [key, item] : *filled.mutable_struct_value()->mutable_fields()) item = fill(item);
    } else if (value.has_string_value()) {
      auto text = value.string_value();
      if (text.starts_with("${") && text.find('}') == text.size() - 1) return variables_.at(text.substr(2, text.size() - 3));
      for (const auto& [name, filling] : variables_) {
        const auto mark = "${" + name + "}";
        for (std::size_t at = 0; (at = text.find(mark, at)) != std::string::npos; at += filling.string_value().size()) {
          text.replace(at, mark.size(), filling.string_value());
        }
      }
      return text_of(text);
    }
    return filled;
  }

  static Json find(const std::string& path, const Json& value) {
    const Json* found = &value;
    std::istringstream parts(path);
    for (std::string part; found && std::getline(parts, part, '.');) {
      if (found->has_list_value()) {
        const auto& items = found->list_value().values();
        const int index = std::stoi(part) < 0 ? std::stoi(part) + items.size() : std::stoi(part);
        found = index >= 0 && index < items.size() ? &items[index] : nullptr;
      } else {
        found = get(*found, part);
      }
    }
    if (!found) throw CheckError("there is nothing at " + path + " to save: " + show(&value));
    return *found;
  }

  std::map<std::string, Json> variables_;
  std::map<std::string, Open> open_;
  std::string user_;
};

int main(int, char** arguments) {
  std::stringstream text;
  text << std::ifstream(arguments[1]).rdbuf();
  Json plan;
  parse(text.str(), &plan);
  bool failed = false;
  for (const auto& one : get(plan, "checks")->list_value().values()) {
    const auto began = std::chrono::steady_clock::now();
    std::string problem;
    try {
      const auto* user = get(one, "user");
      Player(*get(plan, "variables")).play(*get(one, "steps"), user ? user->string_value() : "${run}/ann");
    } catch (const std::exception& error) {
      problem = error.what();
      failed = true;
    }
    const std::chrono::duration<double, std::milli> length = std::chrono::steady_clock::now() - began;
    Json line;
    auto& fields = *line.mutable_struct_value()->mutable_fields();
    fields["check"] = *get(one, "name");
    fields["passed"].set_bool_value(problem.empty());
    fields["ms"].set_number_value(std::round(length.count()));
    fields["problem"].set_string_value(problem);
    std::cout << print(line) << std::endl;
  }
  return failed;
}
