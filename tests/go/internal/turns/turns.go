// Package turns lets a benchmark ask a program how much it did in an interval.
//
// Each line on standard input is a request, answered by a line that begins with "done".
package turns

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"
)

// Work is what one goroutine has done; that of two shares no cache line.
type Work struct {
	done atomic.Uint64
	_    [64]byte
}

// Add counts a piece of work.
func (w *Work) Add() { w.done.Add(1) }

// Done is how many pieces were counted.
func (w *Work) Done() uint64 { return w.done.Load() }

// Serve answers requests of two words until there are no more.
func Serve(answer func(verb, object string) (string, error)) {
	requests := bufio.NewScanner(os.Stdin)
	for requests.Scan() {
		var verb, object string
		// Which of the words are missing is for who answers to say.
		fmt.Sscan(requests.Text(), &verb, &object)
		text, err := answer(verb, object)
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", filepath.Base(os.Args[0]), err)
			os.Exit(1)
		}
		os.Stdout.WriteString("done " + text + "\n")
	}
}

// Measure gives how much total grew in an interval, the nanoseconds that it took by the
// clock, and the nanoseconds of CPU time.
func Measure(interval string, total func() uint64) (string, error) {
	length, err := time.ParseDuration(interval)
	if err != nil {
		return "", err
	}
	cpuBefore, err := cpuTime()
	if err != nil {
		return "", err
	}
	begun, before := time.Now(), total()
	time.Sleep(length)
	pieces, took := total()-before, time.Since(begun)
	cpu, err := cpuTime()
	return fmt.Sprint(pieces, took.Nanoseconds(), (cpu - cpuBefore).Nanoseconds()), err
}

// Unknown is the error of a request that nothing answers.
func Unknown(verb, object string) error {
	return fmt.Errorf("no such request: %s %s", verb, object)
}

// cpuTime is what the process took of every CPU since its start.
func cpuTime() (time.Duration, error) {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0, err
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()), nil
}
