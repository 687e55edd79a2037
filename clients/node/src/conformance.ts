/**
 * Plays the checks of tests/conformance and prints one line of JSON for each; see checks.yaml there.
 *
 *     node build/src/conformance.js CHECKS.json
 */

import { readFileSync } from "node:fs";
import {
  create,
  createRegistry,
  fromBinary,
  fromJson,
  toJson,
  type DescMessage,
  type DescMethod,
  type DescMethodServerStreaming,
  type DescMethodUnary,
  type DescService,
  type JsonObject,
  type JsonValue,
  type Message,
  type MessageShape,
} from "@bufbuild/protobuf";
import * as grpc from "@grpc/grpc-js";
import { DeviceService } from "../gen/cadenza/v1/device_service_pb.js";
import { JobService, StreamJobResultRequestSchema } from "../gen/cadenza/v1/job_service_pb.js";
import { ReservationService } from "../gen/cadenza/v1/reservation_service_pb.js";
import { JobResultSchema } from "../gen/cadenza/v1/result_pb.js";
import { ServerService } from "../gen/cadenza/v1/server_service_pb.js";
import { SessionService } from "../gen/cadenza/v1/session_service_pb.js";
import { ShareService } from "../gen/cadenza/v1/share_service_pb.js";
import { file_google_rpc_error_details } from "../gen/google/rpc/error_details_pb.js";
import { Client, floatsOf, reasonOf, type CallOptions } from "./client.js";

const CALL_MS_MAX = 30_000;
const TOLERANCE = 1e-6;

type Json = JsonValue | undefined;
type Step = Record<string, any>;
interface Open {
  messages: AsyncIterator<unknown>;
  output: DescMessage;
  abort: AbortController;
}

const services: DescService[] = [
  ServerService,
  SessionService,
  JobService,
  DeviceService,
  ReservationService,
  ShareService,
];
const registry = createRegistry(file_google_rpc_error_details);

class CheckError extends Error {}

const clients = new Map<string, Client>();

/** One check: its steps, one after the other, with what they saved. */
class Check {
  readonly #streams = new Map<string, Open>();
  #user = "";

  constructor(readonly variables: Record<string, Json>) {}

  async play(steps: Step[], user: string): Promise<void> {
    this.#user = this.#fill(user);
    try {
      for (const [index, raw] of steps.entries()) {
        const step: Step = this.#fill(raw);
        try {
          await this.#step(step);
        } catch (error) {
          throw new CheckError(`step ${index + 1} (${step.call ?? Object.keys(step)[0]}): ${(error as Error).message}`);
        }
      }
    } finally {
      for (const { abort } of this.#streams.values()) abort.abort();
    }
  }

  async #step(step: Step): Promise<void> {
    let answer: JsonObject;
    try {
      answer = await this.#perform(step);
    } catch (error) {
      if (!isRefusal(error) || !step.refused) throw error;
      const difference = differ(step.refused, describe(error), "refusal");
      if (difference) throw new CheckError(difference);
      return;
    }
    if (step.refused) throw new CheckError(`it was not refused, but answered ${show(answer)}`);
    const difference = differ(step.expect ?? {}, answer, "answer");
    if (difference) throw new CheckError(difference);
    for (const [name, path] of Object.entries<string>(step.save ?? {})) this.variables[name] = find(path, answer);
  }

