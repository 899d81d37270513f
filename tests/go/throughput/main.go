// Command throughput does the same piece of work over and over on every CPU,
// and says on request how often it did so in an interval: how much slower it
// gets under a profiler is what that profiler costs.
//
// Each line on standard input is a request, answered by a line. "measure 50ms"
// gives the number of pieces, the nanoseconds they took by the clock, and the
// nanoseconds of CPU time. "profile on" and "profile off" switch the program's
// own CPU profile.
package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/pprof"
	"sort"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"example.com/fixtures/internal/workload"
)

type order struct {
	ID    int            `json:"id"`
	Name  string         `json:"name"`
	Items []string       `json:"items"`
	Stock map[string]int `json:"stock"`
}

// worker does pieces of work that are all alike, and counts them.
type worker struct {
	done   atomic.Uint64
	digest [sha256.Size]byte
	_      [64]byte // the counters of two workers share no cache line
}

func newOrder() order {
	o := order{ID: 7, Name: "throughput", Stock: make(map[string]int)}
	for i := 0; i < 24; i++ {
		item := "item-" + strconv.Itoa(i*7919%1000)
		o.Items = append(o.Items, item)
		o.Stock[item] = i
	}
	return o
}

//go:noinline
func roundTrip(o order) (order, []byte) {
	text, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	var back order
	if err := json.Unmarshal(text, &back); err != nil {
		panic(err)
	}
	return back, text
}

//go:noinline
func rank(o order) int {
	counts := make(map[byte]int)
	for _, item := range o.Items {
		for i := 0; i < len(item); i++ {
			counts[item[i]] += o.Stock[item]
		}
	}
	sort.Strings(o.Items)
	return sort.SearchStrings(o.Items, "item-5") + len(counts)
}

//go:noinline
func (w *worker) piece() {
	o, text := roundTrip(newOrder())
	for i := 0; i < 8; i++ {
		w.digest = sha256.Sum256(append(text, w.digest[:]...))
	}
	o.ID = rank(o)
	w.done.Add(1)
}

func (w *worker) loop() {
	for workload.Running() {
		w.piece()
	}
}

func total(workers []worker) (sum uint64) {
	for i := range workers {
		sum += workers[i].done.Load()
	}
	return sum
}

// cpuTime is what the process took of every CPU since its start.
func cpuTime() (time.Duration, error) {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0, err
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()), nil
}

func measure(workers []worker, interval time.Duration) error {
	cpuBefore, err := cpuTime()
	if err != nil {
		return err
	}
	begun, before := time.Now(), total(workers)
	time.Sleep(interval)
	pieces, took := total(workers)-before, time.Since(begun)
	cpu, err := cpuTime()
	if err != nil {
		return err
	}
	fmt.Println(pieces, took.Nanoseconds(), (cpu - cpuBefore).Nanoseconds())
	return nil
}

// answer serves one request.
func answer(workers []worker, verb, object string) error {
	switch verb + " " + object {
	case "profile on":
		if err := pprof.StartCPUProfile(io.Discard); err != nil {
			return err
		}
	case "profile off":
		pprof.StopCPUProfile()
	default:
		interval, err := time.ParseDuration(object)
		if verb != "measure" || err != nil {
			return fmt.Errorf("no such request: %s %s", verb, object)
		}
		return measure(workers, interval)
	}
	fmt.Println("done")
	return nil
}

func main() {
	workers := make([]worker, runtime.GOMAXPROCS(0))
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
			fmt.Fprintln(os.Stderr, "throughput:", err)
			os.Exit(1)
		}
	}
}
