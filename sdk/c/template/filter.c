/* Copyright The Promweave Authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * A filter that renames a label and gives all series another one. Settings: from, to, and
 * cluster, the value of the label "cluster". */
#include "../promweave.h"

static pw_str from, to, cluster;

/* configure is called once. What it takes from the arena or the configuration stays. */
static bool configure(const pw_config *c, pw_plan *plan) {
  from = pw_get(c, "from"), to = pw_get(c, "to"), cluster = pw_get(c, "cluster");
  if (!from.n || !to.n) return pw_fail(PW_INVALID, PW_STR("from, to: are missing"));
  /* The names of labels suffice: nothing here depends on a value. */
  plan->tier = PW_TIER_NAMES;
  plan->pure = true;
  pw_plan_reads(plan, from);
  pw_plan_writes(plan, from);
  pw_plan_writes(plan, to);
  pw_plan_writes(plan, PW_STR("cluster"));
  return true;
}

/* rewrite gets each list of label names of a batch once, as a group. */
static bool rewrite(const pw_frame *in, pw_reply *out) {
  for (uint32_t i = 0; i < in->groups; i++) {
    pw_group g = pw_group_of(in, i);
    pw_edit(out, &g);
    pw_rename(out, pw_known(out, from), pw_name(out, to));
    pw_set(out, pw_name(out, PW_STR("cluster")), pw_value(out, cluster));
  }
  return true;
}

/* Which keys there are: a configuration with others is wrong. */
static const char schema[] =
  "{\"type\":\"object\",\"additionalProperties\":false,\"required\":[\"from\",\"to\"],"
  "\"properties\":{\"from\":{\"type\":\"string\"},\"to\":{\"type\":\"string\"},\"cluster\":{\"type\":\"string\"}}}";

PW_EXPORT_FILTER(.name = "rename", .version = "0.1.0", .summary = "Renames a label.", .config_schema = schema,
                 .configure = configure, .rewrite = rewrite)
