// Command snapshot_load has many goroutines that wait, as a server's do, and keeps
// every CPU busy beside them unless -busy=false. It says on request how much work it
// did in an interval: what reading the goroutines takes of it shows.
//
// It answers "measure 50ms" by the number of pieces of work, the nanoseconds they took by
// the clock, and the nanoseconds of CPU time; "address" by where net/http/pprof answers.
package main

import (
	"context"
	"crypto/sha256"
	"flag"
	"net"
	"net/http"
	_ "net/http/pprof"
	"os"
	"runtime"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"time"

	"example.com/fixtures/internal/turns"
	"example.com/fixtures/internal/workload"
)

// worker does pieces of work that are all alike, and counts them.
type worker struct {
	turns.Work
	digest [sha256.Size]byte
}

//go:noinline
func (w *worker) piece() {
	text := make([]byte, 1024)
	copy(text, w.digest[:])
	for i := 0; i < 8; i++ {
		w.digest = sha256.Sum256(text)
		copy(text, w.digest[:])
	}
	w.Add()
}

func (w *worker) loop() {
	for workload.Running() {
		w.piece()
	}
}

var (
	empty = make(chan int)
	other = make(chan string)
	mutex sync.Mutex
	sum   atomic.Int64
)

//go:noinline
func receives() { sum.Add(int64(<-empty)) }

//go:noinline
func selects() {
	select {
	case n := <-empty:
		sum.Add(int64(n))
	case <-other:
	}
}

//go:noinline
func locks() {
	mutex.Lock()
	defer mutex.Unlock()
}

//go:noinline
func sleeps() { time.Sleep(time.Hour) }

// under calls f that many calls deep.
//
//go:noinline
func under(depth int, f func()) int {
	if depth == 0 {
		f()
		return 1
	}
	return under(depth-1, f) + 1
}

// crowd starts so many goroutines, which wait for four different things at eight
// different depths; one in ten has labels.
func crowd(count int) {
	kinds := []func(){receives, selects, locks, sleeps}
	labels := pprof.Labels("path", "/api/orders", "tenant", "blue")
	for i := 0; i < count; i++ {
		kind, depth := kinds[i%len(kinds)], i/len(kinds)%8
		if i%10 != 0 {
			go under(depth, kind)
			continue
		}
		go pprof.Do(context.Background(), labels, func(context.Context) { under(depth, kind) })
	}
}

// rest waits until they have begun.
func rest() {
	for i := 0; i < 50; i++ {
		runtime.Gosched()
		time.Sleep(2 * time.Millisecond)
	}
}

func total(workers []worker) (sum uint64) {
	for i := range workers {
		sum += workers[i].Done()
	}
	return sum
}

// answer serves one request.
func answer(workers []worker, address, verb, object string) (string, error) {
	switch verb {
	case "address":
		return address, nil
	case "measure":
		return turns.Measure(object, func() uint64 { return total(workers) })
	}
	return "", turns.Unknown(verb, object)
}

func fail(err error) {
	if err != nil {
		os.Stderr.WriteString("snapshot_load: " + err.Error() + "\n")
		os.Exit(1)
	}
}

func main() {
	goroutines := flag.Int("goroutines", 1000, "how many wait")
	busy := flag.Bool("busy", true, "keep every CPU busy")
	flag.Parse()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	fail(err)
	go http.Serve(listener, nil)
	mutex.Lock()
	crowd(*goroutines)
	rest()
	workers := make([]worker, runtime.GOMAXPROCS(0))
	if *busy {
		for i := range workers {
			go workers[i].loop()
		}
	}
	workload.Start()
	turns.Serve(func(verb, object string) (string, error) {
		return answer(workers, listener.Addr().String(), verb, object)
	})
}
