// Command alloc_mix allocates blocks of many sizes, with and without pointers, always in
// the same proportions, and has nothing in it that reads a heap profile: Go's linker
// leaves the profile out.
package main

import (
	"time"

	"example.com/fixtures/internal/workload"
)

type record struct {
	next *record
	text [100]byte
}

type node struct {
	next  *node
	value [5]int64
}

// Where blocks go until the next ones come.
var (
	records [2]*record
	number  *int64
	triple  *[3]int64
	list    *node
	buffer  []byte
	pages   []byte
	table   []*node
	text    string
	parts   = [2]string{"a text that is long enough to be", " no part of what is smaller"}
)

//go:noinline
func often() { records[0] = &record{} }

//go:noinline
func seldom() { records[1] = &record{} }

//go:noinline
func tiny() { number = new(int64) }

//go:noinline
func small() { triple = new([3]int64) }

//go:noinline
func pointers() { list = &node{} }

//go:noinline
func buffers() { buffer = make([]byte, 1000) }

//go:noinline
func tables() { table = make([]*node, 100) }

//go:noinline
func large() { pages = make([]byte, 40000) }

//go:noinline
func texts() { text = parts[0] + parts[1] }

// round calls each as often as the test says: often 6.9 times for seldom once.
func round(number int) {
	for i := 0; i < 69; i++ {
		often()
		if i%3 == 0 {
			tiny()
			tiny()
			tiny()
			tiny()
			small()
			small()
			pointers()
			pointers()
			texts()
		}
		if i%7 == 3 {
			seldom()
		}
		if i%16 == 15 {
			buffers()
		}
		if i%20 == 19 {
			tables()
		}
	}
	if number%8 == 0 {
		large()
	}
}

func main() {
	workload.Start()
	for workload.Running() {
		for i := 0; i < 400; i++ {
			round(i)
		}
		time.Sleep(time.Millisecond)
	}
}
