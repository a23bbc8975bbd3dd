// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package corpus

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/prometheus/prometheus/model/labels"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The digests of what stores out there may have been loaded with: when one of them
// changes, ManifestVersion has to.
const (
	usual = "ec6207223248206cd2fce5dcfaafd4ede2eb0acccc1712e8e94834bd31f4a192"
	other = "6393cd5cb6eeaddef400faddec9374546d5791646e672f8bc5b4d9a7e658c670"
)

func TestDigest(t *testing.T) {
	if d := New(Options{}).Digest(); d != usual {
		t.Errorf("the usual corpus is another one: %s", d)
	}
	if d := New(Options{Start: DefaultStart + 1, Seed: 7, Generated: 3}).Digest(); d != other {
		t.Errorf("another corpus is another one: %s", d)
	}
}

func TestValid(t *testing.T) {
	c := New(Options{})
	if !slices.Equal(c.Parts(), All()) {
		t.Errorf("parts %v, want %v", c.Parts(), All())
	}
	for i, s := range c.Series {
		if i > 0 && labels.Compare(c.Series[i-1].Labels, s.Labels) >= 0 {
			t.Errorf("%s does not come after %s", s.Labels, c.Series[i-1].Labels)
		}
		s.Labels.Range(func(l labels.Label) {
			if l.Name == "" || l.Value == "" || !utf8.ValidString(l.Name) || !utf8.ValidString(l.Value) {
				t.Errorf("%s: label %q", s.Labels, l.Name)
			}
		})
		for k, x := range s.Samples {
			if k > 0 && s.Samples[k-1].T >= x.T {
				t.Errorf("%s: sample %d is not later than the one before", s.Labels, k)
			}
			if x.H != nil {
				if err := x.H.Validate(); err != nil {
					t.Errorf("%s: %v", s.Labels, err)
				}
			}
		}
		if len(s.Samples) == 0 {
			t.Errorf("%s has no samples", s.Labels)
		}
	}
	for _, l := range c.Levels {
		for k, w := range l.Windows {
			if k > 0 && l.Windows[k-1].T >= w.T || (w.T+1)%l.Resolution != 0 {
				t.Errorf("%s: window %d of %d ms ends at %d", l.Labels, k, l.Resolution, w.T)
			}
		}
	}
}

func TestManifest(t *testing.T) {
	c := New(Options{Seed: 3, Generated: 5}).Only(Base, Times, Metadata)
	data, err := json.Marshal(c.Manifest())
	if err != nil {
		t.Fatal(err)
	}
	m, err := ParseManifest(data)
	if err != nil {
		t.Fatal(err)
	}
	again, err := m.Corpus()
	if err != nil {
		t.Fatal(err)
	}
	if again.Digest() != c.Digest() || !slices.Equal(again.Parts(), []Part{Base, Times, Metadata}) {
		t.Errorf("it is another one: %v", again.Parts())
	}
	for _, bad := range []struct {
		change func(*Manifest)
		want   string
	}{
		{func(m *Manifest) { m.Digest = "00" }, "load the corpus that this program writes"},
		{func(m *Manifest) { m.Version = 1 }, "version 1"},
		{func(m *Manifest) { m.Generated = 1 << 40 }, "generated"},
		{func(m *Manifest) { m.Start += blockLen }, "digest"},
		{func(m *Manifest) { m.Parts = append(slices.Clone(m.Parts), "nonsense") }, "nonsense"},
	} {
		x := m
		bad.change(&x)
		if _, err := x.Corpus(); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("want an error with %q, got %v", bad.want, err)
		}
	}
	for _, text := range []string{"", "{", `{"no":1}`, string(data) + "x", "[]"} {
		if _, err := ParseManifest([]byte(text)); err == nil {
			t.Errorf("%.20q is taken for a manifest", text)
		}
	}
}

func FuzzManifest(f *testing.F) {
	data, err := json.Marshal(New(Options{Generated: 1}).Manifest())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ParseManifest(data)
		if err != nil || m.Generated > 1000 {
			return
		}
		if c, err := m.Corpus(); err == nil && c.Digest() != m.Digest {
			t.Fatal("a corpus that is not that of its manifest")
		}
	})
}
