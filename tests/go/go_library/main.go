// Command go_library is Go code for a C program to load or to link with: a
// function that a thread of C calls, and one that leaves a goroutine behind.
package main

import "C"

func mix(x uint64) uint64 { return x*6364136223846793005 + 1442695040888963407 }

//go:noinline
func burn(x uint64) uint64 {
	for i := 0; i < 200_000; i++ {
		x = mix(x)
	}
	return x
}

//go:noinline
func inBackground() {
	for x := uint64(1); ; {
		x = burn(x)
	}
}

// GoBegin starts a goroutine that works for ever.
//
//export GoBegin
func GoBegin() {
	go inBackground()
}

// GoWork works for a moment on the caller's thread.
//
//export GoWork
func GoWork(x uint64) uint64 {
	return burn(x)
}

func main() {}
