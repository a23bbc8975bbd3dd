// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//! What the author of a filter writes; sdk/filter/filter.go has the same with its rules.

use crate::wire::{Reader, Writer};
use crate::*;
use alloc::string::String;
use alloc::vec::Vec;

/// What a filter is for. Auth and tenancy filters always fail closed.
#[derive(Clone, Copy)]
pub enum Role {
    Rewrite = 0,
    Auth = 1,
    Tenancy = 2,
}

/// A filter: one configured instance of it. A call never changes it.
pub trait Filter: Sized + 'static {
    const NAME: &'static str;
    const VERSION: &'static str;
    const SUMMARY: &'static str = "";
    /// A JSON Schema of the configuration; "" accepts anything.
    const CONFIG_SCHEMA: &'static str = "";
    const ROLE: Role = Role::Rewrite;
    /// clock, random, metrics.
    const PERMISSIONS: &'static [&'static str] = &[];
    /// Those of `request`, `select` and `rewrite` that instances may offer.
    const HOOKS: &'static [&'static str];

    /// Makes an instance. An error names the key that is wrong.
    fn configure(c: &Config) -> Result<(Self, Plan), Error>;
    /// Decides about a request.
    fn request(&self, _c: &RequestCall) -> Result<RequestReply, Error> {
        Err(Error::unsupported("no request hook"))
    }
    /// Narrows what one backend is asked.
    fn select(&self, _c: &SelectCall) -> Result<SelectReply, Error> {
        Err(Error::unsupported("no select hook"))
    }
    /// Rewrites the label sets of a frame. Leaving `out` untouched changes nothing.
    fn rewrite(&self, _input: &Frame, _out: &mut Reply) -> Result<(), Error> {
        Err(Error::unsupported("no rewrite hook"))
    }
}

/// How much of label sets `rewrite` needs to see; sdk/frame/README.md has what each
/// shows and allows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    None = 0,
    Names = 1,
    Columns = 2,
    Rows = 3,
}

/// A rewrite that the host does itself, and can turn round.
pub enum Operation {
    Rename(String, String),
    Drop(Vec<String>),
    Keep(Vec<String>),
    Set(String, String),
    /// The label and pairs of a value and what becomes of it.
    Map(String, Vec<(String, String)>),
    Require(Matcher),
}

/// What an instance promises.
pub struct Plan {
    pub tier: Tier,
    /// The columns of [`Tier::Columns`].
    pub columns: Vec<String>,
    /// The labels that the result depends on, and those in which it may differ.
    pub reads: Vec<String>,
    pub writes: Vec<String>,
    /// Stands for all names but those in `keeps`.
    pub writes_any: bool,
    pub keeps: Vec<String>,
    /// Rows may be left out.
    pub drops: bool,
    /// Series that become equal are one; otherwise that is an error.
    pub merge: bool,
    /// Done by the host, in order, before `rewrite` sees anything.
    pub operations: Vec<Operation>,
    /// `request`, `select`: the hooks to call.
    pub hooks: Vec<&'static str>,
    /// The same label set always gives the same result, so that the host may remember it.
    pub pure: bool,
}

impl Plan {
    /// Promises nothing yet.
    pub fn new(tier: Tier) -> Plan {
        Plan {
            tier,
            columns: Vec::new(),
            reads: Vec::new(),
            writes: Vec::new(),
            writes_any: false,
            keeps: Vec::new(),
            drops: false,
            merge: false,
            operations: Vec::new(),
            hooks: Vec::new(),
            pure: false,
        }
    }

    fn write(&self, w: &mut Writer) {
        w.number(1, self.tier as u64);
        for (field, list) in [(2, &self.columns), (3, &self.reads), (4, &self.writes), (6, &self.keeps)] {
            for s in list {
                w.item(field, s.as_bytes());
            }
        }
        w.flag(5, self.writes_any);
        w.flag(7, self.drops);
        w.flag(8, self.merge);
        for o in &self.operations {
            w.message(9, |w| write_operation(w, o));
        }
        for h in &self.hooks {
            w.item(10, h.as_bytes());
        }
        w.flag(11, self.pure);
    }
}

fn write_operation(w: &mut Writer, o: &Operation) {
    let names = |w: &mut Writer, field, list: &Vec<String>| {
        w.message(field, |w| list.iter().for_each(|s| w.item(1, s.as_bytes())));
    };
    match o {
        Operation::Rename(from, to) => w.pair(1, from, to),
        Operation::Drop(list) => names(w, 2, list),
        Operation::Keep(list) => names(w, 3, list),
        Operation::Set(name, value) => w.pair(4, name, value),
        Operation::Map(name, values) => w.message(5, |w| {
            w.string(1, name);
            for (from, to) in values {
                w.pair(2, from, to);
            }
        }),
        Operation::Require(m) => m.write(w, 6),
    }
}

