// Command hostile makes everything that a profiler follows in it lead astray,
// in C, on threads of Go's and others, and in labels. Beside that it does
// honest work, which has to be told right all the same.
package main

import (
	"context"
	"runtime"
	"runtime/pprof"

	"example.com/fixtures/hostile/scribble"
	"example.com/fixtures/hostile/thread"
	"example.com/fixtures/internal/workload"
)

// Sink keeps the results alive.
var Sink uint64

//go:noinline
func burn(x uint64) uint64 {
	for i := 0; i < 1_000_000; i++ {
		x = x*6364136223846793005 + 1442695040888963407
	}
	return x
}

//go:noinline
func honest() {
	for workload.Running() {
		Sink = burn(Sink) + 1
	}
}

//go:noinline
func labelled() {
	for workload.Running() {
		Sink = burn(Sink) + 2
	}
}

// haveLabels links the type of labels in, as whatever sets them does.
func haveLabels() {
	pprof.Do(context.Background(), pprof.Labels("key", "value"), func(context.Context) {})
}

// scribbles calls C on a thread of its own.
func scribbles(c func(slot uintptr)) {
	runtime.LockOSThread()
	slot := thread.Slot()
	for workload.Running() {
		c(slot)
	}
}

func main() {
	runtime.GOMAXPROCS(16)
	haveLabels()
	lies := scribble.Prepare()
	for _, c := range []func(uintptr){
		scribble.Loop, scribble.Chain, scribble.Frame, scribble.Stack, scribble.G, scribble.Lies,
	} {
		go scribbles(c)
	}
	go honest()
	go func() {
		thread.SetLabels(lies)
		labelled()
	}()
	workload.Start()
	select {}
}
