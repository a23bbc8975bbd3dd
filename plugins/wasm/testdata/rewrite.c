// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// A filter of tier rows: pod_template_hash goes, node becomes kubernetes_node, and
// tenant becomes the value of namespace, row by row.
#include "guest.h"

EXPORT("promweave_alloc") u32 alloc(u32 n) {
	top = (u32)&__heap_base;
	return (u32)room(n);
}

EXPORT("promweave_describe") u64 describe(u8 *p, u32 n) {
	buf b = {room(64), 0};
	text(&b, 1, "rewrite");
	text(&b, 2, "1.0");
	number(&b, 3, 2);
	text(&b, 10, "rewrite");
	return result(b.p, b.n);
}

EXPORT("promweave_configure") u64 configure(u8 *p, u32 n) {
	configured(p, n);
	buf plan = {room(128), 0}, b = {room(160), 0};
	number(&plan, 1, 3);
	text(&plan, 3, "namespace");
	text(&plan, 3, "node");
	text(&plan, 4, "pod_template_hash");
	text(&plan, 4, "node");
	text(&plan, 4, "kubernetes_node");
	text(&plan, 4, "tenant");
	number(&plan, 11, 1);
	number(&b, 1, 1);
	bytes(&b, 2, plan.p, plan.n);
	return result(b.p, b.n);
}

static const u32 *ends;
static const u8 *symbols;

static int same(u32 id, const char *s, u32 n) {
	if (ends[id + 1] - ends[id] != n) return 0;
	for (u32 i = 0; i < n; i++)
		if (symbols[ends[id] + i] != s[i]) return 0;
	return 1;
}

static u32 find(u32 names, const char *s, u32 n) {
	for (u32 id = 1; id <= names; id++)
		if (same(id, s, n)) return id;
	return 0;
}

#define FIND(s) find(names, s, sizeof s - 1)

EXPORT("promweave_rewrite") u64 rewrite(u32 *in, u32 n) {
	u32 names = in[3], count = in[4], groups = in[6], rows = in[7];
	u8 *base = (u8 *)in;
	ends = (u32 *)(base + in[8]);
	symbols = base + in[9];
	u32 hash = FIND("pod_template_hash"), node = FIND("node"), ns = FIND("namespace"), tenant = FIND("tenant");
	// New symbols: 0 kubernetes_node, 1 tenant.
	static const char fresh[] = "kubernetes_nodetenant";
	u32 at = 32 + 4 * groups, worst = at + 16 + 24;
	for (u32 g = 0; g < groups; g++) {
		u32 *group = (u32 *)(base + in[12 + g]);
		worst += 8 + 12 * (group[1] + 1);
	}
	worst += 4 * rows;
	u32 *out = (u32 *)room(worst);
	u8 *start = (u8 *)out;
	for (u32 g = 0; g < groups; g++) {
		const u32 *group = (u32 *)(base + in[12 + g]);
		const u32 *columns = group + 2;
		out[8 + g] = at;
		u32 *reply = (u32 *)(start + at);
		u32 *column = reply + 2, used = 0, source = (u32)-1;
		for (u32 c = 0; c < group[1]; c++, columns += 3) {
			if (columns[0] == hash || columns[0] == tenant) continue;
			if (columns[0] == ns) source = c;
			column[0] = columns[0] == node ? count : columns[0];
			column[1] = 0;
			column[2] = c;
			column += 3;
			used++;
		}
		at += 8 + 12 * used;
		if (source != (u32)-1) {
			const u32 *from = group + 2 + 3 * source;
			used++;
			at += 12;
			column[0] = count + 1;
			if (from[1] == 1) {
				column[1] = 1;
				column[2] = from[2];
			} else {
				column[1] = 2;
				column[2] = at;
				const u32 *refs = (u32 *)(base + from[2]);
				u32 *to = (u32 *)(start + at);
				for (u32 r = 0; r < group[0]; r++) to[r] = refs[r];
				at += 4 * group[0];
			}
		}
		reply[0] = used;
		reply[1] = 0;
	}
	u32 *table = (u32 *)(start + at);
	table[0] = 0;
	table[1] = 15;
	table[2] = 21;
	u8 *text_at = (u8 *)(table + 3);
	for (u32 i = 0; i < 24; i++) text_at[i] = i < 21 ? fresh[i] : 0;
	u32 total = at + 12 + 24;
	__builtin_memcpy(start, "PWR1", 4);
	out[1] = total;
	out[2] = groups;
	out[3] = 2;
	out[4] = at;
	out[5] = at + 12;
	out[6] = 21;
	out[7] = 0;
	return result(start, total);
}
