// Command labels works in goroutines with pprof labels: two of three rounds
// under path=/a with a second label, one under path=/b whose value is long.
// It prints the ids of the goroutines that work.
package main

import (
	"context"
	"runtime"
	"runtime/pprof"
	"strings"

	"example.com/fixtures/internal/workload"
)

// Sink keeps the results alive.
var Sink uint64

// Long is longer than what a profiler need keep of a label.
var Long = strings.Repeat("long ", 100)

//go:noinline
func burn(x uint64, rounds int) uint64 {
	for i := 0; i < rounds; i++ {
		x = x*6364136223846793005 + 1442695040888963407
	}
	return x
}

// goid is the second word of "goroutine 17 [running]:".
func goid() string {
	buffer := make([]byte, 64)
	return strings.Fields(string(buffer[:runtime.Stack(buffer, false)]))[1]
}

func main() {
	ids := make(chan string)
	ready := make(chan struct{})
	work := func(rounds int, labels pprof.LabelSet) {
		ids <- goid()
		<-ready
		for workload.Running() {
			pprof.Do(context.Background(), labels, func(context.Context) {
				Sink = burn(Sink, rounds*100_000)
			})
			runtime.Gosched()
		}
	}
	runtime.GOMAXPROCS(1)
	go work(2, pprof.Labels("path", "/a", "user", "bob"))
	first := <-ids
	go work(1, pprof.Labels("path", "/b", "text", Long, "n1", "1", "n2", "2", "n3", "3",
		"n4", "4", "n5", "5", "n6", "6", "n7", "7", "n8", "8", "n9", "9"))
	second := <-ids
	workload.Start(first, second)
	close(ready)
	select {}
}
