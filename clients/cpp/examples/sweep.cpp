// An iterative program: opens a session, sends a circuit with a parameter once, then only values of the parameter with
// the circuit's digest, follows each job, reads expectation values and counts, and closes the session.
//
//     build/sweep [TARGET] [DEVICE]

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <numbers>

#include <openssl/sha.h>

#include "cadenza.h"

namespace v1 = cadenza::v1;

const std::string circuit = R"(OPENQASM 3.0;
include "stdgates.inc";
input angle theta;
qubit[2] q;
ry(theta) q[0];
cx q[0], q[1];
)";
const std::string measurement = "bit[2] c;\nc = measure q;\n";

std::string from_environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

// What a call, or a job, ended with.
void check(const grpc::Status& status) {
  if (!status.ok()) throw status;
}

// Submits a job to the session and waits for its result.
v1::JobResult run(cadenza::Client& client, const std::string& session, const v1::Program& program) {
  v1::SubmitJobRequest request;
  request.mutable_job()->set_session_id(session);
  *request.mutable_job()->mutable_program() = program;
  v1::SubmitJobResponse submitted;
  check(client.jobs->SubmitJob(client.context().get(), request, &submitted));

  v1::Job job = submitted.job();
  std::optional<v1::JobResult> result;
  check(client.watch(job.job_id(), [&](const v1::Event& event) {
    if (event.has_job_snapshot()) {
      job = event.job_snapshot().job();
      if (event.job_snapshot().has_result()) result = event.job_snapshot().result();
    } else if (event.has_job_ended()) {
      job = event.job_ended().job();
      if (event.job_ended().has_result()) result = event.job_ended().result();
    }
  }));
  if (job.state() != v1::JOB_STATE_SUCCEEDED) {
    throw grpc::Status(grpc::StatusCode::ABORTED, "job " + job.job_id() + ": " + v1::JobReason_Name(job.reason()) + ": " + job.detail());
  }
  if (result) return *result;
  v1::GetJobResultRequest wanted;  // too large to ride along
  wanted.set_job_id(job.job_id());
  v1::GetJobResultResponse got;
  check(client.jobs->GetJobResult(client.context().get(), wanted, &got));
  return got.result();
}

void iterate(cadenza::Client& client, const std::string& session) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(circuit.data()), circuit.size(), digest);

  for (int step = 0; step < 5; ++step) {
    const double theta = step * std::numbers::pi / 4;
    v1::Program program;
    auto* pub = program.mutable_estimator()->add_pubs();
    if (step == 0) {
      pub->mutable_circuit()->set_openqasm3(circuit);
    } else {
      pub->mutable_circuit()->set_digest(digest, sizeof digest);  // the session has it now
    }
    *pub->mutable_parameter_values() = cadenza::make_tensor({1}, {theta});
    auto* energy = pub->mutable_observables()->add_observables();
    for (const char* pauli : {"IZ", "XX"}) {
      auto* term = energy->add_terms();
      term->set_pauli(pauli);
      term->set_coefficient(0.5);
    }
    const auto result = run(client, session, program);
    const auto* evs = cadenza::field(result.pubs(0), "evs");
    std::printf("theta %.3f  energy %+.6f\n", theta, cadenza::floats(evs->tensor().data())[0]);
  }

  v1::Program program;
  auto* pub = program.mutable_sampler()->add_pubs();
  pub->mutable_circuit()->set_openqasm3(circuit + measurement);
  *pub->mutable_parameter_values() = cadenza::make_tensor({1}, {std::numbers::pi / 2});
  pub->set_shots(1000);
  const auto result = run(client, session, program);
  std::cout << "counts at pi/2";
  for (const auto& [word, count] : cadenza::counts(cadenza::field(result.pubs(0), "c")->bits())) {
    std::cout << "  " << word << ": " << count;
  }
  std::cout << "\n";
}

int main(int count, char** arguments) {
  const std::string target = count > 1 ? arguments[1] : "127.0.0.1:50051", device = count > 2 ? arguments[2] : "aer";
  auto user = from_environment("CADENZA_USER");
  if (user.empty()) user = from_environment("USER");
  cadenza::Client client(target, {user, from_environment("CADENZA_TOKEN"), from_environment("CADENZA_TLS_CA")});
  try {
    v1::CreateSessionRequest request;
    request.set_device(device);
    v1::CreateSessionResponse opened;
    check(client.sessions->CreateSession(client.context().get(), request, &opened));
    const auto& session = opened.session().session_id();
    std::cout << "session " << session << std::endl;
    auto close = [&] {
      v1::CloseSessionRequest closing;
      closing.set_session_id(session);
      v1::CloseSessionResponse closed;
      check(client.sessions->CloseSession(client.context().get(), closing, &closed));
    };
    try {
      iterate(client, session);
    } catch (const grpc::Status&) {
      close();
      throw;
    }
    close();
  } catch (const grpc::Status& status) {
    const auto why = cadenza::refusal(status);
    if (!why) {
      std::cerr << status.error_message() << "\n";
    } else if (why->reason() == "UNKNOWN_DEVICE") {
      std::cerr << "there is no device " << device << "; `cadenza devices` lists them\n";
    } else {
      std::cerr << "refused, " << why->reason() << ": " << status.error_message() << "\n";
    }
    return 1;
  }
}
