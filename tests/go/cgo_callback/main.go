// Command cgo_callback spends its time in Go called from C called from Go, and
// in C after such a call. The C code has no frame pointers.
package main

// #cgo CFLAGS: -O2 -fomit-frame-pointer
// #include "visit.h"
import "C"

import "fixtures/internal/workload"

// Sink keeps the results alive.
var Sink uint64

//export goVisit
func goVisit(x C.ulong) C.ulong { return C.ulong(burn(uint64(x)) + 1) }

//go:noinline
func burn(x uint64) uint64 {
	for i := 0; i < 200_000; i++ {
		x = x*6364136223846793005 + 1442695040888963407
	}
	return x
}

//go:noinline
func callVisit(x uint64) uint64 { return uint64(C.visit_outer(C.ulong(x))) + 1 }

func main() {
	workload.Start()
	for workload.Running() {
		Sink = callVisit(Sink)
	}
}
