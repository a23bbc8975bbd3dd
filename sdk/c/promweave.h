/* Copyright The Promweave Authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The author's side of the WASM ABI (sdk/guest/ABI.md) for C11, freestanding: it needs
 * neither a C library nor a runtime. Include it in the one source file of a plug-in.
 *
 *     static bool configure(const pw_config *c, pw_plan *plan) { ... }
 *     static bool rewrite(const pw_frame *in, pw_reply *out) { ... }
 *     PW_EXPORT_FILTER(.name = "mine", .version = "1.0.0", .configure = configure,
 *                      .rewrite = rewrite)
 *
 * Callbacks return true, or false after pw_fail. Examples are beside this file.
 *
 * Memory. pw_alloc takes from an arena that is emptied before each call. What was taken
 * while configuring stays for good: that is the place for what the plug-in remembers. A
 * module that gets no memory ends, and the host makes another; nothing returns NULL.
 *
 * The host has checked every frame that it sends. Views check again what keeps a wrong
 * one from reading or writing elsewhere, and then show nothing.
 */
#ifndef PROMWEAVE_H
#define PROMWEAVE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PW_MINOR 0
#define PW_EXPORT(symbol) __attribute__((export_name("promweave_" symbol), visibility("default")))
#define PW_IMPORT(symbol) __attribute__((import_module("promweave_v1"), import_name(symbol)))
#define PW_FN static inline __attribute__((unused))
#define PW_SLOW static __attribute__((unused, noinline)) /* what is better small */

/* Clang makes calls of these out of loops and assignments, even freestanding. */
__attribute__((weak)) void *memcpy(void *to, const void *from, size_t n) {
  for (size_t i = 0; i < n; i++) ((uint8_t *)to)[i] = ((const uint8_t *)from)[i];
  return to;
}
__attribute__((weak)) void *memset(void *to, int c, size_t n) {
  for (size_t i = 0; i < n; i++) ((uint8_t *)to)[i] = (uint8_t)c;
  return to;
}
__attribute__((weak, noinline)) int memcmp(const void *a, const void *b, size_t n) {
  const uint8_t *x = a, *y = b;
  for (; n; n--, x++, y++)
    if (*x != *y) return *x - *y;
  return 0;
}

/* ---- Arena ---- */

extern uint8_t __heap_base;
static struct { uint32_t top, kept, input; } pw_arena; /* kept: where calls begin; input: alloc was called */

PW_SLOW void *pw_take(uint32_t n) {
  if (!pw_arena.top) pw_arena.top = pw_arena.kept = ((uint32_t)(uintptr_t)&__heap_base + 7) & ~7u;
  uint64_t end = (uint64_t)pw_arena.top + (((uint64_t)n + 7) & ~(uint64_t)7);
  uint64_t have = (uint64_t)__builtin_wasm_memory_size(0) << 16;
  if (end > have) {
    if (end > 0xffff0000u || __builtin_wasm_memory_grow(0, (end - have + 0xffff) >> 16) == (size_t)-1) return NULL;
  }
  void *p = (void *)(uintptr_t)pw_arena.top;
  pw_arena.top = (uint32_t)end;
  return p;
}

/* Room for n bytes, 8-aligned, not cleared, until the call ends. */
PW_SLOW void *pw_alloc(uint32_t n) {
  void *p = pw_take(n);
  if (!p) __builtin_trap();
  return p;
}
/* Room for n objects of size bytes, cleared. */
PW_SLOW void *pw_calloc(uint32_t n, uint32_t size) {
  if (size && n > 0xffffffffu / size) __builtin_trap();
  return __builtin_memset(pw_alloc(n * size), 0, n * size);
}
/* Makes room for one more item of an array that grows; its pointer, length and capacity are the author's. */
PW_SLOW void *pw_more(void *items, uint32_t n, uint32_t *cap, uint32_t size) {
  if (n < *cap) return items;
  uint32_t want = *cap ? *cap * 2 : 8;
  if (want > 0xffffffffu / size) __builtin_trap();
  void *p = pw_alloc(want * size);
  __builtin_memcpy(p, items, n * size);
  *cap = want;
  return p;
}
#define PW_PUSH(items, n, cap) ((items) = pw_more((items), (n), &(cap), sizeof *(items)), &(items)[(n)++])

/* ---- Strings: bytes with a length, valid UTF-8, not ended by 0 ---- */

typedef struct { const char *p; uint32_t n; } pw_str;
#define PW_STR(literal) ((pw_str){(literal), sizeof(literal) - 1})

