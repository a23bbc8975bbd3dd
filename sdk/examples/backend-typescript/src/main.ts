// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// A store backend for Promweave as a service: it makes up temperature and humidity of rooms, or has what is in a
// file. Replace class Store by your store.

import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { setImmediate } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import * as grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { compareLabels, compareText, compileMatchers, failure, labelSet, type Label, type Matcher } from "./selection.js";

type Range = { min_time: string; max_time: string; matchers: Matcher[] };
type SeriesCall = Range & { instance: string; skip_chunks: boolean; limit: string };
type LabelsCall = Range & { instance: string; name: string; without_replica_labels: string[]; limit: string };
type Sample = { time: number; value: number };
/** between has the samples from one time to another, both inclusive, in order; there are none before since. */
type Series = { labels: Label[]; since: number; between: (first: number, last: number) => Sample[] };

const pieceSamples = 2_000; // in one message: a series may come in pieces (rule S-2)
const mostSamples = 5_000_000; // in one answer
const idleTime = 3_600_000; // ms until an instance that nobody calls may be released

/** Which keys there are: a configuration with others is wrong. */
const schema = {
  type: "object",
  additionalProperties: false,
  properties: {
    file: { type: "string" },
    rooms: { type: "array", items: { type: "string" } },
    labels: { type: "object", additionalProperties: { type: "string" } },
    since: { type: "integer" },
    step_seconds: { type: "integer", minimum: 1 },
  },
};

/** Stored is a series with the labels of its own. */
type Stored = { own: Record<string, string>; since: number; between: Series["between"] };

/** Series of a room that are made up, from a time on, ms, one sample each step. */
function madeUp(room: string, phase: number, since: number, step: number): Stored[] {
  const wave = (time: number) => Math.sin((2 * Math.PI * time) / 86_400_000 + phase);
  const every = (value: (time: number) => number) => (first: number, last: number) => {
    const out = [];
    const end = Math.floor(Math.min(last, Date.now()) / step) * step;
    if ((end - Math.max(first, since)) / step > mostSamples) throw tooMany();
    for (let time = Math.ceil(Math.max(first, since) / step) * step; time <= end; time += step) out.push({ time, value: value(time) });
    return out;
  };
  return [
    { own: { __name__: "room_temperature_celsius", room }, since, between: every((time) => 20 + 3 * wave(time)) },
    { own: { __name__: "room_humidity_ratio", room }, since, between: every((time) => 0.5 - 0.1 * wave(time)) },
  ];
}

/** Series of a file in JSON: a list of {"labels": {...}, "samples": [[ms, value], ...]}, in order of time. */
function listed(file: string): Stored[] {
  // JSON has no words for what is no number: such a value is a string, as Prometheus writes it.
  const number = (v: number | string) => (v === "+Inf" ? Infinity : v === "-Inf" ? -Infinity : Number(v));
  const list = JSON.parse(readFileSync(file, "utf8")) as { labels: Record<string, string>; samples: [number, number | string][] }[];
  return list.map(({ labels, samples }) => {
    const all = samples.map(([time, value]): Sample => ({ time, value: number(value) }));
    return { own: labels, since: all[0]?.time ?? Infinity, between: (first, last) => all.filter((x) => x.time >= first && x.time <= last) };
  });
}

/** Adds the next in order; those that have become equal are one series (rule S-2), with one sample at a time. */
function joined(list: Series[], next: Series): Series[] {
  const last = list.at(-1);
  if (!last || compareLabels(last.labels, next.labels) !== 0) return [...list, next];
  const both: Series["between"] = (from, to) =>
    [...last.between(from, to), ...next.between(from, to)].sort((a, b) => a.time - b.time).filter((x, i, all) => x.time !== all[i - 1]?.time);
  return [...list.slice(0, -1), { labels: last.labels, since: Math.min(last.since, next.since), between: both }];
}

const tooMany = () => failure(grpc.status.RESOURCE_EXHAUSTED, `more than ${mostSamples} samples: ask for less, or for a shorter time`);

/** Store is one configured instance. */
class Store {
  used = Date.now();
  readonly external: Label[];
  private readonly series: Series[];

