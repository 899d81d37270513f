// Command spans works inside of a span that a tracing library has noted in the
// goroutine's pprof labels, under the names that such libraries use.
package main

import (
	"context"
	"runtime/pprof"

	"example.com/fixtures/internal/workload"
)

// Sink keeps the results alive.
var Sink uint64

//go:noinline
func burn(x uint64) uint64 {
	for i := 0; i < 100_000; i++ {
		x = x*6364136223846793005 + 1442695040888963407
	}
	return x
}

func main() {
	// The ids are those of the examples in the W3C's Trace Context.
	labels := pprof.Labels(
		"span_id", "00f067aa0ba902b7",
		"trace_id", "4bf92f3577b34da6a3ce929d0e0e4736",
		"profile_id", "00f067aa0ba902b7",
		"span_name", "GET /cart/{id}",
	)
	pprof.SetGoroutineLabels(pprof.WithLabels(context.Background(), labels))
	workload.Start()
	for workload.Running() {
		Sink = burn(Sink)
	}
}
