// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Frames, read where they lie, and replies to them; sdk/frame/README.md is the
// specification. The host has checked every frame that it sends; what is wrong in one
// that was not is never read, and shows as empty.
import { alloc, calloc, List, make, Str, Table } from "./memory";
import { Writer } from "./wire";

const EMPTY = Str.of(0, 0);

export enum Form {
  Withheld,
  Constant,
  References,
}

/** A view of a frame. */
@unmanaged
export class Frame {
  private at: usize;
  private total: u64;
  /** The number of label names, which are symbols 1 to this. */
  names: u32;
  /** The number of symbols: that of the first new one of a reply. */
  symbols: u32;
  groups: u32;
  rows: u32;
  private offsets: usize;
  private bytes: usize;
  private bytesLength: u32;

  /** False if the bytes are not a frame of version 1. */
  open(s: Str): bool {
    const p = s.at;
    if (s.length < 48 || load<u32>(p) != 0x31465750 || load<u32>(p, 4) != <u32>s.length) return false;
    this.at = p;
    this.total = s.length;
    this.names = load<u32>(p, 12);
    this.symbols = load<u32>(p, 16);
    this.bytesLength = load<u32>(p, 20);
    this.groups = load<u32>(p, 24);
    this.rows = load<u32>(p, 28);
    const offsets = load<u32>(p, 32);
    const bytes = load<u32>(p, 36);
    if (this.names >= this.symbols || this.rows > 65536) return false;
    if (!this.inside(offsets, 4 * (<u64>this.symbols + 1)) || !this.inside(48, 4 * <u64>this.groups)) return false;
    if (<u64>bytes + this.bytesLength > this.total) return false;
    this.offsets = p + offsets;
    this.bytes = p + bytes;
    return true;
  }
  inside(at: u32, n: u64): bool {
    return (at & 3) == 0 && at + n <= this.total;
  }
  /** The string of a symbol. */
  symbol(id: u32): Str {
    if (id >= this.symbols) return EMPTY;
    const from = load<u32>(this.offsets + (<usize>id << 2));
    const to = load<u32>(this.offsets + (<usize>id << 2), 4);
    if (from > to || to > this.bytesLength) return EMPTY;
    return Str.of(this.bytes + from, to - from);
  }
  private is(id: u32, s: Str): bool {
    const from = load<u32>(this.offsets + (<usize>id << 2));
    const to = load<u32>(this.offsets + (<usize>id << 2), 4);
    return to - from == <u32>s.length && from <= to && to <= this.bytesLength && memory.compare(this.bytes + from, s.at, s.length) == 0;
  }
  /** The symbol of a label name, 0 if the frame has none. */
  findName(name: Str): u32 {
    for (let i: u32 = 1; i <= this.names; i++) if (this.is(i, name)) return i;
    return 0;
  }
  /** A group that lies outside has no rows and no columns. */
  group(i: u32): Group {
    const g = make<Group>();
    g.index = i;
    g.frame = this;
    if (i >= this.groups) return g;
    const at = load<u32>(this.at + 48 + (<usize>i << 2));
    if (!this.inside(at, 8)) return g;
    const rows = load<u32>(this.at + at);
    const columns = load<u32>(this.at + at, 4);
    if (rows > this.rows || !this.inside(at, 8 + 12 * <u64>columns)) return g;
    g.rows = rows;
    g.columns = columns;
    g.head = this.at + at + 8;
    return g;
  }
  words(at: u32): usize {
    return this.at + at;
  }
}

/** A run of rows with the same columns. */
@unmanaged
export class Group {
  frame: Frame;
  index: u32;
  rows: u32;
  columns: u32;
  head: usize;

  name(i: u32): u32 {
    return load<u32>(this.head + 12 * i);
  }
  column(i: u32): Column {
    const c = make<Column>();
    if (i >= this.columns) return c;
    const p = this.head + 12 * i;
    const form = load<u32>(p, 4);
    const arg = load<u32>(p, 8);
    c.name = load<u32>(p);
    if (form == Form.Constant) {
      c.form = Form.Constant;
      c.constant = arg;
    } else if (form == Form.References && this.frame.inside(arg, 4 * <u64>this.rows)) {
      c.form = Form.References;
      c.refs = this.frame.words(arg);
    }
    return c;
  }
  /** The index of the column with a name, by symbol; -1 without. */
  find(name: u32): i32 {
    for (let i: u32 = 0; name != 0 && i < this.columns; i++) if (this.name(i) == name) return i;
    return -1;
  }
}