  /** An error names the key that is wrong. */
  constructor(config: Record<string, unknown>) {
    const wrong = (key: string, want: string) => failure(grpc.status.INVALID_ARGUMENT, `${key}: ${want}`);
    const { file = "", rooms = ["north", "south"], labels = {}, since = 0, step_seconds = 15, ...rest } = config;
    for (const key in rest) throw wrong(key, "unknown key; there are file, rooms, labels, since, step_seconds");
    const texts = (x: unknown): x is string[] => Array.isArray(x) && x.every((v) => typeof v === "string" && v !== "");
    if (!texts(rooms) || new Set(rooms).size !== rooms.length) throw wrong("rooms", "want a list of names, each once");
    if (typeof labels !== "object" || !labels || !texts(Object.values(labels))) throw wrong("labels", "want names with values");
    if ("room" in labels || "__name__" in labels) throw wrong("labels", "room and __name__ are taken");
    if (!Number.isSafeInteger(since)) throw wrong("since", "want milliseconds since 1970");
    if (!Number.isInteger(step_seconds) || (step_seconds as number) < 1) throw wrong("step_seconds", "want a whole number above 0");
    if (typeof file !== "string") throw wrong("file", "want the name of a file");
    this.external = labelSet(labels as Record<string, string>);
    let all;
    try {
      all = file ? listed(file) : rooms.flatMap((room, i) => madeUp(room, i, since as number, (step_seconds as number) * 1000));
    } catch (err) {
      throw wrong("file", (err as Error).message);
    }
    // External labels are on every series, and take the place of stored ones (rule S-4).
    const final = all.map(({ own, ...rest }): Series => ({ labels: labelSet({ ...own, ...(labels as Record<string, string>) }), ...rest }));
    this.series = final.sort((a, b) => compareLabels(a.labels, b.labels)).reduce(joined, [] as Series[]);
  }

  info() {
    const label_sets = this.external.length > 0 ? [{ labels: this.external }] : []; // none: cannot say
    const min_time = Math.min(...this.series.map((s) => s.since));
    return { label_sets, has_time_range: Number.isFinite(min_time), min_time: Number.isFinite(min_time) ? min_time : 0, max_time: "9223372036854775807", capabilities };
  }

  /** The series that match and have samples in the range, in order, with those samples. */
  *select(range: Range): Generator<{ labels: Label[]; samples: Sample[] }> {
    const matches = compileMatchers(range.matchers);
    // Bounds reach as far as 64 bits do; as numbers they are inexact only far beyond our data.
    const first = Number(range.min_time);
    const last = Number(range.max_time);
    for (const s of this.series) {
      const samples = matches(s.labels) ? s.between(first, last) : [];
      if (samples.length > 0) yield { labels: s.labels, samples };
    }
  }

  /** Yields messages of type SeriesBatch. */
  *batches(call: SeriesCall) {
    let left = Number(call.limit) || Infinity;
    let sent = 0;
    for (const { labels, samples } of this.select(call)) {
      if (left-- <= 0) return;
      if (call.skip_chunks) {
        yield { series: [{ labels }] };
        continue;
      }
      if ((sent += samples.length) > mostSamples) throw tooMany();
      for (let at = 0; at < samples.length; at += pieceSamples) yield { series: [{ labels, samples: samples.slice(at, at + pieceSamples) }] };
    }
  }

  /** Label names, or with a name the values of that label. */
  labels(call: LabelsCall) {
    const found = [...this.select(call)].flatMap((s) => s.labels.filter((l) => !call.without_replica_labels.includes(l.name)));
    const values = call.name === "" ? found.map((l) => l.name) : found.filter((l) => l.name === call.name).map((l) => l.value);
    const sorted = [...new Set(values)].sort(compareText);
    return { values: sorted.slice(0, Number(call.limit) || sorted.length) };
  }
}

// Claimed is what always holds; the host does the rest.
const capabilities = { series_limit: true, bounded_labels: true, completeness: true };

const instances = new Map<string, Store>();

function store(id: string): Store {
  const s = instances.get(id);
  if (!s) throw failure(grpc.status.NOT_FOUND, `instance ${id} is not configured here: call Configure`);
  s.used = Date.now();
  return s;
}

