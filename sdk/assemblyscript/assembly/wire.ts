// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Protobuf's wire format, as far as the messages need it.
import { alloc, make, Str } from "./memory";

/** Goes through the fields of a message. It ends where the message does, or is broken. */
@unmanaged
export class Reader {
  private at: usize;
  private end: usize;
  field: u32;
  /** The value of a varint or of a fixed number. */
  number: u64;
  /** The value of anything with a length. */
  private bytesAt: usize;
  private bytesLength: i32;

  static of(s: Str): Reader {
    const r = make<Reader>();
    r.at = s.at;
    r.end = s.at + s.length;
    return r;
  }
  private broken: bool;

  private varint(): u64 {
    let v: u64 = 0;
    for (let shift: u64 = 0; shift < 64 && this.at < this.end; shift += 7) {
      const b = load<u8>(this.at++);
      v |= (<u64>(b & 0x7f)) << shift;
      if (b < 0x80) return v;
    }
    this.broken = true;
    return 0;
  }
  next(): bool {
    if (this.at >= this.end || this.broken) return false;
    const key = this.varint();
    this.field = <u32>(key >> 3);
    this.number = 0;
    this.bytesLength = 0;
    const left = <u64>(this.end - this.at);
    switch (<u32>key & 7) {
      case 0:
        this.number = this.varint();
        break;
      case 1:
        if (left < 8) return false;
        this.number = load<u64>(this.at);
        this.at += 8;
        break;
      case 2: {
        const n = this.varint();
        if (this.broken || n > <u64>(this.end - this.at)) return false;
        this.bytesAt = this.at;
        this.bytesLength = <i32>n;
        this.at += <usize>n;
        break;
      }
      case 5:
        if (left < 4) return false;
        this.number = load<u32>(this.at);
        this.at += 4;
        break;
      default:
        return false;
    }
    return !this.broken;
  }
  get bytes(): Str {
    return Str.of(this.bytesAt, this.bytesLength);
  }
  /** The value of an sint64 field. */
  get signed(): i64 {
    return <i64>(this.number >> 1) ^ -(<i64>(this.number & 1));
  }
  /** The fields of a message inside. */
  get message(): Reader {
    return Reader.of(this.bytes);
  }
}

/** Writes a message, or any bytes. Fields that are 0 or empty are left out. */
@unmanaged
export class Writer {
  at: usize;
  length: i32;
  room: i32;

  more(n: i32): usize {
    if (this.room - this.length < n) {
      this.room = max(256, (this.length + n) * 2);
      const p = alloc(this.room);
      memory.copy(p, this.at, this.length);
      this.at = p;
    }
    const p = this.at + this.length;
    this.length += n;
    return p;
  }
  word(v: u32): void {
    store<u32>(this.more(4), v);
  }
  copy(p: usize, n: i32): i32 {
    const at = this.length;
    memory.copy(this.more(n), p, n);
    return at;
  }
  varint(v: u64): void {
    for (; v >= 0x80; v >>= 7) store<u8>(this.more(1), <u8>v | 0x80);
    store<u8>(this.more(1), <u8>v);
  }
  number(field: u32, v: u64): void {
    if (v == 0) return;
    this.varint(field << 3);
    this.varint(v);
  }
  signed(field: u32, v: i64): void {
    this.number(field, (<u64>v << 1) ^ <u64>(v >> 63));
  }
  /** Writes the field also if it is empty, as an item of a list must be. */
  item(field: u32, s: Str): void {
    this.varint((field << 3) | 2);
    this.varint(s.length);
    this.copy(s.at, s.length);
  }
  string(field: u32, s: Str): void {
    if (s.length > 0) this.item(field, s);
  }
  /** Between begin and end a message inside is written. Its length takes five bytes, so
   * that it can be filled in. */
  begin(field: u32): i32 {
    this.varint((field << 3) | 2);
    this.more(5);
    return this.length;
  }
  end(began: i32): void {
    let n = this.length - began;
    for (let i = 0; i < 5; i++, n >>= 7) store<u8>(this.at + began - 5 + i, (n & 0x7f) | (i < 4 ? 0x80 : 0));
  }
  pair(field: u32, a: Str, b: Str): void {
    const at = this.begin(field);
    this.string(1, a);
    this.string(2, b);
    this.end(at);
  }
  get text(): Str {
    return Str.of(this.at, this.length);
  }
}
