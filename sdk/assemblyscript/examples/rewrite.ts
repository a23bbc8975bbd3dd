// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// The reference filter, which every SDK has: sdk/guest/testfilter says what it does.
import { concat, Config, Description, fail, Filter, Frame, Group, List, make, Match, Plan, register, Reply, RequestCall, RequestReply, SelectCall, SelectReply, Str, str, Tier, ValueMap } from "../assembly/index";
export * from "../assembly/exports";

const COMMA: u8 = 0x2c;
const EQUALS: u8 = 0x3d;
const COLON: u8 = 0x3a;
const TENANT = str("tenant");

/** One item of a list: "from", "from=to" or "name:from=to". */
@unmanaged
class Entry {
  name: Str;
  from: Str;
  to: Str;
}

function parse(c: Config, path: string, parts: i32): List<Entry> | null {
  const list = make<List<Entry>>();
  const items = c.get(path).split(COMMA);
  for (let i = 0; i < items.length; i++) {
    const item = items[i];
    const e = make<Entry>();
    const colon = parts == 3 ? item.indexOf(COLON) : -1;
    const equals = parts >= 2 ? item.indexOf(EQUALS, colon + 1) : item.length;
    e.name = item.slice(0, max(colon, 0));
    e.from = item.slice(colon + 1, max(equals, 0));
    e.to = item.slice(equals + 1, item.length);
    if (equals < 0 || e.from.length == 0 || (parts == 3 && e.name.length == 0)) {
      fail("invalid", concat(str(path), str(': cannot read "'), item, str('"')));
      return null;
    }
    list.push(e);
  }
  return list;
}

/** What the values of one label become. */
class LabelMap extends ValueMap {
  constructor(public name: Str, private entries: List<Entry>) {
    super();
  }
  of(value: Str): Str {
    for (let i = 0; i < this.entries.length; i++) {
      const e = this.entries[i];
      if (e.from == value && e.name == this.name) return e.to;
    }
    return value;
  }
}

class Rewrite extends Filter {
  private tier: Tier = Tier.Rows;
  private denySubject: Str = str("");
  private dropped: List<Entry> = make<List<Entry>>();
  private renamed: List<Entry> = make<List<Entry>>();
  private setTo: List<Entry> = make<List<Entry>>();
  private mapped: List<Entry> = make<List<Entry>>();
  private leaveOut: List<Entry> = make<List<Entry>>();
  private required: List<Entry> = make<List<Entry>>();
  private maps: LabelMap[] = [];

  describe(): Description {
    const schema = `{"type":"object","additionalProperties":false,"properties":{
      "tier":{"type":"string"},"drop":{"type":"string"},"rename":{"type":"string"},"set":{"type":"string"},
      "map":{"type":"string"},"leave_out":{"type":"string"},"merge":{"type":"string"},
      "deny_subject":{"type":"string"},"require":{"type":"string"}}}`;
    return new Description("rewrite", "1.0.0", "The reference filter of the SDKs.", schema, 0, ["request", "select", "rewrite"]);
  }

  configure(c: Config, plan: Plan): bool {
    const tier = c.get("tier");
    if (tier.length == 0 || tier == str("rows")) this.tier = Tier.Rows;
    else if (tier == str("columns")) this.tier = Tier.Columns;
    else if (tier == str("names")) this.tier = Tier.Names;
    else return fail("invalid", str("tier: must be names, columns or rows"));
    const dropped = parse(c, "drop", 1);
    if (dropped === null) return false;
    const renamed = parse(c, "rename", 2);
    if (renamed === null) return false;
    const setTo = parse(c, "set", 2);
    if (setTo === null) return false;
    const mapped = parse(c, "map", 3);
    if (mapped === null) return false;
    const leaveOut = parse(c, "leave_out", 2);
    if (leaveOut === null) return false;
    const required = parse(c, "require", 2);
    if (required === null) return false;
    if (mapped.length > 0 && this.tier == Tier.Names) return fail("invalid", str("map: the names tier shows no values"));
    if (leaveOut.length > 0 && this.tier != Tier.Rows) return fail("invalid", str("leave_out: needs the rows tier"));
    this.dropped = dropped;
    this.renamed = renamed;
    this.setTo = setTo;
    this.mapped = mapped;
    this.leaveOut = leaveOut;
    this.required = required;
    this.denySubject = c.get("deny_subject");
    for (let i = 0; i < mapped.length; i++) {
      let first = true;
      for (let k = 0; k < this.maps.length; k++) first = first && this.maps[k].name != mapped[i].name;
      if (first) this.maps.push(new LabelMap(mapped[i].name, mapped));
    }
    plan.merge = c.get("merge") == str("true");
    this.fill(plan);
    return true;
  }

