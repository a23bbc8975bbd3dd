// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package infopb

import (
	"encoding/hex"
	"testing"

	"go.uber.org/goleak"

	"github.com/promweave/promweave/sdk/storepb/internal/pbtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRoundTrip(t *testing.T) {
	pbtest.Messages(t, File_sdk_storepb_infopb_info_proto, pbtest.RoundTrip)
}

func TestNormalize(t *testing.T) {
	m := &InfoResponse{Store: &StoreInfo{TsdbInfos: []*TSDBInfo{{MinTime: 1}}}, Rules: &RulesInfo{}}
	m.Normalize()
	b, err := m.MarshalVTStrict()
	if err != nil {
		t.Fatal(err)
	}
	// The label set is there with length 0, and so is the empty rules field.
	if got, want := hex.EncodeToString(b), "1a06"+"3204"+"0a00"+"1001"+"2200"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	(&InfoResponse{}).Normalize()
}
