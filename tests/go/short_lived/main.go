// Command short_lived is busy for 50 ms and exits; -duration sets
// another length.
package main

import (
	"flag"
	"time"
)

// Sink keeps the results alive.
var Sink uint64

//go:noinline
func flash(x uint64) uint64 {
	for i := 0; i < 50_000; i++ {
		x = x*6364136223846793005 + 1442695040888963407
	}
	return x
}

func main() {
	duration := flag.Duration("duration", 50*time.Millisecond, "how long to run")
	flag.Parse()
	for start := time.Now(); time.Since(start) < *duration; {
		Sink = flash(Sink)
	}
}
