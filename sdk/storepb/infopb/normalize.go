// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package infopb

import "github.com/promweave/promweave/sdk/storepb"

// Normalize fills the label set of each TSDB, which Thanos sends even when it
// is empty. Call it before sending.
func (x *InfoResponse) Normalize() {
	for _, t := range x.GetStore().GetTsdbInfos() {
		if t.Labels == nil {
			t.Labels = &storepb.LabelSet{}
		}
	}
}
