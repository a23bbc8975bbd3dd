// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//! The reference filter, which every SDK has: sdk/guest/testfilter says what it does.

#![no_std]

use promweave::alloc::string::String;
use promweave::alloc::vec::Vec;
use promweave::*;

/// One item of a list: "from", "from=to" or "name:from=to".
struct Entry {
    name: String,
    from: String,
    to: String,
}

struct Rewrite {
    tier: Tier,
    deny_subject: String,
    drop: Vec<Entry>,
    rename: Vec<Entry>,
    set: Vec<Entry>,
    map: Vec<Entry>,
    leave_out: Vec<Entry>,
    require: Vec<Entry>,
    /// The labels of `map`, each once.
    mapped: Vec<String>,
}

fn parse(c: &Config, path: &str, parts: usize) -> Result<Vec<Entry>, Error> {
    let mut list = Vec::new();
    for part in c.get(path).split(',').filter(|part| !part.is_empty()) {
        let wrong = || Error::invalid(concat(&[path, ": cannot read \"", part, "\""]));
        let (name, rest) = if parts == 3 { part.split_once(':').ok_or_else(wrong)? } else { ("", part) };
        let (from, to) = if parts >= 2 { rest.split_once('=').ok_or_else(wrong)? } else { (rest, "") };
        if from.is_empty() || parts == 3 && name.is_empty() {
            return Err(wrong());
        }
        list.push(Entry { name: name.into(), from: from.into(), to: to.into() });
    }
    Ok(list)
}

impl Rewrite {
    fn plan(&self, merge: bool) -> Plan {
        let mut p = Plan::new(self.tier);
        p.pure = true;
        p.merge = merge;
        p.drops = !self.leave_out.is_empty();
        if self.tier == Tier::Columns {
            // Values alone are shown: what is done to names the host does before.
            p.operations.extend(self.drop.iter().map(|e| Operation::Drop([e.from.clone()].into())));
            p.operations.extend(self.rename.iter().map(|e| Operation::Rename(e.from.clone(), e.to.clone())));
            p.operations.extend(self.set.iter().map(|e| Operation::Set(e.from.clone(), e.to.clone())));
            p.columns = self.mapped.clone();
            if self.mapped.is_empty() {
                p.tier = Tier::None;
            }
        } else {
            p.writes.extend(self.drop.iter().map(|e| e.from.clone()));
            for e in &self.rename {
                p.reads.push(e.from.clone());
                p.writes.push(e.from.clone());
                p.writes.push(e.to.clone());
            }
            p.writes.extend(self.set.iter().map(|e| e.from.clone()));
        }
        p.reads.extend(self.mapped.iter().cloned());
        p.writes.extend(self.mapped.iter().cloned());
        p.reads.extend(self.leave_out.iter().map(|e| e.from.clone()));
        if !self.deny_subject.is_empty() {
            p.hooks.push("request");
        }
        if !self.require.is_empty() {
            p.hooks.push("select");
        }
        p
    }
}

impl Filter for Rewrite {
    const NAME: &'static str = "rewrite";
    const VERSION: &'static str = "1.0.0";
    const SUMMARY: &'static str = "The reference filter of the SDKs.";
    const CONFIG_SCHEMA: &'static str = r#"{"type":"object","additionalProperties":false,"properties":{
        "tier":{"type":"string"},"drop":{"type":"string"},"rename":{"type":"string"},"set":{"type":"string"},
        "map":{"type":"string"},"leave_out":{"type":"string"},"merge":{"type":"string"},
        "deny_subject":{"type":"string"},"require":{"type":"string"}}}"#;
    const HOOKS: &'static [&'static str] = &["request", "select", "rewrite"];

    fn configure(c: &Config) -> Result<(Self, Plan), Error> {
        let tier = match c.get("tier") {
            "" | "rows" => Tier::Rows,
            "columns" => Tier::Columns,
            "names" => Tier::Names,
            _ => return Err(Error::invalid("tier: must be names, columns or rows")),
        };
        let mut f = Rewrite {
            tier,
            deny_subject: c.get("deny_subject").into(),
            drop: parse(c, "drop", 1)?,
            rename: parse(c, "rename", 2)?,
            set: parse(c, "set", 2)?,
            map: parse(c, "map", 3)?,
            leave_out: parse(c, "leave_out", 2)?,
            require: parse(c, "require", 2)?,
            mapped: Vec::new(),
        };
        if !f.map.is_empty() && tier == Tier::Names {
            return Err(Error::invalid("map: the names tier shows no values"));
        }
        if !f.leave_out.is_empty() && tier != Tier::Rows {
            return Err(Error::invalid("leave_out: needs the rows tier"));
        }
        for e in &f.map {
            if !f.mapped.contains(&e.name) {
                f.mapped.push(e.name.clone());
            }
        }
        let plan = f.plan(c.get("merge") == "true");
        Ok((f, plan))
    }

    fn request(&self, c: &RequestCall) -> Result<RequestReply, Error> {
        let mut reply = RequestReply::default();
        if c.caller.subject == self.deny_subject {
            reply.deny = Some(Denial::new(403, concat(&[c.caller.subject, " may not query"])));
            return Ok(reply);
        }
        match c.caller.claim("tenant") {
            "" => reply.deny = Some(Denial::new(403, "no tenant is known")),
            tenant => {
                reply.enforce.push(Matcher::equal("tenant", tenant));
                reply.tenants.push(tenant.into());
            }
        }
        Ok(reply)
    }

    fn select(&self, _: &SelectCall) -> Result<SelectReply, Error> {
        let require = self.require.iter().map(|e| Matcher::equal(&e.from, &e.to)).collect();
        Ok(SelectReply { require, ..SelectReply::default() })
    }

    fn rewrite(&self, input: &Frame, out: &mut Reply) -> Result<(), Error> {
        let mut memos = promweave::alloc::vec![Memo::default(); self.mapped.len()];
        for i in 0..input.groups() {
            let g = input.group(i);
            out.edit(i);
            for e in &self.leave_out {
                if let Some(c) = g.find(input.find_name(&e.from)) {
                    let c = g.column(c);
                    (0..g.rows).filter(|&r| input.symbol(c.at(r)) == e.to).for_each(|r| out.drop_row(r));
                }
            }
            if self.tier != Tier::Columns {
                self.drop.iter().for_each(|e| out.drop(&e.from));
                self.rename.iter().for_each(|e| out.rename(&e.from, &e.to));
                self.set.iter().for_each(|e| out.set(&e.from, &e.to));
            }
            for (label, memo) in self.mapped.iter().zip(&mut memos) {
                // Asked once for each distinct value.
                out.map(label, memo, |value, to| match self.map.iter().find(|e| e.from == value && e.name == *label) {
                    Some(e) => {
                        to.push_str(&e.to);
                        true
                    }
                    None => false,
                });
            }
        }
        Ok(())
    }
}

export_filter!(Rewrite);
