/**
 * An iterative program: opens a session, sends a circuit with a parameter once, then only values of the parameter with
 * the circuit's digest, follows each job, reads expectation values and counts, and closes the session.
 *
 *     node build/examples/sweep.js [TARGET] [DEVICE]
 */

import { createHash } from "node:crypto";
import { userInfo } from "node:os";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { JobReason, JobState, type Job } from "../gen/cadenza/v1/job_pb.js";
import { JobService } from "../gen/cadenza/v1/job_service_pb.js";
import type { CircuitSchema } from "../gen/cadenza/v1/circuit_pb.js";
import type { ProgramSchema } from "../gen/cadenza/v1/program_pb.js";
import type { JobResult } from "../gen/cadenza/v1/result_pb.js";
import { SessionService } from "../gen/cadenza/v1/session_service_pb.js";
import { Client, countsOf, fieldOf, floatsOf, reasonOf, tensorOf } from "../src/client.js";

const circuit = `OPENQASM 3.0;
include "stdgates.inc";
input angle theta;
qubit[2] q;
ry(theta) q[0];
cx q[0], q[1];
`;
const measurement = "bit[2] c;\nc = measure q;\n";

const [target = "127.0.0.1:50051", device = "aer"] = process.argv.slice(2);
const { CADENZA_USER: user = userInfo().username, CADENZA_TOKEN: token, CADENZA_TLS_CA: ca } = process.env;
const client = new Client(target, { user, token, ca });

/** Submits a job to the session and waits for its result. */
async function run(sessionId: string, program: MessageInitShape<typeof ProgramSchema>): Promise<JobResult> {
  const submitted = await client.call(JobService.method.submitJob, { job: { sessionId, program } });
  const jobId = submitted.job!.jobId;
  let job: Job | undefined;
  let result: JobResult | undefined;
  for await (const { change } of client.watch(jobId, { timeoutMs: 60_000 })) {
    if (change.case === "jobSnapshot" || change.case === "jobEnded") ({ job, result } = change.value);
  }
  if (job?.state !== JobState.SUCCEEDED) throw new Error(`job ${jobId}: ${JobReason[job!.reason]}: ${job!.detail}`);
  return result ?? (await client.call(JobService.method.getJobResult, { jobId })).result!; // too large to ride along
}

async function sweep(): Promise<void> {
  const { sessionId } = (await client.call(SessionService.method.createSession, { device })).session!;
  console.log("session", sessionId);
  try {
    let source: MessageInitShape<typeof CircuitSchema>["source"] = { case: "openqasm3", value: circuit };
    for (let step = 0; step < 5; step++) {
      const theta = (step * Math.PI) / 4;
      const terms = [{ pauli: "IZ", coefficient: 0.5 }, { pauli: "XX", coefficient: 0.5 }];
      const pub = {
        circuit: { source },
        parameterValues: tensorOf([1], [theta]),
        observables: { observables: [{ terms }] },
      };
      const result = await run(sessionId, { kind: { case: "estimator", value: { pubs: [pub] } } });
      const evs = fieldOf(result.pubs[0], "evs");
      if (evs.case !== "tensor") throw new Error("the result has no expectation values");
      const [energy] = floatsOf(evs.value.data);
      console.log(`theta ${theta.toFixed(3)}  energy ${energy.toFixed(6)}`);
      source = { case: "digest", value: createHash("sha256").update(circuit).digest() }; // the session has it now
    }
    const pub = {
      circuit: { source: { case: "openqasm3" as const, value: circuit + measurement } },
      parameterValues: tensorOf([1], [Math.PI / 2]),
      shots: 1000n,
    };
    const result = await run(sessionId, { kind: { case: "sampler", value: { pubs: [pub] } } });
    const bits = fieldOf(result.pubs[0], "c");
    if (bits.case === "bits") console.log("counts at pi/2", Object.fromEntries(countsOf(bits.value)));
  } finally {
    await client.call(SessionService.method.closeSession, { sessionId });
  }
}

try {
  await sweep();
} catch (error) {
  const { reason, metadata } = reasonOf(error);
  if (reason === "UNKNOWN_DEVICE") console.error(`there is no device ${device}; \`cadenza devices\` lists them`);
  else if (reason) console.error("refused,", reason, metadata, (error as Error).message);
  else console.error((error as Error).message);
  process.exitCode = 1;
} finally {
  client.close();
}
