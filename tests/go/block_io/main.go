// Command block_io asks a block device for a known number of things, past the cache,
// each in a function of its own, and says how long it waited for each kind. With
// -forever it reads on until it is killed, and says how often it has read for each line
// on standard input. With -buffered it writes and reads through
// the cache too, where what is next to each other is merged, and with -large it asks
// for more at once than a device takes.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"sync/atomic"
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
	pages   = flag.Int("buffered", 0, "how many pages to write in the cache, and to read")
	large   = flag.Int("large", 0, "how many megabytes to write at once each")
	forever = flag.Bool("forever", false, "read until killed")
)

const (
	readBytes  = 4096
	writeBytes = 16384
	// Where they go: spread, so that no two are next to each other.
	stride     = 65536
	places     = 256
	pageBytes  = 4096
	largeBytes = 1 << 20
	// Where reads through the cache begin: nothing has been there.
	untouched = 64 << 20
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

// buffersAll writes pages that are next to each other, and has them all written out.
//
//go:noinline
func buffersAll(fd, count int) {
	for i := 0; i < count; i++ {
		_, err := syscall.Pwrite(fd, make([]byte, pageBytes), int64(i)*pageBytes)
		check(err)
	}
	check(syscall.Fsync(fd))
}

//go:noinline
func streamsAll(fd, count int) {
	buffer := make([]byte, pageBytes)
	for i := 0; i < count; i++ {
		_, err := syscall.Pread(fd, buffer, untouched+int64(i)*pageBytes)
		check(err)
	}
}

//go:noinline
func largeAll(fd, count int) {
	buffer := aligned(largeBytes)
	for i := 0; i < count; i++ {
		_, err := syscall.Pwrite(fd, buffer, int64(i)*largeBytes)
		check(err)
	}
}

var done atomic.Int64

func answers() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		fmt.Println(done.Load())
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
	if *forever {
		go answers()
	}
	for *forever && workload.Running() {
		readsAll(fd, 100)
		done.Add(100)
	}
	timed("reads", readsAll, fd, *reads)
	timed("writes", writesAll, fd, *writes)
	timed("flushes", flushesAll, fd, *flushes)
	if *large > 0 {
		timed("large", largeAll, fd, *large)
	}
	if *pages > 0 {
		cached, err := syscall.Open(*device, syscall.O_RDWR, 0)
		check(err)
		timed("buffered", buffersAll, cached, *pages)
		timed("streams", streamsAll, cached, *pages)
	}
}
