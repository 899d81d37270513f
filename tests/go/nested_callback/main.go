// Command nested_callback calls C that calls Go that calls C, three times: all
// with frame pointers, all without, and in turn. It works at each depth on the
// way down and up: on the goroutine's stack, on the system stack, in C, and in
// signal handlers.
package main

import (
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"example.com/fixtures/internal/workload"
	"example.com/fixtures/nested_callback/framed"
	"example.com/fixtures/nested_callback/frameless"
)

// Sink keeps the results alive.
var Sink uint64

var text [16 << 10]byte

var process, thread uintptr

// path is through which C to go, by depth.
var path []func(depth uint64) uint64

//go:noinline
func burn(x uint64) uint64 {
	for i := 0; i < 50_000; i++ {
		x = x*6364136223846793005 + 1442695040888963407
	}
	return x
}

// trace works on the system stack.
//
//go:noinline
func trace() uint64 { return uint64(runtime.Stack(text[:], false)) }

// interrupt works in the handler of signals that it sends to its own thread.
//
//go:noinline
func interrupt() {
	for i := 0; i < 20; i++ {
		syscall.RawSyscall(syscall.SYS_TGKILL, process, thread, uintptr(syscall.SIGUSR1))
	}
}

//go:noinline
func descend(depth uint64) uint64 {
	x := burn(depth)
	if depth < uint64(len(path)) {
		x += path[depth](depth + 1)
	}
	x += trace()
	interrupt()
	return x + burn(x)
}

//go:noinline
func allFramed() uint64 {
	path = []func(uint64) uint64{framed.Down, framed.Down, framed.Down}
	return descend(0) + 1
}

//go:noinline
func allFrameless() uint64 {
	path = []func(uint64) uint64{frameless.Down, frameless.Down, frameless.Down}
	return descend(0) + 1
}

//go:noinline
func inTurn() uint64 {
	path = []func(uint64) uint64{frameless.Down, framed.Down, frameless.Down}
	return descend(0) + 1
}

func main() {
	framed.Up, frameless.Up = descend, descend
	runtime.LockOSThread()
	process, thread = uintptr(os.Getpid()), uintptr(syscall.Gettid())
	signal.Notify(make(chan os.Signal, 1), syscall.SIGUSR1)
	workload.Start()
	for workload.Running() {
		Sink += allFramed()
		Sink += allFrameless()
		Sink += inTurn()
	}
}
