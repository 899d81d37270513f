// Command block_io asks a block device for a known number of things, past the cache,
// each in a function of its own, and says how long it waited for each kind. With
// -forever it reads on until it is killed.
package main

import (
	"flag"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"example.com/fixtures/internal/workload"
)

var (
	device  = flag.String("device", "", "the device")
	reads   = flag.Int("reads", 2000, "how many reads")
	writes  = flag.Int("writes", 1000, "how many writes")
	flushes = flag.Int("flushes", 20, "how many flushes")
	forever = flag.Bool("forever", false, "read until killed")
)

const (
	readBytes  = 4096
	writeBytes = 16384
	// Where they go: spread, so that no two are next to each other.
	stride = 65536
	places = 256
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// aligned is memory as direct access to a device needs it.
func aligned(size int) []byte {
	const page = 4096
	memory := make([]byte, size+page)
	start := page - int(uintptr(unsafe.Pointer(&memory[0]))%page)
	return memory[start : start+size]
}

//go:noinline
func readsAll(fd, count int) {
	buffer := aligned(readBytes)
	for i := 0; i < count; i++ {
		_, err := syscall.Pread(fd, buffer, int64(i%places)*stride)
		check(err)
	}
}

//go:noinline
func writesAll(fd, count int) {
	buffer := aligned(writeBytes)
	for i := 0; i < count; i++ {
		_, err := syscall.Pwrite(fd, buffer, int64(i%places)*stride)
		check(err)
	}
}

//go:noinline
func flushesAll(fd, count int) {
	buffer := aligned(readBytes)
	for i := 0; i < count; i++ {
		_, err := syscall.Pwrite(fd, buffer, 0)
		check(err)
		check(syscall.Fsync(fd))
	}
}

func timed(name string, work func(fd, count int), fd, count int) {
	began := time.Now()
	work(fd, count)
	fmt.Println("total", name, count, int64(time.Since(began)))
}

func main() {
	flag.Parse()
	fd, err := syscall.Open(*device, syscall.O_RDWR|syscall.O_DIRECT, 0)
	check(err)
	workload.Start()
	for *forever && workload.Running() {
		readsAll(fd, 100)
	}
	timed("reads", readsAll, fd, *reads)
	timed("writes", writesAll, fd, *writes)
	timed("flushes", flushesAll, fd, *flushes)
}
