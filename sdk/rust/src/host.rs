// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//! What the host offers, and what every plug-in is told. A module imports the functions
//! that it calls.

use crate::wire::{Field, Reader};
use alloc::string::String;
use alloc::vec::Vec;

#[link(wasm_import_module = "promweave_v1")]
extern "C" {
    #[link_name = "log"]
    fn host_log(level: i32, p: *const u8, n: usize);
    #[link_name = "log_enabled"]
    fn host_log_enabled(level: i32) -> i32;
    #[link_name = "now_ns"]
    fn host_now() -> i64;
    #[link_name = "random"]
    fn host_random(p: *mut u8, n: usize);
    #[link_name = "metric_add"]
    fn host_metric_add(p: *const u8, n: usize, v: f64);
}

/// How much a line of the log matters.
#[derive(Clone, Copy)]
pub enum Level {
    Debug = 0,
    Info = 1,
    Warn = 2,
    Error = 3,
}

/// Writes a line to the host's log, which takes 100 a second.
pub fn log(level: Level, text: &str) {
    // SAFETY: the host reads text while it is called.
    unsafe { host_log(level as i32, text.as_ptr(), text.len()) }
}
/// Whether lines of a level are kept, to save making them.
pub fn log_enabled(level: Level) -> bool {
    // SAFETY: there is nothing to it.
    unsafe { host_log_enabled(level as i32) != 0 }
}
/// The time in ns since 1970. Needs the permission `clock`.
pub fn now() -> i64 {
    // SAFETY: there is nothing to it.
    unsafe { host_now() }
}
/// Fills `b` with random bytes. Needs the permission `random`.
pub fn random(b: &mut [u8]) {
    // SAFETY: the host writes to b while it is called.
    unsafe { host_random(b.as_mut_ptr(), b.len()) }
}
/// Adds `v`, not below 0, to a counter (`[a-z_]{1,40}`). Needs the permission `metrics`.
pub fn metric_add(name: &str, v: f64) {
    // SAFETY: the host reads name while it is called.
    unsafe { host_metric_add(name.as_ptr(), name.len(), v) }
}

/// Why a call failed, by one of the kinds of sdk/backend.
pub struct Error {
    pub kind: &'static str,
    pub message: String,
}

impl Error {
    pub fn new(kind: &'static str, message: impl Into<String>) -> Error {
        Error { kind, message: message.into() }
    }
    /// The request or the configuration is wrong.
    pub fn invalid(message: impl Into<String>) -> Error {
        Error::new("invalid", message)
    }
    /// The request is right, but not to be had from here.
    pub fn unsupported(message: impl Into<String>) -> Error {
        Error::new("unsupported", message)
    }
    /// Something that is needed cannot be reached now.
    pub fn unavailable(message: impl Into<String>) -> Error {
        Error::new("unavailable", message)
    }
    pub fn internal(message: impl Into<String>) -> Error {
        Error::new("internal", message)
    }
}

/// Strings one after the other, without `format!`.
pub fn concat(parts: &[&str]) -> String {
    let mut s = String::new();
    for p in parts {
        s.push_str(p);
    }
    s
}
/// A number in decimal, without `format!`.
pub fn decimal(v: i64) -> String {
    let (mut b, mut at, mut u) = ([0u8; 20], 20, v.unsigned_abs());
    loop {
        at -= 1;
        b[at] = b'0' + (u % 10) as u8;
        u /= 10;
        if u == 0 {
            break;
        }
    }
    let mut s = String::new();
    if v < 0 {
        s.push('-');
    }
    s.push_str(core::str::from_utf8(&b[at..]).unwrap_or(""));
    s
}

/// One scalar of a configuration or of claims: path `rules[0].from` and the value as text.
#[derive(Clone, Copy)]
pub struct Setting<'a> {
    pub path: &'a str,
    pub value: &'a str,
}

fn setting<'a>(r: Reader<'a>) -> Setting<'a> {
    let mut s = Setting { path: "", value: "" };
    for f in r {
        match f.field {
            1 => s.path = f.text(),
            2 => s.value = f.text(),
            _ => {}
        }
    }
    s
}

pub(crate) fn add_setting<'a>(list: &mut Vec<Setting<'a>>, f: &Field<'a>) {
    list.push(setting(f.message()));
}

/// What an instance is made of.
pub struct Config<'a> {
    /// The instance's name in the host's configuration.
    pub name: &'a str,
    /// The configuration as a JSON object; settings are its scalars in order.
    pub json: &'a [u8],
    pub settings: Vec<Setting<'a>>,
}

impl<'a> Config<'a> {
    pub(crate) fn read(bytes: &'a [u8]) -> Config<'a> {
        let mut c = Config { name: "", json: &[], settings: Vec::new() };
        for f in Reader::new(bytes) {
            match f.field {
                1 => c.name = f.text(),
                2 => c.json = f.bytes,
                3 => add_setting(&mut c.settings, &f),
                _ => {}
            }
        }
        c
    }
    /// The setting with a path, "" without.
    pub fn get(&self, path: &str) -> &'a str {
        self.settings.iter().find(|s| s.path == path).map_or("", |s| s.value)
    }
}

/// How a matcher compares. Regular expressions are RE2, anchored at both ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Match {
    Equal = 0,
    NotEqual = 1,
    Regexp = 2,
    NotRegexp = 3,
}

/// A PromQL matcher.
#[derive(Clone)]
pub struct Matcher {
    pub op: Match,
    pub name: String,
    pub value: String,
}

impl Matcher {
    pub fn equal(name: &str, value: &str) -> Matcher {
        Matcher { op: Match::Equal, name: name.into(), value: value.into() }
    }
    pub(crate) fn read(r: Reader) -> Matcher {
        let mut m = Matcher::equal("", "");
        for f in r {
            match f.field {
                1 => m.op = [Match::Equal, Match::NotEqual, Match::Regexp, Match::NotRegexp][f.number as usize & 3],
                2 => m.name = f.text().into(),
                3 => m.value = f.text().into(),
                _ => {}
            }
        }
        m
    }
    pub(crate) fn write(&self, w: &mut crate::wire::Writer, field: u32) {
        w.message(field, |w| {
            w.number(1, self.op as u64);
            w.string(2, &self.name);
            w.string(3, &self.value);
        });
    }
}
