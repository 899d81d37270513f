package main

import (
	"math/rand"
	"os"
	"strconv"
	"syscall"
)

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
// sweeping to do.
//
//go:noinline
func (w *worker) garbage() {
	w.tree = grow(11)
}

//go:noinline
func (w *worker) channelExchange() {
	for i := 0; i < 300; i++ {
		w.requests <- i
		w.sum += uint64(<-w.answers)
	}
}

// answer is the other side of channelExchange.
func (w *worker) answer() {
	for request := range w.requests {
		select {
		case w.answers <- request * 2:
		}
	}
}

// smallCalls makes short system calls.
//
//go:noinline
func (w *worker) smallCalls() {
	for i := 0; i < 300; i++ {
		w.sum += uint64(syscall.Getuid())
	}
	for i := 0; i < 100; i++ {
		if n, err := w.null.Write(w.from[:128]); err == nil {
			w.sum += uint64(n)
		}
	}
}

func newWorker(random *rand.Rand) *worker {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		panic(err)
	}
	w := &worker{
		random:   random,
		ints:     make([]int32, 4096),
		floats:   make([]float64, 4096),
		scratch:  make([]int, 2000),
		counts:   make(map[string]int),
		from:     make([]byte, 256<<10),
		to:       make([]byte, 256<<10),
		requests: make(chan int),
		answers:  make(chan int),
		null:     null,
	}
	for i := range w.ints {
		w.ints[i], w.floats[i] = int32(i), float64(i)
	}
	for i := 0; i < 3000; i++ {
		w.keys = append(w.keys, "key-"+strconv.Itoa(i*i))
	}
	for i := 0; i < 100; i++ {
		w.shapes = append(w.shapes, square{float64(i)}, &circle{float64(i)},
			&polygon{sides: w.floats[i : i+8]})
	}
	for _, t := range tasks {
		for i := 0; i < t.times; i++ {
			w.queue = append(w.queue, t)
		}
	}
	random.Read(w.from)
	go w.answer()
	return w
}
