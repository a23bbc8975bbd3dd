// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package report holds what came out of a run of the conformance suite, as plain
// data, and the forms in which people and programs read it: text, JSON, JUnit XML, a
// page of HTML, and a short summary that can be signed.
package report

import "time"

// Level is how binding a requirement is.
type Level string

// The levels. A SHOULD that does not hold is shown and fails nothing.
const (
	Must   Level = "MUST"
	Should Level = "SHOULD"
)

// Outcome is what came out of one requirement.
type Outcome string

// The outcomes.
const (
	Passed Outcome = "passed"
	// Failed: the subject answered, and the answer is wrong; or it failed where it
	// should have answered.
	Failed Outcome = "failed"
	// Refused: the subject said that it does not support what was asked. That is honest,
	// and no pass.
	Refused Outcome = "refused"
	// Skipped: the harness could not test it here; Detail says what it lacks.
	Skipped Outcome = "skipped"
	// NotApplicable: the requirement speaks of a claim that the subject does not make, or
	// the other way round.
	NotApplicable Outcome = "not applicable"
)

// State is what came out of a profile.
type State string

// The states of a profile.
const (
	// ProfilePassed: every MUST of it passed and nothing was skipped.
	ProfilePassed State = "passed"
	ProfileFailed State = "failed"
	// ProfileIncomplete: nothing failed, but something was skipped, or not selected.
	ProfileIncomplete State = "incomplete"
	// ProfileNotClaimed: the subject does not claim it, or its owner leaves it out; what
	// the contract says of subjects without the claim was tested and holds.
	ProfileNotClaimed State = "not claimed"
)

// Report is the whole of one run.
type Report struct {
	// Suite is the version of the suite, 1.0 for example.
	Suite string `json:"suite"`
	// Kind of the subject: backend or filter.
	Kind    string    `json:"kind"`
	Subject Subject   `json:"subject"`
	Corpus  *Corpus   `json:"corpus,omitempty"` // nil for filters
	Seed    uint64    `json:"seed"`
	Began   time.Time `json:"began"`
	// Seconds that it took.
	Seconds float64 `json:"seconds"`
	// Requests made, all requirements together.
	Requests int `json:"requests"`
	// Certified: every claimed profile passed, and core is one of them. Never so if
	// only a part of the suite was selected.
	Certified bool `json:"certified"`
	// Why not, in a sentence, if it is not.
	Why      string    `json:"why,omitempty"`
	Profiles []Profile `json:"profiles"`
	Results  []Result  `json:"results"`
}

// Subject is what was tested.
type Subject struct {
	Name string `json:"name"`
	// Launch is how it was reached: in process, endpoint, spawn, wasm, dial, config.
	Launch string `json:"launch"`
	// Origin is an address or a path; SHA256 of the file, in hex.
	Origin  string `json:"origin,omitempty"`
	SHA256  string `json:"sha256,omitempty"`
	Version string `json:"version,omitempty"`
	// Component as in Info.
	Component string `json:"component,omitempty"`
	// Claims are the capabilities that it claims, or that were claimed for it.
	Claims []string `json:"claims"`
	// External label sets, as text.
	External []string `json:"external,omitempty"`
}

// Corpus is the data that the subject was loaded with.
type Corpus struct {
	// Digest of the data, in hex.
	Digest string `json:"digest"`
	// Loaded parts, and those that are not there, with the reason.
	Parts   []string          `json:"parts"`
	Missing map[string]string `json:"missing,omitempty"`
	Series  int               `json:"series"`
	Samples int               `json:"samples"`
	// Start of the data, ms.
	Start int64 `json:"start"`
	// Loaded by: hook, remote write, openmetrics, blocks, already there.
	LoadedBy string `json:"loaded_by"`
}

// Profile is the sum of the requirements of one profile.
type Profile struct {
	Name  string `json:"name"`
	State State  `json:"state"`
	// Reason says why it is not claimed, or not passed.
	Reason string `json:"reason,omitempty"`
	// Counts of requirements; failures of SHOULD are counted in Noted only.
	Passed   int `json:"passed"`
	Failed   int `json:"failed"`
	Refused  int `json:"refused"`
	Skipped  int `json:"skipped"`
	Noted    int `json:"noted"`
	Requests int `json:"requests"`
}

// Result is what came out of one requirement.
type Result struct {
	// ID is stable: the rule's number, a point, and what of it is tested: S-6.anchored.
	ID      string `json:"id"`
	Profile string `json:"profile"`
	Level   Level  `json:"level"`
	// Rule is the sentence of the contract.
	Rule string `json:"rule"`
	// Since is the version of the suite that has it first.
	Since   string  `json:"since"`
	Outcome Outcome `json:"outcome"`
	// Detail says what was skipped or refused and why, or what was done.
	Detail   string    `json:"detail,omitempty"`
	Failures []Failure `json:"failures,omitempty"`
	// More failures that are not listed.
	More     int     `json:"more,omitempty"`
	Requests int     `json:"requests"`
	Seconds  float64 `json:"seconds"`
}

// Failure is one thing that is wrong.
type Failure struct {
	// Request is the shortest that shows it, as text.
	Request string `json:"request"`
	// Message says what is wrong in a sentence.
	Message string `json:"message"`
	// Expected and Actual are lines to be put side by side, already cut to what differs.
	Expected []string `json:"expected,omitempty"`
	Actual   []string `json:"actual,omitempty"`
}