PW_FN pw_str pw_cstr(const char *s) {
  uint32_t n = 0;
  while (s && s[n]) n++;
  return (pw_str){s, n};
}
PW_FN bool pw_equal(pw_str a, pw_str b) { return a.n == b.n && memcmp(a.p, b.p, a.n) == 0; }
PW_FN int pw_compare(pw_str a, pw_str b) {
  int c = memcmp(a.p, b.p, a.n < b.n ? a.n : b.n);
  return c ? c : a.n < b.n ? -1 : a.n > b.n;
}
PW_FN pw_str pw_slice(pw_str s, uint32_t from, uint32_t to) {
  if (to > s.n) to = s.n;
  if (from > to) from = to;
  return (pw_str){s.p + from, to - from};
}
/* The position of c, or -1. */
PW_SLOW int32_t pw_index(pw_str s, char c) {
  for (uint32_t i = 0; i < s.n; i++)
    if (s.p[i] == c) return (int32_t)i;
  return -1;
}
/* Takes what comes before the first c, or all, off the front of rest; false at its end. */
PW_SLOW bool pw_split(pw_str *rest, char c, pw_str *part) {
  if (!rest->n) return false;
  int32_t i = pw_index(*rest, c);
  *part = pw_slice(*rest, 0, i < 0 ? rest->n : (uint32_t)i);
  *rest = pw_slice(*rest, i < 0 ? rest->n : (uint32_t)i + 1, rest->n);
  return true;
}
/* Cuts s in two at the first c; false without one. */
PW_SLOW bool pw_cut(pw_str s, char c, pw_str *before, pw_str *after) {
  int32_t i = pw_index(s, c);
  if (i < 0) return false;
  *before = pw_slice(s, 0, (uint32_t)i);
  *after = pw_slice(s, (uint32_t)i + 1, s.n);
  return true;
}
/* n strings, each a pw_str, one after the other. */
PW_SLOW pw_str pw_concat(int n, ...) {
  va_list args;
  uint32_t size = 0;
  va_start(args, n);
  for (int i = 0; i < n; i++) size += va_arg(args, pw_str).n;
  va_end(args);
  char *p = pw_alloc(size), *at = p;
  va_start(args, n);
  for (int i = 0; i < n; i++) {
    pw_str s = va_arg(args, pw_str);
    __builtin_memcpy(at, s.p, s.n);
    at += s.n;
  }
  va_end(args);
  return (pw_str){p, size};
}
PW_SLOW pw_str pw_decimal(int64_t v) {
  char *p = pw_alloc(24);
  uint32_t i = 24;
  uint64_t u = v < 0 ? 0 - (uint64_t)v : (uint64_t)v;
  do p[--i] = (char)('0' + u % 10);
  while (u /= 10);
  if (v < 0) p[--i] = '-';
  return (pw_str){p + i, 24 - i};
}
PW_FN uint32_t pw_hash(pw_str s) {
  uint32_t h = 2166136261u; /* FNV-1a */
  for (uint32_t i = 0; i < s.n; i++) h = (h ^ (uint8_t)s.p[i]) * 16777619u;
  return h;
}

/* A set of strings that numbers them from 0. */
typedef struct { pw_str *items; uint32_t n, cap, *slots, mask; } pw_table;

PW_SLOW uint32_t pw_table_add(pw_table *t, pw_str s) {
  if (t->n * 2 >= t->mask) {
    uint32_t size = t->mask ? (t->mask + 1) * 2 : 32;
    t->slots = pw_calloc(size, 4);
    t->mask = size - 1;
    for (uint32_t k = 0; k < t->n; k++) {
      uint32_t i = pw_hash(t->items[k]);
      while (t->slots[i & t->mask]) i++;
      t->slots[i & t->mask] = k + 1;
    }
  }
  for (uint32_t i = pw_hash(s);; i++) {
    uint32_t *slot = &t->slots[i & t->mask];
    if (!*slot) {
      *PW_PUSH(t->items, t->n, t->cap) = s;
      return *slot = t->n, t->n - 1;
    }
    if (pw_equal(t->items[*slot - 1], s)) return *slot - 1;
  }
}
PW_FN void pw_table_clear(pw_table *t) {
  t->n = 0;
  if (t->mask) __builtin_memset(t->slots, 0, (t->mask + 1) * 4);
}

/* ---- Errors ---- */

/* The kinds of errors, as in sdk/backend. */
#define PW_INVALID PW_STR("invalid")
#define PW_UNSUPPORTED PW_STR("unsupported")
#define PW_LIMIT PW_STR("limit")
#define PW_UNAVAILABLE PW_STR("unavailable")
#define PW_DENIED PW_STR("denied")
#define PW_INTERNAL PW_STR("internal")

static struct { pw_str kind, message; } pw_failure;
PW_FN bool pw_fail(pw_str kind, pw_str message) {
  pw_failure.kind = kind;
  pw_failure.message = message;
  return false;
}

/* ---- Protobuf wire format ---- */

typedef struct {
  const uint8_t *p, *end;
  uint32_t field;
  uint64_t number; /* of a varint or a fixed number */
  pw_str bytes;    /* of a length-delimited field */
} pw_reader;

PW_FN pw_reader pw_read(pw_str s) {
  const uint8_t *p = (const uint8_t *)s.p;
  return (pw_reader){.p = p, .end = p + s.n};
}
PW_SLOW bool pw_varint(pw_reader *r, uint64_t *v) {
  *v = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    if (r->p == r->end) return false;
    uint8_t b = *r->p++;
    *v |= (uint64_t)(b & 0x7f) << shift;
    if (b < 0x80) return true;
  }
  return false;
}
/* Goes to the next field; false at the end, or where the message is broken. */
PW_SLOW bool pw_next(pw_reader *r) {
  uint64_t key, n;
  r->bytes = (pw_str){0};
  r->number = 0;
  if (r->p == r->end || !pw_varint(r, &key)) return false;
  r->field = (uint32_t)(key >> 3);
  uint32_t left;
  switch (key & 7) {
  case 0: return pw_varint(r, &r->number);
  case 1: case 5:
    n = (key & 7) == 1 ? 8 : 4;
    if ((uint64_t)(r->end - r->p) < n) return false;
    __builtin_memcpy(&r->number, r->p, n);
    r->p += n;
    return true;
  case 2:
    if (!pw_varint(r, &n)) return false;
    left = (uint32_t)(r->end - r->p);
    if (n > left) return false;
    r->bytes = (pw_str){(const char *)r->p, (uint32_t)n};
    r->p += n;
    return true;
  }
  return false;
}
/* The value of an sint64 field. */
PW_FN int64_t pw_signed(const pw_reader *r) { return (int64_t)(r->number >> 1) ^ -(int64_t)(r->number & 1); }

