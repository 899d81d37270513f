package main

import (
	"crypto/sha256"
	"math/rand"
	"strconv"

	"example.com/fixtures/hard_cases/native"
)

// worker is what one busy goroutine owns; nothing in it is shared.
type worker struct {
	random  *rand.Rand
	queue   []task
	sum     uint64
	numbers map[uint64]uint64
	words   map[string]uint64
	keys    []string
	from    []byte
	to      []byte
	tree    *node
	done    chan uint64
}

// copying moves blocks of 17 to 400 bytes, of which the compiler does not know
// the length: memmove is a frameless leaf in assembly.
//
//go:noinline
func (w *worker) copying() {
	for i := 0; i < 4; i++ {
		w.copyNames()
		w.copyRecords()
	}
}

//go:noinline
func (w *worker) copyNames() {
	n := 17
	for at := 0; at+64 <= len(w.from); at += n {
		copy(w.to[at:at+n], w.from[at:at+n])
		n = 17 + (n*7+5)%47
	}
}

//go:noinline
func (w *worker) copyRecords() {
	for i := 0; i < 6; i++ {
		n := 150
		for at := 0; at+400 <= len(w.from); at += n {
			copy(w.to[at:at+n], w.from[at:at+n])
			n = 150 + (n*7+5)%250
		}
	}
}

func (w *worker) fillMaps() {
	for i := uint64(0); i < 4000; i++ {
		w.numbers[i*i] = i
		w.keys = append(w.keys, "key-"+strconv.FormatUint(i*i, 10))
		w.words[w.keys[i]] = i
	}
}

//go:noinline
func (w *worker) mapAccess() {
	for i := uint64(0); i < 4000; i++ {
		w.sum += w.numbers[i*i]
	}
	for _, key := range w.keys[:2000] {
		w.sum += w.words[key]
	}
	for _, key := range w.keys[:500] {
		w.words[key]++
	}
}

// digests hashes in assembly that uses the frame pointer's register for other
// things.
//
//go:noinline
func (w *worker) digests() {
	for i := 0; i < 4; i++ {
		digest := sha256.Sum256(w.from[i<<12 : (i+3)<<12])
		w.sum += uint64(digest[0])
	}
}

// leaf has no frame: its caller is on no frame-pointer chain.
//
//go:noinline
func leaf(x uint64) uint64 {
	for i := 0; i < 8; i++ {
		x = x*6364136223846793005 + 1442695040888963407
	}
	return x
}

//go:noinline
func often(x uint64) uint64 {
	for i := 0; i < 9000; i++ {
		x = leaf(x)
	}
	return x
}

//go:noinline
func seldom(x uint64) uint64 {
	for i := 0; i < 1000; i++ {
		x = leaf(x)
	}
	return x
}

// leafCalls has 9 of 10 calls of the leaf from one caller.
//
//go:noinline
func (w *worker) leafCalls() {
	w.sum = seldom(often(w.sum))
}

//go:noinline
func (w *worker) inC() {
	w.sum += native.Burn(w.sum)
}

type node struct {
	left, right *node
	payload     [4]uint64
}

//go:noinline
func grow(depth int) *node {
	n := &node{}
	if depth > 0 {
		n.left, n.right = grow(depth-1), grow(depth-1)
	}
	return n
}

// garbage replaces a live tree, so that the collector has both marking and
// sweeping to do, on the system stack.
//
//go:noinline
func (w *worker) garbage() {
	w.tree = grow(11)
}

// descend is less deep than the 64 frames that Go's own profiler keeps.
//
//go:noinline
func descend(depth int) uint64 {
	var block [1024]byte
	block[depth] = byte(depth)
	if depth == 0 {
		return uint64(block[1])
	}
	return descend(depth-1) + uint64(block[depth])
}

func (w *worker) begin() {
	w.done <- descend(30)
}

// stackGrowth grows the small stacks of new goroutines, on the system stack.
//
//go:noinline
func (w *worker) stackGrowth() {
	for i := 0; i < 10; i++ {
		go w.begin()
		w.sum += <-w.done
	}
}
