package main

import (
	"context"
	"encoding/hex"
	"fmt"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/profiles/v1development"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	profiles "go.opentelemetry.io/proto/otlp/profiles/v1development"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// collector is a ProfilesService.
type collector struct {
	collectorpb.UnimplementedProfilesServiceServer
}

func (collector) Export(
	ctx context.Context, request *collectorpb.ExportProfilesServiceRequest,
) (*collectorpb.ExportProfilesServiceResponse, error) {
	if err := refusal("otlp"); err != nil {
		return nil, status.Error(grpcCode(), err.Error())
	}
	tables := request.Dictionary
	invalid := checkTables(tables)
	for _, resource := range request.ResourceProfiles {
		labels := map[string]string{}
		for _, attribute := range resource.Resource.Attributes {
			labels[attribute.Key] = attribute.Value.GetStringValue()
		}
		for _, scope := range resource.ScopeProfiles {
			for _, profile := range scope.Profiles {
				received := &Received{
					Receiver:      "otlp",
					Labels:        labels,
					Tenant:        first(ctx, "x-scope-orgid"),
					Authorization: first(ctx, "authorization"),
					Invalid:       invalid,
				}
				if invalid == "" {
					readOtlp(received, profile, tables)
				}
				keep(received)
			}
		}
	}
	return &collectorpb.ExportProfilesServiceResponse{}, nil
}

// checkTables says what a table's rows refer to that is not there, and which
// table does not begin with nothing.
func checkTables(d *profiles.ProfilesDictionary) (invalid string) {
	is := func(what string, index int32, length int) {
		if index < 0 || int(index) >= length {
			invalid = fmt.Sprintf("%s %d of %d", what, index, length)
		}
	}
	text := func(index int32) { is("string", index, len(d.StringTable)) }
	attributes := func(indices []int32) {
		for _, index := range indices {
			is("attribute", index, len(d.AttributeTable))
		}
	}
	if len(d.StringTable) == 0 || d.StringTable[0] != "" {
		return "the first string is not empty"
	}
	for name, first := range map[string]proto.Message{
		"mapping": d.MappingTable[0], "location": d.LocationTable[0],
		"function": d.FunctionTable[0], "link": d.LinkTable[0],
		"attribute": d.AttributeTable[0], "stack": d.StackTable[0],
	} {
		if proto.Size(first) != 0 {
			return "the first " + name + " is not empty"
		}
	}
	for _, mapping := range d.MappingTable {
		text(mapping.FilenameStrindex)
		attributes(mapping.AttributeIndices)
	}
	for _, location := range d.LocationTable {
		is("mapping", location.MappingIndex, len(d.MappingTable))
		attributes(location.AttributeIndices)
		for _, line := range location.Lines {
			is("function", line.FunctionIndex, len(d.FunctionTable))
		}
	}
	for _, function := range d.FunctionTable {
		text(function.NameStrindex)
		text(function.SystemNameStrindex)
		text(function.FilenameStrindex)
	}
	for _, attribute := range d.AttributeTable {
		text(attribute.KeyStrindex)
	}
	for _, stack := range d.StackTable {
		for _, index := range stack.LocationIndices {
			is("location", index, len(d.LocationTable))
		}
	}
	return invalid
}

func readOtlp(received *Received, profile *profiles.Profile, d *profiles.ProfilesDictionary) {
	kind := func(kind *profiles.ValueType) string {
		return d.StringTable[kind.TypeStrindex] + "/" + d.StringTable[kind.UnitStrindex]
	}
	received.ID = hex.EncodeToString(profile.ProfileId)
	received.Types = []string{kind(profile.SampleType)}
	received.Period = kind(profile.PeriodType)
	received.TimeNs = int64(profile.TimeUnixNano)
	received.DurationNs = int64(profile.DurationNano)
	received.Samples = len(profile.Samples)
	received.Totals = []int64{0}
	received.Cumulative = map[string]int64{}
	received.SampleLabels = map[string]int64{}
	for _, sample := range profile.Samples {
		if len(sample.Values) != 1 || int(sample.StackIndex) >= len(d.StackTable) {
			received.Invalid = "a sample has not one value, or no stack"
			return
		}
		value := sample.Values[0]
		received.Totals[0] += value
		seen := map[string]bool{}
		for _, index := range d.StackTable[sample.StackIndex].LocationIndices {
			for _, line := range d.LocationTable[index].Lines {
				name := d.FunctionTable[line.FunctionIndex].NameStrindex
				seen[d.StringTable[name]] = true
			}
		}
		for name := range seen {
			received.Cumulative[name] += value
		}
		for _, index := range sample.AttributeIndices {
			attribute := d.AttributeTable[index]
			text := attribute.Value.Value.(*common.AnyValue_StringValue).StringValue
			received.SampleLabels[d.StringTable[attribute.KeyStrindex]+"="+text] += value
		}
	}
}