typedef struct { uint8_t *p; uint32_t n, cap; } pw_writer;

PW_SLOW uint8_t *pw_room(pw_writer *w, uint32_t n) {
  if (w->cap - w->n < n) {
    uint64_t want = ((uint64_t)w->n + n) * 2;
    if (want < 256) want = 256;
    if (want > 0x7fffffff) __builtin_trap();
    uint8_t *p = pw_alloc((uint32_t)want);
    __builtin_memcpy(p, w->p, w->n);
    w->p = p;
    w->cap = (uint32_t)want;
  }
  uint8_t *at = w->p + w->n;
  w->n += n;
  return at;
}
PW_SLOW void pw_put_varint(pw_writer *w, uint64_t v) {
  for (; v >= 0x80; v >>= 7) *pw_room(w, 1) = (uint8_t)(v | 0x80);
  *pw_room(w, 1) = (uint8_t)v;
}
PW_SLOW void pw_put_number(pw_writer *w, uint32_t field, uint64_t v) {
  if (!v) return;
  pw_put_varint(w, field << 3);
  pw_put_varint(w, v);
}
PW_SLOW void pw_put_signed(pw_writer *w, uint32_t field, int64_t v) {
  pw_put_number(w, field, ((uint64_t)v << 1) ^ (uint64_t)(v >> 63));
}
/* Writes the field also if it is empty, as an item of a list must be. */
PW_SLOW void pw_put_item(pw_writer *w, uint32_t field, pw_str s) {
  pw_put_varint(w, field << 3 | 2);
  pw_put_varint(w, s.n);
  __builtin_memcpy(pw_room(w, s.n), s.p, s.n);
}
PW_SLOW void pw_put(pw_writer *w, uint32_t field, pw_str s) {
  if (s.n) pw_put_item(w, field, s);
}
/* Between begin and end a message inside is written. Its length takes five bytes, so that it can be filled in. */
PW_SLOW uint32_t pw_begin(pw_writer *w, uint32_t field) {
  pw_put_varint(w, field << 3 | 2);
  pw_room(w, 5);
  return w->n;
}
PW_SLOW void pw_end(pw_writer *w, uint32_t began) {
  uint32_t n = w->n - began;
  for (uint32_t i = 0; i < 5; i++, n >>= 7) w->p[began - 5 + i] = (uint8_t)((n & 0x7f) | (i < 4 ? 0x80 : 0));
}
PW_SLOW void pw_put_pair(pw_writer *w, uint32_t field, pw_str a, pw_str b) {
  uint32_t at = pw_begin(w, field);
  pw_put(w, 1, a);
  pw_put(w, 2, b);
  pw_end(w, at);
}

/* ---- Messages that every plug-in has ---- */

typedef enum { PW_EQ, PW_NEQ, PW_RE, PW_NRE } pw_match;
typedef struct { pw_str path, value; } pw_setting;
typedef struct { pw_match type; pw_str name, value; } pw_matcher;

typedef struct {
  pw_str name; /* of the instance */
  pw_str json; /* the whole configuration; settings are its scalars in order */
  pw_setting *settings;
  uint32_t settings_n, settings_cap;
} pw_config;

/* The value of the setting with a path, or "". */
PW_SLOW pw_str pw_setting_of(const pw_setting *s, uint32_t n, pw_str path) {
  for (uint32_t i = 0; i < n; i++)
    if (pw_equal(s[i].path, path)) return s[i].value;
  return (pw_str){0};
}
PW_FN pw_str pw_get(const pw_config *c, const char *path) {
  return pw_setting_of(c->settings, c->settings_n, pw_cstr(path));
}

PW_SLOW pw_setting pw_read_pair(pw_str s) {
  pw_setting v = {0};
  for (pw_reader r = pw_read(s); pw_next(&r);) {
    if (r.field == 1) v.path = r.bytes;
    if (r.field == 2) v.value = r.bytes;
  }
  return v;
}
PW_SLOW pw_matcher pw_read_matcher(pw_str s) {
  pw_matcher m = {0};
  for (pw_reader r = pw_read(s); pw_next(&r);) {
    if (r.field == 1) m.type = (pw_match)r.number;
    if (r.field == 2) m.name = r.bytes;
    if (r.field == 3) m.value = r.bytes;
  }
  return m;
}
PW_SLOW void pw_put_matcher(pw_writer *w, uint32_t field, pw_match type, pw_str name, pw_str value) {
  uint32_t at = pw_begin(w, field);
  pw_put_number(w, 1, type);
  pw_put(w, 2, name);
  pw_put(w, 3, value);
  pw_end(w, at);
}
PW_SLOW void pw_put_denial(pw_writer *w, uint32_t field, uint32_t status, pw_str message) {
  uint32_t at = pw_begin(w, field);
  pw_put_number(w, 1, status);
  pw_put(w, 2, message);
  pw_end(w, at);
}

/* ---- What the host offers. A module imports what it calls. ---- */

