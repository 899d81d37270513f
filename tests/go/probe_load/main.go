// Command probe_load calls the allocator about as often on every CPU as it computes
// for a microsecond, and checks each result: a probe that harms it would show. It
// says on request how much it did in an interval.
//
// Told so it does something else instead, as often as it can: "-do allocate", "-do lock"
// (a mutex that others always wait for) or "-do send" (on a channel without a buffer).
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

// allocate does next to nothing else.
//
//go:noinline
func (w *worker) allocate() {
	for size := 1; workload.Running(); size = size%48 + 1 {
		block := make([]byte, size)
		block[size-1] = byte(size)
		w.kept = block
		w.done.Add(1)
	}
}

// lock holds a mutex while another asks for it.
//
//go:noinline
func (w *worker) lock(mutex *sync.Mutex, held *int) {
	for workload.Running() {
		mutex.Lock()
		*held++
		if *held != 1 {
			w.wrong.Add(1)
		}
		runtime.Gosched()
		*held--
		mutex.Unlock()
		w.done.Add(1)
	}
}

//go:noinline
func (w *worker) send(numbers chan<- uint64) {
	for x := uint64(0); workload.Running(); x++ {
		numbers <- x
		w.done.Add(1)
	}
}

//go:noinline
func (w *worker) receive(numbers <-chan uint64) {
	expected := uint64(0)
	for x := range numbers {
		if x != expected {
			w.wrong.Add(1)
		}
		expected++
	}
}

// begin lets each worker do what was asked for.
func begin(what string, workers []worker) error {
	for i := range workers {
		w := &workers[i]
		switch what {
		case "mix":
			go w.loop()
		case "allocate":
			go w.allocate()
		case "lock":
			var mutex sync.Mutex
			var held int
			go w.lock(&mutex, &held)
			go w.lock(&mutex, &held)
		case "send":
			numbers := make(chan uint64)
			go w.send(numbers)
			go w.receive(numbers)
		default:
			return fmt.Errorf("nothing does %q", what)
		}
	}
	return nil
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
	idle := flag.Bool("idle", false, "do nothing")
	what := flag.String("do", "mix", "mix, allocate, lock or send")
	flag.Parse()
	workers := make([]worker, runtime.GOMAXPROCS(0))
	if *idle {
		workers = nil
	}
	workload.Start()
	if err := begin(*what, workers); err != nil {
		fmt.Fprintln(os.Stderr, "probe_load:", err)
		os.Exit(2)
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
