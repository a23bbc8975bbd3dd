// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//! Frames, read where they lie, and replies to them; sdk/frame/README.md is the
//! specification. The host has checked every frame that it sends; what is wrong in one
//! that was not is never read, and shows as empty.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

/// A view of a frame.
pub struct Frame<'a> {
    words: &'a [u32],
    bytes: &'a [u8],
    offsets: &'a [u32],
    symbols: &'a [u8],
    names: u32,
    group_at: &'a [u32],
    rows: u32,
}

const HEADER: usize = 12;
/// How many new symbols are found by comparing.
const FEW: usize = 8;

impl<'a> Frame<'a> {
    /// None if the bytes are not a frame of version 1.
    pub fn new(bytes: &'a [u8]) -> Option<Frame<'a>> {
        // SAFETY: any four bytes are a u32, and the host is little-endian as the format is.
        let (before, words, after) = unsafe { bytes.align_to::<u32>() };
        let h = words.get(..HEADER)?;
        if !before.is_empty() || !after.is_empty() || &bytes[..4] != b"PWF1" || h[1] as usize != bytes.len() {
            return None;
        }
        if h[3] >= h[4] || h[7] > 1 << 16 {
            return None;
        }
        Some(Frame {
            words,
            bytes,
            names: h[3],
            rows: h[7],
            offsets: array(words, h[8], (h[4] as usize).checked_add(1)?)?,
            symbols: bytes.get(h[9] as usize..)?.get(..h[5] as usize)?,
            group_at: array(words, 48, h[6] as usize)?,
        })
    }

    /// The number of symbols: that of the first new one of a reply.
    pub fn symbols(&self) -> u32 {
        self.offsets.len() as u32 - 1
    }
    /// The number of label names, which are symbols 1 to this.
    pub fn names(&self) -> u32 {
        self.names
    }
    pub fn rows(&self) -> u32 {
        self.rows
    }
    fn symbol_bytes(&self, id: u32) -> &'a [u8] {
        match (self.offsets.get(id as usize), self.offsets.get(id as usize + 1)) {
            (Some(&from), Some(&to)) => self.symbols.get(from as usize..to as usize).unwrap_or(&[]),
            _ => &[],
        }
    }
    /// The string of a symbol.
    pub fn symbol(&self, id: u32) -> &'a str {
        core::str::from_utf8(self.symbol_bytes(id)).unwrap_or("")
    }
    /// The symbol of a label name, 0 if the frame has none.
    pub fn find_name(&self, name: &str) -> u32 {
        (1..=self.names).find(|&id| self.symbol_bytes(id) == name.as_bytes()).unwrap_or(0)
    }
    /// The number of groups.
    pub fn groups(&self) -> usize {
        self.group_at.len()
    }
    /// A group that lies outside has no rows and no columns.
    pub fn group(&self, i: usize) -> Group<'a> {
        let mut g = Group { words: self.words, index: i, rows: 0, columns: &[] };
        if let Some(&at) = self.group_at.get(i) {
            if let Some(head) = array(self.words, at, 2) {
                if let Some(columns) = array(self.words, at.wrapping_add(8), (head[1] as usize).saturating_mul(3)) {
                    if head[0] <= self.rows {
                        g.rows = head[0] as usize;
                        g.columns = columns;
                    }
                }
            }
        }
        g
    }
    /// The bytes that this is a view of.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

/// n numbers at an offset in bytes.
fn array(words: &[u32], at: u32, n: usize) -> Option<&[u32]> {
    if at % 4 != 0 {
        return None;
    }
    words.get(at as usize / 4..)?.get(..n)
}

/// A run of rows with the same columns.
#[derive(Clone, Copy)]
pub struct Group<'a> {
    words: &'a [u32],
    pub index: usize,
    pub rows: usize,
    columns: &'a [u32],
}

