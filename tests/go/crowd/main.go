// Command crowd is one service of many: goroutines with labels of their own wake
// once a second and do what services do, all of them together for -share of a
// CPU. With -share 0 they sleep.
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand"
	"runtime/pprof"
	"strconv"
	"time"

	"example.com/fixtures/internal/workload"
)

const (
	workers = 4
	period  = time.Second
)

func main() {
	share := flag.Float64("share", 0.01, "of a CPU, all goroutines together")
	seed := flag.Int64("seed", 0, "what tells it from the others")
	workload.Start()
	for i := 0; i < workers; i++ {
		w := &worker{random: rand.New(rand.NewSource(*seed*workers + int64(i)))}
		labels := pprof.Labels("tenant", strconv.FormatInt(*seed, 10), "worker", strconv.Itoa(i))
		go pprof.Do(context.Background(), labels, func(ctx context.Context) {
			w.serve(ctx, time.Duration(float64(period)**share/workers))
		})
	}
	for workload.Running() {
		time.Sleep(period)
	}
}

// Sink keeps the results alive.
var Sink = make(chan int, 1)

type worker struct {
	random *rand.Rand
	total  int
}

func (w *worker) serve(ctx context.Context, busy time.Duration) {
	if busy <= 0 {
		select {}
	}
	time.Sleep(time.Duration(w.random.Int63n(int64(period))))
	for {
		for begun := time.Now(); time.Since(begun) < busy; {
			task := w.random.Intn(len(tasks))
			label := pprof.Labels("route", fmt.Sprintf("/api/v1/%d", task))
			pprof.Do(ctx, label, func(context.Context) { w.total += tasks[task](w.random) })
		}
		select {
		case Sink <- w.total:
		default:
		}
		time.Sleep(period - busy)
	}
}
