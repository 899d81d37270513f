package main

import (
	"bytes"
	"context"
	"regexp"
	"strings"

	"connectrpc.com/connect"
	"github.com/google/pprof/profile"
	push "github.com/grafana/pyroscope/api/gen/proto/go/push/v1"
	parca "github.com/parca-dev/parca/gen/proto/go/parca/profilestore/v1alpha1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// pyroscope is a PusherService.
type pyroscope struct{}

func (pyroscope) Push(
	_ context.Context, request *connect.Request[push.PushRequest],
) (*connect.Response[push.PushResponse], error) {
	if err := refusal("pyroscope"); err != nil {
		return nil, connect.NewError(connectCode(), err)
	}
	header := request.Header()
	for _, series := range request.Msg.Series {
		labels := map[string]string{}
		for _, label := range series.Labels {
			labels[label.Name] = label.Value
		}
		for _, sample := range series.Samples {
			received := read(sample.RawProfile)
			received.Receiver, received.ID = "pyroscope", sample.ID
			received.Labels = labels
			checkLabels(received)
			received.Tenant = header.Get("X-Scope-OrgID")
			received.Authorization = header.Get("Authorization")
			if len(labels) != len(series.Labels) {
				received.Invalid = "two labels have one name"
			}
			keep(received)
		}
	}
	return connect.NewResponse(&push.PushResponse{}), nil
}

func connectCode() connect.Code {
	switch grpcCode() {
	case codes.InvalidArgument:
		return connect.CodeInvalidArgument
	case codes.ResourceExhausted:
		return connect.CodeResourceExhausted
	case codes.Unauthenticated:
		return connect.CodeUnauthenticated
	default:
		return connect.CodeInternal
	}
}

func grpcCode() codes.Code {
	switch *httpStatus {
	case 400:
		return codes.InvalidArgument
	case 401:
		return codes.Unauthenticated
	case 429:
		return codes.ResourceExhausted
	default:
		return codes.Internal
	}
}

// parcaStore is a ProfileStoreService.
type parcaStore struct {
	parca.UnimplementedProfileStoreServiceServer
}

func (parcaStore) WriteRaw(
	ctx context.Context, request *parca.WriteRawRequest,
) (*parca.WriteRawResponse, error) {
	if err := refusal("parca"); err != nil {
		return nil, status.Error(grpcCode(), err.Error())
	}
	for _, series := range request.Series {
		labels := map[string]string{}
		for _, label := range series.Labels.Labels {
			labels[label.Name] = label.Value
		}
		for _, sample := range series.Samples {
			received := read(sample.RawProfile)
			received.Receiver, received.Labels = "parca", labels
			checkLabels(received)
			received.Tenant = first(ctx, "x-scope-orgid")
			received.Authorization = first(ctx, "authorization")
			keep(received)
		}
	}
	return &parca.WriteRawResponse{}, nil
}

var labelName = regexp.MustCompile("^[a-zA-Z_][a-zA-Z0-9_]*$")

// checkLabels says what Pyroscope would object to by its default limits; Parca's
// rule for names is the same.
func checkLabels(received *Received) {
	names := map[string]bool{}
	for name, value := range received.Labels {
		names[name] = true
		if value == "" || len(value) > 2048 {
			received.Invalid = "the value of label " + name
		}
	}
	for label := range received.SampleLabels {
		name, _, _ := strings.Cut(label, "=")
		if _, taken := received.Labels[name]; taken {
			received.Invalid = "a sample has the series' label " + name
		}
		names[name] = true
	}
	for name := range names {
		if !labelName.MatchString(name) || len(name) > 1024 {
			received.Invalid = "label name " + name
		}
	}
	// More than any one series has, if samples differ.
	if len(names) > 30 {
		received.Invalid = "too many labels"
	}
}

func first(ctx context.Context, key string) string {
	values := metadata.ValueFromIncomingContext(ctx, key)
	return strings.Join(values, ",")
}

// read reads a pprof file.
func read(raw []byte) *Received {
	parsed, err := profile.Parse(bytes.NewReader(raw))
	if err == nil {
		err = parsed.CheckValid()
	}
	if err != nil {
		return &Received{Invalid: err.Error()}
	}
	received := &Received{
		Period:       parsed.PeriodType.Type + "/" + parsed.PeriodType.Unit,
		TimeNs:       parsed.TimeNanos,
		DurationNs:   parsed.DurationNanos,
		Samples:      len(parsed.Sample),
		Totals:       make([]int64, len(parsed.SampleType)),
		Cumulative:   map[string]int64{},
		SampleLabels: map[string]int64{},
	}
	for _, kind := range parsed.SampleType {
		received.Types = append(received.Types, kind.Type+"/"+kind.Unit)
	}
	for _, sample := range parsed.Sample {
		for index, value := range sample.Value {
			received.Totals[index] += value
		}
		last := sample.Value[len(sample.Value)-1]
		seen := map[string]bool{}
		for _, location := range sample.Location {
			for _, line := range location.Line {
				seen[line.Function.Name] = true
			}
		}
		for name := range seen {
			received.Cumulative[name] += last
		}
		for key, values := range sample.Label {
			received.SampleLabels[key+"="+strings.Join(values, ",")] += last
		}
	}
	return received
}
