// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// What the host offers. A module imports the functions that it calls.
import { Str } from "./memory";

@external("promweave_v1", "log")
declare function hostLog(level: i32, p: usize, n: i32): void;
@external("promweave_v1", "log_enabled")
declare function hostLogEnabled(level: i32): i32;
@external("promweave_v1", "now_ns")
declare function hostNow(): i64;
@external("promweave_v1", "random")
declare function hostRandom(p: usize, n: i32): void;
@external("promweave_v1", "metric_add")
declare function hostMetricAdd(p: usize, n: i32, v: f64): void;

export enum Level {
  Debug,
  Info,
  Warn,
  Error,
}

/** Writes a line to the host's log, which takes 100 a second. */
export function log(level: Level, text: Str): void {
  hostLog(level, text.at, text.length);
}
/** Whether lines of a level are kept, to save making them. */
export function logEnabled(level: Level): bool {
  return hostLogEnabled(level) != 0;
}
/** The time in ns since 1970. Needs the permission clock. */
export function now(): i64 {
  return hostNow();
}
/** Writes n random bytes to p. Needs the permission random. */
export function random(p: usize, n: i32): void {
  hostRandom(p, n);
}
/** Adds v, not below 0, to a counter ([a-z_]{1,40}). Needs the permission metrics. */
export function metricAdd(name: Str, v: f64): void {
  hostMetricAdd(name.at, name.length, v);
}
