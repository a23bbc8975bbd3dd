// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//! What the author of a store backend writes; sdk/backend/backend.go has the rules (B-1,
//! S-1, ...) that it keeps.

use crate::wire::{Reader, Writer};
use crate::*;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

/// A store backend: one configured instance of it. A call never changes it.
pub trait Backend: Sized + 'static {
    const NAME: &'static str;
    const VERSION: &'static str;
    const SUMMARY: &'static str = "";
    /// A JSON Schema of the configuration; "" accepts anything.
    const CONFIG_SCHEMA: &'static str = "";
    /// clock, random, metrics, http.
    const PERMISSIONS: &'static [&'static str] = &[];

    /// Makes an instance. An error names the key that is wrong.
    fn configure(c: &Config) -> Result<Self, Error>;
    /// What the backend is now.
    fn info(&self) -> Result<Info, Error>;
    /// Gives the series that match to `out`, in ascending order of their label sets.
    /// When `out` wants no more it is time to return.
    fn series(&self, c: &SeriesCall, out: &mut Batch) -> Result<(), Error>;
    /// Names of labels on matching series, in any order.
    fn label_names(&self, c: &LabelsCall) -> Result<Vec<String>, Error>;
    /// Values of the label `c.name` on matching series, in any order.
    fn label_values(&self, c: &LabelsCall) -> Result<Vec<String>, Error>;
}

/// A label set, sorted by name.
pub type Labels = Vec<(String, String)>;

/// What a backend says of itself. The default claims nothing but limits, which the SDK keeps.
#[derive(Default)]
pub struct Info {
    /// Over-approximate the data; none is "cannot say".
    pub label_sets: Vec<Labels>,
    /// What the data lie within, ms, both inclusive.
    pub time_range: Option<(i64, i64)>,
    pub component: String,
    pub version: String,
    /// Label names and values honour the time range. A claim has to hold always (rule I-3).
    pub bounded_labels: bool,
    /// What is missing from an answer is an error, or said with [`Batch::notice`].
    pub complete: bool,
}

/// A request for series. Times are ms, both inclusive.
#[derive(Default)]
pub struct SeriesCall {
    pub min_time: i64,
    pub max_time: i64,
    pub matchers: Vec<Matcher>,
    /// Series have no samples, but are selected as if they had.
    pub skip_chunks: bool,
    /// Above 0: no more series than these are wanted. The SDK cuts.
    pub limit: u64,
    /// How many series a batch should have; 0 leaves it open.
    pub batch_size: usize,
}

/// A request for label names or, with a name, for values. Times are ms, both inclusive.
#[derive(Default)]
pub struct LabelsCall {
    pub name: String,
    pub min_time: i64,
    pub max_time: i64,
    pub matchers: Vec<Matcher>,
    /// Above 0: the first of the sorted result are wanted. The SDK cuts.
    pub limit: u64,
}

#[link(wasm_import_module = "promweave_v1")]
extern "C" {
    fn emit(p: *const u8, n: usize) -> i32;
    fn http_fetch(p: *const u8, n: usize) -> i64;
    fn http_response(h: i32, p: *mut u8, room: usize) -> i32;
    fn http_read(h: i32, p: *mut u8, room: usize) -> i32;
    fn http_close(h: i32);
    fn http_error(p: *mut u8, room: usize) -> i32;
}

/// Symbols of a frame that is being made, numbered from 0.
#[derive(Default)]
struct Symbols {
    ids: BTreeMap<String, u32>,
    list: Vec<String>,
}

impl Symbols {
    fn id(&mut self, s: &str) -> u32 {
        if let Some(&id) = self.ids.get(s) {
            return id;
        }
        let id = self.list.len() as u32;
        self.ids.insert(s.into(), id);
        self.list.push(s.into());
        id
    }
}

/// A chunk of samples: its time range, and which of `Batch::samples` are in it.
struct Record {
    times: (i64, i64),
    from: usize,
    to: usize,
}

struct Row {
    labels: Vec<(u32, u32)>,
    records: Vec<Record>,
}

