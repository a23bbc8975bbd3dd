// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/promweave/promweave/conformance/report"
	"github.com/promweave/promweave/plugins/trust"
)

// writeSummary writes the certificate of a report, signed.
func (a *app) writeSummary(f *certifyFlags, rep *report.Report) error {
	k, err := signingKey(f.keyFile)
	if err != nil {
		return err
	}
	s, err := rep.Summary()
	if err != nil {
		return fmt.Errorf("--summary: %w", err)
	}
	at, err := a.signTime()
	if err != nil {
		return err
	}
	data, err := k.Endorse(report.SummaryType, s, at)
	if err != nil {
		return err
	}
	return os.WriteFile(f.summary, data, 0o644)
}

// certification is a signed summary, and who stands behind it.
type certification struct {
	*report.Summary
	*trust.Endorsement
}

// certificationIn reads the summary beside a plug-in's manifest, nil if there is none. It has
// to be about the file with that digest.
func certificationIn(dir string, m *trust.Manifest, digest string) (*certification, error) {
	c := &certification{Summary: &report.Summary{}}
	var err error
	c.Endorsement, err = trust.ReadEndorsement(filepath.Join(dir, trust.ConformanceFile), report.SummaryType, c.Summary)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case c.SHA256 != digest || c.Kind != m.Kind:
		return nil, fmt.Errorf("%s is about the %s %s with digest %s, and this is a %s with digest %s: certify it again (promweave certify --summary), or remove %[1]s",
			trust.ConformanceFile, c.Kind, c.Name, c.SHA256, m.Kind, digest)
	}
	return c, nil
}

func (c *certification) String() string {
	return fmt.Sprintf("%s: suite %s, %s, %s, signed by key %s", strings.Join(c.Profiles, ", "), c.Suite, count(c.Requirements, "requirement"), count(c.Requests, "request"), c.Signer)
}

// say is what is shown of a summary to who trusts these root keys: of one that is signed by
// others no more than that.
func (c *certification) say(roots []ed25519.PublicKey) string {
	if c == nil {
		return ""
	}
	if len(roots) > 0 && !c.Trusted(roots) {
		return "by key " + c.Signer + " under the root key " + trust.FormatKey(c.Root) + ", which is not trusted here"
	}
	return c.String()
}
