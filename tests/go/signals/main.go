// Command signals is interrupted all the time, most of it in a leaf without a
// frame: one goroutine sends signals to the thread of the other.
package main

import (
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"fixtures/internal/workload"
)

// Sink keeps the results alive.
var Sink uint64

//go:noinline
func leaf(x uint64) uint64 {
	for i := 0; i < 20_000; i++ {
		x = x*6364136223846793005 + 1442695040888963407
	}
	return x
}

//go:noinline
func caller(x uint64) uint64 { return leaf(x) + 1 }

func main() {
	runtime.LockOSThread()
	thread := syscall.Gettid()
	received := make(chan os.Signal, 1)
	signal.Notify(received, syscall.SIGUSR1)
	go func() {
		for {
			syscall.Syscall(syscall.SYS_TGKILL, uintptr(os.Getpid()), uintptr(thread), uintptr(syscall.SIGUSR1))
		}
	}()
	workload.Start()
	for workload.Running() {
		Sink = caller(Sink)
	}
}