/// Takes series and hands them to the host, many at a time, as frames.
#[derive(Default)]
pub struct Batch {
    names: Symbols,
    values: Symbols,
    rows: Vec<Row>,
    samples: Vec<(i64, f64)>,
    notices: Writer,
    size: usize,
    /// Of the label sets and samples in `rows`, as if they shared nothing.
    bytes: usize,
    chunks: bool,
    done: bool,
    /// The most series; and how many there were, of which the last has these labels.
    limit: u64,
    given: u64,
    last: Labels,
}

const SAMPLES_PER_CHUNK: usize = 120;
/// A batch of several series has to fit into a message of 4 MiB on its way (rule S-2).
const BYTES_PER_BATCH: usize = 2 << 20;

impl Batch {
    /// Adds a series, or one more piece of the last. Labels are sorted by name; samples
    /// ascend in time, ms. False if nobody wants more.
    pub fn series(&mut self, labels: &[(String, String)], samples: &[(i64, f64)]) -> bool {
        if self.done || self.beyond_limit(labels) {
            return false;
        }
        let bytes = labels.iter().map(|l| l.0.len() + l.1.len() + 16).sum::<usize>() + 16 * samples.len();
        if self.bytes + bytes > BYTES_PER_BATCH {
            self.flush();
        }
        self.bytes += bytes;
        let labels = labels.iter().filter(|l| !l.1.is_empty()).map(|l| (self.names.id(&l.0), self.values.id(&l.1))).collect();
        let mut row = Row { labels, records: Vec::new() };
        for c in samples.chunks(SAMPLES_PER_CHUNK) {
            let from = self.samples.len();
            self.samples.extend_from_slice(c);
            row.records.push(Record { times: (c[0].0, c[c.len() - 1].0), from, to: self.samples.len() });
        }
        self.rows.push(row);
        if self.rows.len() >= self.size {
            self.flush();
        }
        !self.done
    }

    /// Whether this is the series behind the last that is wanted. Pieces of one count once.
    fn beyond_limit(&mut self, labels: &[(String, String)]) -> bool {
        if self.limit == 0 || self.given > 0 && self.last == labels {
            return false;
        }
        if self.given == self.limit {
            return true;
        }
        self.given += 1;
        self.last = labels.into();
        false
    }

    /// Says that data which should be in the answer are not (`missing`), or a remark.
    pub fn notice(&mut self, missing: bool, text: &str) {
        self.notices.message(2, |w| {
            w.flag(1, missing);
            w.string(2, text);
        });
    }

    fn flush(&mut self) {
        let mut w = Writer::new();
        if !self.rows.is_empty() {
            w.item(1, &self.frame());
        }
        w.bytes.append(&mut self.notices.bytes);
        self.rows.clear();
        self.samples.clear();
        self.bytes = 0;
        self.names = Symbols::default();
        self.values = Symbols::default();
        if !w.bytes.is_empty() && !self.done {
            // SAFETY: the host reads the bytes while it is called.
            self.done = unsafe { emit(w.bytes.as_ptr(), w.bytes.len()) } != 0;
        }
    }

    fn frame(&self) -> Vec<u8> {
        let mut b = vec![0; 48];
        let names = self.names.list.len() as u32;
        let groups = self.groups();
        b.resize(48 + 4 * groups.len(), 0);
        let symbols = || self.names.list.iter().chain(&self.values.list);
        let symbols_at = b.len();
        let mut bytes = 0;
        word(&mut b, 0);
        word(&mut b, 0);
        for s in symbols() {
            bytes += s.len();
            word(&mut b, bytes);
        }
        let bytes_at = b.len();
        symbols().for_each(|s| b.extend_from_slice(s.as_bytes()));
        b.resize((b.len() + 3) & !3, 0);
        for (i, rows) in groups.iter().enumerate() {
            let columns = rows[0].labels.len();
            let refs_at = b.len() + 8 + 12 * columns;
            put(&mut b, 48 + 4 * i, refs_at - 8 - 12 * columns);
            word(&mut b, rows.len());
            word(&mut b, columns);
            for c in 0..columns {
                word(&mut b, rows[0].labels[c].0 as usize + 1);
                word(&mut b, 2);
                word(&mut b, refs_at + 4 * c * rows.len());
            }
            for c in 0..columns {
                rows.iter().for_each(|r| word(&mut b, (1 + names + r.labels[c].1) as usize));
            }
        }
        let chunks_at = if self.chunks { self.write_chunks(&mut b) } else { 0 };
        b[..4].copy_from_slice(b"PWF1");
        let total = b.len();
        let head = [
            total, self.chunks as usize, names as usize, 1 + self.names.list.len() + self.values.list.len(),
            bytes, groups.len(), self.rows.len(), symbols_at, bytes_at, chunks_at,
        ];
        head.iter().enumerate().for_each(|(i, &v)| put(&mut b, 4 + 4 * i, v));
        b
    }

