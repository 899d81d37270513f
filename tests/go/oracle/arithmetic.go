package main

import (
	"math"
	"math/rand"
)

// worker is what one busy goroutine owns; nothing in it is shared.
type worker struct {
	random  *rand.Rand
	queue   []task
	sum     uint64
	ints    []int32
	floats  []float64
	scratch []int
	shapes  []shape
	counts  map[string]int
	keys    []string
	from    []byte
	to      []byte
	tree    *node
	requests,
	answers chan int
	null interface{ Write([]byte) (int, error) }
}

func mixOnce(x uint64) uint64 {
	x ^= x >> 33
	return x * 0xff51afd7ed558ccd
}

func mixTwice(x uint64) uint64 {
	return mixOnce(mixOnce(x)+1) ^ x>>7
}

//go:noinline
func hashLoop(x uint64) uint64 {
	for i := 0; i < 60_000; i++ {
		x = mixTwice(x)
	}
	return x
}

//go:noinline
func (w *worker) inlinedLeaves() {
	w.sum += hashLoop(w.sum)
}

//go:noinline
func fib(n int) int {
	if n < 2 {
		return n
	}
	return fib(n-1) + fib(n-2)
}

//go:noinline
func (w *worker) fibonacci() {
	w.sum += uint64(fib(20))
}

type number interface{ ~int32 | ~float64 }

//go:noinline
func sumSquares[T number](values []T) T {
	var sum T
	for _, v := range values {
		sum += v * v
	}
	return sum
}

func maxOf[T number](values []T) T {
	best := values[0]
	for _, v := range values {
		if v > best {
			best = v
		}
	}
	return best
}

//go:noinline
func (w *worker) genericSums() {
	for i := 0; i < 30; i++ {
		w.sum += uint64(sumSquares(w.ints))
		w.sum += uint64(sumSquares(w.floats))
		w.sum += uint64(maxOf(w.ints))
	}
}

//go:noinline
func adder(step uint64) func(uint64) uint64 {
	calls := uint64(0)
	return func(x uint64) uint64 {
		calls++
		return x*step + calls
	}
}

//go:noinline
func apply(times int, f func(uint64) uint64, x uint64) uint64 {
	for i := 0; i < times; i++ {
		x = f(x)
	}
	return x
}

func (w *worker) addToSum(x uint64) uint64 {
	w.sum += x
	return w.sum
}

//go:noinline
func (w *worker) closureCalls() {
	w.sum = apply(60_000, adder(3), w.sum)
	w.sum = apply(30_000, w.addToSum, 1)
}

type shape interface{ area() float64 }

type square struct{ side float64 }
type circle struct{ radius float64 }
type polygon struct{ sides []float64 }

//go:noinline
func (s square) area() float64 { return s.side * s.side }

//go:noinline
func (c *circle) area() float64 { return math.Sqrt(c.radius*c.radius+1) * math.Pi }

//go:noinline
func (p *polygon) area() float64 {
	sum := 0.0
	for _, s := range p.sides {
		sum += s / (1 + s*s)
	}
	return sum
}

//go:noinline
func (w *worker) interfaceCalls() {
	total := 0.0
	for i := 0; i < 200; i++ {
		for _, s := range w.shapes {
			total += s.area()
		}
	}
	w.sum += uint64(total)
}
