// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"

	"github.com/golang/snappy"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"

	"github.com/promweave/promweave/conformance/corpus"
)

// batchSamples is the most samples of a request.
const batchSamples = 2000

// RemoteWrite sends the corpus by remote write 1.0 (protobuf, snappy), samples in order of
// time over all series, as a Prometheus would: stores refuse what comes late. header is
// added to each request. A negative zero arrives as zero: so does every other sender's.
func RemoteWrite(ctx context.Context, url string, header http.Header, c *corpus.Corpus) error {
	client := &http.Client{Timeout: requestTime}
	defer client.CloseIdleConnections()
	exemplars := map[string][]corpus.Exemplar{}
	for _, e := range c.Exemplars {
		key := string(e.Series.Bytes(nil))
		exemplars[key] = append(exemplars[key], e)
	}
	for part := range slices.Chunk(points(c), batchSamples) {
		req := &prompb.WriteRequest{}
		at := map[int]int{}
		for _, p := range part {
			i, ok := at[p.series]
			if !ok {
				i = len(req.Timeseries)
				at[p.series] = i
				req.Timeseries = append(req.Timeseries, prompb.TimeSeries{Labels: pairs(c.Series[p.series].Labels)})
			}
			ts, x := &req.Timeseries[i], own(p.Sample)
			switch {
			case x.H != nil:
				ts.Histograms = append(ts.Histograms, prompb.FromIntHistogram(x.T, x.H))
			case x.FH != nil:
				ts.Histograms = append(ts.Histograms, prompb.FromFloatHistogram(x.T, x.FH))
			default:
				ts.Samples = append(ts.Samples, prompb.Sample{Timestamp: x.T, Value: x.F})
			}
			key := string(c.Series[p.series].Labels.Bytes(nil))
			for len(exemplars[key]) > 0 && exemplars[key][0].Time <= x.T {
				e := exemplars[key][0]
				exemplars[key] = exemplars[key][1:]
				ts.Exemplars = append(ts.Exemplars, prompb.Exemplar{Labels: pairs(e.Labels), Value: e.Value, Timestamp: e.Time})
			}
		}
		if err := send(ctx, client, url, header, req); err != nil {
			return err
		}
	}
	return nil
}

func pairs(ls labels.Labels) (out []prompb.Label) {
	ls.Range(func(l labels.Label) { out = append(out, prompb.Label{Name: l.Name, Value: l.Value}) })
	return out
}

func send(ctx context.Context, client *http.Client, url string, header http.Header, m *prompb.WriteRequest) error {
	data, err := m.Marshal()
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(snappy.Encode(nil, data)))
	if err != nil {
		return err
	}
	for name, values := range header {
		req.Header[name] = values
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	req.Header.Set("Content-Encoding", "snappy")
	req.Header.Set("X-Prometheus-Remote-Write-Version", "0.1.0")
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("remote write: %w", err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("remote write to %s: %s: %s", url, resp.Status, bytes.TrimSpace(text))
	}
	return nil
}