/** The values of one label in a group. */
@unmanaged
export class Column {
  /** The symbol of the label name. */
  name: u32;
  form: Form;
  constant: u32;
  /** Of References: where the symbols are, 4 bytes for each row. */
  refs: usize;

  /** The symbol of a row's value: 0 if it lacks the label, or if values are withheld. */
  at(row: u32): u32 {
    return this.form == Form.References ? load<u32>(this.refs + (<usize>row << 2)) : this.constant;
  }
}

enum Source {
  Input,
  Constant,
  References,
}

@unmanaged
class NewColumn {
  name: u32;
  source: Source;
  arg: u32;
  refs: usize;
}

/** What a value of a label becomes: of is asked once for each distinct value. One for each
 * frame and label. */
export abstract class ValueMap {
  /** What values are known to become, and 1; 0 is not known. */
  private known: usize = 0;

  abstract of(value: Str): Str;

  /** Forgets the last frame. */
  reset(): void {
    this.known = 0;
  }
  // @ts-ignore: decorator
  @inline
  mapped(out: Reply, ref: u32): u32 {
    if (ref < out.frame.symbols && this.known != 0) {
      const to = load<u32>(this.known + (<usize>ref << 2));
      if (to != 0) return to - 1;
    }
    return this.first(out, ref);
  }
  private first(out: Reply, ref: u32): u32 {
    const old = out.frame.symbols;
    if (this.known == 0) this.known = calloc(<usize>old << 2);
    if (ref == 0) return 0;
    if (ref >= old) {
      const i = ref - old;
      return i < <u32>out.table.items.length ? out.value(this.of(out.table.items[i])) : 0;
    }
    const from = out.frame.symbol(ref);
    const to = this.of(from);
    const id = to == from ? ref : out.value(to);
    store<u32>(this.known + (<usize>ref << 2), id + 1);
    return id;
  }
}

/** A reply that is being made. Groups that are not begun stay as they are. */
@unmanaged
export class Reply {
  frame: Frame;
  table: Table;
  private w: Writer;
  private g: Group;
  private open: bool;
  private keep: usize;
  private none: bool;
  private columns: List<NewColumn>;

  static to(f: Frame): Reply {
    const r = make<Reply>();
    r.frame = f;
    r.table = Table.create();
    r.w = make<Writer>();
    r.columns = make<List<NewColumn>>();
    return r;
  }
  /** The symbol of a value: a new one, or the one that it got before; 0 for "". */
  value(s: Str): u32 {
    return s.length == 0 ? 0 : this.frame.symbols + this.table.add(s);
  }
  /** The symbol of a label name: the frame's, or else a new one. */
  name(s: Str): u32 {
    const id = this.frame.findName(s);
    return id != 0 ? id : this.value(s);
  }
  /** The column that the group has now under a name; -1 without. */
  private find(name: Str): i32 {
    const id = this.frame.findName(name);
    for (let i = 0; i < this.columns.length; i++) {
      const have = this.columns[i].name;
      const k = <i32>(have - this.frame.symbols);
      if (have < this.frame.symbols ? have == id : <u32>k < <u32>this.table.items.length && this.table.items[k] == name) return i;
    }
    return -1;
  }
  private remove(i: i32): void {
    this.columns[i] = this.columns[this.columns.length - 1];
    this.columns.length--;
  }
  private add(name: u32, source: Source, arg: u32, refs: usize): void {
    const c = changetype<NewColumn>(alloc(offsetof<NewColumn>()));
    c.name = name;
    c.source = source;
    c.arg = arg;
    c.refs = refs;
    this.columns.push(c);
  }