/// Who asks, as far as the host has verified it.
#[derive(Default)]
pub struct Caller<'a> {
    /// basic, bearer or mtls; "" if nobody is known.
    pub method: &'a str,
    pub subject: &'a str,
    /// A JSON object; `claim_settings` are its scalars.
    pub claims: &'a [u8],
    pub claim_settings: Vec<Setting<'a>>,
    /// Those that the operator lets filters see, names in lower case.
    pub headers: Vec<(&'a str, Vec<&'a str>)>,
}

impl<'a> Caller<'a> {
    /// The claim with a path, "" without.
    pub fn claim(&self, path: &str) -> &'a str {
        self.claim_settings.iter().find(|s| s.path == path).map_or("", |s| s.value)
    }
}

/// A request that is about to begin. Times are ms.
#[derive(Default)]
pub struct RequestCall<'a> {
    pub kind: &'a str,
    pub query: &'a str,
    pub selectors: Vec<Vec<Matcher>>,
    pub start: i64,
    pub end: i64,
    pub step: i64,
    /// The longest time in ms that one selector reads before what start and end ask for.
    pub window: i64,
    pub caller: Caller<'a>,
}

impl<'a> RequestCall<'a> {
    fn read(bytes: &'a [u8]) -> RequestCall<'a> {
        let mut c = RequestCall::default();
        for f in Reader::new(bytes) {
            match f.field {
                2 => c.kind = f.text(),
                3 => c.query = f.text(),
                4 => c.selectors.push(f.message().filter(|m| m.field == 1).map(|m| Matcher::read(m.message())).collect()),
                5 => c.start = f.signed(),
                6 => c.end = f.signed(),
                7 => c.step = f.signed(),
                9 => c.window = f.signed(),
                8 => read_caller(&mut c.caller, f.message()),
                _ => {}
            }
        }
        c
    }
}

fn read_caller<'a>(c: &mut Caller<'a>, r: Reader<'a>) {
    for f in r {
        match f.field {
            1 => c.method = f.text(),
            2 => c.subject = f.text(),
            3 => c.claims = f.bytes,
            4 => add_setting(&mut c.claim_settings, &f),
            5 => {
                let mut header = ("", Vec::new());
                for h in f.message() {
                    match h.field {
                        1 => header.0 = h.text(),
                        2 => header.1.push(h.text()),
                        _ => {}
                    }
                }
                c.headers.push(header);
            }
            _ => {}
        }
    }
}

/// Why not. The status is an HTTP status.
pub struct Denial {
    pub status: u32,
    pub message: String,
}

impl Denial {
    pub fn new(status: u32, message: impl Into<String>) -> Denial {
        Denial { status, message: message.into() }
    }
    fn write(&self, w: &mut Writer) {
        w.message(1, |w| {
            w.number(1, u64::from(self.status));
            w.string(2, &self.message);
        });
    }
}

/// Bounds a request. The default lets it go on without bounds.
#[derive(Default)]
pub struct RequestReply {
    /// Ends the request.
    pub deny: Option<Denial>,
    /// Must hold on every series that the request gets to see.
    pub enforce: Vec<Matcher>,
    /// Who the request is for, for logs and the report.
    pub tenants: Vec<String>,
    pub admin: bool,
    /// What is visible, ms, both inclusive.
    pub time_range: Option<(i64, i64)>,
    /// Limits where they are lower than the configured ones; 0 is none.
    pub max_series: u64,
    pub max_samples: u64,
    pub max_bytes: u64,
    /// Replaces the caller's subject in logs if not "".
    pub subject: String,
}

impl RequestReply {
    fn write(&self, w: &mut Writer) {
        if let Some(d) = &self.deny {
            d.write(w);
        }
        self.enforce.iter().for_each(|m| m.write(w, 2));
        self.tenants.iter().for_each(|t| w.item(3, t.as_bytes()));
        w.flag(4, self.admin);
        if let Some((from, to)) = self.time_range {
            w.flag(5, true);
            w.signed(6, from);
            w.signed(7, to);
        }
        w.number(8, self.max_series);
        w.number(9, self.max_samples);
        w.number(10, self.max_bytes);
        w.string(11, &self.subject);
    }
}

