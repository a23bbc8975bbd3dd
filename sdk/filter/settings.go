// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// A WASM module gets its settings from the host: without this file it is 400 KB smaller.

//go:build !wasip1

package filter

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// The limits of Settings.
const (
	maxSettings     = 1 << 16
	maxSettingBytes = 16 << 20
	maxSettingDepth = 64
)

// Settings are the scalars of a JSON object, in the order of the document. The path of
// one is made of the names and indexes on the way to it: {"rules": [{"from": "a"}]} has
// "rules[0].from". A backslash precedes each of . [ ] \ in a name, so that no two paths
// are the same. Values are as text: strings without quotes, numbers as they are written,
// true and false. null, and what is empty, has no setting. Nothing at all is an empty
// object. A name that is twice in an object is an error, as readers would disagree about
// which one counts.
func Settings(document []byte) ([]Setting, error) {
	if len(bytes.TrimSpace(document)) == 0 {
		return nil, nil
	}
	f := flattener{d: json.NewDecoder(bytes.NewReader(document))}
	f.d.UseNumber()
	token, err := f.d.Token()
	if err != nil {
		return nil, fmt.Errorf("reading JSON: %w", noEOF(err))
	}
	if token != json.Delim('{') {
		return nil, errors.New("reading JSON: not an object")
	}
	if err := f.object("", 1); err != nil {
		return nil, fmt.Errorf("reading JSON: %w", noEOF(err))
	}
	if _, err := f.d.Token(); err != io.EOF {
		return nil, errors.New("reading JSON: something follows the object")
	}
	return f.out, nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

type flattener struct {
	d     *json.Decoder
	out   []Setting
	bytes int
}

func (f *flattener) object(path string, depth int) error {
	seen := map[string]bool{}
	for f.d.More() {
		token, err := f.d.Token()
		if err != nil {
			return err
		}
		name, ok := token.(string)
		if !ok {
			return fmt.Errorf("%v is not a name", token)
		}
		if seen[name] {
			return fmt.Errorf("%q is in one object twice", name)
		}
		seen[name] = true
		step := pathEscaper.Replace(name)
		if depth > 1 {
			step = path + "." + step
		}
		if err := f.value(step, depth); err != nil {
			return err
		}
	}
	_, err := f.d.Token()
	return err
}

var pathEscaper = strings.NewReplacer(`.`, `\.`, `[`, `\[`, `]`, `\]`, `\`, `\\`)

func (f *flattener) value(path string, depth int) error {
	// Paths are charged on the way, or long names would be written many times.
	if f.bytes += len(path); f.bytes > maxSettingBytes {
		return errors.New("more than 16 MiB of paths and values")
	}
	token, err := f.d.Token()
	if err != nil {
		return err
	}
	text := ""
	switch v := token.(type) {
	case json.Delim:
		if depth == maxSettingDepth {
			return errors.New("more than 64 levels deep")
		}
		if v == '{' {
			return f.object(path, depth+1)
		}
		for i := 0; f.d.More(); i++ {
			if err := f.value(path+"["+strconv.Itoa(i)+"]", depth+1); err != nil {
				return err
			}
		}
		_, err := f.d.Token()
		return err
	case string:
		text = v
	case json.Number:
		text = v.String()
	case bool:
		text = strconv.FormatBool(v)
	case nil:
		return nil
	}
	if len(f.out) == maxSettings {
		return errors.New("more than 65536 values")
	}
	if f.bytes += len(text); f.bytes > maxSettingBytes {
		return errors.New("more than 16 MiB of paths and values")
	}
	f.out = append(f.out, Setting{Path: path, Value: text})
	return nil
}
