// Command probe_load calls the allocator about as often on every CPU as it computes
// for a microsecond, and checks each result: a probe that harms it would show. It
// says on request how much it did in an interval.
//
// Each line on standard input is a request, answered by a line that begins with
// "done". "measure 50ms" gives
// the number of allocations, the nanoseconds they took by the clock, the nanoseconds
// of CPU time, and how many results were wrong. "grow 1000" has so many goroutines
// call a function whose stack has to grow for it, and says how many did.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"example.com/fixtures/internal/workload"
)

type worker struct {
	done  atomic.Uint64
	wrong atomic.Uint64
	kept  []byte
	_     [64]byte // the counters of two workers share no cache line
}

// mix takes about a microsecond and gives the same for the same.
//
//go:noinline
func mix(x uint64) uint64 {
	for i := 0; i < 600; i++ {
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
	if mix(x) != expected || w.kept[size-1] != byte(x) {
		w.wrong.Add(1)
	}
	w.done.Add(1)
}

func (w *worker) loop() {
	const x = 0x9e3779b97f4a7c15
	expected := mix(x)
	for size := 1; workload.Running(); size = size%48 + 1 {
		w.piece(x, expected, size)
	}
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

func measure(workers []worker, interval time.Duration) {
	begun, cpuBefore := time.Now(), cpuTime()
	before, _ := total(workers)
	time.Sleep(interval)
	after, wrong := total(workers)
	took, cpu := time.Since(begun), cpuTime()-cpuBefore
	fmt.Println("done", after-before, took.Nanoseconds(), cpu.Nanoseconds(), wrong)
}

// answer serves one request.
func answer(workers []worker, verb, object string) error {
	switch verb {
	case "measure":
		interval, err := time.ParseDuration(object)
		if err == nil {
			measure(workers, interval)
		}
		return err
	case "grow":
		count, err := strconv.Atoi(object)
		if err == nil {
			fmt.Println("done", growMany(count))
		}
		return err
	}
	return fmt.Errorf("no such request: %s %s", verb, object)
}

func total(workers []worker) (done, wrong uint64) {
	for i := range workers {
		done += workers[i].done.Load()
		wrong += workers[i].wrong.Load()
	}
	return done, wrong
}

func cpuTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func main() {
	idle := flag.Bool("idle", false, "allocate nothing")
	flag.Parse()
	workers := make([]worker, runtime.GOMAXPROCS(0))
	if *idle {
		workers = nil
	}
	workload.Start()
	for i := range workers {
		go workers[i].loop()
	}
	requests := bufio.NewScanner(os.Stdin)
	for requests.Scan() {
		var verb, object string
		_, err := fmt.Sscan(requests.Text(), &verb, &object)
		if err == nil {
			err = answer(workers, verb, object)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "probe_load:", err)
			os.Exit(1)
		}
	}
}
