// Command goroutines keeps 10,000 goroutines parked, and a few busy ones that
// were started from a function, a method and a function literal, so that their
// stacks begin there and not in main.
package main

import (
	"sync"

	"example.com/fixtures/internal/workload"
)

//go:noinline
func burn(x uint64) uint64 {
	for i := 0; i < 200_000; i++ {
		x = x*6364136223846793005 + 1442695040888963407
	}
	return x
}

type pool struct{ sum uint64 }

func (p *pool) runMethod(done *sync.WaitGroup) {
	defer done.Done()
	for workload.Running() {
		p.sum += burn(p.sum)
	}
}

func runFunction(done *sync.WaitGroup) {
	defer done.Done()
	x := uint64(1)
	for workload.Running() {
		x = burn(x)
	}
}

func main() {
	parked := make(chan struct{})
	for i := 0; i < 10_000; i++ {
		go func() { <-parked }()
	}
	workload.Start()
	var done sync.WaitGroup
	done.Add(3)
	go runFunction(&done)
	go new(pool).runMethod(&done)
	go func() {
		defer done.Done()
		x := uint64(2)
		for workload.Running() {
			x = burn(x)
		}
	}()
	done.Wait()
}