    /// Runs of rows with the same names.
    fn groups(&self) -> Vec<&[Row]> {
        let mut groups = Vec::new();
        let mut from = 0;
        for i in 1..=self.rows.len() {
            let same = |a: &Row, b: &Row| a.labels.len() == b.labels.len() && a.labels.iter().zip(&b.labels).all(|(x, y)| x.0 == y.0);
            if i == self.rows.len() || !same(&self.rows[from], &self.rows[i]) {
                groups.push(&self.rows[from..i]);
                from = i;
            }
        }
        groups
    }

    fn write_chunks(&self, b: &mut Vec<u8>) -> usize {
        b.resize((b.len() + 7) & !7, 0);
        let at = b.len();
        let mut records = 0;
        word(b, 0);
        for r in &self.rows {
            records += r.records.len();
            word(b, records);
        }
        b.resize((b.len() + 7) & !7, 0);
        let data = b.len() + 32 * records;
        // The data are the samples one after the other, so that a record is a range of them.
        for r in self.rows.iter().flat_map(|r| &r.records) {
            b.extend_from_slice(&r.times.0.to_le_bytes());
            b.extend_from_slice(&r.times.1.to_le_bytes());
            word(b, 0);
            word(b, 256);
            word(b, 16 * r.from);
            word(b, 16 * (r.to - r.from));
        }
        debug_assert!(b.len() == data);
        for (t, v) in &self.samples {
            b.extend_from_slice(&t.to_le_bytes());
            b.extend_from_slice(&v.to_le_bytes());
        }
        at
    }
}

fn word(b: &mut Vec<u8>, v: usize) {
    b.extend_from_slice(&(v as u32).to_le_bytes());
}

fn put(b: &mut [u8], at: usize, v: usize) {
    b[at..at + 4].copy_from_slice(&(v as u32).to_le_bytes());
}

/// An HTTP request that the host makes, if the operator allows the address. Needs the
/// permission `http`.
#[derive(Default)]
pub struct Request<'a> {
    /// "" is GET.
    pub method: &'a str,
    pub url: &'a str,
    pub headers: &'a [(&'a str, &'a str)],
    pub body: &'a [u8],
    /// Names a secret of the host's configuration, which adds it to the request.
    pub secret: &'a str,
}

/// An answer. Its body is read as it comes.
pub struct Response {
    handle: i32,
    pub status: u32,
    /// Of the body; -1 if it is not known.
    pub length: i64,
}

/// Reads what the host writes to a buffer that may be too small at first.
fn read_text(mut fill: impl FnMut(*mut u8, usize) -> i32) -> Vec<u8> {
    let mut b = vec![0u8; 1024];
    loop {
        let n = fill(b.as_mut_ptr(), b.len()).max(0) as usize;
        let fits = n <= b.len();
        b.resize(n, 0);
        if fits {
            return b;
        }
    }
}

