// Command busy_loop spends its time in two functions at a ratio of three to
// one, both of which inline the same leaf.
package main

import "example.com/fixtures/internal/workload"

// Sink keeps the results alive.
var Sink uint64

// mix is small enough to be inlined at every call; one call depends on the
// one before it, so its cost cannot be hidden.
func mix(x uint64) uint64 { // line:func_mix
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd // line:mix
	x ^= x >> 29
	return x*0xc4ceb9fe1a85ec53 + 1
}

//go:noinline
func spinThree(x uint64) uint64 { // line:func_spinThree
	for i := 0; i < 300_000; i++ {
		x = mix(x) // line:spinThree
	}
	return x
}

//go:noinline
func spinOne(x uint64) uint64 { // line:func_spinOne
	for i := 0; i < 100_000; i++ {
		x = mix(x) // line:spinOne
	}
	return x
}

//go:noinline
func spin(x uint64) uint64 { // line:func_spin
	x = spinThree(x) // line:callThree
	return spinOne(x)
}

func main() {
	workload.Start()
	for workload.Running() {
		Sink = spin(Sink)
	}
}
