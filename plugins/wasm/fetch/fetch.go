// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package fetch makes HTTP requests for modules that are not trusted: to an
// allow-list of targets, checked again on the address that is dialled and on every
// redirect, with secrets that the module names but never sees.
package fetch

import (
	"context"
	"net/netip"
	"time"
)

// Config says what may be asked. The zero value allows nothing.
type Config struct {
	// Allow are the targets; a request must match one of them, and so must every
	// redirect.
	Allow []Target
	// Headers are names of request headers that may be set besides Accept,
	// Accept-Language, Content-Type, If-None-Match and X-Scope-OrgID. Host and headers of the
	// connection never may.
	Headers []string
	// Secrets by the name that the module uses.
	Secrets map[string]Secret
	// Timeout of one request with its body: 30 s.
	Timeout time.Duration
	// Resolve replaces the system's resolver.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
}

// Target is what requests may go to.
type Target struct {
	// Scheme is http or https; Host a name or an address, as it stands in the URL.
	Scheme, Host string
	// Port; 0 is the scheme's.
	Port uint16
	// Methods in upper case; none is GET alone.
	Methods []string
	// AllowPrivate: the host may have an address that is private, link-local,
	// loopback or otherwise not of the public Internet.
	AllowPrivate bool
	// Secrets that may be sent to this target.
	Secrets []string
}

// Secret is a header that the host adds.
//
// A target that repeats the request in its response shows the secret to the module;
// nothing can be done about that here, so send secrets only where that does not happen.
type Secret struct {
	// Header is its name; Value the whole value, such as "Bearer ...".
	Header, Value string
}
