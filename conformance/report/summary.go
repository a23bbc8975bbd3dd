// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

// SummaryType is the media type of a Summary, for who signs one.
const SummaryType = "application/vnd.promweave.conformance.v1+json"

// Summary is a certificate: what was found of one file, in a few lines, to be signed and
// handed out with it.
type Summary struct {
	// Suite is the version of the suite, Kind backend or filter.
	Suite string `json:"suite"`
	Kind  string `json:"kind"`
	// Name is what the subject calls itself, Launch how it was reached, SHA256 its file's
	// digest in hex: the summary is about that file and no other.
	Name   string `json:"name"`
	Launch string `json:"launch"`
	SHA256 string `json:"sha256"`
	// Corpus is the digest of the data, "" for filters.
	Corpus string `json:"corpus,omitempty"`
	// Profiles that passed, those that are not claimed with the reason, and the claims.
	Profiles   []string          `json:"profiles"`
	NotClaimed map[string]string `json:"not_claimed,omitempty"`
	Claims     []string          `json:"claims"`
	// Requirements that passed, requests that were made, and where the generated ones began.
	Requirements int       `json:"requirements"`
	Requests     int       `json:"requests"`
	Seed         uint64    `json:"seed"`
	Began        time.Time `json:"began"`
	// Report is the SHA-256 of the whole report in JSON, in hex.
	Report string `json:"report"`
}

// Summary is that of a report of a certified file; there is none of anything else.
func (r *Report) Summary() (*Summary, error) {
	switch {
	case !r.Certified:
		return nil, fmt.Errorf("there is no summary of what is not certified: %s", r.Why)
	case r.Subject.SHA256 == "":
		return nil, errors.New("a summary is about a file, by its digest: the subject is none")
	}
	var b bytes.Buffer
	if err := r.JSON(&b); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b.Bytes())
	s := &Summary{
		Suite: r.Suite, Kind: r.Kind, Name: r.Subject.Name, Launch: r.Subject.Launch, SHA256: r.Subject.SHA256,
		Profiles: []string{}, Claims: append([]string{}, r.Subject.Claims...),
		Requests: r.Requests, Seed: r.Seed, Began: r.Began, Report: hex.EncodeToString(sum[:]),
	}
	if r.Corpus != nil {
		s.Corpus = r.Corpus.Digest
	}
	for _, p := range r.Profiles {
		s.Requirements += p.Passed
		switch p.State {
		case ProfilePassed:
			s.Profiles = append(s.Profiles, p.Name)
		case ProfileNotClaimed:
			if s.NotClaimed == nil {
				s.NotClaimed = map[string]string{}
			}
			s.NotClaimed[p.Name] = p.Reason
		}
	}
	return s, nil
}