PW_IMPORT("log") void pw_host_log(int32_t level, const char *p, uint32_t n);
PW_IMPORT("log_enabled") int32_t pw_log_enabled(int32_t level);
PW_IMPORT("now_ns") int64_t pw_now(void); /* ns since 1970; permission clock */
PW_IMPORT("random") void pw_random(void *p, uint32_t n); /* permission random */
PW_IMPORT("metric_add") void pw_host_metric_add(const char *p, uint32_t n, double v);

enum { PW_DEBUG, PW_INFO, PW_WARN, PW_ERROR };
PW_FN void pw_log(int32_t level, pw_str text) { pw_host_log(level, text.p, text.n); }
/* Adds v, not below 0, to a counter; permission metrics. */
PW_FN void pw_metric_add(pw_str name, double v) { pw_host_metric_add(name.p, name.n, v); }

/* ---- What every module exports ---- */

enum { PW_CLOCK = 1, PW_RANDOM = 2, PW_METRICS = 4, PW_HTTP = 8 };

PW_FN void pw_enter(void) {
  if (!pw_arena.input && pw_arena.kept) pw_arena.top = pw_arena.kept;
  pw_arena.input = 0;
}
PW_SLOW int64_t pw_leave(bool ok, const void *p, uint32_t n) {
  if (ok) return n ? (int64_t)((uint64_t)(uintptr_t)p << 32 | n) : 0;
  pw_writer w = {0};
  pw_put(&w, 1, pw_failure.kind);
  pw_put(&w, 2, pw_failure.message);
  return (int64_t)((uint64_t)(uintptr_t)w.p << 32 | 0x80000000u | w.n);
}
static const char *const pw_permissions[] = {"clock", "random", "metrics", "http"};
PW_FN void pw_put_permissions(pw_writer *w, uint32_t permissions) {
  for (int i = 0; i < 4; i++)
    if (permissions >> i & 1) pw_put_item(w, 7, pw_cstr(pw_permissions[i]));
}
PW_FN pw_config pw_read_config(pw_str s) {
  pw_config c = {0};
  for (pw_reader r = pw_read(s); pw_next(&r);) {
    if (r.field == 1) c.name = r.bytes;
    if (r.field == 2) c.json = r.bytes;
    if (r.field == 3) *PW_PUSH(c.settings, c.settings_n, c.settings_cap) = pw_read_pair(r.bytes);
  }
  return c;
}

PW_EXPORT("abi_v1") int32_t pw_abi(void) { return PW_MINOR; }
PW_EXPORT("alloc") void *pw_input(uint32_t n) {
  if (pw_arena.kept) pw_arena.top = pw_arena.kept;
  pw_arena.input = 1;
  return pw_take(n);
}

/* ---- Frames (sdk/frame/README.md), read where they lie ---- */

typedef struct {
  const uint8_t *p;
  uint32_t total, names, symbols, groups, rows;
  const uint32_t *offsets, *group_at;
  const char *bytes;
  uint32_t bytes_n;
} pw_frame;

enum { PW_WITHHELD, PW_CONSTANT, PW_REFERENCES };
typedef struct { const pw_frame *f; uint32_t index, rows, columns; const uint32_t *column; } pw_group;
/* The values of one label in a group: name is its symbol. */
typedef struct { uint32_t name, form, constant; const uint32_t *refs; } pw_column;

PW_FN bool pw_inside(const pw_frame *f, uint32_t at, uint64_t n) { return !(at & 3) && at + n <= f->total; }

PW_SLOW bool pw_frame_open(pw_frame *f, pw_str s) {
  const uint32_t *h = (const uint32_t *)(uintptr_t)s.p;
  *f = (pw_frame){0};
  if (s.n < 48 || memcmp(s.p, "PWF1", 4) || h[1] != s.n || h[4] <= h[3] || h[7] > 65536) return false;
  f->p = (const uint8_t *)s.p;
  f->total = h[1], f->names = h[3], f->symbols = h[4], f->bytes_n = h[5], f->groups = h[6], f->rows = h[7];
  if (!pw_inside(f, h[8], 4 * ((uint64_t)f->symbols + 1)) || (uint64_t)h[9] + f->bytes_n > f->total ||
      !pw_inside(f, 48, 4 * (uint64_t)f->groups))
    return false;
  f->offsets = (const uint32_t *)(f->p + h[8]);
  f->bytes = s.p + h[9];
  f->group_at = h + 12;
  return true;
}
/* The string of a symbol of the frame. */
PW_FN pw_str pw_symbol(const pw_frame *f, uint32_t id) {
  if (id >= f->symbols) return (pw_str){0};
  uint32_t from = f->offsets[id], to = f->offsets[id + 1];
  if (from > to || to > f->bytes_n) return (pw_str){0};
  return (pw_str){f->bytes + from, to - from};
}
/* The symbol of a label name, 0 if the frame has none. */
PW_SLOW uint32_t pw_find_name(const pw_frame *f, pw_str name) {
  for (uint32_t i = 1; i <= f->names; i++)
    if (pw_equal(pw_symbol(f, i), name)) return i;
  return 0;
}
PW_FN pw_group pw_group_of(const pw_frame *f, uint32_t i) {
  pw_group g = {.f = f, .index = i};
  if (i >= f->groups || !pw_inside(f, f->group_at[i], 8)) return g;
  const uint32_t *h = (const uint32_t *)(f->p + f->group_at[i]);
  if (h[0] > f->rows || !pw_inside(f, f->group_at[i], 8 + 12 * (uint64_t)h[1])) return g;
  g.rows = h[0], g.columns = h[1], g.column = h + 2;
  return g;
}
PW_FN pw_column pw_column_of(const pw_group *g, uint32_t i) {
  pw_column c = {0};
  if (i >= g->columns) return c;
  const uint32_t *h = g->column + 3 * i;
  c.name = h[0];
  if (h[1] == PW_CONSTANT) c.form = PW_CONSTANT, c.constant = h[2];
  if (h[1] == PW_REFERENCES && pw_inside(g->f, h[2], 4 * (uint64_t)g->rows))
    c.form = PW_REFERENCES, c.refs = (const uint32_t *)(g->f->p + h[2]);
  return c;
}
/* The column with a name, by symbol; -1 if there is none. */
PW_FN int32_t pw_find_column(const pw_group *g, uint32_t name) {
  for (uint32_t i = 0; name && i < g->columns; i++)
    if (g->column[3 * i] == name) return (int32_t)i;
  return -1;
}
/* The symbol of a row's value: 0 if it lacks the label, or if values are withheld. */
PW_FN uint32_t pw_ref(const pw_column *c, uint32_t row) {
  return c->form == PW_REFERENCES ? c->refs[row] : c->form == PW_CONSTANT ? c->constant : 0;
}

