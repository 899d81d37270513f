// Command stack_depth keeps every CPU busy at the bottom of a stack of exactly
// `-frames` frames, goexit included. With `-clobber` the innermost is assembly
// that uses the frame pointer's register as a counter; with `-labels` the
// goroutines have so many pprof labels.
package main

import (
	"context"
	"flag"
	"os"
	"runtime"
	"runtime/pprof"
	"strconv"

	"example.com/fixtures/internal/workload"
)

// fixed are the frames beside descend's: the leaf, the goroutine's function and
// goexit.
const fixed = 3

// rounds is how long a leaf takes, in additions.
const rounds = 5_000_000

var clobber = flag.Bool("clobber", false, "overwrite the frame pointer in the leaf")

//go:noinline
func leaf(x uint64) uint64 {
	for i := 0; i < rounds; i++ {
		x = x*6364136223846793005 + 1442695040888963407
	}
	return x
}

// clobberingLeaf adds up the numbers below count, counting in the register of
// the frame pointer.
func clobberingLeaf(count uint64) uint64

//go:noinline
func descend(calls int, x uint64) uint64 {
	if calls > 1 {
		return descend(calls-1, x) + 1
	}
	if *clobber {
		return clobberingLeaf(rounds) + 1
	}
	return leaf(x) + 1
}

//go:noinline
func spin(calls int, done chan<- uint64) {
	var x uint64
	for workload.Running() {
		x += descend(calls, x)
	}
	done <- x
}

// label gives the present goroutine labels, and those that it starts.
func label(count int) {
	var pairs []string
	for i := 0; i < count; i++ {
		pairs = append(pairs, "label"+strconv.Itoa(i), "value "+strconv.Itoa(i))
	}
	pprof.SetGoroutineLabels(pprof.WithLabels(context.Background(), pprof.Labels(pairs...)))
}

func main() {
	labels := flag.Int("labels", 0, "how many pprof labels the goroutines have")
	frames := flag.Int("frames", 10, "how deep the stack is, at least 4")
	flag.Parse()
	if *frames <= fixed {
		os.Stderr.WriteString("stack_depth: -frames must be at least 4\n")
		os.Exit(1)
	}
	if *labels > 0 {
		label(*labels)
	}
	workload.Start()
	done := make(chan uint64)
	for i := 0; i < runtime.GOMAXPROCS(0); i++ {
		go spin(*frames-fixed, done)
	}
	for i := 0; i < runtime.GOMAXPROCS(0); i++ {
		<-done
	}
}
