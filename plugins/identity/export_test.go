// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"

	"github.com/promweave/promweave/core/access"
)

// Call is what the interceptors do with a call.
func Call(ctx context.Context, v *Verifier, method string) (*access.Caller, error) {
	ctx, err := v.call(ctx, method)
	if err != nil {
		return nil, err
	}
	return access.CallerOf(ctx), nil
}
