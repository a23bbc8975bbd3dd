// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// A filter that renames a label and gives all series another one. Settings: from, to, and
// cluster, the value of the label "cluster".
import { Config, Description, fail, Filter, Frame, Plan, register, Reply, Str, str, Tier } from "../assembly/index";
export * from "../assembly/exports";

const CLUSTER = str("cluster");

// Which keys there are: a configuration with others is wrong.
const SCHEMA =
  '{"type":"object","additionalProperties":false,"required":["from","to"],' +
  '"properties":{"from":{"type":"string"},"to":{"type":"string"},"cluster":{"type":"string"}}}';

class Rename extends Filter {
  private from: Str = str("");
  private to: Str = str("");
  private cluster: Str = str("");

  describe(): Description {
    return new Description("rename", "0.1.0", "Renames a label.", SCHEMA);
  }

  configure(c: Config, plan: Plan): bool {
    this.from = c.get("from");
    this.to = c.get("to");
    this.cluster = c.get("cluster");
    if (this.from.length == 0 || this.to.length == 0) return fail("invalid", str("from, to: are missing"));
    // The names of labels suffice: nothing here depends on a value.
    plan.tier = Tier.Names;
    plan.pure = true;
    plan.reads(this.from);
    plan.writes(this.from);
    plan.writes(this.to);
    plan.writes(CLUSTER);
    return true;
  }

  /** Gets each list of label names of a batch once, as a group. */
  rewrite(input: Frame, out: Reply): bool {
    for (let i: u32 = 0; i < input.groups; i++) {
      out.edit(input.group(i));
      out.rename(this.from, this.to);
      out.set(CLUSTER, this.cluster);
    }
    return true;
  }
}

register(new Rename());