  private fill(plan: Plan): void {
    plan.tier = this.tier;
    plan.pure = true;
    plan.drops = this.leaveOut.length > 0;
    if (this.tier == Tier.Columns) {
      // Values alone are shown: what is done to names the host does before.
      for (let i = 0; i < this.dropped.length; i++) plan.drop(this.dropped[i].from);
      for (let i = 0; i < this.renamed.length; i++) plan.rename(this.renamed[i].from, this.renamed[i].to);
      for (let i = 0; i < this.setTo.length; i++) plan.set(this.setTo[i].from, this.setTo[i].to);
      for (let i = 0; i < this.maps.length; i++) plan.column(this.maps[i].name);
      if (this.maps.length == 0) plan.tier = Tier.None;
    } else {
      for (let i = 0; i < this.dropped.length; i++) plan.writes(this.dropped[i].from);
      for (let i = 0; i < this.renamed.length; i++) {
        plan.reads(this.renamed[i].from);
        plan.writes(this.renamed[i].from);
        plan.writes(this.renamed[i].to);
      }
      for (let i = 0; i < this.setTo.length; i++) plan.writes(this.setTo[i].from);
    }
    for (let i = 0; i < this.maps.length; i++) {
      plan.reads(this.maps[i].name);
      plan.writes(this.maps[i].name);
    }
    for (let i = 0; i < this.leaveOut.length; i++) plan.reads(this.leaveOut[i].from);
    if (this.denySubject.length > 0) plan.hook("request");
    if (this.required.length > 0) plan.hook("select");
  }

  request(c: RequestCall, reply: RequestReply): bool {
    if (c.subject == this.denySubject) return reply.deny(403, concat(c.subject, str(" may not query")));
    const tenant = c.claim("tenant");
    if (tenant.length == 0) return reply.deny(403, str("no tenant is known"));
    reply.enforce(Match.Equal, TENANT, tenant);
    reply.tenant(tenant);
    return true;
  }

  select(c: SelectCall, reply: SelectReply): bool {
    for (let i = 0; i < this.required.length; i++) reply.require(Match.Equal, this.required[i].from, this.required[i].to);
    return true;
  }

  rewrite(input: Frame, out: Reply): bool {
    for (let i = 0; i < this.maps.length; i++) this.maps[i].reset();
    for (let i: u32 = 0; i < input.groups; i++) {
      const g = input.group(i);
      out.edit(g);
      for (let k = 0; k < this.leaveOut.length; k++) this.leaveRowsOut(input, g, this.leaveOut[k], out);
      if (this.tier != Tier.Columns) {
        for (let k = 0; k < this.dropped.length; k++) out.drop(this.dropped[k].from);
        for (let k = 0; k < this.renamed.length; k++) out.rename(this.renamed[k].from, this.renamed[k].to);
        for (let k = 0; k < this.setTo.length; k++) out.set(this.setTo[k].from, this.setTo[k].to);
      }
      for (let k = 0; k < this.maps.length; k++) out.map(this.maps[k].name, this.maps[k]);
    }
    return true;
  }

  private leaveRowsOut(input: Frame, g: Group, e: Entry, out: Reply): void {
    const i = g.find(input.findName(e.from));
    if (i < 0) return;
    const c = g.column(i);
    for (let r: u32 = 0; r < g.rows; r++) if (input.symbol(c.at(r)) == e.to) out.dropRow(r);
  }
}

register(new Rewrite());
