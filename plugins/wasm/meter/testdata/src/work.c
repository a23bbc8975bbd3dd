// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Loops and real work for tests and benchmarks of the metering rewriter. build.sh makes work_c.wasm from it.
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;
#define EXPORT(name) __attribute__((export_name(name)))

static u8 heap[1 << 20];

// sum is a tight loop with a multiplication.
EXPORT("sum") u64 sum(u32 n) {
  u64 h = 14695981039346656037ull;
  for (u32 i = 0; i < n; i++) h = (h ^ i) * 1099511628211ull;
  return h;
}

// sieve counts primes below n, n at most 1 << 20.
EXPORT("sieve") u64 sieve(u32 n) {
  for (u32 i = 0; i < n; i++) heap[i] = 1;
  u64 count = 0;
  for (u32 i = 2; i < n; i++) {
    if (!heap[i]) continue;
    count++;
    for (u32 j = i * 2; j < n; j += i) heap[j] = 0;
  }
  return count;
}

// fib is recursion without loops.
EXPORT("fib") __attribute__((noinline)) u64 fib(u32 n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }

static u32 hash(const u8 *p, u32 n) {
  u32 h = 2166136261u;
  for (u32 i = 0; i < n; i++) h = (h ^ p[i]) * 16777619u;
  return h;
}

static __attribute__((noinline)) u32 equal(const u8 *a, const u8 *b, u32 n) {
  for (u32 i = 0; i < n; i++)
    if (a[i] != b[i]) return 0;
  return 1;
}

static u32 slots[1 << 12], offsets[1 << 12], lengths[1 << 12];

// intern makes n strings of some 20 bytes and looks each up in a table of symbols, which is what filters do.
EXPORT("intern") u64 intern(u32 n) {
  u32 used = 0, symbols = 0;
  for (u32 i = 0; i < 1 << 12; i++) slots[i] = 0;
  u64 sum = 0;
  u32 x = 12345;
  for (u32 i = 0; i < n; i++) {
    x = x * 1664525u + 1013904223u;
    u8 *p = heap + used;
    u32 len = 0, v = (x >> 8) % 2000;
    const char *prefix = v & 1 ? "kubernetes_pod_" : "instance_";
    while (*prefix) p[len++] = (u8)*prefix++;
    do p[len++] = '0' + v % 10;
    while (v /= 10);
    u32 h = hash(p, len) & ((1 << 12) - 1);
    while (slots[h] && !(lengths[slots[h]] == len && equal(heap + offsets[slots[h]], p, len))) h = (h + 1) & ((1 << 12) - 1);
    if (!slots[h]) {
      slots[h] = ++symbols;
      offsets[symbols] = used;
      lengths[symbols] = len;
      used += len;
    }
    sum = sum * 31 + slots[h];
  }
  return sum;
}

// sort sorts n numbers by comparisons through a pointer, n at most 1 << 17.
typedef int (*less)(u64, u64);
static __attribute__((noinline)) int up(u64 a, u64 b) { return a < b; }
static __attribute__((noinline)) int down(u64 a, u64 b) { return a > b; }
static less orders[] = {up, down};

static void sift(u64 *a, u32 i, u32 n, less f) {
  for (;;) {
    u32 c = 2 * i + 1;
    if (c >= n) return;
    if (c + 1 < n && f(a[c], a[c + 1])) c++;
    if (!f(a[i], a[c])) return;
    u64 t = a[i];
    a[i] = a[c];
    a[c] = t;
    i = c;
  }
}

EXPORT("sort") u64 sort(u32 n) {
  u64 *a = (u64 *)heap, x = n;
  for (u32 i = 0; i < n; i++) a[i] = x = x * 6364136223846793005ull + 1442695040888963407ull;
  less f = orders[n & 1];
  for (u32 i = n / 2; i-- > 0;) sift(a, i, n, f);
  for (u32 i = n; i-- > 1;) {
    u64 t = a[0];
    a[0] = a[i];
    a[i] = t;
    sift(a, 0, i, f);
  }
  u64 h = 0;
  for (u32 i = 0; i < n; i++) h = h * 31 + a[i];
  return h;
}

// copy moves blocks of n bytes about a thousand times.
EXPORT("copy") u64 copy(u32 n) {
  for (u32 i = 0; i < 1000; i++) __builtin_memmove(heap + (i & 255), heap + (n & 65535), n & 0x7ffff);
  return heap[n & 65535];
}

// varint decodes a buffer of protobuf fields, n times.
EXPORT("varint") u64 varint(u32 n) {
  u32 len = 0;
  for (u64 v = 1; len < 4000; v = v * 3 + 1) {
    u64 x = v & 0xfffffff;
    while (x >= 128) heap[len++] = (u8)x | 128, x >>= 7;
    heap[len++] = (u8)x;
  }
  u64 sum = 0;
  for (u32 k = 0; k < n; k++) {
    for (u32 p = 0; p < len;) {
      u64 v = 0;
      for (u32 s = 0;; s += 7) {
        u8 b = heap[p++];
        v |= (u64)(b & 127) << s;
        if (b < 128) break;
      }
      switch (v & 7) {
      case 0: sum += v; break;
      case 1: sum ^= v; break;
      case 2: sum += v >> 3; break;
      case 5: sum -= v; break;
      default: sum *= 3;
      }
    }
  }
  return sum;
}