/// A selection from one backend that is about to begin. Times are ms.
#[derive(Default)]
pub struct SelectCall<'a> {
    pub backend: &'a str,
    pub matchers: Vec<Matcher>,
    pub min_time: i64,
    pub max_time: i64,
    pub tenants: Vec<&'a str>,
}

/// Narrows a selection. The default leaves it as it is.
#[derive(Default)]
pub struct SelectReply {
    pub deny: Option<Denial>,
    /// Nothing can match.
    pub none: bool,
    /// Must hold on the backend's own labels, besides all else.
    pub require: Vec<Matcher>,
}

pub fn describe<F: Filter>() -> Result<Vec<u8>, Error> {
    let mut w = Writer::new();
    w.string(1, F::NAME);
    w.string(2, F::VERSION);
    w.number(3, 2);
    w.number(4, F::ROLE as u64);
    w.number(5, u64::from(MINOR));
    describe_permissions(&mut w, F::PERMISSIONS);
    w.string(8, F::CONFIG_SCHEMA);
    w.string(9, F::SUMMARY);
    F::HOOKS.iter().for_each(|h| w.item(10, h.as_bytes()));
    Ok(w.bytes)
}

pub fn configure<F: Filter>(to: &Once<F>, input: &[u8]) -> Result<Vec<u8>, Error> {
    let (instance, plan) = F::configure(&Config::read(input))?;
    to.set(instance);
    let mut w = Writer::new();
    w.number(1, 1);
    w.message(2, |w| plan.write(w));
    Ok(w.bytes)
}

fn configured<F>(f: &Once<F>) -> Result<&F, Error> {
    f.get().ok_or_else(|| Error::internal("called before it was configured"))
}

pub fn request<F: Filter>(f: &Once<F>, input: &[u8]) -> Result<Vec<u8>, Error> {
    let reply = configured(f)?.request(&RequestCall::read(input))?;
    let mut w = Writer::new();
    reply.write(&mut w);
    Ok(w.bytes)
}

pub fn select<F: Filter>(f: &Once<F>, input: &[u8]) -> Result<Vec<u8>, Error> {
    let mut c = SelectCall::default();
    for f in Reader::new(input) {
        match f.field {
            2 => c.backend = f.text(),
            3 => c.matchers.push(Matcher::read(f.message())),
            4 => c.min_time = f.signed(),
            5 => c.max_time = f.signed(),
            6 => c.tenants.push(f.text()),
            _ => {}
        }
    }
    let reply = configured(f)?.select(&c)?;
    let mut w = Writer::new();
    if let Some(d) = &reply.deny {
        d.write(&mut w);
    }
    w.flag(2, reply.none);
    reply.require.iter().for_each(|m| m.write(&mut w, 3));
    Ok(w.bytes)
}

pub fn rewrite<F: Filter>(f: &Once<F>, input: &[u8]) -> Result<Vec<u8>, Error> {
    let frame = Frame::new(input).ok_or_else(|| Error::invalid("not a frame of version 1"))?;
    let mut reply = Reply::new(&frame);
    configured(f)?.rewrite(&frame, &mut reply)?;
    Ok(reply.finish())
}

/// Makes the module a filter: the type's [`Filter`] is what it exports.
#[macro_export]
macro_rules! export_filter {
    ($filter:ty) => {
        $crate::export_common!();
        static INSTANCE: $crate::Once<$filter> = $crate::Once::new();
        $crate::export_calls! {
            promweave_describe(_input) = $crate::describe::<$filter>();
            promweave_configure(input) = $crate::configure(&INSTANCE, input);
            promweave_request(input) = $crate::request(&INSTANCE, input);
            promweave_select(input) = $crate::select(&INSTANCE, input);
            promweave_rewrite(input) = $crate::rewrite(&INSTANCE, input);
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! export_common {
    () => {
        #[no_mangle]
        pub extern "C" fn promweave_abi_v1() -> u32 {
            $crate::MINOR
        }
        #[no_mangle]
        pub extern "C" fn promweave_alloc(n: u32) -> *mut u8 {
            $crate::internal::alloc(n)
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! export_calls {
    ($($name:ident($input:ident) = $call:expr;)*) => {$(
        /// # Safety
        /// The host calls it as the ABI says.
        #[no_mangle]
        pub unsafe extern "C" fn $name(p: *const u8, n: u32) -> u64 {
            let $input = $crate::internal::input(p, n);
            $crate::internal::finish($call)
        }
    )*};
}
