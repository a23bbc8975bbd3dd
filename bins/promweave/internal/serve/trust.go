// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"errors"

	"github.com/promweave/promweave/bins/promweave/internal/config"
	"github.com/promweave/promweave/plugins/registry"
)

// verifierOf is nil if nothing beyond digests is asked of plug-ins' files.
func verifierOf(c config.Plugins) (registry.Verifier, error) {
	if len(c.RootKeys) > 0 || c.LockFile != "" {
		return nil, errors.New("plugins.root_keys, plugins.lock_file: not available yet")
	}
	return nil, nil
}
