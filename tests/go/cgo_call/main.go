// Command cgo_call spends its time in C called from Go: in code with frame
// pointers and in code without.
package main

import (
	"example.com/fixtures/cgo_call/framed"
	"example.com/fixtures/cgo_call/frameless"
	"example.com/fixtures/internal/workload"
)

// Sink keeps the results alive.
var Sink uint64

//go:noinline
func callFramed(x uint64) uint64 { return framed.Burn(x) + 1 }

//go:noinline
func callFrameless(x uint64) uint64 { return frameless.Burn(x) + 1 }

func main() {
	workload.Start()
	for workload.Running() {
		Sink = callFramed(Sink)
		Sink = callFrameless(Sink)
	}
}
