// Command deep_recursion burns its time at the bottom of a recursion of known
// depth: `leaf` under `-depth` calls of `descend`, under `main`.
package main

import (
	"flag"

	"example.com/fixtures/internal/workload"
)

// Sink keeps the results alive.
var Sink uint64

//go:noinline
func leaf(x uint64) uint64 {
	for i := 0; i < 5_000_000; i++ {
		x = x*6364136223846793005 + 1442695040888963407
	}
	return x
}

//go:noinline
func descend(depth int, x uint64) uint64 {
	if depth == 1 {
		return leaf(x) + 1
	}
	return descend(depth-1, x) + 1
}

func main() {
	depth := flag.Int("depth", 400, "how many calls of descend lie over leaf")
	workload.Start()
	for workload.Running() {
		Sink = descend(*depth, Sink)
	}
}
