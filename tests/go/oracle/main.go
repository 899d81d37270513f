// Command oracle is the program whose own CPU profile goprof is compared with:
// many functions of different cost, busy on every CPU, that answers with its
// own profile.
//
// Every worker runs all tasks in an order drawn anew each round, so that no
// task keeps step with a sampling timer and every second holds the same mix.
package main

import (
	"math/rand"
	"runtime"
	"sync"

	"example.com/fixtures/internal/ownprofile"
	"example.com/fixtures/internal/workload"
)

// task is a piece of work of a few hundred microseconds; the counts in
// `tasks` say how often it runs in a round, which sets the costs apart.
type task struct {
	run   func(*worker)
	times int
}

var tasks = []task{
	{(*worker).inlinedLeaves, 8},
	{(*worker).fibonacci, 5},
	{(*worker).genericSums, 3},
	{(*worker).closureCalls, 4},
	{(*worker).interfaceCalls, 3},
	{(*worker).mapUpdates, 3},
	{(*worker).mapReads, 2},
	{(*worker).textWork, 3},
	{(*worker).sorting, 3},
	{(*worker).jsonRoundTrip, 2},
	{(*worker).copying, 4},
	{(*worker).digests, 2},
	{(*worker).channelExchange, 2},
	{(*worker).garbage, 2},
	{(*worker).smallCalls, 2},
}

func (w *worker) round() {
	order := w.random.Perm(len(w.queue))
	for _, i := range order {
		w.queue[i].run(w)
	}
}

func (w *worker) loop(done *sync.WaitGroup) {
	defer done.Done()
	for workload.Running() {
		w.round()
	}
}

func main() {
	workload.Start(ownprofile.Serve())
	var done sync.WaitGroup
	for i := 0; i < runtime.GOMAXPROCS(0); i++ {
		done.Add(1)
		go newWorker(rand.New(rand.NewSource(int64(i)))).loop(&done)
	}
	done.Wait()
}
