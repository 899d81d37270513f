// Command alloc_bursts answers requests that come at random, each of which allocates a
// little, from "begin" on standard input to "end". It keeps no heap profile. Told "burst"
// it allocates 2.5 MB at once. Its answer is how many bytes each function has allocated so
// far.
package main

import (
	"bufio"
	"fmt"
	"math/rand"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"example.com/fixtures/internal/workload"
)

const (
	headerBytes = 112
	bodyBytes   = 2048
	replyBytes  = 704
	blockBytes  = 1024
)

type record struct {
	next *record
	text [headerBytes - 8]byte
}

// Where blocks go until the next ones come.
var (
	lastHeader *record
	lastBody   []byte
	lastReply  []byte
	lastBlock  []byte
)

// Whether requests come.
var begun int32

// What each has allocated, in bytes.
var headers, bodies, replies, blocks int64

//go:noinline
func header() {
	lastHeader = &record{}
	atomic.AddInt64(&headers, headerBytes)
}

//go:noinline
func body() {
	lastBody = make([]byte, bodyBytes)
	atomic.AddInt64(&bodies, bodyBytes)
}

//go:noinline
func reply() {
	lastReply = make([]byte, replyBytes)
	atomic.AddInt64(&replies, replyBytes)
}

//go:noinline
func block() {
	lastBlock = make([]byte, blockBytes)
	atomic.AddInt64(&blocks, blockBytes)
}

//go:noinline
func request() {
	for i := 0; i < 8; i++ {
		header()
	}
	body()
	body()
	reply()
}

//go:noinline
func burst() {
	for i := 0; i < 2500; i++ {
		block()
	}
}

// answer has a request every two milliseconds, on average.
func answer() {
	random := rand.New(rand.NewSource(1))
	for {
		time.Sleep(time.Duration(random.ExpFloat64() * float64(2*time.Millisecond)))
		if atomic.LoadInt32(&begun) != 0 {
			request()
		}
	}
}

func main() {
	runtime.GOMAXPROCS(2)
	workload.Start()
	go answer()
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		switch lines.Text() {
		case "begin":
			atomic.StoreInt32(&begun, 1)
		case "end":
			atomic.StoreInt32(&begun, 0)
		case "burst":
			burst()
		}
		fmt.Println("done", atomic.LoadInt64(&headers), atomic.LoadInt64(&bodies),
			atomic.LoadInt64(&replies), atomic.LoadInt64(&blocks))
	}
}
