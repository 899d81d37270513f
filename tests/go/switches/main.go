// Command switches leaves the CPU as often as it can: on each CPU two threads wake one
// another in turn over pipes. For each line on standard input it says how often they
// did so far.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"unsafe"

	"example.com/fixtures/internal/workload"
)

var turns atomic.Int64

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func pin(cpu int) {
	var cpus [16]uint64
	cpus[cpu/64] = 1 << (cpu % 64)
	_, _, errno := syscall.RawSyscall(syscall.SYS_SCHED_SETAFFINITY, 0, unsafe.Sizeof(cpus), uintptr(unsafe.Pointer(&cpus)))
	if errno != 0 {
		check(errno)
	}
}

// plays waits for the other and wakes it, past the runtime: so that nothing but the
// kernel's part is done each time.
//
//go:noinline
func plays(cpu, from, to int) {
	runtime.LockOSThread()
	pin(cpu)
	ball := [1]byte{1}
	at := uintptr(unsafe.Pointer(&ball[0]))
	for {
		if n, _, _ := syscall.RawSyscall(syscall.SYS_READ, uintptr(from), at, 1); n != 1 {
			continue
		}
		turns.Add(1)
		syscall.RawSyscall(syscall.SYS_WRITE, uintptr(to), at, 1)
	}
}

func main() {
	cpus := runtime.NumCPU()
	runtime.GOMAXPROCS(2*cpus + 2)
	for cpu := 0; cpu < cpus; cpu++ {
		var there, back [2]int
		check(syscall.Pipe(there[:]))
		check(syscall.Pipe(back[:]))
		go plays(cpu, there[0], back[1])
		go plays(cpu, back[0], there[1])
		_, err := syscall.Write(there[1], []byte{1})
		check(err)
	}
	workload.Start()
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		fmt.Println(turns.Load())
	}
}
