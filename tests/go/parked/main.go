// Command parked has goroutines in every state that one can rest in, each in a
// function of its own, and does more only when it is told to by lines on standard
// input: a test has it write its own list of goroutines, and holds another against
// that.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"example.com/fixtures/internal/workload"
)

var (
	never    chan int
	empty    = make(chan int)
	full     = make(chan int)
	other    = make(chan string)
	mutex    sync.Mutex
	readers  sync.RWMutex
	cond     = sync.NewCond(new(sync.Mutex))
	group    sync.WaitGroup
	pipe     [2]*os.File
	syscalls [2]int
	sum      int
)

//go:noinline
func receives() { sum += <-empty }

//go:noinline
func sends() { full <- 1 }

//go:noinline
func receivesFromNil() { sum += <-never }

//go:noinline
func selects() {
	select {
	case sum = <-empty:
	case full <- 2:
	case <-other:
	}
}

//go:noinline
func selectsNothing() { select {} }

//go:noinline
func sleeps() { time.Sleep(time.Hour) }

//go:noinline
func locks() {
	mutex.Lock()
	defer mutex.Unlock()
}

//go:noinline
func readLocks() {
	readers.RLock()
	defer readers.RUnlock()
}

//go:noinline
func writeLocks() {
	readers.Lock()
	defer readers.Unlock()
}

//go:noinline
func waitsForCond() {
	cond.L.Lock()
	cond.Wait()
	cond.L.Unlock()
}

//go:noinline
func waitsForGroup() { group.Wait() }

//go:noinline
func readsFromPipe() {
	var byteRead [1]byte
	_, _ = pipe[0].Read(byteRead[:])
}

//go:noinline
func readsByCall() {
	var byteRead [1]byte
	_, _ = syscall.Read(syscalls[0], byteRead[:])
}

// isInlined is inlined into its caller, and its caller into that one's.
func isInlined() { sum += <-empty }

func isInlinedToo() { isInlined() }

//go:noinline
func inlines() { isInlinedToo() }

//go:noinline
func recurses(depth int) int {
	var local [32]int
	local[depth%32] = depth
	if depth == 0 {
		return <-empty
	}
	return recurses(depth-1) + local[depth%7]
}

//go:noinline
func deep() { sum += recurses(60) }

type holder struct{ c chan int }

//go:noinline
func (h *holder) waits() { sum += <-h.c }

//go:noinline
func withLabels() {
	labels := pprof.Labels("path", "/api", "tenant", "blue")
	pprof.Do(context.Background(), labels, func(context.Context) { receives() })
}

//go:noinline
func starts() {
	for _, f := range []func(){
		receives, sends, receivesFromNil, selects, selectsNothing, sleeps, locks, readLocks,
		writeLocks, waitsForCond, waitsForGroup, readsFromPipe, readsByCall, inlines, deep,
		(&holder{empty}).waits, withLabels, receives, receives,
	} {
		go f()
	}
}

// crowd starts so many goroutines, the same number in each state that takes no thread.
//
//go:noinline
func crowd(count int) {
	kinds := []func(){
		receives, sends, receivesFromNil, selects, selectsNothing, sleeps, locks, readLocks,
		writeLocks, waitsForCond, waitsForGroup, readsFromPipe, inlines,
		(&holder{empty}).waits, withLabels,
	}
	for i := 0; i < count; i++ {
		go kinds[i%len(kinds)]()
	}
	for i := 0; i < 10; i++ {
		rest()
	}
}

// rest waits until every goroutine but this one does: some take a moment to begin.
func rest() {
	for i := 0; i < 50; i++ {
		runtime.Gosched()
		time.Sleep(2 * time.Millisecond)
	}
}

// dump writes the tracebacks of all goroutines, of which runtime/pprof writes no more
// than 64 MiB.
func dump(path string) error {
	text := make([]byte, 64<<20)
	for {
		length := runtime.Stack(text, true)
		if length < len(text) {
			return os.WriteFile(path, text[:length], 0o600)
		}
		text = make([]byte, 2*len(text))
	}
}

// profile writes the program's own goroutine profile.
func profile(path string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := pprof.Lookup("goroutine").WriteTo(file, 0); err != nil {
		return err
	}
	return file.Close()
}

func answer(words []string) (string, error) {
	switch words[0] {
	case "dump":
		return "", dump(words[1])
	case "profile":
		return "", profile(words[1])
	case "collect":
		runtime.GC()
		runtime.GC()
		return "", nil
	case "addresses":
		return fmt.Sprintf("%p %p %p %p %p", empty, full, other, &mutex, &group), nil
	case "many":
		count, err := strconv.Atoi(words[1])
		for i := 0; i < count; i++ {
			go receives()
		}
		rest()
		return "", err
	case "crowd":
		count, err := strconv.Atoi(words[1])
		crowd(count)
		return "", err
	case "drain":
		sum += <-full
		rest()
		return "", nil
	case "churn":
		churn()
		return "", nil
	case "crash":
		crash(nil)
	}
	return "", fmt.Errorf("no such command: %s", words[0])
}

func main() {
	var err error
	// Both ends are kept: a collection would close the other one.
	if pipe[0], pipe[1], err = os.Pipe(); err != nil {
		panic(err)
	}
	if err := syscall.Pipe(syscalls[:]); err != nil {
		panic(err)
	}
	mutex.Lock()
	readers.Lock()
	group.Add(1)
	starts()
	rest()
	workload.Start()
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		text, err := answer(strings.Fields(lines.Text()))
		if err != nil {
			fmt.Println("failed", err)
			continue
		}
		fmt.Println("done", text)
	}
}
