// Command closures spends its time in function literals: one in main, one
// nested in another, one behind a method value, one that a defer runs.
package main

import "example.com/fixtures/internal/workload"

// Sink keeps the results alive.
var Sink uint64

//go:noinline
func call(f func(uint64) uint64, x uint64) uint64 {
	return f(x)
}

func burn(x uint64, rounds int) uint64 {
	for i := 0; i < rounds; i++ {
		x = x*6364136223846793005 + 1442695040888963407
	}
	return x
}

//go:noinline
func nested(seed uint64) func(uint64) uint64 {
	return func(x uint64) uint64 {
		inner := func(y uint64) uint64 { return burn(y+seed, 200_000) }
		return call(inner, x)
	}
}

type counter struct{ step uint64 }

//go:noinline
func (c *counter) advance(x uint64) uint64 {
	return burn(x+c.step, 200_000)
}

//go:noinline
func deferred(x uint64) (result uint64) {
	defer func() { result = burn(x, 200_000) }()
	return x
}

func main() {
	workload.Start()
	add := nested(3)
	count := &counter{step: 5}
	advance := count.advance
	for workload.Running() {
		Sink = call(func(x uint64) uint64 { return burn(x, 200_000) }, Sink)
		Sink = call(add, Sink)
		Sink = call(advance, Sink)
		Sink = deferred(Sink)
	}
}
