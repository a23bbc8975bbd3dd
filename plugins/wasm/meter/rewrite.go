// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package meter

// Rewrite checks a module in the binary format and returns it with metering added.
// An error is an *Error, or says that the module is larger than o allows.
func Rewrite(module []byte, o Options) (*Result, error) {
	return nil, &Error{Func: -1, What: "metering is not there yet"}
}
