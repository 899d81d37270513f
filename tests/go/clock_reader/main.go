// Command clock_reader reads the clocks, which the kernel serves from code of
// its own in the process: the runtime goes over to the system stack for it.
package main

import (
	"time"

	"fixtures/internal/workload"
)

// Sink keeps the results alive.
var Sink int64

//go:noinline
func readClock() int64 { return time.Now().UnixNano() + 1 }

func main() {
	workload.Start()
	for workload.Running() {
		for i := 0; i < 1000; i++ {
			Sink += readClock()
		}
	}
}
