// Command throughput does the same piece of work over and over on every CPU,
// and says on request how often it did so in an interval: how much slower it
// gets under a profiler is what that profiler costs.
//
// It answers "measure 50ms" by the number of pieces, the nanoseconds they took by
// the clock, and the nanoseconds of CPU time. "profile on" and "profile off" switch
// the program's own CPU profile.
package main

import (
	"crypto/sha256"
	"encoding/json"
	"io"
	"runtime"
	"runtime/pprof"
	"sort"
	"strconv"

	"example.com/fixtures/internal/turns"
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
	turns.Work
	digest [sha256.Size]byte
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
	w.Add()
}

func (w *worker) loop() {
	for workload.Running() {
		w.piece()
	}
}

func total(workers []worker) (sum uint64) {
	for i := range workers {
		sum += workers[i].Done()
	}
	return sum
}

// answer serves one request.
func answer(workers []worker, verb, object string) (string, error) {
	switch {
	case verb == "measure":
		return turns.Measure(object, func() uint64 { return total(workers) })
	case verb == "profile" && object == "on":
		return "", pprof.StartCPUProfile(io.Discard)
	case verb == "profile" && object == "off":
		pprof.StopCPUProfile()
		return "", nil
	}
	return "", turns.Unknown(verb, object)
}

func main() {
	workers := make([]worker, runtime.GOMAXPROCS(0))
	workload.Start()
	for i := range workers {
		go workers[i].loop()
	}
	turns.Serve(func(verb, object string) (string, error) {
		return answer(workers, verb, object)
	})
}