/* ---- Replies ---- */

typedef struct { uint32_t name, source, arg, *refs; } pw_reply_column;
typedef struct {
  const pw_frame *in;
  pw_table symbols;
  pw_writer w;
  pw_group group;
  bool open;
  uint32_t *keep, keep_all;
  pw_reply_column *columns;
  uint32_t n, cap;
} pw_reply;

/* The symbol of a value: a new one, or the one that it got before; 0 for "". The
 * string must stay as it is until the call ends. */
PW_FN uint32_t pw_value(pw_reply *out, pw_str s) {
  return s.n ? out->in->symbols + pw_table_add(&out->symbols, s) : 0;
}
/* The symbol of a label name: the frame's, or else a new one. */
PW_SLOW uint32_t pw_name(pw_reply *out, pw_str s) {
  uint32_t id = pw_find_name(out->in, s);
  return id ? id : pw_value(out, s);
}
/* The same, but 0 if neither the frame nor the reply has it so far: no column can have this name. */
PW_SLOW uint32_t pw_known(pw_reply *out, pw_str s) {
  uint32_t id = pw_find_name(out->in, s);
  for (uint32_t i = 0; !id && i < out->n; i++) {
    uint32_t k = out->columns[i].name - out->in->symbols;
    if (out->columns[i].name >= out->in->symbols && k < out->symbols.n && pw_equal(out->symbols.items[k], s)) id = out->columns[i].name;
  }
  return id;
}

PW_SLOW uint32_t pw_put_words(pw_writer *w, const uint32_t *v, uint32_t n) {
  uint32_t at = w->n;
  __builtin_memcpy(pw_room(w, 4 * n), v, 4 * n);
  return at;
}
PW_SLOW void pw_close_group(pw_reply *out) {
  if (!out->open) return;
  out->open = false;
  for (uint32_t i = 0; i < out->n; i++)
    if (out->columns[i].source == 2) out->columns[i].arg = pw_put_words(&out->w, out->columns[i].refs, out->group.rows);
  uint32_t keep = out->keep_all;
  if (out->keep && !keep) keep = pw_put_words(&out->w, out->keep, (out->group.rows + 31) / 32);
  ((uint32_t *)out->w.p)[8 + out->group.index] = out->w.n;
  pw_put_words(&out->w, (uint32_t[]){out->n, keep}, 2);
  for (uint32_t i = 0; i < out->n; i++) pw_put_words(&out->w, &out->columns[i].name, 3);
}
/* Begins the reply to a group, which then has the columns that are added and no others. */
PW_SLOW void pw_reply_group(pw_reply *out, const pw_group *g) {
  if (!out->w.n) __builtin_memset(pw_room(&out->w, 32 + 4 * out->in->groups), 0, 32 + 4 * out->in->groups);
  pw_close_group(out);
  out->group = *g;
  out->open = true;
  out->n = out->keep_all = 0;
  out->keep = NULL;
}
/* The column of the reply under a name; NULL if there is none. */
PW_SLOW pw_reply_column *pw_reply_find(pw_reply *out, uint32_t name) {
  for (uint32_t i = 0; i < out->n; i++)
    if (out->columns[i].name == name) return &out->columns[i];
  return NULL;
}
PW_SLOW void pw_drop(pw_reply *out, uint32_t name) {
  pw_reply_column *c = pw_reply_find(out, name);
  if (c) *c = out->columns[--out->n];
}
PW_SLOW pw_reply_column *pw_reply_add(pw_reply *out, uint32_t name, uint32_t source, uint32_t arg) {
  pw_drop(out, name);
  pw_reply_column *c = PW_PUSH(out->columns, out->n, out->cap);
  *c = (pw_reply_column){name, source, arg, NULL};
  return c;
}
/* A column with the values of column i of the group, withheld or not. */
PW_FN void pw_keep(pw_reply *out, uint32_t name, uint32_t i) { pw_reply_add(out, name, 0, i); }
/* A column with one value; 0 is to drop the label. */
PW_FN void pw_set(pw_reply *out, uint32_t name, uint32_t value) {
  if (value) pw_reply_add(out, name, 1, value);
  else pw_drop(out, name);
}
/* A column of references, one per row and all 0, to fill in. */
PW_FN uint32_t *pw_refs(pw_reply *out, uint32_t name) {
  uint32_t *refs = pw_calloc(out->group.rows, 4);
  pw_reply_add(out, name, 2, 0)->refs = refs;
  return refs;
}
/* to gets the values of from, also where that is absent, and from is gone. */
PW_FN void pw_rename(pw_reply *out, uint32_t from, uint32_t to) {
  if (from == to) return;
  pw_drop(out, to);
  pw_reply_column *c = pw_reply_find(out, from);
  if (c) c->name = to;
}
PW_FN void pw_drop_rows(pw_reply *out) { out->keep_all = 0xffffffffu; }
PW_FN void pw_drop_row(pw_reply *out, uint32_t row) {
  uint32_t words = (out->group.rows + 31) / 32;
  if (!out->keep) {
    out->keep = __builtin_memset(pw_alloc(4 * words), 0xff, 4 * words);
    if (out->group.rows % 32) out->keep[words - 1] = (1u << out->group.rows % 32) - 1;
  }
  if (row < out->group.rows) out->keep[row / 32] &= ~(1u << row % 32);
}
/* Begins the reply to a group with all of its columns, to be changed. */
PW_FN void pw_edit(pw_reply *out, const pw_group *g) {
  pw_reply_group(out, g);
  for (uint32_t i = 0; i < g->columns; i++)
    *PW_PUSH(out->columns, out->n, out->cap) = (pw_reply_column){g->column[3 * i], 0, i, NULL};
}

