// Package workload holds what every fixture shares: the -duration flag, the
// ready line that tells a test the program is busy, and the end of the run.
package workload

import (
	"flag"
	"os"
	"time"
)

var duration = flag.Duration("duration", 0, "how long to run; 0 runs until killed")

var deadline time.Time

// Start parses the flags and prints "ready", with details after it. What the
// program prints before this line is not part of the protocol.
func Start(details ...string) {
	if !flag.Parsed() {
		flag.Parse()
	}
	if *duration > 0 {
		deadline = time.Now().Add(*duration)
	}
	line := "ready"
	for _, detail := range details {
		line += " " + detail
	}
	os.Stdout.WriteString(line + "\n")
}

// Running reports whether the program should go on. Call it every few
// milliseconds of work: it reads the clock.
func Running() bool {
	return deadline.IsZero() || time.Now().Before(deadline)
}
