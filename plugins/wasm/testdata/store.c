// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// A backend that does what its instance's name says.
#include "guest.h"

IMPORT("emit") u32 emit(const void *p, u32 n);
#ifdef HTTP
IMPORT("http_fetch") long long http_fetch(const void *p, u32 n);
IMPORT("http_response") int http_response(u32 h, void *p, u32 cap);
IMPORT("http_read") int http_read(u32 h, void *p, u32 cap);
IMPORT("http_close") void http_close(u32 h);
IMPORT("http_error") int http_error(void *p, u32 cap);
#endif

static volatile u32 sink;

EXPORT("promweave_alloc") u32 alloc(u32 n) {
	top = (u32)&__heap_base;
	return (u32)room(n);
}

EXPORT("promweave_describe") u64 describe(u8 *p, u32 n) {
	buf b = {room(64), 0};
	text(&b, 1, "store");
	text(&b, 2, "1.0");
	number(&b, 3, 1);
	return result(b.p, b.n);
}

EXPORT("promweave_configure") u64 configure(u8 *p, u32 n) {
	configured(p, n);
	buf b = {room(16), 0};
	number(&b, 1, 7);
	return result(b.p, b.n);
}

EXPORT("promweave_info") u64 info(u8 *p, u32 n) { return 0; }

// one emits a batch with one series {name=value} of one sample.
static u32 one(const char *name, const char *value, const char *notice) {
	u32 before = top;
	buf label = {room(64), 0}, sample = {room(16), 0}, series = {room(128), 0}, b = {room(512), 0};
	text(&label, 1, name);
	text(&label, 2, value);
	number(&sample, 1, 2000); // 1000 ms, zigzag
	put(&sample, 2 << 3 | 1);
	double v = 42;
	__builtin_memcpy(sample.p + sample.n, &v, 8);
	sample.n += 8;
	bytes(&series, 1, label.p, label.n);
	bytes(&series, 2, sample.p, sample.n);
	bytes(&b, 3, series.p, series.n);
	if (notice) {
		buf m = {room(128), 0};
		number(&m, 1, 1);
		text(&m, 2, notice);
		bytes(&b, 2, m.p, m.n);
	}
	top = before;
	return emit(b.p, b.n);
}

EXPORT("promweave_series") u64 series(u8 *p, u32 n) {
	if (is("after stop")) {
		while (1) one("a", "1", 0);
	}
	if (is("disorder")) {
		one("a", "2", 0);
		one("a", "1", 0);
		return 0;
	}
	if (is("garbage")) {
		emit("\xff\xff\xff\xff\xff\xff", 6);
		return 0;
	}
	if (is("frame")) { // a frame that is none
		emit("\x0a\x04PWF1", 6);
		return 0;
	}
	if (is("elements")) { // many elements in few bytes
		u32 size = 4 << 20;
		u8 *b = room(size);
		for (u32 i = 0; i < size; i += 2) b[i] = 0x1a, b[i + 1] = 0;
		emit(b, size);
		return 0;
	}
	if (is("outside")) {
		emit((void *)0xfffffff0u, 4096);
		return 0;
	}
	if (is("spin")) {
		one("a", "1", 0);
		for (;;) sink++;
	}
	if (is("trap")) {
		one("a", "1", 0);
		__builtin_trap();
	}
	if (is("error")) return fail("unavailable", "the store is away");
	if (is("returns")) return result("x", 1);
	if (is("many")) {
		while (!one("a", "1", 0)) {}
		return 0;
	}
	if (one("a", "1", 0)) return 0;
	if (one("a", "2", "half of it")) return 0;
	one("a", "3", 0);
	return 0;
}

EXPORT("promweave_label_names") u64 names(u8 *p, u32 n) {
	if (is("stale")) one("a", "1", 0);
	buf b = {room(64), 0};
	text(&b, 1, "b");
	text(&b, 1, "a");
	return result(b.p, b.n);
}

#ifdef HTTP
static char answer[65536];

// values returns what GET of the setting gave: the status and the body, or the error.
EXPORT("promweave_label_values") u64 values(u8 *p, u32 n) {
	buf q = {room(1024), 0}, b = {room(65536 + 64), 0};
	text(&q, 1, is("post") ? "POST" : "GET");
	text(&q, 2, setting);
	if (is("host header")) {
		buf h = {room(64), 0};
		text(&h, 1, "host");
		text(&h, 2, "elsewhere");
		bytes(&q, 3, h.p, h.n);
	}
	if (is("secret")) text(&q, 5, "token");
	if (is("other secret")) text(&q, 5, "other");
	long long h = http_fetch(q.p, q.n);
	if (h < 0) {
		char code[2] = {'0' - h, 0};
		text(&b, 1, code);
		u32 len = http_error(answer, sizeof answer);
		bytes(&b, 1, answer, len);
		return result(b.p, b.n);
	}
	if (is("leak")) { // handles stay open until the call ends
		for (u32 i = 0; i < 100; i++) h = http_fetch(q.p, q.n);
		char code[2] = {'0' - h, 0};
		text(&b, 1, code);
		return result(b.p, b.n);
	}
	if (http_response(h, answer, 1) < 2) return fail("internal", "a response fits into a byte");
	int head = http_response(h, answer, sizeof answer);
	if (head < 0) return fail("internal", "no response");
	u32 len = 0;
	int got;
	if (is("large")) { // read to the end
		while ((got = http_read(h, answer, sizeof answer)) > 0) {}
		if (got < 0) {
			len = http_error(answer, sizeof answer);
			bytes(&b, 1, answer, len);
		}
	} else {
		while ((got = http_read(h, answer + len, sizeof answer - len)) > 0) len += got;
		bytes(&b, 1, answer, len);
	}
	http_close(h);
	if (http_read(h, answer, 1) != -1) return fail("internal", "a closed response can be read");
	return result(b.p, b.n);
}
#else
EXPORT("promweave_label_values") u64 values(u8 *p, u32 n) { return 0; }
#endif
