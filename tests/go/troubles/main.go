// Command troubles spins, and does what makes trouble for those who look at it when it
// is told to by lines on standard input: becomes another program, starts threads by
// the thousand, takes away the memory under stacks of its own goroutines.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"example.com/fixtures/internal/workload"
)

// Sink keeps the results alive.
var Sink uint64

var never = make(chan int)

//go:noinline
func before(x uint64) uint64 {
	for i := 0; i < 300_000; i++ {
		x ^= x >> 33
		x *= 0xff51afd7ed558ccd
	}
	return x
}

// becomes runs another program in place of this one.
func becomes(program string) {
	fmt.Println("done")
	err := syscall.Exec(program, []string{program, "-duration", "5m"}, os.Environ())
	fmt.Println(err)
	os.Exit(1)
}

// rests has a thread to itself, and waits for ever.
//
//go:noinline
func rests(resting chan<- struct{}) {
	runtime.LockOSThread()
	resting <- struct{}{}
	<-never
}

func threads(count int) {
	debug.SetMaxThreads(count + 1000)
	resting := make(chan struct{})
	for i := 0; i < count; i++ {
		go rests(resting)
		<-resting
	}
}

// deep waits for ever below so many frames, and says where its stack is.
//
//go:noinline
func deep(frames int, at chan<- uintptr) byte {
	var room [512]byte
	if frames == 0 {
		at <- uintptr(unsafe.Pointer(&room[0]))
		<-never
	} else {
		room[frames%512] = deep(frames-1, at)
	}
	return room[7]
}

const page = 4096

// unmaps takes away a page of the stack of each of some goroutines: the one that its
// last frames are on, or one farther up, in turn.
func unmaps(count int) {
	debug.SetGCPercent(-1)
	at := make(chan uintptr)
	var addresses []uintptr
	for i := 0; i < count; i++ {
		go deep(60, at)
		addresses = append(addresses, <-at&^(page-1))
	}
	// Until all of them rest.
	time.Sleep(300 * time.Millisecond)
	for i, address := range addresses {
		if i%2 == 1 {
			address += 2 * page
		}
		_, _, errno := syscall.RawSyscall(syscall.SYS_MUNMAP, address, page, 0)
		if errno != 0 {
			fmt.Println(errno)
			os.Exit(1)
		}
	}
}

func main() {
	workload.Start()
	go func() {
		for workload.Running() {
			Sink = before(Sink)
		}
		os.Exit(0)
	}()
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		what, word, _ := strings.Cut(lines.Text(), " ")
		count, _ := strconv.Atoi(word)
		switch what {
		case "exec":
			becomes(word)
		case "threads":
			threads(count)
		case "unmap":
			unmaps(count)
		default:
			fmt.Println("what is", what)
			continue
		}
		fmt.Println("done")
	}
	select {}
}
