// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// What the author of a filter writes; sdk/filter/filter.go has the same with its rules.
import { List, make, Str, str } from "./memory";
import { Reader, Writer } from "./wire";
import { Frame, Reply } from "./frame";

export enum Role {
  Rewrite,
  Auth,
  Tenancy,
}

/** How much of label sets rewrite needs to see; sdk/frame/README.md has what each shows
 * and allows. */
export enum Tier {
  None,
  Names,
  Columns,
  Rows,
}

/** How a matcher compares. Regular expressions are RE2, anchored at both ends. */
export enum Match {
  Equal,
  NotEqual,
  Regexp,
  NotRegexp,
}

/** What the filter says of itself. */
export class Description {
  constructor(
    public name: string,
    public version: string,
    public summary: string = "",
    /** A JSON Schema of the configuration; "" accepts anything. */
    public schema: string = "",
    public role: Role = Role.Rewrite,
    /** Those of request, select and rewrite that instances may offer. */
    public hooks: string[] = ["rewrite"],
    /** clock, random, metrics. */
    public permissions: string[] = [],
  ) {}
}

/** A filter: one configured instance of it. Calls return true, or false after fail. */
export abstract class Filter {
  abstract describe(): Description;
  /** Fills in the plan. What is made here stays until the instance ends. */
  abstract configure(c: Config, plan: Plan): bool;
  /** Decides about a request. */
  request(c: RequestCall, reply: RequestReply): bool {
    return fail("unsupported", str("no request hook"));
  }
  /** Narrows what one backend is asked. */
  select(c: SelectCall, reply: SelectReply): bool {
    return fail("unsupported", str("no select hook"));
  }
  /** Rewrites the label sets of a frame. Leaving out untouched changes nothing. */
  rewrite(input: Frame, out: Reply): bool {
    return fail("unsupported", str("no rewrite hook"));
  }
}

export let errorKind = "";
export let errorText = str("");

/** Says why a call failed, by a kind of sdk/backend: invalid, unsupported, unavailable,
 * internal, ... */
export function fail(kind: string, message: Str): bool {
  errorKind = kind;
  errorText = message;
  return false;
}

/** One scalar of a configuration or of claims: path "rules[0].from" and the value as text. */
@unmanaged
export class Setting {
  path: Str;
  value: Str;

  static read(r: Reader): Setting {
    const s = make<Setting>();
    s.path = NONE;
    s.value = NONE;
    while (r.next()) {
      if (r.field == 1) s.path = r.bytes;
      if (r.field == 2) s.value = r.bytes;
    }
    return s;
  }
}

const NONE = str("");

function valueOf(list: List<Setting>, path: string): Str {
  const p = str(path);
  for (let i = 0; i < list.length; i++) if (list[i].path == p) return list[i].value;
  return NONE;
}

/** What an instance is made of. */
@unmanaged
export class Config {
  /** The instance's name in the host's configuration. */
  name: Str;
  /** The configuration as a JSON object; settings are its scalars in order. */
  json: Str;
  settings: List<Setting>;

  static read(r: Reader): Config {
    const c = make<Config>();
    c.name = NONE;
    c.json = NONE;
    c.settings = make<List<Setting>>();
    while (r.next()) {
      if (r.field == 1) c.name = r.bytes;
      if (r.field == 2) c.json = r.bytes;
      if (r.field == 3) c.settings.push(Setting.read(r.message));
    }
    return c;
  }
  /** The setting with a path, "" without. */
  get(path: string): Str {
    return valueOf(this.settings, path);
  }
}

/** What an instance promises. */
@unmanaged
export class Plan {
  tier: Tier;
  /** Stands for all names but those that are kept. */
  writesAny: bool;
  /** Rows may be left out. */
  drops: bool;
  /** Series that become equal are one; otherwise that is an error. */
  merge: bool;
  /** The same label set always gives the same result. */
  pure: bool;
  private w: Writer;

