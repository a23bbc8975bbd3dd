// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package sdk_test

import (
	"io/fs"
	"path"
	"slices"
	"testing"

	"go.uber.org/goleak"

	"github.com/promweave/promweave/sdk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestSources: sources are there, and nothing else is carried along.
func TestSources(t *testing.T) {
	n := 0
	err := fs.WalkDir(sdk.Sources, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		n++
		if !slices.Contains([]string{".h", ".rs", ".ts", ".json", ".toml"}, path.Ext(name)) {
			t.Errorf("%s is no source", name)
		}
		return nil
	})
	if err != nil || n < 10 {
		t.Fatalf("%d files: %v", n, err)
	}
}
