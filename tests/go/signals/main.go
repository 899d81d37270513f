// Command signals works in a thread that another keeps sending signals to, so
// that much of its time goes into their handler.
package main

import (
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"example.com/fixtures/internal/workload"
)

// Sink keeps the results alive.
var Sink uint64

//go:noinline
func burn(x uint64) uint64 {
	for i := 0; i < 1000; i++ {
		x = x*6364136223846793005 + 1442695040888963407
	}
	return x
}

//go:noinline
func work() {
	for i := 0; i < 1000; i++ {
		Sink = burn(Sink)
	}
}

// interrupt sends without end; what nobody takes off the channel is dropped.
func interrupt(tid int) {
	received := make(chan os.Signal, 1)
	signal.Notify(received, syscall.SIGUSR1)
	for {
		if err := syscall.Tgkill(os.Getpid(), tid, syscall.SIGUSR1); err != nil {
			panic(err)
		}
	}
}

func main() {
	runtime.LockOSThread()
	workload.Start()
	go interrupt(syscall.Gettid())
	for workload.Running() {
		work()
	}
}
