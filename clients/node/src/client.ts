/** A client of the Cadenza scheduling server: calls, refusals by reason, watches that go on, tensors and counts. */

import { readFileSync } from "node:fs";
import {
  create,
  fromBinary,
  toBinary,
  type DescMessage,
  type DescMethod,
  type DescMethodServerStreaming,
  type DescMethodUnary,
  type MessageInitShape,
  type MessageShape,
} from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import * as grpc from "@grpc/grpc-js";
import type { Event } from "../gen/cadenza/v1/event_pb.js";
import { JobService } from "../gen/cadenza/v1/job_service_pb.js";
import type { BitArray, DataField, PubResult } from "../gen/cadenza/v1/result_pb.js";
import { Dtype, TensorSchema, type Tensor } from "../gen/cadenza/v1/tensor_pb.js";
import { ErrorInfoSchema } from "../gen/google/rpc/error_details_pb.js";
import { StatusSchema } from "../gen/google/rpc/status_pb.js";

/** Who calls, and how the server is reached. */
export interface Options {
  /** Path in the share tree, such as `lab/alice`: for servers that trust names. */
  user?: string;
  /** For servers with tokens; it says who calls. */
  token?: string;
  /** PEM file of the authority that signed the server's certificate; without it, no TLS. */
  ca?: string;
}

/** Of one call. */
export interface CallOptions {
  timeoutMs?: number;
  signal?: AbortSignal;
  metadata?: Record<string, string>;
}

/** One connection to a server. Methods are those of the generated services: `JobService.method.submitJob`. */
export class Client {
  readonly #channel: grpc.Client;
  readonly #metadata: Record<string, string>;

  constructor(target: string, { user, token, ca }: Options = {}) {
    const credentials = ca ? grpc.credentials.createSsl(readFileSync(ca)) : grpc.credentials.createInsecure();
    this.#channel = new grpc.Client(target, credentials, { "grpc.max_receive_message_length": -1 });
    this.#metadata = token ? { authorization: `Bearer ${token}` } : user ? { "cadenza-user": user } : {};
  }

  /** Closes the connection; what is under way ends. */
  close(): void {
    this.#channel.close();
  }

