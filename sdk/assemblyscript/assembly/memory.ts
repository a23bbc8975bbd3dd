// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Memory and strings. Calls take memory from an arena that is emptied before each of
// them; what was taken while configuring stays for good. Nothing in it is seen by
// AssemblyScript's collector: it may hold numbers and @unmanaged classes, and no others.

/** Bytes that a block of the arena has before its memory: the next block, and its end. */
const HEAD: usize = 8;
const BLOCK: usize = 65536;

let first: usize = 0;
let block: usize = 0;
let top: usize = 0;
let keptBlock: usize = 0;
let keptTop: usize = 0;

function use(b: usize): void {
  block = b;
  top = b + HEAD;
}

function addBlock(n: usize): void {
  const size = max(BLOCK, n + HEAD);
  const b = heap.alloc(size);
  store<usize>(b, 0);
  store<usize>(b, b + size, 4);
  if (block == 0) {
    first = b;
    keptBlock = b;
    keptTop = b + HEAD;
  } else {
    store<usize>(b, load<usize>(block));
    store<usize>(block, b);
  }
  use(b);
}

/** Room for n bytes, 8-aligned, not cleared, until the call ends. */
export function alloc(n: usize): usize {
  n = (n + 7) & ~7;
  if (block == 0) addBlock(n);
  while (top + n > load<usize>(block, 4)) {
    const next = load<usize>(block);
    if (next != 0 && next + HEAD + n <= load<usize>(next, 4)) use(next);
    else addBlock(n);
  }
  const p = top;
  top += n;
  return p;
}

/** The same, cleared. */
export function calloc(n: usize): usize {
  const p = alloc(n);
  memory.fill(p, 0, n);
  return p;
}

/** A new object of an unmanaged class, with all fields 0. */
// @ts-ignore: decorator
@inline
export function make<T>(): T {
  return changetype<T>(calloc(offsetof<T>()));
}

/** Empties the arena down to what was kept. */
export function reset(): void {
  if (first == 0) return;
  block = keptBlock;
  top = keptTop;
}

/** Keeps for good what is in the arena now. */
export function keep(): void {
  keptBlock = block;
  keptTop = top;
}

/** A list in the arena. T is a number of 4 bytes or an unmanaged class. */
@unmanaged
export class List<T> {
  items: usize;
  length: i32;
  room: i32;

  push(v: T): void {
    if (this.length == this.room) {
      this.room = max(8, this.room * 2);
      const p = alloc(<usize>this.room << 2);
      memory.copy(p, this.items, <usize>this.length << 2);
      this.items = p;
    }
    store<T>(this.items + (<usize>this.length << 2), v);
    this.length++;
  }
  @operator("[]")
  get(i: i32): T {
    return load<T>(this.items + (<usize>i << 2));
  }
  @operator("[]=")
  set(i: i32, v: T): void {
    store<T>(this.items + (<usize>i << 2), v);
  }
}

/** UTF-8 bytes somewhere in memory. AssemblyScript's String is UTF-16, and to convert
 * every value would cost ten times what the work on it does. */
@unmanaged
export class Str {
  at: usize;
  length: i32;

  static of(at: usize, length: i32): Str {
    const s = changetype<Str>(alloc(8));
    s.at = at;
    s.length = length;
    return s;
  }
  @operator("==")
  equals(o: Str): bool {
    return this.length == o.length && memory.compare(this.at, o.at, this.length) == 0;
  }
  @operator("!=")
  differs(o: Str): bool {
    return !this.equals(o);
  }
  slice(from: i32, to: i32): Str {
    to = min(to, this.length);
    from = min(from, to);
    return Str.of(this.at + from, to - from);
  }
  /** The position of a byte, from a position on; -1 without. */
  indexOf(c: u8, from: i32 = 0): i32 {
    for (let i = from; i < this.length; i++) if (load<u8>(this.at + i) == c) return i;
    return -1;
  }
  /** The parts between bytes c; those that are empty are left out. */
  split(c: u8): List<Str> {
    const parts = make<List<Str>>();
    for (let from = 0; from < this.length; ) {
      let to = this.indexOf(c, from);
      if (to < 0) to = this.length;
      if (to > from) parts.push(this.slice(from, to));
      from = to + 1;
    }
    return parts;
  }
  toString(): string {
    return String.UTF8.decodeUnsafe(this.at, this.length);
  }
  hash(): u32 {
    let h: u32 = 2166136261; // FNV-1a
    for (let i = 0; i < this.length; i++) h = (h ^ load<u8>(this.at + i)) * 16777619;
    return h;
  }
}

/** A string in UTF-8. For constants: at the top of a file, where it is made once and stays. */
export function str(s: string): Str {
  const n = String.UTF8.byteLength(s);
  const p = alloc(n);
  String.UTF8.encodeUnsafe(changetype<usize>(s), s.length, p);
  return Str.of(p, n);
}

const NOTHING = str("");

/** Strings one after the other. */
export function concat(a: Str, b: Str, c: Str = NOTHING, d: Str = NOTHING): Str {
  const n = a.length + b.length + c.length + d.length;
  const p = alloc(n);
  memory.copy(p, a.at, a.length);
  memory.copy(p + a.length, b.at, b.length);
  memory.copy(p + a.length + b.length, c.at, c.length);
  memory.copy(p + n - d.length, d.at, d.length);
  return Str.of(p, n);
}

/** A set of strings that numbers them from 0. */
@unmanaged
export class Table {
  items: List<Str>;
  slots: usize;
  size: u32;

  static create(): Table {
    const t = make<Table>();
    t.items = make<List<Str>>();
    return t;
  }
  add(s: Str): i32 {
    if (<u32>this.items.length * 2 >= this.size) this.grow();
    let slot = this.find(s);
    let i = load<u32>(slot);
    if (i == 0) {
      this.items.push(s);
      i = this.items.length;
      store<u32>(slot, i);
    }
    return i - 1;
  }
  private find(s: Str): usize {
    let i = s.hash();
    let slot = this.slot(i);
    while (load<u32>(slot) != 0 && this.items[load<u32>(slot) - 1] != s) slot = this.slot(++i);
    return slot;
  }
  private slot(i: u32): usize {
    return this.slots + ((<usize>(i & (this.size - 1))) << 2);
  }
  private grow(): void {
    this.size = max<u32>(32, this.size * 2);
    this.slots = calloc(<usize>this.size << 2);
    for (let i = 0; i < this.items.length; i++) store<u32>(this.find(this.items[i]), i + 1);
  }
}
