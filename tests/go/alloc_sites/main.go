// Command alloc_sites allocates at known places, in blocks of 8 to 100,000 bytes
// with and without pointers, and does so only when it is told to: a test tells it
// by lines on standard input, and is told when it is done. It writes its own heap
// profile when asked, so that another can be held against it.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"runtime/pprof"
	"strings"
	"sync"
	"time"

	"example.com/fixtures/internal/workload"
)

type node struct {
	next  *node
	value [4]int64
}

type leaf struct{ value [6]int64 }

type table struct {
	entries map[int]*leaf
	name    string
}

// What is in use. Each has its own type, so that nothing else allocates.
var (
	tiny     []*int64
	bytes16  []*[2]int64
	nodes    []*node
	leaves   []*leaf
	buffers  [][]byte
	pointers [][]*node
	tables   []*table
	texts    []string
	closures []func() int64
	appended [][]int32
	channels []chan *node
	boxed    []interface{}
)

//go:noinline
func allocTiny() { tiny = append(tiny, new(int64)) } // line:tiny

//go:noinline
func alloc16() { bytes16 = append(bytes16, new([2]int64)) }

//go:noinline
func allocNode() { nodes = append(nodes, newNode()) } // line:node

// newNode is inlined into its callers.
func newNode() *node { return &node{} }

//go:noinline
func allocLeaf() { leaves = append(leaves, &leaf{}) }

//go:noinline
func allocBuffer(size int) { buffers = append(buffers, make([]byte, size)) }

//go:noinline
func allocPointers(count int) { pointers = append(pointers, make([]*node, count)) }

//go:noinline
func allocTable(count int) {
	t := &table{entries: make(map[int]*leaf)}
	for i := 0; i < count; i++ {
		t.entries[i] = nil
	}
	tables = append(tables, t)
}

//go:noinline
func allocText(part string, times int) {
	text := ""
	for i := 0; i < times; i++ {
		text += part
	}
	texts = append(texts, text+string(part[:len(part)/2]))
}

//go:noinline
func allocClosure(value int64) {
	closures = append(closures, func() int64 { value++; return value })
}

//go:noinline
func allocAppended(count int) {
	var numbers []int32
	for i := 0; i < count; i++ {
		numbers = append(numbers, int32(i))
	}
	appended = append(appended, numbers)
}

//go:noinline
func allocChannel() { channels = append(channels, make(chan *node, 8)) }

//go:noinline
func allocBoxed(value int64) { boxed = append(boxed, leaf{value: [6]int64{value}}) }

// deep allocates below as many calls as it is told.
//
//go:noinline
func deep(depth int) int {
	if depth == 0 {
		allocNode()
		return 0
	}
	return deep(depth-1) + 1
}

var sizes = [...]int{8, 24, 100, 500, 1000, 3000, 9000, 33000, 100000}

func round() {
	part := strings.Repeat("x", 40)
	for i := 0; i < 1000; i++ {
		allocTiny()
		alloc16()
		allocNode()
		allocLeaf()
		allocClosure(int64(i))
		allocBoxed(int64(i))
		deep(i % 50)
		if i%10 == 0 {
			allocBuffer(sizes[i/10%len(sizes)])
			allocPointers(sizes[i/10%len(sizes)] / 8)
			allocTable(i / 10 % 40)
			allocText(part, i/10%20)
			allocAppended(i)
			allocChannel()
		}
	}
}

// free lets go of half of what is in use.
func free() {
	tiny = append([]*int64(nil), tiny[:len(tiny)/2]...)
	bytes16 = append([]*[2]int64(nil), bytes16[:len(bytes16)/2]...)
	nodes = append([]*node(nil), nodes[:len(nodes)/2]...)
	leaves = append([]*leaf(nil), leaves[:len(leaves)/2]...)
	buffers = append([][]byte(nil), buffers[:len(buffers)/2]...)
	pointers = append([][]*node(nil), pointers[:len(pointers)/2]...)
	tables = append([]*table(nil), tables[:len(tables)/2]...)
	texts = append([]string(nil), texts[:len(texts)/2]...)
	closures = append([]func() int64(nil), closures[:len(closures)/2]...)
	appended = append([][]int32(nil), appended[:len(appended)/2]...)
	channels = append([]chan *node(nil), channels[:len(channels)/2]...)
	boxed = append([]interface{}(nil), boxed[:len(boxed)/2]...)
}

