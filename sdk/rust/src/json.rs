// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//! Reads JSON (RFC 8259) piece by piece, without making a tree of it.

use crate::Error;
use alloc::string::String;

/// A place in a JSON text. Each call takes one value off its front.
pub struct Json<'a> {
    text: &'a [u8],
    at: usize,
}

/// How deep what is skipped may be nested.
const DEPTH: usize = 64;

impl<'a> Json<'a> {
    pub fn new(text: &'a [u8]) -> Json<'a> {
        Json { text, at: 0 }
    }

    #[cold]
    fn wrong<T>(&self, wanted: &str) -> Result<T, Error> {
        Err(Error::unavailable(crate::concat(&["JSON: ", wanted, " expected at byte ", &crate::decimal(self.at as i64)])))
    }

    fn peek(&mut self) -> u8 {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.text.get(self.at) {
            self.at += 1;
        }
        self.text.get(self.at).copied().unwrap_or(0)
    }

    fn eat(&mut self, c: u8) -> bool {
        let there = self.peek() == c && self.at < self.text.len();
        self.at += there as usize;
        there
    }

    /// Nothing but white space is left.
    pub fn end(&mut self) -> Result<(), Error> {
        self.peek();
        if self.at < self.text.len() {
            return self.wrong("the end");
        }
        Ok(())
    }

    /// Calls `f` for each key of an object; `f` takes the value, or skips it.
    pub fn object(&mut self, mut f: impl FnMut(&str, &mut Json<'a>) -> Result<(), Error>) -> Result<(), Error> {
        if !self.eat(b'{') {
            return self.wrong("an object");
        }
        if self.eat(b'}') {
            return Ok(());
        }
        loop {
            let key = self.string()?;
            if !self.eat(b':') {
                return self.wrong("':'");
            }
            f(&key, self)?;
            if self.eat(b'}') {
                return Ok(());
            }
            if !self.eat(b',') {
                return self.wrong("',' or '}'");
            }
        }
    }

    /// Calls `f` for each item of an array; `f` takes it, or skips it.
    pub fn array(&mut self, mut f: impl FnMut(&mut Json<'a>) -> Result<(), Error>) -> Result<(), Error> {
        if !self.eat(b'[') {
            return self.wrong("an array");
        }
        if self.eat(b']') {
            return Ok(());
        }
        loop {
            f(self)?;
            if self.eat(b']') {
                return Ok(());
            }
            if !self.eat(b',') {
                return self.wrong("',' or ']'");
            }
        }
    }

    /// A number, or a string that holds one, as Prometheus writes values.
    pub fn number(&mut self) -> Result<f64, Error> {
        if self.peek() == b'"' {
            let s = self.string()?;
            return match s.as_str() {
                "+Inf" | "Inf" => Ok(f64::INFINITY),
                "-Inf" => Ok(f64::NEG_INFINITY),
                s => s.parse().or_else(|_| self.wrong("a number")),
            };
        }
        let from = self.at;
        while let Some(b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E') = self.text.get(self.at) {
            self.at += 1;
        }
        match core::str::from_utf8(&self.text[from..self.at]).map(str::parse) {
            Ok(Ok(v)) => Ok(v),
            _ => self.wrong("a number"),
        }
    }

    /// A whole number.
    pub fn integer(&mut self) -> Result<i64, Error> {
        let v = self.number()?;
        if v >= -9.2e18 && v <= 9.2e18 { Ok(v as i64) } else { self.wrong("a whole number") }
    }

    pub fn string(&mut self) -> Result<String, Error> {
        if !self.eat(b'"') {
            return self.wrong("a string");
        }
        let mut s = String::new();
        loop {
            let from = self.at;
            while !matches!(self.text.get(self.at), None | Some(b'"' | b'\\' | 0..=0x1f)) {
                self.at += 1;
            }
            match core::str::from_utf8(&self.text[from..self.at]) {
                Ok(part) => s.push_str(part),
                Err(_) => return self.wrong("UTF-8"),
            }
            match self.text.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(s);
                }
                Some(b'\\') => {
                    self.at += 1;
                    s.push(self.escape()?);
                }
                _ => return self.wrong("the end of a string"),
            }
        }
    }

    fn escape(&mut self) -> Result<char, Error> {
        let c = self.text.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        Ok(match c {
            b'"' | b'\\' | b'/' => c as char,
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let mut code = self.hex()?;
                // Half of a surrogate pair is no character; what follows one is kept as it is.
                if (0xd800..0xdc00).contains(&code) && self.text.get(self.at..self.at + 2) == Some(b"\\u") {
                    let before = self.at;
                    self.at += 2;
                    match self.hex()? {
                        low @ 0xdc00..=0xdfff => code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00),
                        _ => self.at = before,
                    }
                }
                char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
            }
            _ => return self.wrong("an escape"),
        })
    }

    fn hex(&mut self) -> Result<u32, Error> {
        let mut v = 0;
        for _ in 0..4 {
            match self.text.get(self.at).and_then(|&c| (c as char).to_digit(16)) {
                Some(d) => v = v << 4 | d,
                None => return self.wrong("four hexadecimal digits"),
            }
            self.at += 1;
        }
        Ok(v)
    }

    /// Takes a value of any kind.
    pub fn skip(&mut self) -> Result<(), Error> {
        self.skip_to(DEPTH)
    }

    fn skip_to(&mut self, depth: usize) -> Result<(), Error> {
        match self.peek() {
            b'{' | b'[' if depth == 0 => self.wrong("less nesting"),
            b'{' => self.object(|_, j| j.skip_to(depth - 1)),
            b'[' => self.array(|j| j.skip_to(depth - 1)),
            b'"' => self.string().map(drop),
            b't' | b'f' | b'n' => {
                for word in [&b"true"[..], b"false", b"null"] {
                    if self.text[self.at..].starts_with(word) {
                        self.at += word.len();
                        return Ok(());
                    }
                }
                self.wrong("a value")
            }
            _ => self.number().map(drop),
        }
    }
}