impl<'a> Group<'a> {
    pub fn columns(&self) -> usize {
        self.columns.len() / 3
    }
    pub fn column(&self, i: usize) -> Column<'a> {
        let c = match self.columns.get(3 * i..3 * i + 3) {
            Some(c) => c,
            None => return Column { name: 0, values: Values::Withheld },
        };
        let values = match c[1] {
            1 => Values::Constant(c[2]),
            2 => array(self.words, c[2], self.rows).map_or(Values::Withheld, Values::References),
            _ => Values::Withheld,
        };
        Column { name: c[0], values }
    }
    /// The index of the column with a name, by symbol.
    pub fn find(&self, name: u32) -> Option<usize> {
        self.columns.chunks_exact(3).position(|c| c[0] == name)
    }
}

/// The values of one label in a group.
#[derive(Clone, Copy)]
pub struct Column<'a> {
    /// The symbol of the label name.
    pub name: u32,
    pub values: Values<'a>,
}

/// Symbols of values; 0 where a row lacks the label.
#[derive(Clone, Copy)]
pub enum Values<'a> {
    Withheld,
    Constant(u32),
    /// One for each row.
    References(&'a [u32]),
}

impl<'a> Column<'a> {
    /// The symbol of a row's value: 0 if it lacks the label, or if values are withheld.
    pub fn at(&self, row: usize) -> u32 {
        match self.values {
            Values::Withheld => 0,
            Values::Constant(v) => v,
            Values::References(refs) => refs.get(row).copied().unwrap_or(0),
        }
    }
}

#[derive(Clone)]
enum Source {
    Input(usize),
    Constant(u32),
    References(Vec<u32>),
}

/// A reply that is being made. Groups that are not begun stay as they are.
pub struct Reply<'a> {
    input: &'a Frame<'a>,
    ends: Vec<u32>,
    bytes: Vec<u8>,
    slots: Vec<u32>, // of a hash table of new symbols, 0 is empty
    out: Vec<u32>,
    group: Option<Group<'a>>,
    columns: Vec<(u32, Source)>,
    keep: Vec<u32>,
    none: bool,
}

/// What values become, each asked for once: one for each frame and label.
#[derive(Default, Clone)]
pub struct Memo {
    to: Vec<u32>,
}

