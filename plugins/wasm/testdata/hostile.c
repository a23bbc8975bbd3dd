// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// A filter that does what its instance's name says, such as "request spin": when the
// hook is called, the worst that it can.
#include "guest.h"

static volatile u32 sink;

static NOINLINE u32 exponential(u32 n) {
	sink++;
	return n == 0 ? 1 : exponential(n - 1) + exponential(n - 1) + sink;
}

static NOINLINE u32 endless(u32 n) {
	if (sink == 12345) return n;
	return endless(n + 1) ^ sink;
}

static void say(const char *s) { host_log(1, s, length(s)); }

// act does what the mode says for a hook; 1 is "do as usual".
static u64 act(const char *hook) {
	u32 i = 0;
	for (; hook[i]; i++)
		if (hook[i] != mode[i]) return 1;
	if (mode[i++] != ' ') return 1;
	char c = mode[i], d = mode[i + 1];
	if (c == 't') __builtin_trap();                     // trap
	if (c == 's' && d == 'p') for (;;) sink++;          // spin
	if (c == 'e' && d == 'x') return exponential(200);  // exponential
	if (c == 'e' && d == 'n') return endless(0);        // endless
	if (c == 'd') return sink / (sink - sink);          // divide
	if (c == 'f')                                       // fill
		for (;;) {
			u8 *p = room(1 << 20);
			if (!p) top -= 1 << 20, p = (u8 *)top;
			__builtin_memset(p, 1, 1 << 20);
		}
	if (c == 'b') {                                     // bomb
		while (__builtin_wasm_memory_grow(0, 1) != (u32)-1) {}
		__builtin_trap();
	}
	if (c == 'g' && d == 'r') {                         // grow
		while (__builtin_wasm_memory_grow(0, 1) != (u32)-1) {}
		return 0;
	}
	if (c == 'o') return result((void *)0xfffffff0u, 64);   // outside
	if (c == 'l' && d == 'o') return result(0, 0x7ffffff0); // long
	if (c == 'l' && d == 'i') return result((void *)16, 40); // lie
	if (c == 'g' && d == 'a') {                         // garbage
		u8 *p = room(64);
		for (u32 j = 0; j < 64; j++) p[j] = 0xff;
		return result(p, 64);
	}
	if (c == 'w') {                                     // wrong error
		u8 *p = room(64);
		for (u32 j = 0; j < 64; j++) p[j] = 0xff;
		return result(p, 64 | 1u << 31);
	}
	if (c == 'r') return fail("limit", "as asked for");  // refuse
	if (c == 'n') {                                     // noise
		for (u32 j = 0; j < 1000; j++) say("noise");
		return 0;
	}
	if (c == 'p') host_log(1, (void *)0xffffff00u, 4096); // pointer
	return 1;
}

EXPORT("promweave_alloc") u32 alloc(u32 n) {
	if (is("alloc zero") && n > 300) return 0;
	if (is("alloc odd") && n > 300) return (u32)&__heap_base | 1;
	if (is("alloc far") && n > 300) return 0xfffffff8;
	if (n > 300) act("alloc");
	top = (u32)&__heap_base;
	return (u32)room(n);
}

EXPORT("promweave_describe") u64 describe(u8 *p, u32 n) {
	buf b = {room(128), 0};
	text(&b, 1, "hostile");
	text(&b, 2, "1.0");
	number(&b, 3, 2);
	text(&b, 10, "request");
	text(&b, 10, "select");
	text(&b, 10, "rewrite");
	return result(b.p, b.n);
}

EXPORT("promweave_configure") u64 configure(u8 *p, u32 n) {
	configured(p, n);
	u64 r = act("configure");
	if (r != 1) return r;
	buf plan = {room(128), 0}, b = {room(128), 0};
	number(&plan, 1, 3);
	number(&plan, 5, 1);
	number(&plan, 7, 1);
	text(&plan, 10, "request");
	text(&plan, 10, "select");
	number(&b, 1, 1);
	bytes(&b, 2, plan.p, plan.n);
	return result(b.p, b.n);
}

EXPORT("promweave_request") u64 request(u8 *p, u32 n) {
	u64 r = act("request");
	return r == 1 ? 0 : r;
}

EXPORT("promweave_select") u64 sel(u8 *p, u32 n) {
	u64 r = act("select");
	return r == 1 ? 0 : r;
}

// The small frame that tries a filter out it leaves alone.
EXPORT("promweave_rewrite") u64 rewrite(u8 *p, u32 n) {
	u64 r = n < 400 ? 1 : act("rewrite");
	return r == 1 ? 0 : r;
}

static u32 idles;
EXPORT("promweave_idle") void idle(void) {
	idles++;
	act("idle");
	say("tidied up");
}