  /** Begins the reply to a group, which then has the columns that are added and no others. */
  group(g: Group): void {
    if (this.w.length == 0) {
      const n = 32 + 4 * this.frame.groups;
      memory.fill(this.w.more(n), 0, n);
    }
    this.close();
    this.g = g;
    this.open = true;
    this.keep = 0;
    this.none = false;
    this.columns.length = 0;
  }
  /** Begins the reply to a group with all of its columns, to be changed. */
  edit(g: Group): void {
    this.group(g);
    for (let i: u32 = 0; i < g.columns; i++) this.add(g.name(i), Source.Input, i, 0);
  }
  /** Removes a label. */
  drop(name: Str): void {
    const i = this.find(name);
    if (i >= 0) this.remove(i);
  }
  /** Gives a label one value, in every row; "" is to drop it. */
  set(name: Str, value: Str): void {
    this.drop(name);
    if (value.length > 0) this.add(this.name(name), Source.Constant, this.value(value), 0);
  }
  /** Gives a label the values of column i of the group, withheld or not. */
  input(name: Str, i: u32): void {
    this.drop(name);
    this.add(this.name(name), Source.Input, i, 0);
  }
  /** Gives a label symbols, one for each row and all 0, to fill in: the result is where they are. */
  refs(name: Str): usize {
    this.drop(name);
    const p = calloc(<usize>this.g.rows << 2);
    this.add(this.name(name), Source.References, 0, p);
    return p;
  }
  /** to gets the values of from, also where that is absent, and from is gone. */
  rename(from: Str, to: Str): void {
    if (from == to) return;
    this.drop(to);
    const i = this.find(from);
    if (i >= 0) this.columns[i].name = this.name(to);
  }
  /** Leaves out all rows of the group. */
  dropRows(): void {
    this.none = true;
  }
  /** Leaves out one row of the group. */
  dropRow(row: u32): void {
    const rows = this.g.rows;
    if (row >= rows) return;
    if (this.keep == 0) {
      const n = <usize>((rows + 31) / 32) << 2;
      this.keep = alloc(n);
      memory.fill(this.keep, 0xff, n);
      if (rows % 32 != 0) store<u32>(this.keep + n - 4, (1 << rows % 32) - 1);
    }
    const p = this.keep + ((<usize>row / 32) << 2);
    store<u32>(p, load<u32>(p) & ~(1 << row % 32));
  }
  /** Gives a label other values wherever it is there: rows cost one look at a table each. */
  map(name: Str, m: ValueMap): void {
    const i = this.find(name);
    if (i < 0) return;
    const c = this.columns[i];
    let constant = c.arg;
    let from = c.refs;
    if (c.source == Source.Input) {
      const col = this.g.column(c.arg);
      if (col.form == Form.Withheld) return;
      constant = col.constant;
      from = col.refs;
    }
    if (from == 0) {
      c.source = Source.Constant;
      c.arg = m.mapped(this, constant);
      if (c.arg == 0) this.remove(i);
      return;
    }
    const n = <usize>this.g.rows << 2;
    const to = alloc(n);
    for (let at: usize = 0; at < n; at += 4) store<u32>(to + at, m.mapped(this, load<u32>(from + at)));
    c.source = Source.References;
    c.refs = to;
  }

  private close(): void {
    if (!this.open) return;
    this.open = false;
    const w = this.w;
    let keep: u32 = this.none ? 0xffffffff : 0;
    if (this.keep != 0 && !this.none) keep = w.copy(this.keep, ((this.g.rows + 31) / 32) << 2);
    for (let i = 0; i < this.columns.length; i++) {
      const c = this.columns[i];
      if (c.source == Source.References) c.arg = w.copy(c.refs, this.g.rows << 2);
    }
    store<u32>(w.at + 32 + (<usize>this.g.index << 2), w.length);
    w.word(this.columns.length);
    w.word(keep);
    for (let i = 0; i < this.columns.length; i++) w.copy(changetype<usize>(this.columns[i]), 12);
  }
  /** The encoded reply; "" if no group was begun. */
  finish(): Str {
    const w = this.w;
    if (w.length == 0) return w.text;
    this.close();
    const items = this.table.items;
    const symbols = w.length;
    let size = 0;
    for (let i = 0; i < items.length; i++) {
      w.word(size);
      size += items[i].length;
    }
    w.word(size);
    const bytes = w.length;
    for (let i = 0; i < items.length; i++) w.copy(items[i].at, items[i].length);
    while (w.length & 3) store<u8>(w.more(1), 0);
    store<u32>(w.at, 0x31525750);
    store<u32>(w.at, w.length, 4);
    store<u32>(w.at, this.frame.groups, 8);
    store<u32>(w.at, items.length, 12);
    store<u32>(w.at, symbols, 16);
    store<u32>(w.at, bytes, 20);
    store<u32>(w.at, size, 24);
    return w.text;
  }
}
