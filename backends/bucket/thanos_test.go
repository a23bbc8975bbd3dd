// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package bucket_test

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/thanos-io/objstore"
	"github.com/thanos-io/objstore/providers/filesystem"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/promweave/promweave/backends/bucket"
	"github.com/promweave/promweave/sdk/storeapi"
	"github.com/promweave/promweave/sdk/storepb"
)

// recorded is a call to a store gateway of Thanos 0.43, and its answer.
type recorded struct {
	files map[string][]byte
	said  struct {
		Method string `json:"grpc_method"`
		Status struct {
			Code int `json:"code"`
		} `json:"status"`
	}
}

// recordings are the calls to a target, by name (sdk/storepb/testdata/README.md).
func recordings(t *testing.T, target string) map[string]*recorded {
	t.Helper()
	f, err := os.Open("../../sdk/storeapi/testdata/storeapi.tar.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	gz, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*recorded{}
	for tr := tar.NewReader(gz); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		dir, file := path.Split(path.Clean(h.Name))
		name, ok := strings.CutPrefix(path.Clean(dir), target+"/")
		if !ok || file == "" {
			continue
		}
		if out[name] == nil {
			out[name] = &recorded{files: map[string][]byte{}}
		}
		r := out[name]
		if r.files[file], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
		if file == "case.json" {
			if err := json.Unmarshal(r.files[file], &r.said); err != nil {
				t.Fatalf("%s: %v", h.Name, err)
			}
		}
	}
}

// answer is what a store said, in a form that can be compared: a line per series with all its
// chunks, in order of series; or names, or values.
type answer struct {
	code     int
	series   []string
	warnings int
	last     string
	chunks   []string
}

func (a *answer) frame(m *storepb.SeriesResponse) {
	if m.GetWarning() != "" {
		a.warnings++
	}
	for _, s := range append(m.GetBatch().GetSeries(), m.GetSeries()) {
		if s == nil {
			continue
		}
		var ls strings.Builder
		for _, l := range s.GetLabels() {
			fmt.Fprintf(&ls, "%s=%q ", l.GetName(), l.GetValue())
		}
		// Consecutive pieces are one series, and the order of its chunks is nobody's business.
		if n := len(a.series); n == 0 || a.last != ls.String() {
			a.series, a.last, a.chunks = append(a.series, ""), ls.String(), nil
		}
		for _, c := range s.GetChunks() {
			k := fmt.Sprintf("[%d %d", c.GetMinTime(), c.GetMaxTime())
			for i, e := range []*storepb.Chunk{c.GetRaw(), c.GetCount(), c.GetSum(), c.GetMin(), c.GetMax(), c.GetCounter()} {
				if e != nil {
					k += fmt.Sprintf(" %d:%s %x", i, e.GetType(), e.GetData())
				}
			}
			a.chunks = append(a.chunks, k+"]")
		}
		slices.Sort(a.chunks)
		a.series[len(a.series)-1] = a.last + strings.Join(a.chunks, " ")
	}
}

// ask plays a recorded call.
func ask(t *testing.T, client storepb.StoreClient, r *recorded) (got, want *answer) {
	t.Helper()
	got, want = &answer{}, &answer{code: r.said.Status.Code}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	unary := func(req, reply proto.Message, call func() (proto.Message, error), list func(proto.Message) []string) {
		if err := proto.Unmarshal(r.files["request.pb"], req); err != nil {
			t.Fatal(err)
		}
		if data := r.files["response.pb"]; data != nil {
			if err := proto.Unmarshal(data, reply); err != nil {
				t.Fatal(err)
			}
			want.series = list(reply)
		}
		m, err := call()
		if got.code = int(status.Code(err)); err == nil {
			got.series = list(m)
		}
	}
	switch path.Base(r.said.Method) {
	case "LabelNames":
		req := &storepb.LabelNamesRequest{}
		unary(req, &storepb.LabelNamesResponse{}, func() (proto.Message, error) { return client.LabelNames(ctx, req) },
			func(m proto.Message) []string { return m.(*storepb.LabelNamesResponse).GetNames() })
	case "LabelValues":
		req := &storepb.LabelValuesRequest{}
		unary(req, &storepb.LabelValuesResponse{}, func() (proto.Message, error) { return client.LabelValues(ctx, req) },
			func(m proto.Message) []string { return m.(*storepb.LabelValuesResponse).GetValues() })
	case "Series":
		req := &storepb.SeriesRequest{}
		if err := proto.Unmarshal(r.files["request.pb"], req); err != nil {
			t.Fatal(err)
		}
		for data := r.files["responses.pb"]; len(data) > 0; {
			size, n := binary.Uvarint(data)
			m := &storepb.SeriesResponse{}
			if err := proto.Unmarshal(data[n:n+int(size)], m); err != nil {
				t.Fatal(err)
			}
			want.frame(m)
			data = data[n+int(size):]
		}
		stream, err := client.Series(ctx, req)
		for err == nil {
			var m *storepb.SeriesResponse
			if m, err = stream.Recv(); err == nil {
				got.frame(m)
			}
		}
		if !errors.Is(err, io.EOF) {
			got.code = int(status.Code(err))
		}
	default:
		return nil, nil // Info is compared by the conformance suite
	}
	return got, want
}

