// Command probe_load calls the allocator about as often on every CPU as it computes
// for a microsecond, and checks each result: a probe that harms it would show. It
// says on request how much it did in an interval.
//
// Told so it does something else instead, on one CPU (GOMAXPROCS is 1 then) and at a pace
// that depends on nothing but how fast that computes: "-do allocate" small objects, some
// 10 million a second; "-do lock" a mutex that another always waits for, and "-do send" on
// a channel without a buffer, some million a second, a receipt being one as well.
//
// It answers "measure 50ms" by the number of pieces of work, the nanoseconds they took by
// the clock, the nanoseconds of CPU time, and how many results were wrong. "grow 1000" has
// so many goroutines call a function whose stack has to grow for it, and says how many did.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"

	"example.com/fixtures/internal/turns"
	"example.com/fixtures/internal/workload"
)

type worker struct {
	turns.Work
	wrong atomic.Uint64
	kept  []byte
}

// Rounds of mix: of a microsecond, and those that bring the pieces of other work to
// their pace.
const (
	mixRounds      = 600
	allocateRounds = 55
	lockRounds     = 380
	sendRounds     = 570
)

// mix computes for some time and gives the same for the same.
//
//go:noinline
func mix(x uint64, rounds int) uint64 {
	for i := 0; i < rounds; i++ {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	return x
}

// piece allocates once, by a size that the compiler does not know, and checks what
// it was given.
//
//go:noinline
func (w *worker) piece(x, expected uint64, size int) {
	block := make([]byte, size)
	for _, b := range block {
		if b != 0 {
			w.wrong.Add(1)
		}
	}
	block[size-1] = byte(x)
	w.kept = block
	if mix(x, mixRounds) != expected || w.kept[size-1] != byte(x) {
		w.wrong.Add(1)
	}
	w.Add()
}

func (w *worker) loop() {
	const x = 0x9e3779b97f4a7c15
	expected := mix(x, mixRounds)
	for size := 1; workload.Running(); size = size%48 + 1 {
		w.piece(x, expected, size)
	}
}

// allocate leaves garbage of small sizes behind, of which the collector has nothing to mark.
//
//go:noinline
func (w *worker) allocate() {
	for x, size := uint64(1), 1; workload.Running(); size = size%48 + 1 {
		block := make([]byte, size)
		x = mix(x, allocateRounds)
		block[size-1] = byte(x)
		w.kept = block
		w.Add()
	}
}

// lock yields while it holds the mutex, so that another asks for it and waits, and again
// when it has given it back, so that the other gets it: with GOMAXPROCS=1 nothing of that
// is left to chance.
//
//go:noinline
func (w *worker) lock(mutex *sync.Mutex, held *int) {
	for x := uint64(1); workload.Running(); x = mix(x, lockRounds) {
		mutex.Lock()
		*held++
		if *held != 1 {
			w.wrong.Add(1)
		}
		runtime.Gosched()
		*held--
		mutex.Unlock()
		w.Add()
		runtime.Gosched()
	}
}

//go:noinline
func (w *worker) send(numbers chan<- uint64) {
	for x := uint64(1); workload.Running(); x = mix(x, sendRounds) {
		numbers <- x
		w.Add()
	}
}

//go:noinline
func (w *worker) receive(numbers <-chan uint64) {
	for expected := uint64(1); workload.Running(); expected = mix(expected, sendRounds) {
		if <-numbers != expected {
			w.wrong.Add(1)
		}
		w.Add()
	}
}

// begin has workers do what was asked for, and gives them.
func begin(what string) ([]worker, error) {
	switch what {
	case "nothing":
		return nil, nil
	case "mix":
		workers := make([]worker, runtime.GOMAXPROCS(0))
		for i := range workers {
			go workers[i].loop()
		}
		return workers, nil
	}
	runtime.GOMAXPROCS(1)
	workers := make([]worker, 2)
	switch one, other := &workers[0], &workers[1]; what {
	case "allocate":
		go one.allocate()
	case "lock":
		mutex, held := new(sync.Mutex), new(int)
		go one.lock(mutex, held)
		go other.lock(mutex, held)
	case "send":
		numbers := make(chan uint64)
		go one.send(numbers)
		go other.receive(numbers)
	default:
		return nil, fmt.Errorf("nothing does %q", what)
	}
	return workers, nil
}

// grow needs more stack than a new goroutine has.
//
//go:noinline
func grow(x byte) byte {
	var block [16 << 10]byte
	for i := range block {
		block[i] = x
	}
	return block[int(x)] - x
}

func growMany(count int) int {
	var calls atomic.Int64
	var group sync.WaitGroup
	for i := 0; i < count; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			grow(7)
			calls.Add(1)
		}()
	}
	group.Wait()
	return int(calls.Load())
}

// answer serves one request.
func answer(workers []worker, verb, object string) (string, error) {
	switch verb {
	case "measure":
		text, err := turns.Measure(object, func() uint64 { return total(workers) })
		return fmt.Sprint(text, " ", wrong(workers)), err
	case "grow":
		count, err := strconv.Atoi(object)
		if err != nil {
			return "", err
		}
		return strconv.Itoa(growMany(count)), nil
	}
	return "", turns.Unknown(verb, object)
}

func total(workers []worker) (sum uint64) {
	for i := range workers {
		sum += workers[i].Done()
	}
	return sum
}

func wrong(workers []worker) (sum uint64) {
	for i := range workers {
		sum += workers[i].wrong.Load()
	}
	return sum
}

func main() {
	idle := flag.Bool("idle", false, "do nothing")
	what := flag.String("do", "mix", "mix, allocate, lock or send")
	flag.Parse()
	if *idle {
		*what = "nothing"
	}
	workers, err := begin(*what)
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe_load:", err)
		os.Exit(2)
	}
	workload.Start()
	turns.Serve(func(verb, object string) (string, error) {
		return answer(workers, verb, object)
	})
}