/* What values become, each asked for once: begin with {0} for each frame and label. */
typedef struct { uint32_t *to; } pw_memo;
typedef pw_str (*pw_map_fn)(pw_str value, void *context);

PW_FN uint32_t pw_mapped(pw_reply *out, pw_memo *memo, uint32_t ref, pw_map_fn fn, void *context) {
  uint32_t old = out->in->symbols;
  if (!ref || ref >= old + out->symbols.n) return 0;
  if (ref >= old) return pw_value(out, fn(out->symbols.items[ref - old], context)); /* set by this reply */
  if (!memo->to) memo->to = pw_calloc(old, 4);
  if (!memo->to[ref]) {
    pw_str from = pw_symbol(out->in, ref), to = fn(from, context);
    memo->to[ref] = (pw_equal(from, to) ? ref : pw_value(out, to)) + 1;
  }
  return memo->to[ref] - 1;
}
/* Gives a label of the group that is being edited the value fn(value) wherever it is there. The work is one call of
 * fn for each distinct value of the frame and one look at a table for each row. */
PW_SLOW void pw_map(pw_reply *out, uint32_t name, pw_memo *memo, pw_map_fn fn, void *context) {
  pw_reply_column *c = pw_reply_find(out, name);
  if (!c) return;
  pw_column in = c->source == 0   ? pw_column_of(&out->group, c->arg)
                 : c->source == 1 ? (pw_column){.form = PW_CONSTANT, .constant = c->arg}
                                  : (pw_column){.form = PW_REFERENCES, .refs = c->refs};
  if (in.form == PW_CONSTANT) {
    pw_set(out, name, pw_mapped(out, memo, in.constant, fn, context));
  } else if (in.form == PW_REFERENCES) {
    const uint32_t *from = in.refs;
    uint32_t rows = out->group.rows, old = out->in->symbols, *to = pw_alloc(4 * rows);
    if (!memo->to) memo->to = pw_calloc(old, 4);
    const uint32_t *known = memo->to;
    for (uint32_t r = 0; r < rows; r++) {
      uint32_t v = from[r] < old ? known[from[r]] : 0;
      to[r] = v ? v - 1 : pw_mapped(out, memo, from[r], fn, context);
    }
    c->source = 2;
    c->refs = to;
  }
}

PW_SLOW pw_str pw_reply_end(pw_reply *out) {
  if (!out->w.n) return (pw_str){0};
  pw_close_group(out);
  pw_writer *w = &out->w;
  uint32_t n = out->symbols.n, at = w->n, size = 0;
  for (uint32_t i = 0; i <= n; i++) {
    pw_put_words(w, &size, 1);
    if (i < n) size += out->symbols.items[i].n;
  }
  uint32_t bytes = w->n;
  for (uint32_t i = 0; i < n; i++) __builtin_memcpy(pw_room(w, out->symbols.items[i].n), out->symbols.items[i].p, out->symbols.items[i].n);
  while (w->n & 3) *pw_room(w, 1) = 0;
  uint32_t h[8] = {0x31525750 /* PWR1 */, w->n, out->in->groups, n, at, bytes, size, 0};
  __builtin_memcpy(w->p, h, sizeof h);
  return (pw_str){(const char *)w->p, w->n};
}

/* ---- Filters ---- */

typedef enum { PW_TIER_NONE, PW_TIER_NAMES, PW_TIER_COLUMNS, PW_TIER_ROWS } pw_tier;
enum { PW_REWRITE, PW_AUTH, PW_TENANCY };

/* What an instance promises; see Plan in plugin.proto. */
typedef struct {
  pw_tier tier;
  bool writes_any, drops, merge, pure;
  pw_writer w; /* lists, filled in by what follows */
} pw_plan;

