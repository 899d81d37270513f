// Command contention waits in every way that Go's own block and mutex profiles know,
// in known proportions, and profiles itself so that another profile can be held
// against its own. It is told what to do by lines on standard input.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"net"
	"os"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Two goroutines each, so that one waits at a time at most: what all that wait
// for an unlock have waited Go only estimates.
var long, short sync.Mutex

// How long they have waited for each, in nanoseconds.
var longNs, shortNs, crowdedNs atomic.Int64

//go:noinline
func holdLong() {
	for {
		begun := time.Now()
		long.Lock()
		longNs.Add(time.Since(begun).Nanoseconds())
		time.Sleep(4 * time.Millisecond)
		long.Unlock()
		runtime.Gosched()
	}
}

//go:noinline
func holdShort() {
	for {
		begun := time.Now()
		short.Lock()
		shortNs.Add(time.Since(begun).Nanoseconds())
		time.Sleep(time.Millisecond)
		short.Unlock()
		runtime.Gosched()
	}
}

var crowded sync.Mutex

// Several wait at once.
//
//go:noinline
func holdCrowded() {
	for {
		begun := time.Now()
		crowded.Lock()
		crowdedNs.Add(time.Since(begun).Nanoseconds())
		time.Sleep(time.Millisecond)
		crowded.Unlock()
		runtime.Gosched()
	}
}

var table sync.RWMutex

//go:noinline
func writeTable() {
	for {
		table.Lock()
		time.Sleep(2 * time.Millisecond)
		table.Unlock()
		time.Sleep(3 * time.Millisecond)
	}
}

//go:noinline
func readTable() {
	for {
		table.RLock()
		time.Sleep(time.Millisecond)
		table.RUnlock()
	}
}

//go:noinline
func finish(group *sync.WaitGroup) {
	time.Sleep(4 * time.Millisecond)
	group.Done()
}

//go:noinline
func waitForGroup() {
	for {
		var group sync.WaitGroup
		group.Add(2)
		go finish(&group)
		go finish(&group)
		group.Wait()
	}
}

var (
	bell     sync.Mutex
	rings    = sync.NewCond(&bell)
	rung     int
	products = make(chan int)
	never    = make(chan int)
)

//go:noinline
func waitForBell() {
	for seen := 0; ; seen++ {
		bell.Lock()
		for rung == seen {
			rings.Wait()
		}
		bell.Unlock()
	}
}

//go:noinline
func ringBell() {
	for {
		time.Sleep(3 * time.Millisecond)
		bell.Lock()
		rung++
		bell.Unlock()
		rings.Broadcast()
	}
}

//go:noinline
func produce() {
	for i := 0; ; i++ {
		products <- i
	}
}

//go:noinline
func consume() {
	for range products {
		time.Sleep(time.Millisecond)
	}
}

//go:noinline
func selectWithTimeout() {
	for {
		select {
		case <-never:
		case <-time.After(6 * time.Millisecond):
		}
	}
}

//go:noinline
func readNetwork(conn net.Conn) {
	buffer := make([]byte, 1)
	for {
		if _, err := conn.Read(buffer); err != nil {
			return
		}
	}
}

//go:noinline
func writeNetwork(conn net.Conn) {
	for {
		time.Sleep(5 * time.Millisecond)
		if _, err := conn.Write([]byte{1}); err != nil {
			return
		}
	}
}

func connect() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	out, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		panic(err)
	}
	in, err := listener.Accept()
	if err != nil {
		panic(err)
	}
	go readNetwork(in)
	go writeNetwork(out)
}

func start() {
	connect()
	for i := 0; i < 2; i++ {
		go holdLong()
		go holdShort()
		go readTable()
	}
	for i := 0; i < 4; i++ {
		go holdCrowded()
	}
	go writeTable()
	go waitForGroup()
	go waitForBell()
	go ringBell()
	go produce()
	go consume()
	go selectWithTimeout()
}

func writeProfile(name, path string) {
	file, err := os.Create(path)
	if err != nil {
		panic(err)
	}
	if err := pprof.Lookup(name).WriteTo(file, 0); err != nil {
		panic(err)
	}
	file.Close()
}

func main() {
	flag.Duration("duration", 0, "taken for other programs' sake")
	flag.Parse()
	runtime.SetBlockProfileRate(1)
	runtime.SetMutexProfileFraction(1)
	begun := time.Now()
	start()
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if words[0] == "waited" {
			fmt.Println("waited", time.Since(begun).Nanoseconds(), longNs.Load(), shortNs.Load(), crowdedNs.Load())
			continue
		}
		writeProfile(words[0], words[1])
		fmt.Println("done")
	}
}
