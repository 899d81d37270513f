// Command hard_cases is made of what a profiler from outside gets wrong most
// easily, in known shares of its time: memmove of small blocks, map access,
// assembly, a small leaf with two callers, C without frame pointers, and the
// runtime's work on its own stack. It answers with its own CPU profile.
//
// Every worker runs all tasks in an order drawn anew each round, so that no
// task keeps step with a sampling timer and every second holds the same mix.
package main

import (
	"math/rand"
	"runtime"
	"sync"
	"syscall"
	"time"

	"example.com/fixtures/internal/ownprofile"
	"example.com/fixtures/internal/workload"
)

// task is a piece of work of some hundred microseconds and its share of the
// time in percent. The shares add up to 100.
type task struct {
	run   func(*worker)
	share int
}

var tasks = []task{
	{(*worker).copying, 38},
	{(*worker).mapAccess, 14},
	{(*worker).digests, 12},
	{(*worker).leafCalls, 12},
	{(*worker).inC, 12},
	{(*worker).garbage, 6},
	{(*worker).stackGrowth, 6},
}

// roundLength is the work of one round.
const roundLength = 20 * time.Millisecond

// cpuTime is what the process has used so far.
func cpuTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// timesPerRound measures the tasks and says how often each is to run, as their
// costs differ by Go version and processor. Nothing else may run meanwhile.
func timesPerRound(w *worker) []int {
	times := make([]int, len(tasks))
	for i, t := range tasks {
		t.run(w)
		runs := 0
		begin := cpuTime()
		used := time.Duration(0)
		for used < 100*time.Millisecond {
			t.run(w)
			runs++
			used = cpuTime() - begin
		}
		cost := used / time.Duration(runs)
		times[i] = int(roundLength * time.Duration(t.share) / 100 / cost)
		if times[i] == 0 {
			times[i] = 1
		}
	}
	return times
}

func (w *worker) loop(done *sync.WaitGroup) {
	defer done.Done()
	for workload.Running() {
		w.round()
	}
}

func (w *worker) round() {
	for _, i := range w.random.Perm(len(w.queue)) {
		w.queue[i].run(w)
	}
}

func main() {
	url := ownprofile.Serve()
	times := timesPerRound(newWorker(0))
	var done sync.WaitGroup
	for i := 0; i < runtime.GOMAXPROCS(0); i++ {
		w := newWorker(int64(i))
		for at, t := range tasks {
			for n := 0; n < times[at]; n++ {
				w.queue = append(w.queue, t)
			}
		}
		done.Add(1)
		go w.loop(&done)
	}
	workload.Start(url)
	done.Wait()
}

func newWorker(seed int64) *worker {
	w := &worker{
		random:  rand.New(rand.NewSource(seed)),
		numbers: make(map[uint64]uint64),
		words:   make(map[string]uint64),
		from:    make([]byte, 32<<10),
		to:      make([]byte, 32<<10),
		done:    make(chan uint64),
	}
	w.random.Read(w.from)
	w.fillMaps()
	return w
}
