// Command leaf_prologue calls functions so small that much of its time passes
// in prologues, epilogues and leaves without a frame, where the frame pointer
// is still the caller's.
package main

import "example.com/fixtures/internal/workload"

// Sink keeps the results alive.
var Sink uint64

//go:noinline
func leaf(x uint64) uint64 {
	return x*3 + 1
}

//go:noinline
func framed(x uint64) uint64 {
	return leaf(x) ^ leaf(x+1)
}

//go:noinline
func large(x uint64) uint64 {
	var buffer [64]uint64
	fill(&buffer, x)
	return buffer[x&63]
}

//go:noinline
func fill(buffer *[64]uint64, x uint64) {
	buffer[x&63] = x
}

//go:noinline
func moved(to, from []byte) {
	copy(to, from)
}

//go:noinline
func round(to, from []byte, x uint64) uint64 {
	for i := 0; i < 1000; i++ {
		x += framed(x) + large(x)
		moved(to, from)
	}
	return x
}

func main() {
	to, from := make([]byte, 512), make([]byte, 512)
	workload.Start()
	for workload.Running() {
		Sink = round(to, from, Sink)
	}
}
