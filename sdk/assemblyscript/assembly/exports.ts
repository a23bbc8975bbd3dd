// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// What the module exports. The entry file of a plug-in has `export * from` this file, and
// registers its filter.
import { alloc, keep, make, reset, Str, str } from "./memory";
import { Reader, Writer } from "./wire";
import { Frame, Reply } from "./frame";
import { Config, errorKind, errorText, fail, Filter, Plan, RequestCall, RequestReply, SelectCall, SelectReply } from "./filter";

const MINOR = 0;
let filter: Filter | null = null;
/** promweave_alloc was called for the call that comes next. */
let prepared = false;
let calls = 0;

/** Makes f the filter that the module offers. For the top of the entry file. */
export function register(f: Filter): void {
  filter = f;
  keep();
}

function enter(): void {
  if (!prepared) reset();
  prepared = false;
}

function leave(ok: bool, s: Str): u64 {
  if (++calls >= 1024) promweave_idle();
  if (ok) return s.length == 0 ? 0 : ((<u64>s.at) << 32) | s.length;
  const w = make<Writer>();
  w.string(1, str(errorKind));
  w.string(2, errorText);
  return ((<u64>w.at) << 32) | 0x80000000 | w.length;
}

export function promweave_abi_v1(): i32 {
  return MINOR;
}

export function promweave_alloc(n: i32): usize {
  reset();
  prepared = true;
  return n < 0 || n > 64 << 20 ? 0 : alloc(n);
}

export function promweave_describe(p: usize, n: i32): u64 {
  enter();
  const d = filter!.describe();
  const w = make<Writer>();
  w.string(1, str(d.name));
  w.string(2, str(d.version));
  w.number(3, 2);
  w.number(4, d.role);
  w.number(5, MINOR);
  for (let i = 0; i < d.permissions.length; i++) w.item(7, str(d.permissions[i]));
  w.string(8, str(d.schema));
  w.string(9, str(d.summary));
  for (let i = 0; i < d.hooks.length; i++) w.item(10, str(d.hooks[i]));
  return leave(true, w.text);
}

export function promweave_configure(p: usize, n: i32): u64 {
  enter();
  const plan = Plan.create();
  const ok = filter!.configure(Config.read(Reader.of(Str.of(p, n))), plan);
  const w = make<Writer>();
  w.number(1, 1);
  w.item(2, plan.finish());
  const result = leave(ok, w.text);
  keep();
  return result;
}

export function promweave_request(p: usize, n: i32): u64 {
  enter();
  const reply = RequestReply.create();
  const ok = filter!.request(RequestCall.read(Reader.of(Str.of(p, n))), reply);
  return leave(ok, reply.finish());
}

export function promweave_select(p: usize, n: i32): u64 {
  enter();
  const reply = SelectReply.create();
  const ok = filter!.select(SelectCall.read(Reader.of(Str.of(p, n))), reply);
  return leave(ok, reply.finish());
}

export function promweave_rewrite(p: usize, n: i32): u64 {
  enter();
  const f = make<Frame>();
  const s = Str.of(p, n);
  if (!f.open(s)) return leave(fail("invalid", str("not a frame of version 1")), s);
  const out = Reply.to(f);
  const ok = filter!.rewrite(f, out);
  return leave(ok, out.finish());
}

/** Collects what AssemblyScript's own objects have left: with --runtime minimal nobody
 * else does, and here none is on the stack. */
export function promweave_idle(): void {
  calls = 0;
  __collect();
}