  async #perform(step: Step): Promise<JsonObject> {
    if (step.cancel) return this.#cancel(step.cancel);
    if (step.read) return read(this.#streams.get(step.read)!, step.until);
    const [serviceName, methodName] = step.call.split("/");
    const service = services.find(({ name }) => name === serviceName)!;
    const method = service.methods.find(({ name }) => name === methodName)!;
    const client = this.#connect(step);
    const abort = new AbortController();
    const user: string = step.user ?? this.#user;
    const options: CallOptions = {
      timeoutMs: step.timeout_s ? step.timeout_s * 1000 : CALL_MS_MAX,
      signal: abort.signal,
      metadata: { ...(user ? { "cadenza-user": user } : {}), ...step.metadata },
    };
    const request = fromJson(method.input, step.request ?? {}, { registry });
    if (step.assemble) return assemble(client, request as MessageShape<typeof StreamJobResultRequestSchema>, options);
    if (method.methodKind === "unary") {
      return show_(method.output, await client.call(method as DescMethodUnary, request, options));
    }
    const open: Open = { messages: this.#open(client, method, request, step, options), output: method.output, abort };
    if (step.stream) this.#streams.set(step.stream, open);
    try {
      return await read(open, step.until);
    } finally {
      if (!step.stream) abort.abort();
    }
  }

  #open(client: Client, method: DescMethod, request: Message, step: Step, options: CallOptions): AsyncIterator<unknown> {
    if (method.methodKind !== "bidi_streaming") {
      return client.stream(method as DescMethodServerStreaming, request, options)[Symbol.asyncIterator]();
    }
    const call = client.exchange(method, options);
    for (const one of step.requests) call.write(fromJson(method.input, one));
    call.end();
    return (call as AsyncIterable<unknown>)[Symbol.asyncIterator]();
  }

  /** Cancels an open stream; it must end with CANCELLED. */
  async #cancel(name: string): Promise<JsonObject> {
    const { messages, abort } = this.#streams.get(name)!;
    abort.abort();
    try {
      while (!(await messages.next()).done);
    } catch (error) {
      if (isRefusal(error) && error.code === grpc.status.CANCELLED) return {};
      throw error;
    }
    throw new CheckError("the cancelled stream ended as if nothing had happened");
  }

  #connect(step: Step): Client {
    const secure = step.tls === true;
    const server = secure ? "tls" : step.server;
    const target = String(this.variables[server ? `${server}_target` : "target"]);
    let client = clients.get(target);
    if (!client) {
      client = new Client(target, secure ? { ca: String(this.variables.tls_ca) } : {});
      clients.set(target, client);
    }
    return client;
  }

  /** `${name}` replaced; a text that is nothing else becomes the variable, whatever its type. */
  #fill(value: any): any {
    if (typeof value === "string") {
      if (value.startsWith("${") && value.indexOf("}") === value.length - 1) return this.variables[value.slice(2, -1)];
      return value.replace(/\$\{(\w+)\}/g, (_, name) => String(this.variables[name]));
    }
    if (Array.isArray(value)) return value.map((item) => this.#fill(item));
    if (value === null || typeof value !== "object") return value;
    if ("$repeat" in value) return value.$repeat[0].repeat(value.$repeat[1]);
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, this.#fill(item)]));
  }
}

/** Reads until a message is like `until`; without it, to the end. */
async function read({ messages, output }: Open, until: Json): Promise<JsonObject> {
  const found: JsonValue[] = [];
  for (;;) {
    const { done, value } = await messages.next();
    if (done) break;
    found.push(show_(output, value as Message));
    if (until !== undefined && !differ(until, found.at(-1))) return { messages: found };
  }
  if (until !== undefined) {
    throw new CheckError(`the stream ended without the message to stop at, after ${show(found)}`);
  }
  return { messages: found };
}

/** Reads a result in two streams, the second beginning where the first was broken off after one piece. */
async function assemble(
  client: Client,
  request: MessageShape<typeof StreamJobResultRequestSchema>,
  options: CallOptions,
): Promise<JsonObject> {
  const pieces: Uint8Array[] = [];
  let size = 0;
  let total = -1;
  const method = JobService.method.streamJobResult;
  for await (const piece of client.stream(method, request, options)) {
    pieces.push(piece.data);
    size = piece.data.length;
    total = Number(piece.totalBytes);
    break; // cancels it
  }
  const rest = create(StreamJobResultRequestSchema, { jobId: request.jobId, offset: BigInt(size) });
  for await (const piece of client.stream(method, rest, { ...options, signal: undefined })) {
    if (Number(piece.offset) !== size) throw new CheckError(`a piece begins at ${piece.offset}, not at ${size}`);
    pieces.push(piece.data);
    size += piece.data.length;
  }
  if (size !== total) throw new CheckError(`the pieces have ${size} bytes together, not ${total}`);
  const result = fromBinary(JobResultSchema, Buffer.concat(pieces));
  return { pieces: pieces.length, result: show_(JobResultSchema, result) };
}

