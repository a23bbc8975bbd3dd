// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// What the modules of these tests have in common: an arena, and as much of
// protobuf's wire format as they need.
#pragma once

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

#define EXPORT(name) __attribute__((export_name(name)))
#define IMPORT(name) __attribute__((import_module("promweave_v1"), import_name(name)))
#define NOINLINE __attribute__((noinline))

IMPORT("log") void host_log(u32 level, const void *p, u32 n);

extern u8 __heap_base;

// The argument is at the base of the heap, results follow it.
static u32 top;

static u8 *room(u32 n) {
	u32 p = (top + 7) & ~7u;
	u64 end = (u64)p + n;
	u64 have = (u64)__builtin_wasm_memory_size(0) << 16;
	if (end > have && __builtin_wasm_memory_grow(0, (end - have + 65535) >> 16) == (u32)-1) return 0;
	top = (u32)end;
	return (u8 *)p;
}

static u64 result(const void *p, u32 n) { return (u64)(u32)p << 32 | n; }

typedef struct {
	u8 *p;
	u32 n;
} buf;

static void put(buf *b, u32 v) {
	while (v >= 128) {
		b->p[b->n++] = v | 128;
		v >>= 7;
	}
	b->p[b->n++] = v;
}

static void bytes(buf *b, u32 field, const void *p, u32 n) {
	put(b, field << 3 | 2);
	put(b, n);
	__builtin_memcpy(b->p + b->n, p, n);
	b->n += n;
}

static u32 length(const char *s) {
	u32 n = 0;
	while (s[n]) n++;
	return n;
}

static void text(buf *b, u32 field, const char *s) { bytes(b, field, s, length(s)); }

static void number(buf *b, u32 field, u32 v) {
	put(b, field << 3);
	put(b, v);
}

static u64 fail(const char *kind, const char *message) {
	buf b = {room(256), 0};
	text(&b, 1, kind);
	text(&b, 2, message);
	return result(b.p, b.n | 1u << 31);
}

// field finds the bytes of the first field with a number, which all are in requests
// to configure.
static const u8 *field(const u8 *p, u32 n, u32 want, u32 *len) {
	const u8 *end = p + n;
	while (p < end) {
		u32 tag = *p++, size = 0, shift = 0;
		do {
			size |= (u32)(*p & 127) << shift;
			shift += 7;
		} while (*p++ & 128);
		if ((tag & 7) == 2) {
			if (tag >> 3 == want) {
				*len = size;
				return p;
			}
			p += size;
		}
	}
	*len = 0;
	return 0;
}

static char mode[64];
static char setting[512];

static int is(const char *s) {
	u32 i = 0;
	for (; s[i]; i++)
		if (s[i] != mode[i]) return 0;
	return !mode[i];
}

// configured keeps the name of the instance and the value of its first setting.
static void configured(const u8 *p, u32 n) {
	u32 len;
	const u8 *s = field(p, n, 1, &len);
	for (u32 i = 0; i < len && i < sizeof mode - 1; i++) mode[i] = s[i];
	u32 inner;
	s = field(p, n, 3, &len);
	if (!s) return;
	s = field(s, len, 2, &inner);
	for (u32 i = 0; i < inner && i < sizeof setting - 1; i++) setting[i] = s[i];
}

EXPORT("promweave_abi_v1") u32 abi(void) { return 0; }
