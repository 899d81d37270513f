// Command waiting has goroutines that wait for known shares of the time: some for a
// channel, some asleep, some for one thing and then for another in step with the
// clock, one that is busy; and says how much of the time each was.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"runtime/pprof"
	"strings"
	"sync/atomic"
	"time"

	"example.com/fixtures/internal/workload"
)

const (
	receivers  = 40
	sleepers   = 10
	alternates = 8
	// A fixed rate of 20 or 40 a second would be in step with these.
	long  = 35 * time.Millisecond
	short = 15 * time.Millisecond
)

// How long they were in each, in nanoseconds, all together.
var longNs, shortNs atomic.Int64

var never = make(chan int)

//go:noinline
func receives() { <-never }

//go:noinline
func sleeps() { time.Sleep(time.Hour) }

//go:noinline
func waitsLong() { time.Sleep(long) }

//go:noinline
func waitsShort(timer *time.Timer) {
	timer.Reset(short)
	<-timer.C
}

//go:noinline
func alternate() {
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	for {
		begun := time.Now()
		waitsLong()
		between := time.Now()
		waitsShort(timer)
		longNs.Add(between.Sub(begun).Nanoseconds())
		shortNs.Add(time.Since(between).Nanoseconds())
	}
}

//go:noinline
func spins() {
	for x := uint64(1); ; x = x*6364136223846793005 + 1 {
		if x == 0 {
			return
		}
	}
}

func main() {
	for i := 0; i < receivers; i++ {
		go receives()
	}
	for i := 0; i < sleepers; i++ {
		go pprof.Do(context.Background(), pprof.Labels("job", "nap"), func(context.Context) { sleeps() })
	}
	for i := 0; i < alternates; i++ {
		go alternate()
	}
	go spins()
	time.Sleep(100 * time.Millisecond)
	workload.Start()
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		switch strings.TrimSpace(lines.Text()) {
		case "reset":
			longNs.Store(0)
			shortNs.Store(0)
			fmt.Println("done")
		case "shares":
			fmt.Println("done", longNs.Load(), shortNs.Load())
		default:
			fmt.Println("failed")
		}
	}
}