  static create(): Plan {
    const p = make<Plan>();
    p.w = make<Writer>();
    return p;
  }
  /** A column of Tier.Columns. */
  column(name: Str): void {
    this.w.item(2, name);
  }
  /** A label that the result depends on. */
  reads(name: Str): void {
    this.w.item(3, name);
  }
  /** A label in which the result may differ. */
  writes(name: Str): void {
    this.w.item(4, name);
  }
  keeps(name: Str): void {
    this.w.item(6, name);
  }
  /** request or select: a hook to call. */
  hook(name: string): void {
    this.w.item(10, str(name));
  }
  private operation(op: u32, a: Str, b: Str): void {
    const at = this.w.begin(9);
    this.w.pair(op, a, b);
    this.w.end(at);
  }
  // Operations are done by the host, in order, before rewrite sees anything.
  rename(from: Str, to: Str): void {
    this.operation(1, from, to);
  }
  drop(name: Str): void {
    this.operation(2, name, NONE);
  }
  set(name: Str, value: Str): void {
    this.operation(4, name, value);
  }
  require(op: Match, name: Str, value: Str): void {
    const at = this.w.begin(9);
    writeMatcher(this.w, 6, op, name, value);
    this.w.end(at);
  }
  finish(): Str {
    const w = this.w;
    w.number(1, this.tier);
    w.number(5, this.writesAny);
    w.number(7, this.drops);
    w.number(8, this.merge);
    w.number(11, this.pure);
    return w.text;
  }
}

@unmanaged
export class Matcher {
  op: Match;
  name: Str;
  value: Str;

  static read(r: Reader): Matcher {
    const m = make<Matcher>();
    m.name = NONE;
    m.value = NONE;
    while (r.next()) {
      if (r.field == 1) m.op = <Match>r.number;
      if (r.field == 2) m.name = r.bytes;
      if (r.field == 3) m.value = r.bytes;
    }
    return m;
  }
}

function writeMatcher(w: Writer, field: u32, op: Match, name: Str, value: Str): void {
  const at = w.begin(field);
  w.number(1, op);
  w.string(2, name);
  w.string(3, value);
  w.end(at);
}

function writeDenial(w: Writer, status: u32, message: Str): void {
  const at = w.begin(1);
  w.number(1, status);
  w.string(2, message);
  w.end(at);
}

@unmanaged
export class Header {
  name: Str;
  values: List<Str>;
}

/** A request that is about to begin, and who asks, as far as the host has verified it.
 * Times are ms. */
@unmanaged
export class RequestCall {
  kind: Str;
  query: Str;
  selectors: List<List<Matcher>>;
  start: i64;
  end: i64;
  step: i64;
  /** The longest time in ms that one selector reads before what start and end ask for. */
  window: i64;
  /** basic, bearer or mtls; "" if nobody is known. */
  method: Str;
  subject: Str;
  /** A JSON object; claimSettings are its scalars. */
  claims: Str;
  claimSettings: List<Setting>;
  /** Those that the operator lets filters see, names in lower case. */
  headers: List<Header>;