const show_ = (schema: DescMessage, message: Message) => toJson(schema, message, { registry }) as JsonObject;
const show = (value: Json) => (JSON.stringify(value) ?? "nothing").slice(0, 300);
const isRefusal = (error: unknown): error is grpc.ServiceError =>
  error instanceof Error && "code" in error && "metadata" in error;

function describe(error: grpc.ServiceError): JsonObject {
  const { reason, metadata } = reasonOf(error);
  return { code: grpc.status[error.code], ...(reason ? { reason } : {}), metadata };
}

function find(path: string, value: Json): Json {
  for (const part of path.split(".")) {
    value = Array.isArray(value) ? value.at(Number(part)) : (value as JsonObject | undefined)?.[part];
  }
  if (value === undefined) throw new CheckError(`there is nothing at ${path} to save`);
  return value;
}

/** Where `actual` is not what `expected` asks for; empty: it is. */
function differ(expected: Json, actual: Json, place = ""): string {
  if (expected === null) return actual === undefined || actual === null ? "" : `${place}: ${show(actual)} is there`;
  if (Array.isArray(expected)) {
    if (!Array.isArray(actual) || actual.length !== expected.length) {
      return `${place}: ${show(actual)} has not ${expected.length} elements`;
    }
    return expected.map((item, index) => differ(item, actual[index], `${place}.${index}`)).find(Boolean) ?? "";
  }
  if (typeof expected !== "object") {
    return expected === actual ? "" : `${place}: ${show(actual)} is not ${show(expected)}`;
  }
  const matchers = Object.entries(expected).filter(([name]) => name.startsWith("$"));
  for (const [name, argument] of matchers) {
    if (!matches(name, argument, actual)) return `${place}: ${show(actual)} is not ${name} ${show(argument)}`;
  }
  if (matchers.length) return "";
  if (actual === null || typeof actual !== "object" || Array.isArray(actual)) return `${place}: ${show(actual)} is no object`;
  const differences = Object.entries(expected).map(([key, value]) => differ(value, actual[key], `${place}.${key}`));
  return differences.find(Boolean) ?? "";
}

function matches(name: string, argument: any, actual: Json): boolean {
  const items: JsonValue[] = Array.isArray(actual) ? actual : [];
  const data = () => Buffer.from(typeof actual === "string" ? actual : "", "base64");
  const like = (item: Json) => !differ(argument, item);
  switch (name) {
    case "$present":
      return (actual !== undefined) === argument;
    case "$length":
      return items.length === argument;
    case "$min":
      return actual !== undefined && Number(actual) >= argument;
    case "$in":
      return argument.includes(actual ?? null);
    case "$first":
      return items.length > 0 && like(items[0]);
    case "$last":
      return items.length > 0 && like(items.at(-1));
    case "$contains":
      return items.some(like);
    case "$bytes":
      return data().length === argument;
    case "$bytes_in":
      return data().every((byte) => argument.includes(byte));
    case "$float64s": {
      const values = floatsOf(data());
      return (
        values.length === argument.length &&
        values.every((value, index) => Math.abs(value - argument[index]) < TOLERANCE)
      );
    }
  }
  throw new Error(`there is no matcher ${name}`);
}

const plan = JSON.parse(readFileSync(process.argv[2], "utf8"));
for (const { name, user = "${run}/ann", steps } of plan.checks) {
  const began = performance.now();
  let problem = "";
  try {
    await new Check({ ...plan.variables }).play(steps, user);
  } catch (error) {
    problem = (error as Error).message || String(error);
    process.exitCode = 1;
  }
  const ms = Math.round(performance.now() - began);
  console.log(JSON.stringify({ check: name, passed: !problem, ms, problem }));
}
for (const client of clients.values()) client.close();
