// Command alloc_unread allocates all the time, and has nothing in it that reads a
// heap profile: Go's linker leaves the profile out.
package main

import (
	"time"

	"example.com/fixtures/internal/workload"
)

type record struct {
	next *record
	text [100]byte
}

var kept *record

//go:noinline
func allocate() *record { return &record{} }

func main() {
	workload.Start()
	for workload.Running() {
		kept = nil
		// Some 100 MB a second.
		for i := 0; i < 10000; i++ {
			record := allocate()
			record.next = kept
			kept = record
		}
		time.Sleep(10 * time.Millisecond)
	}
}
