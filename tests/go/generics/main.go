// Command generics spends its time in generic functions and in methods of
// generic types, each instantiated for more than one shape.
package main

import "example.com/fixtures/internal/workload"

type number interface {
	~int32 | ~int64 | ~float64
}

//go:noinline
func sumOf[T number](values []T) T {
	var sum T
	for _, v := range values {
		sum += v * v
	}
	return sum
}

type ring[T any] struct {
	items []T
	next  int
}

//go:noinline
func (r *ring[T]) rotate(times int) {
	for i := 0; i < times; i++ {
		r.items[r.next], r.items[0] = r.items[0], r.items[r.next]
		r.next = (r.next + 7) % len(r.items)
	}
}

// Sink keeps the results alive.
var Sink float64

func main() {
	small := make([]int32, 1<<12)
	large := make([]float64, 1<<12)
	for i := range small {
		small[i], large[i] = int32(i), float64(i)
	}
	words := &ring[string]{items: make([]string, 101)}
	counts := &ring[int64]{items: make([]int64, 101)}
	workload.Start()
	for workload.Running() {
		for i := 0; i < 100; i++ {
			Sink += float64(sumOf(small)) + sumOf(large)
		}
		words.rotate(50_000)
		counts.rotate(50_000)
	}
}
