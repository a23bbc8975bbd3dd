// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package bucketclient

import (
	"fmt"
	"os"

	"github.com/spf13/pflag"
	"github.com/thanos-io/objstore"
)

// Flags are those by which a command is told its bucket. They have Thanos' names.
type Flags struct {
	prefix     string
	text, file string
}

// AddFlags adds --objstore.config and --objstore.config-file, with another prefix than objstore for
// a command that needs two buckets.
func (f *Flags) AddFlags(set *pflag.FlagSet, prefix, what string) {
	f.prefix = prefix
	set.StringVar(&f.text, prefix+".config", "", what+", as YAML: {type: S3, config: {bucket: …}, prefix: …}")
	set.StringVar(&f.file, prefix+".config-file", "", what+", as a file with that YAML")
}

// FlagsError says what is wrong with the flags.
type FlagsError struct{ text string }

func (e *FlagsError) Error() string { return e.text }

func wrong(format string, args ...any) error { return &FlagsError{fmt.Sprintf(format, args...)} }

// Open opens the bucket. What is wrong with the flags is a FlagsError.
func (f *Flags) Open(o *Opener, name string) (objstore.InstrumentedBucket, error) {
	text := []byte(f.text)
	switch {
	case f.text == "" && f.file == "":
		return nil, wrong("--%s.config-file says which bucket, for example a file with {type: FILESYSTEM, config: {directory: /data/bucket}}", f.prefix)
	case f.text != "" && f.file != "":
		return nil, wrong("of --%s.config and --%s.config-file one is enough", f.prefix, f.prefix)
	case f.file != "":
		var err error
		if text, err = os.ReadFile(f.file); err != nil {
			return nil, err
		}
	}
	return o.Open(Config{Objstore: text, Name: name})
}