impl<'a> Request<'a> {
    pub fn get(url: &'a str) -> Request<'a> {
        Request { method: "GET", url, ..Request::default() }
    }

    pub fn send(&self) -> Result<Response, Error> {
        let mut w = Writer::new();
        w.string(1, if self.method.is_empty() { "GET" } else { self.method });
        w.string(2, self.url);
        for (name, value) in self.headers {
            w.message(3, |w| {
                w.string(1, name);
                w.item(2, value.as_bytes());
            });
        }
        if !self.body.is_empty() {
            w.item(4, self.body);
        }
        w.string(5, self.secret);
        // SAFETY: the host reads the bytes while it is called.
        let handle = unsafe { http_fetch(w.bytes.as_ptr(), w.bytes.len()) };
        if handle < 0 {
            // SAFETY: the host writes at most as much as there is room.
            let text = read_text(|p, n| unsafe { http_error(p, n) });
            return Err(Error::unavailable(concat(&[self.url, ": ", &String::from_utf8_lossy(&text)])));
        }
        let mut r = Response { handle: handle as i32, status: 0, length: -1 };
        // SAFETY: the host writes at most as much as there is room.
        let head = read_text(|p, n| unsafe { http_response(r.handle, p, n) });
        for f in Reader::new(&head) {
            match f.field {
                1 => r.status = f.number as u32,
                3 => r.length = f.signed(),
                _ => {}
            }
        }
        Ok(r)
    }
}

impl Response {
    /// Reads the next bytes of the body to `b`; 0 at its end.
    pub fn read(&mut self, b: &mut [u8]) -> Result<usize, Error> {
        // SAFETY: the host writes at most as much as there is room.
        match unsafe { http_read(self.handle, b.as_mut_ptr(), b.len()) } {
            n if n < 0 => Err(Error::unavailable("the body broke off")),
            n => Ok(n as usize),
        }
    }

    /// Reads all that is left of the body, up to a limit.
    pub fn body(&mut self, limit: usize) -> Result<Vec<u8>, Error> {
        let mut b = Vec::new();
        loop {
            let at = b.len();
            b.resize(at + 64 * 1024, 0);
            let n = self.read(&mut b[at..])?;
            b.truncate(at + n);
            if n == 0 {
                return Ok(b);
            }
            if b.len() > limit {
                return Err(Error::new("limit", concat(&["the body is longer than ", &decimal(limit as i64), " bytes"])));
            }
        }
    }
}

impl Drop for Response {
    fn drop(&mut self) {
        // SAFETY: the handle is open until now.
        unsafe { http_close(self.handle) }
    }
}

/// Adds a value to the query of a URL, percent-encoded (RFC 3986, 2.1).
pub fn add_query(url: &mut String, name: &str, value: &str) {
    url.push(if url.contains('?') { '&' } else { '?' });
    for (i, part) in [name, value].iter().enumerate() {
        if i > 0 {
            url.push('=');
        }
        for &b in part.as_bytes() {
            if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
                url.push(b as char);
            } else {
                url.push('%');
                for digit in [b >> 4, b & 15] {
                    url.push(b"0123456789ABCDEF"[digit as usize] as char);
                }
            }
        }
    }
}

/// Matchers as PromQL writes them: `{job="a",env=~"p.*"}`.
pub fn selector(matchers: &[Matcher]) -> String {
    let mut s = String::from("{");
    for (i, m) in matchers.iter().enumerate() {
        s.push_str(if i > 0 { "," } else { "" });
        let plain = |(i, c): (usize, u8)| c == b'_' || c.is_ascii_alphabetic() || i > 0 && c.is_ascii_digit();
        if m.name.bytes().enumerate().all(plain) {
            s.push_str(&m.name);
        } else {
            quote(&mut s, &m.name);
        }
        s.push_str(["=", "!=", "=~", "!~"][m.op as usize]);
        quote(&mut s, &m.value);
    }
    s.push('}');
    s
}

fn quote(s: &mut String, text: &str) {
    s.push('"');
    for c in text.chars() {
        match c {
            '\n' => s.push_str("\\n"),
            '"' | '\\' => {
                s.push('\\');
                s.push(c);
            }
            _ => s.push(c),
        }
    }
    s.push('"');
}

#[doc(hidden)]
pub mod backend_calls {
    use super::*;

    pub fn describe<B: Backend>() -> Result<Vec<u8>, Error> {
        let mut w = Writer::new();
        w.string(1, B::NAME);
        w.string(2, B::VERSION);
        w.number(3, 1);
        w.number(5, u64::from(MINOR));
        describe_permissions(&mut w, B::PERMISSIONS);
        w.string(8, B::CONFIG_SCHEMA);
        w.string(9, B::SUMMARY);
        Ok(w.bytes)
    }

