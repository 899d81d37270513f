// Command hostile_names works under names that want to be more than names: of
// its thread, its labels and, once a test has put others over those below, its
// function, file and module.
package main

import (
	"context"
	"os"
	"runtime"
	"runtime/pprof"
	"strings"
	"time"

	"example.com/fixtures/internal/workload"
)

// Hostile is what pages, metrics, logs, terminals, paths, JSON and queries each
// take for something else.
const Hostile = "</script><script>alert(1)</script><img src=x onerror=alert(1)>" +
	"\"} 1\n# EVIL \\\r\x1b[2J\x1b]0;EVIL\x07\x00\u202e'); DROP TABLE x; --{{7*7}}${x}%s../../../../EVIL;EVIL 1\xff"

// Sink keeps the results alive.
var Sink uint64

func main() {
	comm := strings.NewReplacer("\x00", "").Replace(Hostile[:9] + "\n\x1b[2J\xff")
	if err := os.WriteFile("/proc/self/comm", []byte(comm), 0); err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
	runtime.GOMAXPROCS(2)
	workload.Start()
	labels := pprof.Labels(Hostile, Hostile, "__name__", Hostile, "service_name", Hostile)
	pprof.Do(context.Background(), labels, func(context.Context) {
		for workload.Running() {
			Sink = placeholderForAFunctionNameOfAnyBytes(Sink)
			time.Sleep(time.Millisecond)
		}
	})
}
