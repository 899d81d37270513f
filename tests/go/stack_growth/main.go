// Command stack_growth starts goroutines that outgrow their stacks at once, so
// that much of its time goes into copying them, on the system stack.
package main

import "example.com/fixtures/internal/workload"

// Sink keeps the results alive.
var Sink int

//go:noinline
func grow(depth int) int {
	var block [256]byte
	block[depth%len(block)] = 1
	if depth == 0 {
		return int(block[3])
	}
	return grow(depth-1) + int(block[7])
}

func begin(done chan<- int) {
	done <- grow(400)
}

func main() {
	workload.Start()
	done := make(chan int)
	for workload.Running() {
		go begin(done)
		Sink += <-done
	}
}
