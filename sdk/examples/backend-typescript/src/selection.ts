// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// What the contract asks of form, for any store: order, matchers, errors.

import { status, type ServiceError } from "@grpc/grpc-js";
import { RE2JS } from "re2js";

export type Label = { name: string; value: string };

/** A matcher as in plugin.proto: type 0 is =, 1 !=, 2 =~, 3 !~. */
export type Matcher = { type: number; name: string; value: string };

/** An error of the plug-in's own; the host tells by the code what kind it is. */
export function failure(code: status, details: string): Partial<ServiceError> {
  return { code, details };
}

/** Byte order, which rule S-1 asks for: JavaScript compares UTF-16 units, and puts U+1F600 before U+FF5E. */
export function compareText(a: string, b: string): number {
  return Buffer.compare(Buffer.from(a), Buffer.from(b));
}

/** Pair by pair, name and then value; the shorter set first on a common prefix. */
export function compareLabels(a: Label[], b: Label[]): number {
  for (let i = 0; i < Math.min(a.length, b.length); i++) {
    const c = compareText(a[i]!.name, b[i]!.name) || compareText(a[i]!.value, b[i]!.value);
    if (c !== 0) return c;
  }
  return a.length - b.length;
}

/** A label set from an object: without empty values, sorted by name. */
export function labelSet(from: Record<string, string>): Label[] {
  return Object.entries(from)
    .filter(([, value]) => value !== "")
    .map(([name, value]) => ({ name, value }))
    .sort((a, b) => compareText(a.name, b.name));
}

/**
 * Whether all matchers hold; a label that is absent is "" (rule S-6). The regular expressions are RE2's, anchored
 * at both ends, and a dot matches a newline. JavaScript's own would read some of them as something else, and may take
 * exponential time.
 */
export function compileMatchers(matchers: Matcher[]): (labels: Label[]) => boolean {
  const tests = matchers.map((m): [string, (value: string) => boolean] => {
    if (m.name === "" || m.type > 3) throw failure(status.INVALID_ARGUMENT, `matcher of type ${m.type} on "${m.name}": is none`);
    if (m.type < 2) return [m.name, (v) => (v === m.value) === (m.type === 0)];
    try {
      const regexp = RE2JS.compile(m.value, RE2JS.DOTALL);
      return [m.name, (v) => regexp.matches(v) === (m.type === 2)];
    } catch (err) {
      throw failure(status.INVALID_ARGUMENT, `matcher on ${m.name}: ${m.value}: ${(err as Error).message}`);
    }
  });
  return (labels) => tests.every(([name, holds]) => holds(labels.find((l) => l.name === name)?.value ?? ""));
}
