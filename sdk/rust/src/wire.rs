// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//! Protobuf's wire format, as far as the messages need it.

use alloc::vec::Vec;

/// Goes through the fields of a message. It ends where the message does, or is broken.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

/// One field: `number` of a varint or a fixed number, `bytes` of anything with a length.
#[derive(Clone, Copy)]
pub struct Field<'a> {
    pub field: u32,
    pub number: u64,
    pub bytes: &'a [u8],
}

impl<'a> Field<'a> {
    /// The value of an sint64 field.
    pub fn signed(&self) -> i64 {
        (self.number >> 1) as i64 ^ -((self.number & 1) as i64)
    }
    /// The value of a string field; "" if it is not UTF-8.
    pub fn text(&self) -> &'a str {
        core::str::from_utf8(self.bytes).unwrap_or("")
    }
    /// The fields of a message inside.
    pub fn message(&self) -> Reader<'a> {
        Reader::new(self.bytes)
    }
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    fn varint(&mut self) -> Option<u64> {
        let mut v = 0;
        for i in 0..10 {
            let (&b, rest) = self.rest.split_first()?;
            self.rest = rest;
            v |= u64::from(b & 0x7f) << (7 * i);
            if b < 0x80 {
                return Some(v);
            }
        }
        None
    }

    fn take(&mut self, n: u64) -> Option<&'a [u8]> {
        if n > self.rest.len() as u64 {
            return None;
        }
        let (taken, rest) = self.rest.split_at(n as usize);
        self.rest = rest;
        Some(taken)
    }

    fn fixed(&mut self, n: u64) -> Option<u64> {
        let mut b = [0; 8];
        b[..n as usize].copy_from_slice(self.take(n)?);
        Some(u64::from_le_bytes(b))
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let key = self.varint()?;
        let mut f = Field { field: (key >> 3) as u32, number: 0, bytes: &[] };
        match key & 7 {
            0 => f.number = self.varint()?,
            1 => f.number = self.fixed(8)?,
            2 => {
                let n = self.varint()?;
                f.bytes = self.take(n)?;
            }
            5 => f.number = self.fixed(4)?,
            _ => return None,
        }
        Some(f)
    }
}

/// Writes a message. Fields that are 0 or empty are left out.
#[derive(Default)]
pub struct Writer {
    pub bytes: Vec<u8>,
}

impl Writer {
    pub const fn new() -> Writer {
        Writer { bytes: Vec::new() }
    }
    #[inline(never)]
    pub fn varint(&mut self, mut v: u64) {
        while v >= 0x80 {
            self.bytes.push(v as u8 | 0x80);
            v >>= 7;
        }
        self.bytes.push(v as u8);
    }
    #[inline(never)]
    pub fn number(&mut self, field: u32, v: u64) {
        if v != 0 {
            self.varint(u64::from(field) << 3);
            self.varint(v);
        }
    }
    pub fn signed(&mut self, field: u32, v: i64) {
        self.number(field, (v << 1 ^ v >> 63) as u64);
    }
    pub fn flag(&mut self, field: u32, v: bool) {
        self.number(field, u64::from(v));
    }
    /// Writes the field also if it is empty, as an item of a list must be.
    #[inline(never)]
    pub fn item(&mut self, field: u32, v: &[u8]) {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(v.len() as u64);
        self.bytes.extend_from_slice(v);
    }
    pub fn string(&mut self, field: u32, v: &str) {
        if !v.is_empty() {
            self.item(field, v.as_bytes());
        }
    }
    /// Writes a message inside. Its length takes five bytes, so that it can be filled in.
    pub fn message(&mut self, field: u32, write: impl FnOnce(&mut Writer)) {
        self.varint(u64::from(field) << 3 | 2);
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0x80, 0x80, 0x80, 0x80, 0]);
        write(self);
        let mut n = self.bytes.len() - at - 5;
        for b in &mut self.bytes[at..at + 5] {
            *b |= n as u8 & 0x7f;
            n >>= 7;
        }
    }
    /// Writes a message of two strings.
    #[inline(never)]
    pub fn pair(&mut self, field: u32, a: &str, b: &str) {
        self.message(field, |w| {
            w.string(1, a);
            w.string(2, b);
        });
    }
}