impl<'a> Reply<'a> {
    pub fn new(input: &'a Frame<'a>) -> Reply<'a> {
        Reply {
            input,
            // Room for what most replies need: to grow step by step costs more than all else.
            ends: Vec::with_capacity(FEW),
            bytes: Vec::with_capacity(128),
            slots: Vec::new(),
            out: Vec::with_capacity(128),
            group: None,
            columns: Vec::with_capacity(32),
            keep: Vec::new(),
            none: false,
        }
    }

    fn new_symbol(&self, i: usize) -> &[u8] {
        let from = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.bytes[from as usize..self.ends[i] as usize]
    }

    /// The symbol of a value: a new one, or the one that it got before; 0 for "".
    #[inline(never)]
    pub fn value(&mut self, s: &str) -> u32 {
        if s.is_empty() {
            return 0;
        }
        // To compare a few is cheaper than to look up.
        if self.ends.len() < FEW {
            if let Some(i) = (0..self.ends.len()).find(|&i| self.new_symbol(i) == s.as_bytes()) {
                return self.input.symbols() + i as u32;
            }
            return self.append(s);
        }
        if self.ends.len() * 2 >= self.slots.len() {
            self.slots = vec![0; (self.slots.len() * 2).max(32)];
            for i in 0..self.ends.len() {
                let slot = self.slot(hash(self.new_symbol(i)), None);
                self.slots[slot] = i as u32 + 1;
            }
        }
        let slot = self.slot(hash(s.as_bytes()), Some(s.as_bytes()));
        if self.slots[slot] == 0 {
            self.append(s);
            self.slots[slot] = self.ends.len() as u32;
        }
        self.input.symbols() + self.slots[slot] - 1
    }

    fn append(&mut self, s: &str) -> u32 {
        self.bytes.extend_from_slice(s.as_bytes());
        self.ends.push(self.bytes.len() as u32);
        self.input.symbols() + self.ends.len() as u32 - 1
    }

    /// The slot of a string, or the first empty one.
    fn slot(&self, hash: u32, s: Option<&[u8]>) -> usize {
        let mask = self.slots.len() - 1;
        let mut i = hash as usize & mask;
        while self.slots[i] != 0 && s != Some(self.new_symbol(self.slots[i] as usize - 1)) {
            i = (i + 1) & mask;
        }
        i
    }

    /// The symbol of a label name: the frame's, or else a new one.
    pub fn name(&mut self, s: &str) -> u32 {
        match self.input.find_name(s) {
            0 => self.value(s),
            id => id,
        }
    }

    /// The column that the group has now under a name.
    fn find(&self, name: &str) -> Option<usize> {
        self.find_id(name, self.input.find_name(name))
    }

    /// The same, if the frame's symbol of the name is id, or 0.
    #[inline(never)]
    fn find_id(&self, name: &str, id: u32) -> Option<usize> {
        let old = self.input.symbols();
        self.columns.iter().position(|c| {
            let new = c.0.wrapping_sub(old) as usize;
            if c.0 < old { c.0 == id && id != 0 } else { new < self.ends.len() && self.new_symbol(new) == name.as_bytes() }
        })
    }

    /// Begins the reply to a group, which then has the columns that are added and no others.
    pub fn group(&mut self, i: usize) {
        if self.out.is_empty() {
            self.out.resize(8 + self.input.group_at.len(), 0);
        }
        self.close();
        self.group = Some(self.input.group(i));
        self.columns.clear();
        self.keep.clear();
        self.none = false;
    }

    /// Begins the reply to a group with all of its columns, to be changed.
    pub fn edit(&mut self, i: usize) {
        self.group(i);
        let g = self.input.group(i);
        for i in 0..g.columns() {
            self.columns.push((g.column(i).name, Source::Input(i)));
        }
    }

    fn put(&mut self, name: &str, s: Source) {
        let mut id = self.input.find_name(name);
        if let Some(i) = self.find_id(name, id) {
            self.columns.swap_remove(i);
        }
        if id == 0 {
            id = self.value(name);
        }
        self.columns.push((id, s));
    }
    /// Gives a label the values of column `i` of the group, withheld or not.
    pub fn input(&mut self, name: &str, i: usize) {
        self.put(name, Source::Input(i));
    }
    /// Gives a label one value, in every row; "" is to drop it.
    pub fn set(&mut self, name: &str, value: &str) {
        match self.value(value) {
            0 => self.drop(name),
            v => self.put(name, Source::Constant(v)),
        }
    }
    /// Gives a label the value of a symbol for each row; 0 where there is none.
    pub fn references(&mut self, name: &str, mut refs: Vec<u32>) {
        refs.resize(self.group.map_or(0, |g| g.rows), 0);
        self.put(name, Source::References(refs));
    }
    /// Removes a label.
    pub fn drop(&mut self, name: &str) {
        if let Some(i) = self.find(name) {
            self.columns.swap_remove(i);
        }
    }
    /// `to` gets the values of `from`, also where that is absent, and `from` is gone.
    pub fn rename(&mut self, from: &str, to: &str) {
        if from == to {
            return;
        }
        self.drop(to);
        if let Some(i) = self.find(from) {
            self.columns[i].0 = self.name(to);
        }
    }

    /// Leaves out all rows of the group.
    pub fn drop_rows(&mut self) {
        self.none = true;
    }
    /// Leaves out one row of the group.
    pub fn drop_row(&mut self, row: usize) {
        let rows = self.group.map_or(0, |g| g.rows);
        if row >= rows {
            return;
        }
        if self.keep.is_empty() {
            self.keep.resize((rows + 31) / 32, !0);
            if rows % 32 != 0 {
                self.keep[rows / 32] = (1 << (rows % 32)) - 1;
            }
        }
        self.keep[row / 32] &= !(1 << (row % 32));
    }

    /// Gives a label other values wherever it is there: `to` is called once for each
    /// distinct value of the frame, and writes the new one to an empty string, or returns
    /// false for "as it is". Rows cost one look at a table each.
    pub fn map(&mut self, name: &str, memo: &mut Memo, mut to: impl FnMut(&str, &mut String) -> bool) {
        let i = match self.find(name) {
            Some(i) => i,
            None => return,
        };
        if memo.to.is_empty() {
            memo.to.resize(self.input.symbols() as usize, 0);
        }
        let source = match &self.columns[i].1 {
            Source::Input(c) => match self.group.map_or(Values::Withheld, |g| g.column(*c).values) {
                Values::Withheld => return,
                Values::Constant(v) => Source::Constant(v),
                Values::References(refs) => {
                    let mapped = refs.iter().map(|&v| self.mapped(v, memo, &mut to)).collect();
                    self.columns[i].1 = Source::References(mapped);
                    return;
                }
            },
            other => other.clone(),
        };
        match source {
            Source::Constant(v) => match self.mapped(v, memo, &mut to) {
                0 => drop(self.columns.swap_remove(i)),
                v => self.columns[i].1 = Source::Constant(v),
            },
            Source::References(refs) => {
                self.columns[i].1 = Source::References(refs.iter().map(|&v| self.mapped(v, memo, &mut to)).collect())
            }
            Source::Input(_) => {}
        }
    }

    #[inline]
    fn mapped(&mut self, v: u32, memo: &mut Memo, to: &mut impl FnMut(&str, &mut String) -> bool) -> u32 {
        match memo.to.get(v as usize) {
            Some(&known) if known != 0 => known - 1,
            _ => self.map_first(v, memo, to),
        }
    }

    #[cold]
    fn map_first(&mut self, v: u32, memo: &mut Memo, to: &mut impl FnMut(&str, &mut String) -> bool) -> u32 {
        let old = self.input.symbols();
        if v == 0 || v - old.min(v) >= self.ends.len() as u32 && v >= old {
            return 0;
        }
        let mut s = String::new();
        let changed = if v < old {
            to(self.input.symbol(v), &mut s)
        } else {
            to(core::str::from_utf8(self.new_symbol((v - old) as usize)).unwrap_or(""), &mut s)
        };
        let new = if changed { self.value(&s) } else { v };
        if v < old {
            memo.to[v as usize] = new + 1;
        }
        new
    }

    fn close(&mut self) {
        let g = match self.group.take() {
            Some(g) => g,
            None => return,
        };
        let at = |out: &Vec<u32>| out.len() as u32 * 4;
        let mut keep = if self.none { !0 } else { 0 };
        if !self.none && !self.keep.is_empty() {
            keep = at(&self.out);
            self.out.extend_from_slice(&self.keep);
        }
        let mut head = Vec::with_capacity(2 + 3 * self.columns.len());
        head.extend_from_slice(&[self.columns.len() as u32, keep]);
        for (name, source) in &self.columns {
            let (form, arg) = match source {
                Source::Input(i) => (0, *i as u32),
                Source::Constant(v) => (1, *v),
                Source::References(refs) => {
                    let from = at(&self.out);
                    self.out.extend_from_slice(refs);
                    (2, from)
                }
            };
            head.extend_from_slice(&[*name, form, arg]);
        }
        self.out[8 + g.index] = at(&self.out);
        self.out.extend_from_slice(&head);
    }

    /// The encoded reply; nothing if no group was begun.
    pub fn finish(mut self) -> Vec<u8> {
        self.close();
        if self.out.is_empty() {
            return Vec::new();
        }
        let symbols_at = self.out.len() * 4;
        self.out.push(0);
        self.out.extend_from_slice(&self.ends);
        let bytes_at = self.out.len() * 4;
        let total = (bytes_at + self.bytes.len() + 3) & !3;
        let head = [
            u32::from_le_bytes(*b"PWR1"),
            total as u32,
            self.input.group_at.len() as u32,
            self.ends.len() as u32,
            symbols_at as u32,
            bytes_at as u32,
            self.bytes.len() as u32,
            0,
        ];
        self.out[..8].copy_from_slice(&head);
        let mut b = Vec::with_capacity(total);
        // SAFETY: any u32 is four bytes.
        b.extend_from_slice(unsafe { core::slice::from_raw_parts(self.out.as_ptr() as *const u8, bytes_at) });
        b.extend_from_slice(&self.bytes);
        b.resize(total, 0);
        b
    }
}

pub(crate) fn hash(s: &[u8]) -> u32 {
    s.iter().fold(2166136261, |h, &b| (h ^ u32::from(b)).wrapping_mul(16777619)) // FNV-1a
}
