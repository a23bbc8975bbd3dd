// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//! A filter that renames a label and gives all series another one. Settings: from, to, and
//! cluster, the value of the label "cluster".

#![no_std]

use promweave::alloc::string::String;
use promweave::*;

struct Rename {
    from: String,
    to: String,
    cluster: String,
}

impl Filter for Rename {
    const NAME: &'static str = "rename";
    const VERSION: &'static str = "0.1.0";
    const SUMMARY: &'static str = "Renames a label.";
    /// Which keys there are: a configuration with others is wrong.
    const CONFIG_SCHEMA: &'static str = r#"{"type":"object","additionalProperties":false,"required":["from","to"],
        "properties":{"from":{"type":"string"},"to":{"type":"string"},"cluster":{"type":"string"}}}"#;
    const HOOKS: &'static [&'static str] = &["rewrite"];

    fn configure(c: &Config) -> Result<(Self, Plan), Error> {
        let f = Rename { from: c.get("from").into(), to: c.get("to").into(), cluster: c.get("cluster").into() };
        if f.from.is_empty() || f.to.is_empty() {
            return Err(Error::invalid("from, to: are missing"));
        }
        // The names of labels suffice: nothing here depends on a value.
        let mut plan = Plan::new(Tier::Names);
        plan.pure = true;
        plan.reads.push(f.from.clone());
        plan.writes.extend([f.from.clone(), f.to.clone(), "cluster".into()]);
        Ok((f, plan))
    }

    /// Gets each list of label names of a batch once, as a group.
    fn rewrite(&self, input: &Frame, out: &mut Reply) -> Result<(), Error> {
        for i in 0..input.groups() {
            out.edit(i);
            out.rename(&self.from, &self.to);
            out.set("cluster", &self.cluster);
        }
        Ok(())
    }
}

export_filter!(Rename);