function configure(request: { name: string; config: Buffer }) {
  for (const [id, s] of instances) if (Date.now() - s.used > idleTime) instances.delete(id);
  const s = new Store(JSON.parse(request.config.toString() || "{}")); // a host sends nothing but JSON objects
  // Random, so that an id of an earlier life of this service is nobody's; a text, as numbers have 53 bits.
  const id = (randomBytes(8).readBigUInt64LE() | 1n).toString();
  instances.set(id, s);
  return { instance: id, capabilities };
}

/** A call with one reply. */
const unary = (answer: (request: any) => object) => (call: { request: unknown }, callback: grpc.sendUnaryData<object>) => {
  try {
    callback(null, answer(call.request));
  } catch (err) {
    callback(err as grpc.ServiceError);
  }
};

async function series(call: grpc.ServerWritableStream<SeriesCall, object>) {
  try {
    const gone = new AbortController();
    call.on("cancelled", () => gone.abort());
    for (const batch of store(call.request.instance).batches(call.request)) {
      // When the reader is slow we wait, and otherwise let other calls have their turn.
      if (!call.write(batch)) await once(call, "drain", { signal: gone.signal });
      await setImmediate();
      if (call.cancelled) return;
    }
    call.end();
  } catch (err) {
    if (!call.cancelled) call.emit("error", err);
  }
}

const service = {
  Describe: unary(() => ({
    name: "backend-typescript",
    version: "1.0.0",
    kind: "KIND_BACKEND",
    summary: "Rooms that are made up.",
    config_schema: JSON.stringify(schema),
  })),
  Configure: unary(configure),
  Release: unary((r) => (instances.delete(r.instance), {})),
  Health: unary(() => ({})),
  Info: unary((r) => store(r.instance).info()),
  Series: series,
  LabelNames: unary((r: LabelsCall) => store(r.instance).labels(r)),
  LabelValues: unary((r: LabelsCall) => {
    if (r.name === "") throw failure(grpc.status.INVALID_ARGUMENT, "name: is missing: of which label?");
    return store(r.instance).labels(r);
  }),
};

/** Ends the program with one line and an exit code: 2 is wrong usage. */
function quit(code: 1 | 2, err: unknown): never {
  console.error(`backend-typescript: ${err instanceof Error ? err.message : err}`);
  process.exit(code);
}

function orQuit<T>(code: 1 | 2, f: () => T): T {
  try {
    return f();
  } catch (err) {
    return quit(code, err);
  }
}

const options = {
  listen: { type: "string", default: "127.0.0.1:9096" },
  proto: { type: "string", default: fileURLToPath(new URL("../../../pluginpb/plugin.proto", import.meta.url)) },
  "tls-cert": { type: "string" },
  "tls-key": { type: "string" },
  "client-ca": { type: "string" },
} as const;
const { values: flags } = orQuit(2, () => parseArgs({ options }));
if (!(Number(/:(\d+)$/.exec(flags.listen)?.[1]) <= 65535)) quit(2, `--listen ${flags.listen}: want host:port`);
const { "tls-cert": cert, "tls-key": key, "client-ca": ca } = flags;
if (!cert !== !key || (ca && !cert)) quit(2, "--tls-cert and --tls-key belong together, and --client-ca needs them");

const definition = orQuit(1, () => loadSync(flags.proto, { keepCase: true, longs: String, enums: Number, defaults: true }));
const loaded = grpc.loadPackageDefinition(definition) as any;
const server = new grpc.Server();
// Calls that are not here, those of filters, are answered with UNIMPLEMENTED.
server.addService(loaded.promweave.plugin.v1.Plugin.service, service as unknown as grpc.UntypedServiceImplementation);

const credentials = orQuit(1, () => {
  if (!cert || !key) return grpc.ServerCredentials.createInsecure();
  const pairs = [{ cert_chain: readFileSync(cert), private_key: readFileSync(key) }];
  return grpc.ServerCredentials.createSsl(ca ? readFileSync(ca) : null, pairs, ca !== undefined);
});
server.bindAsync(flags.listen, credentials, (err, port) => {
  if (err) quit(1, err);
  console.log(`listening on ${flags.listen.replace(/:\d+$/, "")}:${port}`);
});
for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => server.tryShutdown(() => process.exit(0)));