// onPurpose are the calls that are answered otherwise than by Thanos, and why.
var onPurpose = map[string]string{
	"store-raw/err-no-matchers":              selectsAll,
	"store-raw/series-ext-only":              selectsAll,
	"store-raw/series-ext-only-chunks":       selectsAll,
	"store-downsampled/series-ext-only":      selectsAll,
	"store-raw/hints-bad":                    noHints,
	"store-raw/hints-block-id":               noHints,
	"store-raw/hints-block-matcher":          noHints,
	"store-raw/series-limit-without-replica": "a limit leaves the first series in the order that is sent; Thanos cuts what a block sends before that is in order",
	"store-raw/names-without-replica":        "a name that no series has any more is none",
	"store-raw/values-of-empty":              "a label without a name is a mistake, and not a label without values",
	"store-raw/values-of-ext":                hiddenValues,
	"store-raw/values-of-ext-extmatch":       hiddenValues,
	"store-downsampled/aggr-hist-5m-max":     lacking,
	"store-downsampled/aggr-hist-5m-min":     lacking,
	"store-downsampled/aggr-mixed-5m-min":    lacking,
}

const (
	selectsAll   = "external labels alone, and no matcher at all, select everything (rule S-6); Thanos sends nothing"
	noHints      = "hints that name blocks are not offered, and not read"
	hiddenValues = "a stored label under an external one of the same name is on no series"
	lacking      = "an aggregate that a chunk lacks is left out, others are of use; Thanos fails the call"
)

// TestAsThanos: over the same blocks the answers are those that Thanos' store gateway gave.
func TestAsThanos(t *testing.T) {
	const blocks = "../../blocks/testdata/thanos/"
	for target, dirs := range map[string][]string{"store-raw": {"bucket-raw"}, "store-downsampled": {"bucket-raw", "bucket-downsampled-extra"}} {
		t.Run(target, func(t *testing.T) {
			bkt := objstore.NewInMemBucket()
			var src list
			for _, dir := range dirs {
				fs, err := filesystem.NewBucket(blocks + dir)
				if err != nil {
					t.Fatal(err)
				}
				if err := fs.Iter(t.Context(), "", func(name string) error {
					data, err := fs.Get(t.Context(), name)
					if err != nil {
						return err
					}
					defer data.Close()
					return bkt.Upload(t.Context(), name, data)
				}, objstore.WithRecursiveIter()); err != nil {
					t.Fatal(err)
				}
				src = append(src, listed(t, blocks+dir)...)
			}
			b, err := bucket.New(bkt, src, bucket.Config{Dir: t.TempDir()}, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			lis := bufconn.Listen(1 << 20)
			srv := grpc.NewServer(storeapi.ServerOptions()...)
			storepb.RegisterStoreServer(srv, storeapi.NewServer(b, storeapi.ServerConfig{}))
			go srv.Serve(lis)
			defer srv.Stop()
			conn, err := grpc.NewClient("passthrough:bucket", grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			client := storepb.NewStoreClient(conn)

			all := recordings(t, target)
			if len(all) < 45 {
				t.Fatalf("%d recordings", len(all))
			}
			compared := 0
			for _, name := range slices.Sorted(maps.Keys(all)) {
				got, want := ask(t, client, all[name])
				if got == nil {
					continue
				}
				compared++
				same := got.code == want.code && got.warnings == want.warnings && slices.Equal(got.series, want.series)
				why, other := onPurpose[target+"/"+name]
				switch {
				case !same && !other:
					t.Errorf("%s: code %d, %d series, %d warnings, want %d, %d, %d%s", name, got.code, len(got.series), got.warnings,
						want.code, len(want.series), want.warnings, firstOther(got.series, want.series))
				case same && other:
					t.Errorf("%s: as Thanos' after all, which should not be: %s", name, why)
				}
			}
			t.Logf("%d calls compared", compared)
		})
	}
}

// firstOther shows the first series that differs.
func firstOther(got, want []string) string {
	for i := range max(len(got), len(want)) {
		var g, w string
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			return fmt.Sprintf("\n  number %d is %.250s\n  want %.250s", i, g, w)
		}
	}
	return ""
}
