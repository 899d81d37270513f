// Command sha256_asm hashes with crypto/sha256, whose AVX2 assembly uses the
// frame pointer's register for other things.
package main

import (
	"crypto/sha256"

	"example.com/fixtures/internal/workload"
)

// Sink keeps the results alive.
var Sink byte

// Not a local: on the stack it would make a frame larger than what is copied
// of the stack.
var data = make([]byte, 64<<10)

//go:noinline
func digest(data []byte) byte {
	sum := sha256.Sum256(data)
	return sum[0]
}

//go:noinline
func digestAll() {
	for i := 0; i < 16; i++ {
		Sink += digest(data)
	}
}

func main() {
	workload.Start()
	for workload.Running() {
		digestAll()
	}
}