PW_FN void pw_plan_column(pw_plan *p, pw_str name) { pw_put_item(&p->w, 2, name); }
PW_FN void pw_plan_reads(pw_plan *p, pw_str name) { pw_put_item(&p->w, 3, name); }
PW_FN void pw_plan_writes(pw_plan *p, pw_str name) { pw_put_item(&p->w, 4, name); }
PW_FN void pw_plan_keeps(pw_plan *p, pw_str name) { pw_put_item(&p->w, 6, name); }
/* request or select: a hook to call. */
PW_FN void pw_plan_hook(pw_plan *p, const char *hook) { pw_put_item(&p->w, 10, pw_cstr(hook)); }
/* Operations that the host does itself, in order, before rewrite sees anything. */
PW_SLOW void pw_plan_op(pw_plan *p, uint32_t op, pw_str a, pw_str b) {
  uint32_t at = pw_begin(&p->w, 9);
  pw_put_pair(&p->w, op, a, b);
  pw_end(&p->w, at);
}
PW_FN void pw_plan_rename(pw_plan *p, pw_str from, pw_str to) { pw_plan_op(p, 1, from, to); }
PW_FN void pw_plan_drop(pw_plan *p, pw_str name) { pw_plan_op(p, 2, name, (pw_str){0}); }
PW_FN void pw_plan_set(pw_plan *p, pw_str name, pw_str value) { pw_plan_op(p, 4, name, value); }
PW_FN void pw_plan_require(pw_plan *p, pw_match type, pw_str name, pw_str value) {
  uint32_t at = pw_begin(&p->w, 9);
  pw_put_matcher(&p->w, 6, type, name, value);
  pw_end(&p->w, at);
}

typedef struct { pw_matcher *items; uint32_t n, cap; } pw_matchers;
typedef struct { pw_str name, *values; uint32_t n, cap; } pw_header;
typedef struct {
  pw_str kind, query;
  pw_matchers *selectors;
  uint32_t selectors_n, selectors_cap;
  int64_t start, end, step; /* ms */
  int64_t window; /* ms that one selector reads before what start and end ask for */
  /* Who asks, as far as the host has verified it; claims are those of the token. */
  pw_str method, subject, claims_json;
  pw_setting *claims;
  uint32_t claims_n, claims_cap;
  pw_header *headers;
  uint32_t headers_n, headers_cap;
} pw_request;
PW_FN pw_str pw_claim(const pw_request *r, const char *path) {
  return pw_setting_of(r->claims, r->claims_n, pw_cstr(path));
}

typedef struct {
  bool admin, has_time_range;
  int64_t min_time, max_time; /* ms, both inclusive */
  uint64_t max_series, max_samples, max_bytes;
  pw_str subject;
  pw_writer w;
} pw_request_reply;
PW_FN bool pw_request_deny(pw_request_reply *r, uint32_t status, pw_str message) { return pw_put_denial(&r->w, 1, status, message), true; }
PW_FN void pw_enforce(pw_request_reply *r, pw_match type, pw_str name, pw_str value) { pw_put_matcher(&r->w, 2, type, name, value); }
PW_FN void pw_tenant(pw_request_reply *r, pw_str tenant) { pw_put_item(&r->w, 3, tenant); }

typedef struct {
  pw_str backend;
  pw_matchers matchers;
  int64_t min_time, max_time;
  pw_str *tenants;
  uint32_t tenants_n, tenants_cap;
} pw_select_call;
typedef struct { bool none; pw_writer w; } pw_select_reply;
PW_FN bool pw_select_deny(pw_select_reply *r, uint32_t status, pw_str message) { return pw_put_denial(&r->w, 1, status, message), true; }
PW_FN void pw_require(pw_select_reply *r, pw_match type, pw_str name, pw_str value) { pw_put_matcher(&r->w, 3, type, name, value); }

/* A filter: name, version and configure must be there. */
typedef struct {
  const char *name, *version, *summary, *config_schema;
  uint32_t role, permissions;
  bool (*configure)(const pw_config *c, pw_plan *plan);
  bool (*request)(const pw_request *r, pw_request_reply *reply);
  bool (*select)(const pw_select_call *c, pw_select_reply *reply);
  bool (*rewrite)(const pw_frame *in, pw_reply *out);
} pw_filter;