    pub fn configure<B: Backend>(to: &Once<B>, input: &[u8]) -> Result<Vec<u8>, Error> {
        to.set(B::configure(&Config::read(input))?);
        let mut w = Writer::new();
        w.number(1, 1);
        Ok(w.bytes)
    }

    fn configured<B>(b: &Once<B>) -> Result<&B, Error> {
        b.get().ok_or_else(|| Error::internal("called before it was configured"))
    }

    pub fn info<B: Backend>(b: &Once<B>) -> Result<Vec<u8>, Error> {
        let info = configured(b)?.info()?;
        let mut w = Writer::new();
        for set in &info.label_sets {
            w.message(1, |w| set.iter().for_each(|(name, value)| w.pair(1, name, value)));
        }
        if let Some((from, to)) = info.time_range {
            w.flag(2, true);
            w.signed(3, from);
            w.signed(4, to);
        }
        w.message(6, |w| {
            w.flag(3, true); // series_limit: Batch keeps it
            w.flag(5, info.bounded_labels);
            w.flag(8, info.complete);
        });
        w.string(7, &info.component);
        w.string(8, &info.version);
        Ok(w.bytes)
    }

    pub fn series<B: Backend>(b: &Once<B>, input: &[u8]) -> Result<Vec<u8>, Error> {
        let mut c = SeriesCall::default();
        for f in Reader::new(input) {
            match f.field {
                2 => c.min_time = f.signed(),
                3 => c.max_time = f.signed(),
                4 => c.matchers.push(Matcher::read(f.message())),
                5 => c.skip_chunks = f.number != 0,
                6 => c.limit = f.number,
                12 => c.batch_size = f.number as usize,
                _ => {}
            }
        }
        let size = if c.batch_size > 0 { c.batch_size.min(1 << 14) } else { 1000 };
        let mut out = Batch { size, chunks: !c.skip_chunks, limit: c.limit, ..Batch::default() };
        configured(b)?.series(&c, &mut out)?;
        out.flush();
        Ok(Vec::new())
    }

    pub fn labels<B: Backend>(b: &Once<B>, input: &[u8], values: bool) -> Result<Vec<u8>, Error> {
        let mut c = LabelsCall::default();
        let mut hidden = Vec::new();
        for f in Reader::new(input) {
            match f.field {
                2 => c.name = f.text().into(),
                3 => c.min_time = f.signed(),
                4 => c.max_time = f.signed(),
                5 => c.matchers.push(Matcher::read(f.message())),
                6 => hidden.push(f.text()),
                7 => c.limit = f.number,
                _ => {}
            }
        }
        let b = configured(b)?;
        let mut list = match values {
            false => b.label_names(&c)?,
            true if c.name.is_empty() => return Err(Error::invalid("label values of no label")),
            true => b.label_values(&c)?,
        };
        // Replica labels that are to be left out (rules L-1 and L-7).
        list.retain(|s| !s.is_empty() && !hidden.contains(&if values { &c.name } else { s.as_str() }));
        list.sort_unstable();
        list.dedup();
        if c.limit > 0 {
            list.truncate(c.limit as usize);
        }
        let mut w = Writer::new();
        list.iter().for_each(|s| w.item(1, s.as_bytes()));
        Ok(w.bytes)
    }
}

/// Makes the module a store backend: the type's [`Backend`] is what it exports.
#[macro_export]
macro_rules! export_backend {
    ($backend:ty) => {
        $crate::export_common!();
        static INSTANCE: $crate::Once<$backend> = $crate::Once::new();
        $crate::export_calls! {
            promweave_describe(_input) = $crate::backend_calls::describe::<$backend>();
            promweave_configure(input) = $crate::backend_calls::configure(&INSTANCE, input);
            promweave_info(_input) = $crate::backend_calls::info(&INSTANCE);
            promweave_series(input) = $crate::backend_calls::series(&INSTANCE, input);
            promweave_label_names(input) = $crate::backend_calls::labels(&INSTANCE, input, false);
            promweave_label_values(input) = $crate::backend_calls::labels(&INSTANCE, input, true);
        }
    };
}