  /** The claim with a path, "" without. */
  claim(path: string): Str {
    return valueOf(this.claimSettings, path);
  }
  static read(r: Reader): RequestCall {
    const c = make<RequestCall>();
    c.kind = c.query = c.method = c.subject = c.claims = NONE;
    c.selectors = make<List<List<Matcher>>>();
    c.claimSettings = make<List<Setting>>();
    c.headers = make<List<Header>>();
    while (r.next()) {
      switch (r.field) {
        case 2:
          c.kind = r.bytes;
          break;
        case 3:
          c.query = r.bytes;
          break;
        case 4: {
          const ms = make<List<Matcher>>();
          for (const m = r.message; m.next(); ) if (m.field == 1) ms.push(Matcher.read(m.message));
          c.selectors.push(ms);
          break;
        }
        case 5:
          c.start = r.signed;
          break;
        case 6:
          c.end = r.signed;
          break;
        case 7:
          c.step = r.signed;
          break;
        case 8:
          c.readCaller(r.message);
          break;
        case 9:
          c.window = r.signed;
          break;
      }
    }
    return c;
  }
  private readCaller(r: Reader): void {
    while (r.next()) {
      if (r.field == 1) this.method = r.bytes;
      if (r.field == 2) this.subject = r.bytes;
      if (r.field == 3) this.claims = r.bytes;
      if (r.field == 4) this.claimSettings.push(Setting.read(r.message));
      if (r.field == 5) {
        const h = make<Header>();
        h.name = NONE;
        h.values = make<List<Str>>();
        for (const f = r.message; f.next(); ) {
          if (f.field == 1) h.name = f.bytes;
          if (f.field == 2) h.values.push(f.bytes);
        }
        this.headers.push(h);
      }
    }
  }
}

/** Bounds a request. Left as it is it lets it go on without bounds. */
@unmanaged
export class RequestReply {
  admin: bool;
  hasTimeRange: bool;
  /** What is visible, ms, both inclusive. */
  minTime: i64;
  maxTime: i64;
  /** Limits where they are lower than the configured ones; 0 is none. */
  maxSeries: u64;
  maxSamples: u64;
  maxBytes: u64;
  /** Replaces the caller's subject in logs. */
  subject: Str;
  private w: Writer;

  static create(): RequestReply {
    const r = make<RequestReply>();
    r.w = make<Writer>();
    r.subject = NONE;
    return r;
  }
  /** Ends the request. The status is an HTTP status. */
  deny(status: u32, message: Str): bool {
    writeDenial(this.w, status, message);
    return true;
  }
  /** Must hold on every series that the request gets to see. */
  enforce(op: Match, name: Str, value: Str): void {
    writeMatcher(this.w, 2, op, name, value);
  }
  /** Who the request is for, for logs and the report. */
  tenant(name: Str): void {
    this.w.item(3, name);
  }
  finish(): Str {
    const w = this.w;
    w.number(4, this.admin);
    w.number(5, this.hasTimeRange);
    w.signed(6, this.minTime);
    w.signed(7, this.maxTime);
    w.number(8, this.maxSeries);
    w.number(9, this.maxSamples);
    w.number(10, this.maxBytes);
    w.string(11, this.subject);
    return w.text;
  }
}

/** A selection from one backend that is about to begin. Times are ms. */
@unmanaged
export class SelectCall {
  backend: Str;
  matchers: List<Matcher>;
  minTime: i64;
  maxTime: i64;
  tenants: List<Str>;

  static read(r: Reader): SelectCall {
    const c = make<SelectCall>();
    c.backend = NONE;
    c.matchers = make<List<Matcher>>();
    c.tenants = make<List<Str>>();
    while (r.next()) {
      if (r.field == 2) c.backend = r.bytes;
      if (r.field == 3) c.matchers.push(Matcher.read(r.message));
      if (r.field == 4) c.minTime = r.signed;
      if (r.field == 5) c.maxTime = r.signed;
      if (r.field == 6) c.tenants.push(r.bytes);
    }
    return c;
  }
}

/** Narrows a selection. Left as it is it changes nothing. */
@unmanaged
export class SelectReply {
  /** Nothing can match. */
  none: bool;
  private w: Writer;

  static create(): SelectReply {
    const r = make<SelectReply>();
    r.w = make<Writer>();
    return r;
  }
  deny(status: u32, message: Str): bool {
    writeDenial(this.w, status, message);
    return true;
  }
  /** Must hold on the backend's own labels, besides all else. */
  require(op: Match, name: Str, value: Str): void {
    writeMatcher(this.w, 3, op, name, value);
  }
  finish(): Str {
    this.w.number(2, this.none);
    return this.w.text;
  }
}
