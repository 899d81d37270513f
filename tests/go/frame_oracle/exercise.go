package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strings"
	"sync"
)

type number interface {
	~int | ~int64 | ~float64 | ~string
}

type pair[K comparable, V number] struct {
	key   K
	value V
}

func (p pair[K, V]) larger(q pair[K, V]) pair[K, V] {
	if q.value > p.value {
		return q
	}
	return p
}

func largest[K comparable, V number](pairs ...pair[K, V]) pair[K, V] {
	best := pairs[0]
	for _, p := range pairs[1:] {
		best = best.larger(p)
	}
	return best
}

type shape interface{ area() int }

type square struct{ side int }

func (s square) area() int { return multiply(s.side, s.side) }

type named struct {
	shape // Promoted methods get wrappers.
	name  string
}

func multiply(a, b int) int { return a * add(b, 0) }
func add(a, b int) int      { return a + negate(-b) }
func negate(a int) int      { return -a }

type failure struct{ at int }

func (f *failure) Error() string { return fmt.Sprint("at ", f.at) }

func exercise(n int) string {
	var out strings.Builder
	best := largest(pair[string, int]{"a", n}, pair[string, int]{"b", n + 1})
	text := largest(pair[int, string]{1, "x"}, pair[int, string]{2, "y"})
	fmt.Fprintln(&out, best.key, text.value)

	total := 0
	shapes := []shape{square{n}, &square{n + 1}, named{square{2}, "two"}, &named{square{3}, "three"}}
	for _, s := range shapes {
		f := s.area // A method value.
		total += f()
	}
	defer func() {
		if r := recover(); r != nil {
			fmt.Fprintln(&out, "recovered", r)
		}
	}()
	counter := func(step int) func() int {
		at := 0
		return func() int { at += add(step, 1); return at }
	}(n)
	var wait sync.WaitGroup
	var lock sync.Mutex
	for i := 0; i < 4; i++ {
		wait.Add(1)
		go func() {
			defer wait.Done()
			lock.Lock()
			defer lock.Unlock()
			total += counter()
		}()
	}
	wait.Wait()
	sort.Slice(shapes, func(i, j int) bool { return shapes[i].area() < shapes[j].area() })
	data, err := json.Marshal(map[string]any{"total": total, "depth": depth(n, 300)})
	if err != nil || errors.As(fail(n), new(*failure)) {
		fmt.Fprintln(&out, string(data), fail(n))
	}
	return out.String()
}

func fail(at int) error { return fmt.Errorf("wrapped: %w", &failure{at}) }

//go:noinline
func depth(n, left int) int {
	if left == 0 {
		return n
	}
	return depth(n, left-1) + negate(n)
}
