// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"fmt"

	"github.com/promweave/promweave/bins/promweave/internal/config"
	"github.com/promweave/promweave/plugins/registry"
	"github.com/promweave/promweave/plugins/trust"
)

var _ registry.Pinner = (*trust.Verifier)(nil)

// verifierOf is nil if nothing beyond digests is asked of plug-ins' files.
func verifierOf(c config.Plugins) (registry.Verifier, error) {
	if len(c.RootKeys) == 0 && c.LockFile == "" {
		return nil, nil
	}
	v := &trust.Verifier{LockFile: c.LockFile}
	for i, k := range c.RootKeys {
		key, err := trust.ParseKey(k)
		if err != nil {
			return nil, fmt.Errorf("plugins.root_keys[%d]: %w", i, err)
		}
		v.Roots = append(v.Roots, key)
	}
	if c.LockFile != "" {
		if _, err := trust.ReadLock(c.LockFile); err != nil {
			return nil, fmt.Errorf("plugins.lock_file: %w", err)
		}
	}
	return v, nil
}
