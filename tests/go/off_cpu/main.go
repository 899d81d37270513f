// Command off_cpu waits in ways of which it knows the time, each on a thread of its
// own in a function of its own: it sleeps, blocks in a read on a pipe, contends for
// a CPU with others, flushes a file and reads one past the cache. At its end it says
// of each how long its threads were off the CPU and how much of that they waited for
// one, as the kernel counts it.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"example.com/fixtures/internal/workload"
)

var (
	wait   = flag.Duration("wait", 4*time.Second, "how long to wait in these ways")
	folder = flag.String("folder", ".", "where to keep files")
	parts  = flag.String("parts", "sleeps,blocks,contends,flushes,reads", "which of them")
)

const block = 4096

var (
	until  time.Time
	group  sync.WaitGroup
	mutex  sync.Mutex
	totals = map[string][2]time.Duration{}
	done   atomic.Int32
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// kernelTimes is how long the thread has been on a CPU, and how long it waited for
// one.
func kernelTimes() (ran, delay time.Duration) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/schedstat", syscall.Gettid()))
	check(err)
	_, err = fmt.Sscan(string(text), &ran, &delay)
	check(err)
	return ran, delay
}

// onThread runs work on a thread of its own and adds up how long that was off the CPU.
func onThread(name string, work func()) {
	group.Add(1)
	go func() {
		defer group.Done()
		// Never unlocked: the thread ends with it.
		runtime.LockOSThread()
		began := time.Now()
		ran, delay := kernelTimes()
		work()
		elapsed := time.Since(began)
		ranNow, delayNow := kernelTimes()
		mutex.Lock()
		total := totals[name]
		total[0] += elapsed - (ranNow - ran)
		total[1] += delayNow - delay
		totals[name] = total
		mutex.Unlock()
	}()
}

func nanosleep(d time.Duration) {
	left := syscall.NsecToTimespec(int64(d))
	for syscall.Nanosleep(&left, &left) == syscall.EINTR {
	}
}

//go:noinline
func sleeps() {
	for time.Now().Before(until) {
		nanosleep(7 * time.Millisecond)
	}
}

//go:noinline
func blocks(pipe int) {
	buffer := make([]byte, 1)
	for {
		count, err := syscall.Read(pipe, buffer)
		if err == syscall.EINTR {
			continue
		}
		check(err)
		if count == 0 {
			return
		}
	}
}

//go:noinline
func feeds(pipe int) {
	for time.Now().Before(until) {
		nanosleep(9 * time.Millisecond)
		_, err := syscall.Write(pipe, []byte{1})
		check(err)
	}
	check(syscall.Close(pipe))
}

//go:noinline
func contends() {
	var cpus [16]uint64
	cpus[0] = 1
	_, _, errno := syscall.RawSyscall(syscall.SYS_SCHED_SETAFFINITY, 0, unsafe.Sizeof(cpus), uintptr(unsafe.Pointer(&cpus)))
	if errno != 0 {
		check(errno)
	}
	// Without a call, so that the runtime never takes the goroutine off its thread
	// (given GODEBUG=asyncpreemptoff=1): that is a wait of another kind.
	for done.Load() == 0 {
	}
}

//go:noinline
func flushes(file *os.File) {
	fd := int(file.Fd())
	for at := int64(0); time.Now().Before(until); at += block {
		_, err := syscall.Pwrite(fd, make([]byte, block), at%(64*block))
		check(err)
		check(syscall.Fsync(fd))
		nanosleep(10 * time.Millisecond)
	}
}

//go:noinline
func reads(path string) {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_DIRECT, 0)
	check(err)
	memory := make([]byte, 2*block)
	start := block - int(uintptr(unsafe.Pointer(&memory[0]))%block)
	for at := int64(0); time.Now().Before(until); at += block {
		_, err := syscall.Pread(fd, memory[start:start+block], at%(64*block))
		check(err)
		nanosleep(10 * time.Millisecond)
	}
	check(syscall.Close(fd))
}

func start(part string) {
	switch part {
	case "sleeps":
		onThread(part, sleeps)
	case "blocks":
		var pipe [2]int
		check(syscall.Pipe(pipe[:]))
		onThread(part, func() { blocks(pipe[0]) })
		onThread("feeds", func() { feeds(pipe[1]) })
	case "contends":
		for i := 0; i < 4; i++ {
			onThread(part, contends)
		}
	case "flushes":
		file, err := os.Create(filepath.Join(*folder, "flushed"))
		check(err)
		onThread(part, func() { flushes(file) })
	case "reads":
		path := filepath.Join(*folder, "read")
		check(os.WriteFile(path, make([]byte, 64*block), 0o600))
		file, err := os.Open(path)
		check(err)
		check(file.Sync())
		check(file.Close())
		onThread(part, func() { reads(path) })
	default:
		check(fmt.Errorf("no part %q", part))
	}
}

func main() {
	flag.Parse()
	until = time.Now().Add(*wait)
	workload.Start()
	for _, part := range strings.Split(*parts, ",") {
		start(part)
	}
	nanosleep(time.Until(until))
	done.Store(1)
	group.Wait()
	for name, total := range totals {
		fmt.Println("total", name, int64(total[0]), int64(total[1]))
	}
}
