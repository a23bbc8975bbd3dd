// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//! A store backend that reads a JSON API over HTTP. It asks
//!
//!     GET <url>?match={job="a"}&start=<ms>&end=<ms>
//!
//! and expects the series that match, in any order, with their samples in that range:
//!
//!     {"series":[{"labels":{"__name__":"up","job":"a"},"points":[[1700000000000,1],…]},…]}
//!
//! It is for the API to apply the matchers, all of them: the host checks every series
//! against them, and the first that does not match ends the answer (rule S-6). Values that
//! JSON has no numbers for are the strings "NaN", "+Inf" and "-Inf".
//!
//! Settings: `url`; `secret`, the name of a secret that the host adds to the requests.

#![no_std]

use promweave::alloc::string::String;
use promweave::alloc::vec::Vec;
use promweave::json::Json;
use promweave::*;

struct JsonApi {
    url: String,
    secret: String,
}

struct Series {
    labels: Labels,
    points: Vec<(i64, f64)>,
}

const MAX_BODY: usize = 32 << 20;

/// Takes {"labels":{…},"points":[[ms,value],…]}.
fn read_series(j: &mut Json) -> Result<Series, Error> {
    let mut s = Series { labels: Vec::new(), points: Vec::new() };
    j.object(|key, j| match key {
        "labels" => j.object(|name, j| {
            s.labels.push((name.into(), j.string()?));
            Ok(())
        }),
        "points" => j.array(|j| {
            let (mut time, mut value, mut n) = (0, 0.0, 0);
            j.array(|j| {
                match n {
                    0 => time = j.integer()?,
                    1 => value = j.number()?,
                    _ => j.skip()?,
                }
                n += 1;
                Ok(())
            })?;
            if n < 2 {
                return Err(Error::unavailable("a point is not [ms, value]"));
            }
            s.points.push((time, value));
            Ok(())
        }),
        _ => j.skip(),
    })?;
    s.labels.retain(|l| !l.1.is_empty());
    s.labels.sort_unstable();
    s.labels.dedup_by(|a, b| a.0 == b.0);
    s.points.sort_by_key(|p| p.0);
    s.points.dedup_by_key(|p| p.0);
    Ok(s)
}

impl JsonApi {
    /// The series that match and have a sample in the range, in order (rules S-1 and S-7).
    /// Times are cut here. Matchers are not applied here: an API that knows nothing of some
    /// of them is to be asked for more, and what does not match to be left out in this place.
    fn fetch(&self, matchers: &[Matcher], from: i64, to: i64) -> Result<Vec<Series>, Error> {
        let mut url = self.url.clone();
        add_query(&mut url, "match", &selector(matchers));
        add_query(&mut url, "start", &decimal(from));
        add_query(&mut url, "end", &decimal(to));
        let mut response = Request { secret: &self.secret, ..Request::get(&url) }.send()?;
        if response.status != 200 {
            return Err(Error::unavailable(concat(&[&self.url, ": status ", &decimal(response.status.into())])));
        }
        let body = response.body(MAX_BODY)?;
        let mut list = Vec::new();
        let mut j = Json::new(&body);
        j.object(|key, j| match key {
            "series" => j.array(|j| {
                let mut s = read_series(j)?;
                s.points.retain(|p| p.0 >= from && p.0 <= to);
                if !s.points.is_empty() {
                    list.push(s);
                }
                Ok(())
            }),
            _ => j.skip(),
        })?;
        j.end()?;
        list.sort_by(|a, b| a.labels.cmp(&b.labels));
        Ok(list)
    }
}

impl Backend for JsonApi {
    const NAME: &'static str = "json-api";
    const VERSION: &'static str = "1.0.0";
    const SUMMARY: &'static str = "Reads series from a JSON API over HTTP.";
    const CONFIG_SCHEMA: &'static str =
        r#"{"type":"object","additionalProperties":false,"required":["url"],"properties":{"url":{"type":"string"},"secret":{"type":"string"}}}"#;
    const PERMISSIONS: &'static [&'static str] = &["http"];

    fn configure(c: &Config) -> Result<Self, Error> {
        if c.get("url").is_empty() {
            return Err(Error::invalid("url: is missing"));
        }
        Ok(JsonApi { url: c.get("url").into(), secret: c.get("secret").into() })
    }

    fn info(&self) -> Result<Info, Error> {
        // An answer is whole or an error, and what is outside of the time range is left out.
        Ok(Info { component: "json-api".into(), version: Self::VERSION.into(), bounded_labels: true, complete: true, ..Info::default() })
    }

    fn series(&self, c: &SeriesCall, out: &mut Batch) -> Result<(), Error> {
        for s in self.fetch(&c.matchers, c.min_time, c.max_time)? {
            if !out.series(&s.labels, &s.points) {
                break;
            }
        }
        Ok(())
    }

    fn label_names(&self, c: &LabelsCall) -> Result<Vec<String>, Error> {
        let series = self.fetch(&c.matchers, c.min_time, c.max_time)?;
        Ok(series.into_iter().flat_map(|s| s.labels).map(|l| l.0).collect())
    }

    fn label_values(&self, c: &LabelsCall) -> Result<Vec<String>, Error> {
        let series = self.fetch(&c.matchers, c.min_time, c.max_time)?;
        Ok(series.into_iter().flat_map(|s| s.labels).filter(|l| l.0 == c.name).map(|l| l.1).collect())
    }
}

export_backend!(JsonApi);
