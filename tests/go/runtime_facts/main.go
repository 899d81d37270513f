// Command runtime_facts stands still in ways that can be looked at from outside:
// each of its goroutines has a thread to itself, says which, and stays in one
// system call until standard input ends. It is built as a program, as a C
// library and as an archive.
package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// blockInC is set in builds with cgo.
var blockInC func(fd int)

// goid is the id of the calling goroutine as the runtime prints it.
func goid() string {
	var text [64]byte
	stack := text[:runtime.Stack(text[:], false)]
	return string(bytes.Fields(stack)[1])
}

func manyLabels(count int) pprof.LabelSet {
	var pairs []string
	for i := 0; i < count; i++ {
		pairs = append(pairs, "key"+strconv.Itoa(i), "value"+strconv.Itoa(i))
	}
	return pprof.Labels(pairs...)
}

func longLabels() pprof.LabelSet {
	key, value := strings.Repeat("k", 300), strings.Repeat("v", 1000)
	return pprof.Labels(key, value, "empty", "", "", "nameless")
}

// stay announces its goroutine under a name and blocks.
func stay(name string, announced *sync.WaitGroup, block func(fd int)) {
	runtime.LockOSThread()
	fmt.Printf("goroutine %s %d %s\n", name, syscall.Gettid(), goid())
	announced.Done()
	// The runtime keeps the reason of the last wait.
	time.Sleep(time.Millisecond)
	block(0)
}

func blockInGo(fd int) {
	var byteRead [1]byte
	syscall.Read(fd, byteRead[:])
}

func labelled(name string, labels pprof.LabelSet, announced *sync.WaitGroup) {
	announced.Add(1)
	go pprof.Do(context.Background(), labels, func(context.Context) {
		stay(name, announced, blockInGo)
	})
}

func run() {
	var announced sync.WaitGroup
	announced.Add(1)
	go stay("plain", &announced, blockInGo)
	labelled("one", pprof.Labels("path", "/api/users"), &announced)
	labelled("eight", manyLabels(8), &announced)
	labelled("twenty", manyLabels(20), &announced)
	// Up to Go 1.23 the map still grows with the 53rd.
	labelled("fifty-three", manyLabels(53), &announced)
	labelled("hundred", manyLabels(100), &announced)
	labelled("long", longLabels(), &announced)
	if blockInC != nil {
		announced.Add(1)
		go pprof.Do(context.Background(), pprof.Labels("in", "c"), func(context.Context) {
			stay("c", &announced, blockInC)
		})
	}
	announced.Wait()
	fmt.Println("ready", goid())
	blockInGo(0)
	os.Exit(0)
}

func main() {
	run()
}
