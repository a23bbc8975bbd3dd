/* Copyright The Promweave Authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The reference filter, which every SDK has: sdk/guest/testfilter says what it does. */
#include "../promweave.h"

typedef struct { pw_str name, from, to; } entry;
typedef struct { entry *items; uint32_t n, cap; } entries;

static const char schema[] =
  "{\"type\":\"object\",\"additionalProperties\":false,\"properties\":{"
  "\"tier\":{\"type\":\"string\"},\"drop\":{\"type\":\"string\"},\"rename\":{\"type\":\"string\"},\"set\":{\"type\":\"string\"},"
  "\"map\":{\"type\":\"string\"},\"leave_out\":{\"type\":\"string\"},\"merge\":{\"type\":\"string\"},"
  "\"deny_subject\":{\"type\":\"string\"},\"require\":{\"type\":\"string\"}}}";

static pw_tier tier;
static pw_str deny_subject;
static entries drop, renames, set, map, leave_out, require;

/* parse reads "a,b" (parts 1), "from=to,..." (parts 2) or "name:from=to,..." (parts 3). */
static bool parse(const pw_config *c, const char *path, int parts, entries *list) {
  pw_str rest = pw_get(c, path), part;
  *list = (entries){0};
  while (pw_split(&rest, ',', &part)) {
    entry e = {.from = part};
    bool ok = true;
    if (parts == 3) ok = pw_cut(part, ':', &e.name, &e.from);
    if (parts >= 2) ok = ok && pw_cut(e.from, '=', &e.from, &e.to);
    if (!ok || !e.from.n || (parts == 3 && !e.name.n))
      return pw_fail(PW_INVALID, pw_concat(4, pw_cstr(path), PW_STR(": cannot read \""), part, PW_STR("\"")));
    *PW_PUSH(list->items, list->n, list->cap) = e;
  }
  return true;
}

#define EACH(e, list) (entry *e = (list).items; e < (list).items + (list).n; e++)

static bool configure(const pw_config *c, pw_plan *plan) {
  pw_str t = pw_get(c, "tier");
  if (!t.n || pw_equal(t, PW_STR("rows"))) tier = PW_TIER_ROWS;
  else if (pw_equal(t, PW_STR("columns"))) tier = PW_TIER_COLUMNS;
  else if (pw_equal(t, PW_STR("names"))) tier = PW_TIER_NAMES;
  else return pw_fail(PW_INVALID, PW_STR("tier: must be names, columns or rows"));
  if (!parse(c, "drop", 1, &drop) || !parse(c, "rename", 2, &renames) || !parse(c, "set", 2, &set) ||
      !parse(c, "map", 3, &map) || !parse(c, "leave_out", 2, &leave_out) || !parse(c, "require", 2, &require))
    return false;
  if (map.n && tier == PW_TIER_NAMES) return pw_fail(PW_INVALID, PW_STR("map: the names tier shows no values"));
  if (leave_out.n && tier != PW_TIER_ROWS) return pw_fail(PW_INVALID, PW_STR("leave_out: needs the rows tier"));
  deny_subject = pw_get(c, "deny_subject");

  plan->tier = tier;
  plan->pure = true;
  plan->merge = pw_equal(pw_get(c, "merge"), PW_STR("true"));
  plan->drops = leave_out.n > 0;
  if (tier == PW_TIER_COLUMNS) {
    /* Values alone are shown: what is done to names the host does before. */
    for EACH(e, drop) pw_plan_drop(plan, e->from);
    for EACH(e, renames) pw_plan_rename(plan, e->from, e->to);
    for EACH(e, set) pw_plan_set(plan, e->from, e->to);
    if (!map.n) plan->tier = PW_TIER_NONE;
  } else {
    for EACH(e, drop) pw_plan_writes(plan, e->from);
    for EACH(e, renames) pw_plan_reads(plan, e->from), pw_plan_writes(plan, e->from), pw_plan_writes(plan, e->to);
    for EACH(e, set) pw_plan_writes(plan, e->from);
  }
  for EACH(e, map) {
    bool first = true;
    for (entry *before = map.items; before < e; before++) first = first && !pw_equal(before->name, e->name);
    if (!first) continue;
    pw_plan_reads(plan, e->name), pw_plan_writes(plan, e->name);
    if (tier == PW_TIER_COLUMNS) pw_plan_column(plan, e->name);
  }
  for EACH(e, leave_out) pw_plan_reads(plan, e->from);
  if (deny_subject.n) pw_plan_hook(plan, "request");
  if (require.n) pw_plan_hook(plan, "select");
  return true;
}

static bool request(const pw_request *r, pw_request_reply *reply) {
  if (pw_equal(r->subject, deny_subject))
    return pw_request_deny(reply, 403, pw_concat(2, r->subject, PW_STR(" may not query")));
  pw_str tenant = pw_claim(r, "tenant");
  if (!tenant.n) return pw_request_deny(reply, 403, PW_STR("no tenant is known"));
  pw_enforce(reply, PW_EQ, PW_STR("tenant"), tenant);
  pw_tenant(reply, tenant);
  return true;
}

static bool select(const pw_select_call *c, pw_select_reply *reply) {
  (void)c;
  for EACH(e, require) pw_require(reply, PW_EQ, e->from, e->to);
  return true;
}

/* map_value is asked once for each distinct value of the label that context names. */
static pw_str map_value(pw_str value, void *context) {
  const entry *label = context;
  for EACH(e, map)
    if (pw_equal(e->from, value) && pw_equal(e->name, label->name)) return e->to;
  return value;
}

static void leave_rows_out(const pw_frame *in, const pw_group *g, const entry *e, pw_reply *out) {
  int32_t i = pw_find_column(g, pw_find_name(in, e->from));
  if (i < 0) return;
  pw_column c = pw_column_of(g, (uint32_t)i);
  for (uint32_t r = 0; r < g->rows; r++)
    if (pw_equal(pw_symbol(in, pw_ref(&c, r)), e->to)) pw_drop_row(out, r);
}

static bool rewrite(const pw_frame *in, pw_reply *out) {
  pw_memo *memos = pw_calloc(map.n, sizeof *memos);
  for (uint32_t i = 0; i < in->groups; i++) {
    pw_group g = pw_group_of(in, i);
    pw_edit(out, &g);
    for EACH(e, leave_out) leave_rows_out(in, &g, e, out);
    if (tier != PW_TIER_COLUMNS) {
      for EACH(e, drop) pw_drop(out, pw_known(out, e->from));
      for EACH(e, renames) pw_rename(out, pw_known(out, e->from), pw_name(out, e->to));
      for EACH(e, set) pw_set(out, pw_name(out, e->from), pw_value(out, e->to));
    }
    for (uint32_t k = 0; k < map.n; k++) {
      bool first = true;
      for (uint32_t j = 0; j < k; j++) first = first && !pw_equal(map.items[j].name, map.items[k].name);
      if (first) pw_map(out, pw_known(out, map.items[k].name), &memos[k], map_value, &map.items[k]);
    }
  }
  return true;
}

PW_EXPORT_FILTER(.name = "rewrite", .version = "1.0.0", .summary = "The reference filter of the SDKs.",
                 .config_schema = schema, .configure = configure, .request = request, .select = select, .rewrite = rewrite)