PW_SLOW int64_t pw_filter_describe(const pw_filter *f) {
  pw_enter();
  pw_writer w = {0};
  pw_put(&w, 1, pw_cstr(f->name));
  pw_put(&w, 2, pw_cstr(f->version));
  pw_put_number(&w, 3, 2);
  pw_put_number(&w, 4, f->role);
  pw_put_number(&w, 5, PW_MINOR);
  pw_put_permissions(&w, f->permissions);
  pw_put(&w, 8, pw_cstr(f->config_schema));
  pw_put(&w, 9, pw_cstr(f->summary));
  if (f->request) pw_put_item(&w, 10, PW_STR("request"));
  if (f->select) pw_put_item(&w, 10, PW_STR("select"));
  if (f->rewrite) pw_put_item(&w, 10, PW_STR("rewrite"));
  return pw_leave(true, w.p, w.n);
}
PW_SLOW int64_t pw_filter_configure(const pw_filter *f, pw_str s) {
  pw_enter();
  pw_config c = pw_read_config(s);
  pw_plan plan = {0};
  bool ok = f->configure(&c, &plan);
  pw_put_number(&plan.w, 1, plan.tier);
  pw_put_number(&plan.w, 5, plan.writes_any);
  pw_put_number(&plan.w, 7, plan.drops);
  pw_put_number(&plan.w, 8, plan.merge);
  pw_put_number(&plan.w, 11, plan.pure);
  pw_writer w = {0};
  pw_put_number(&w, 1, 1);
  pw_put_item(&w, 2, (pw_str){(const char *)plan.w.p, plan.w.n});
  int64_t result = pw_leave(ok, w.p, w.n);
  pw_arena.kept = pw_arena.top;
  return result;
}
PW_FN void pw_read_caller(pw_request *c, pw_str s) {
  for (pw_reader r = pw_read(s); pw_next(&r);) {
    if (r.field == 1) c->method = r.bytes;
    if (r.field == 2) c->subject = r.bytes;
    if (r.field == 3) c->claims_json = r.bytes;
    if (r.field == 4) *PW_PUSH(c->claims, c->claims_n, c->claims_cap) = pw_read_pair(r.bytes);
    if (r.field == 5) {
      pw_header h = {0};
      for (pw_reader i = pw_read(r.bytes); pw_next(&i);) {
        if (i.field == 1) h.name = i.bytes;
        if (i.field == 2) *PW_PUSH(h.values, h.n, h.cap) = i.bytes;
      }
      *PW_PUSH(c->headers, c->headers_n, c->headers_cap) = h;
    }
  }
}
PW_SLOW int64_t pw_filter_request(const pw_filter *f, pw_str s) {
  pw_enter();
  if (!f->request) return pw_leave(pw_fail(PW_UNSUPPORTED, PW_STR("no request hook")), NULL, 0);
  pw_request c = {0};
  for (pw_reader r = pw_read(s); pw_next(&r);) {
    if (r.field == 2) c.kind = r.bytes;
    if (r.field == 3) c.query = r.bytes;
    if (r.field == 4) {
      pw_matchers m = {0};
      for (pw_reader i = pw_read(r.bytes); pw_next(&i);)
        if (i.field == 1) *PW_PUSH(m.items, m.n, m.cap) = pw_read_matcher(i.bytes);
      *PW_PUSH(c.selectors, c.selectors_n, c.selectors_cap) = m;
    }
    if (r.field == 5) c.start = pw_signed(&r);
    if (r.field == 6) c.end = pw_signed(&r);
    if (r.field == 7) c.step = pw_signed(&r);
    if (r.field == 9) c.window = pw_signed(&r);
    if (r.field == 8) pw_read_caller(&c, r.bytes);
  }
  pw_request_reply out = {0};
  bool ok = f->request(&c, &out);
  pw_put_number(&out.w, 4, out.admin);
  pw_put_number(&out.w, 5, out.has_time_range);
  pw_put_signed(&out.w, 6, out.min_time);
  pw_put_signed(&out.w, 7, out.max_time);
  pw_put_number(&out.w, 8, out.max_series);
  pw_put_number(&out.w, 9, out.max_samples);
  pw_put_number(&out.w, 10, out.max_bytes);
  pw_put(&out.w, 11, out.subject);
  return pw_leave(ok, out.w.p, out.w.n);
}
PW_SLOW int64_t pw_filter_select(const pw_filter *f, pw_str s) {
  pw_enter();
  if (!f->select) return pw_leave(pw_fail(PW_UNSUPPORTED, PW_STR("no select hook")), NULL, 0);
  pw_select_call c = {0};
  for (pw_reader r = pw_read(s); pw_next(&r);) {
    if (r.field == 2) c.backend = r.bytes;
    if (r.field == 3) *PW_PUSH(c.matchers.items, c.matchers.n, c.matchers.cap) = pw_read_matcher(r.bytes);
    if (r.field == 4) c.min_time = pw_signed(&r);
    if (r.field == 5) c.max_time = pw_signed(&r);
    if (r.field == 6) *PW_PUSH(c.tenants, c.tenants_n, c.tenants_cap) = r.bytes;
  }
  pw_select_reply out = {0};
  bool ok = f->select(&c, &out);
  pw_put_number(&out.w, 2, out.none);
  return pw_leave(ok, out.w.p, out.w.n);
}
PW_SLOW int64_t pw_filter_rewrite(const pw_filter *f, pw_str s) {
  pw_enter();
  if (!f->rewrite) return pw_leave(pw_fail(PW_UNSUPPORTED, PW_STR("no rewrite hook")), NULL, 0);
  pw_frame in;
  if (!pw_frame_open(&in, s)) return pw_leave(pw_fail(PW_INVALID, PW_STR("not a frame of version 1")), NULL, 0);
  pw_reply out = {.in = &in};
  bool ok = f->rewrite(&in, &out);
  pw_str reply = ok ? pw_reply_end(&out) : (pw_str){0};
  return pw_leave(ok, reply.p, reply.n);
}

/* Makes the plug-in a filter; the arguments are the fields of pw_filter. */
#define PW_EXPORT_FILTER(...) \
  static const pw_filter pw_the_filter = {__VA_ARGS__}; \
  PW_EXPORT("describe") int64_t pw_x_describe(const char *p, uint32_t n) { return (void)p, (void)n, pw_filter_describe(&pw_the_filter); } \
  PW_EXPORT("configure") int64_t pw_x_configure(const char *p, uint32_t n) { return pw_filter_configure(&pw_the_filter, (pw_str){p, n}); } \
  PW_EXPORT("request") int64_t pw_x_request(const char *p, uint32_t n) { return pw_filter_request(&pw_the_filter, (pw_str){p, n}); } \
  PW_EXPORT("select") int64_t pw_x_select(const char *p, uint32_t n) { return pw_filter_select(&pw_the_filter, (pw_str){p, n}); } \
  PW_EXPORT("rewrite") int64_t pw_x_rewrite(const char *p, uint32_t n) { return pw_filter_rewrite(&pw_the_filter, (pw_str){p, n}); }

#endif