// contend has 256 goroutines wait for a mutex, some milliseconds each.
func contend() {
	var lock sync.Mutex
	var group sync.WaitGroup
	lock.Lock()
	for i := 0; i < 256; i++ {
		group.Add(1)
		go func() {
			lock.Lock()
			lock.Unlock()
			group.Done()
		}()
	}
	time.Sleep(20 * time.Millisecond)
	lock.Unlock()
	group.Wait()
}

// counts is what the runtime says of itself, as JSON: what only grows, and beside it
// what stays while nothing happens.
func counts() string {
	var gc debug.GCStats
	debug.ReadGCStats(&gc)
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	read := []metrics.Sample{{Name: "/sched/latencies:seconds"}, {Name: "/sync/mutex/wait/total:seconds"}}
	metrics.Read(read)
	latency := read[0].Value.Float64Histogram()
	ranges := []string{}
	for i, count := range latency.Counts {
		if from := latency.Buckets[i]; count > 0 && from >= 0 {
			ranges = append(ranges, fmt.Sprintf("[%.0f,%d]", from*1e9, count))
		}
	}
	mutexWait := -1.0
	if read[1].Value.Kind() == metrics.KindFloat64 {
		mutexWait = read[1].Value.Float64() * 1e9
	}
	pauses := []string{}
	for i := range gc.Pause {
		pauses = append(pauses, fmt.Sprintf("[%d,%d]", gc.PauseEnd[i].UnixNano(), gc.Pause[i]))
	}
	still := fmt.Sprintf(`{"cycles":%d,"forced":%d,"fraction":%v,"pause_total":%d,"pauses":[%s],`+
		`"goroutines":%d,"goal":%d,"gomaxprocs":%d,"latency":[%s],"mutex_wait":%.0f}`,
		memory.NumGC, memory.NumForcedGC, memory.GCCPUFraction, gc.PauseTotal, strings.Join(pauses, ","),
		runtime.NumGoroutine(), memory.NextGC, runtime.GOMAXPROCS(0), strings.Join(ranges, ","), mutexWait)
	return fmt.Sprintf(`done {"still":%s,"allocated":%d,"freed":%d,"in_use":%d}`,
		still, memory.TotalAlloc, memory.TotalAlloc-memory.HeapAlloc, memory.HeapInuse)
}

// settle has all frees counted: the profile lags by two collections.
func settle() {
	for i := 0; i < 3; i++ {
		runtime.GC()
	}
}

func writeProfile(name, path string) {
	file, err := os.Create(path)
	if err == nil {
		err = pprof.Lookup(name).WriteTo(file, 0)
	}
	if err == nil {
		err = file.Close()
	}
	if err != nil {
		panic(err)
	}
}

func main() {
	rate := flag.Int("rate", 512, "what runtime.MemProfileRate is set to; 0 leaves it")
	flag.Parse()
	if *rate > 0 {
		runtime.MemProfileRate = *rate
	}
	workload.Start()
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		answer := "done"
		switch words[0] {
		case "round":
			round()
		case "free":
			free()
		case "settle":
			settle()
		case "collect":
			for i := 0; i < 300; i++ {
				runtime.GC()
			}
		case "contend":
			contend()
		case "counts":
			answer = counts()
		case "heap", "allocs":
			writeProfile(words[0], words[1])
		case "rate":
			fmt.Sscan(words[1], &runtime.MemProfileRate)
		case "memstats":
			var stats runtime.MemStats
			runtime.ReadMemStats(&stats)
			answer = fmt.Sprintln("done", stats.TotalAlloc, stats.HeapAlloc, stats.NumGC, runtime.GOMAXPROCS(0))
		}
		fmt.Println(strings.TrimSpace(answer))
	}
}