  /** One unary call. Rejects with a `grpc.ServiceError`; `reasonOf` says why the server refused. */
  call<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageInitShape<I>,
    options: CallOptions = {},
  ): Promise<MessageShape<O>> {
    return new Promise((resolve, reject) => {
      const call = this.#channel.makeUnaryRequest(
        pathOf(method),
        serialize(method),
        deserialize(method),
        create(method.input, request),
        this.#headers(options),
        deadline(options),
        (error, answer) => (error ? reject(error) : resolve(answer as MessageShape<O>)),
      );
      options.signal?.addEventListener("abort", () => call.cancel());
    });
  }

  /** The messages of a stream that the server sends. Leaving the loop early cancels it. */
  async *stream<I extends DescMessage, O extends DescMessage>(
    method: DescMethodServerStreaming<I, O>,
    request: MessageInitShape<I>,
    options: CallOptions = {},
  ): AsyncGenerator<MessageShape<O>> {
    const call = this.#channel.makeServerStreamRequest(
      pathOf(method),
      serialize(method),
      deserialize(method),
      create(method.input, request),
      this.#headers(options),
      deadline(options),
    );
    options.signal?.addEventListener("abort", () => call.cancel());
    call.on("error", () => {}); // the loop throws it; after the loop nobody wants to know
    try {
      yield* call as AsyncIterable<MessageShape<O>>;
    } finally {
      call.cancel();
    }
  }

  /** A stream both ways: write requests, end it, and read the answers. */
  exchange(method: DescMethod, options: CallOptions = {}): grpc.ClientDuplexStream<unknown, unknown> {
    return this.#channel.makeBidiStreamRequest(
      pathOf(method),
      serialize(method),
      deserialize(method),
      this.#headers(options),
      deadline(options),
    );
  }

  /** Every change of a job until it is final. A stream that breaks goes on after the last event seen. */
  async *watch(jobId: string, options: CallOptions = {}): AsyncGenerator<Event> {
    let resumeAfter: bigint | undefined;
    for (;;) {
      try {
        const request = { jobId, includeResults: true, resumeAfter };
        for await (const { event } of this.stream(JobService.method.watchJob, request, options)) {
          if (event === undefined) continue;
          resumeAfter = event.eventNumber;
          yield event;
        }
        return;
      } catch (error) {
        const { reason } = reasonOf(error);
        if (resumeAfter === undefined) throw error;
        if (reason === "RESUME_TOO_OLD") resumeAfter = undefined; // begin again with a snapshot
        else if ((error as grpc.ServiceError).code === grpc.status.UNAVAILABLE) {
          await new Promise((resolve) => setTimeout(resolve, 1000)); // the server restarts, perhaps
        } else if (reason !== "WATCH_TOO_SLOW") throw error;
      }
    }
  }

  #headers(options: CallOptions): grpc.Metadata {
    const headers = new grpc.Metadata();
    for (const [key, value] of Object.entries({ ...this.#metadata, ...options.metadata })) headers.set(key, value);
    return headers;
  }
}

const pathOf = (method: DescMethod) => `/${method.parent.typeName}/${method.name}`;
const serialize = (method: DescMethod) => (message: unknown) =>
  Buffer.from(toBinary(method.input, message as MessageShape<DescMessage>));
const deserialize =
  <O extends DescMessage>(method: { output: O }) =>
  (data: Buffer) =>
    fromBinary(method.output, data);
const deadline = ({ timeoutMs }: CallOptions): grpc.CallOptions =>
  timeoutMs === undefined ? {} : { deadline: Date.now() + timeoutMs };

/** Why a call was refused: a name of `ErrorReason` without its prefix, and what it is about. Empty: no refusal. */
export function reasonOf(error: unknown): { reason: string; metadata: Record<string, string> } {
  const [data] = (error as Partial<grpc.ServiceError>).metadata?.get("grpc-status-details-bin") ?? [];
  if (data instanceof Buffer) {
    for (const detail of fromBinary(StatusSchema, data).details) {
      const info = anyUnpack(detail, ErrorInfoSchema);
      if (info?.domain === "cadenza") return { reason: info.reason, metadata: info.metadata };
    }
  }
  return { reason: "", metadata: {} };
}

/** An array of doubles as the contract carries it: C order, little-endian. */
export function tensorOf(shape: number[], values: number[]): Tensor {
  const data = new Uint8Array(8 * values.length);
  const view = new DataView(data.buffer);
  values.forEach((value, index) => view.setFloat64(8 * index, value, true));
  return create(TensorSchema, { dtype: Dtype.FLOAT64, shape: shape.map(BigInt), data });
}

/** The elements of a tensor of doubles. */
export function floatsOf(data: Uint8Array): number[] {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  return Array.from({ length: data.length / 8 }, (_, index) => view.getFloat64(8 * index, true));
}

/** How often each value of a register was measured; bit 0 is the right-most character. */
export function countsOf({ numBits, data }: BitArray): Map<string, number> {
  const size = Math.ceil(numBits / 8);
  const counts = new Map<string, number>();
  for (let at = 0; at < data.length; at += size) {
    const bytes = Array.from(data.subarray(at, at + size), (byte) => byte.toString(2).padStart(8, "0"));
    const word = bytes.join("").slice(8 * size - numBits);
    counts.set(word, (counts.get(word) ?? 0) + 1);
  }
  return counts;
}

/** The named array of a PUB's result: a register, `evs` or `stds`. */
export function fieldOf(result: PubResult, name: string): DataField["value"] {
  return result.fields.find((field) => field.name === name)?.value ?? { case: undefined };
}
