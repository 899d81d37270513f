// Command inlined_leaf has a hot leaf inlined into two callers, which are
// themselves inlined into one function: three source frames at one address.
package main

import "example.com/fixtures/internal/workload"

// Sink keeps the results alive.
var Sink uint64

func hotLeaf(x uint64) uint64 {
	x ^= x >> 31
	x *= 0x9e3779b97f4a7c15
	return x ^ x>>27
}

func callerTwice(x uint64) uint64 {
	return hotLeaf(hotLeaf(x))
}

func callerOnce(x uint64) uint64 {
	return hotLeaf(x) + 1
}

//go:noinline
func work(x uint64) uint64 {
	for i := 0; i < 100_000; i++ {
		x = callerTwice(x)
		x = callerOnce(x)
	}
	return x
}

func main() {
	workload.Start()
	for workload.Running() {
		Sink = work(Sink)
	}
}
