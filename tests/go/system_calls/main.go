// Command system_calls spends its time in the kernel: reads that fill a large
// buffer with zeros, and small ones.
package main

import (
	"os"

	"example.com/fixtures/internal/workload"
)

//go:noinline
func readAll(file *os.File, buffer []byte) {
	for i := 0; i < 64; i++ {
		if _, err := file.Read(buffer); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
	}
}

func main() {
	zeros, err := os.Open("/dev/zero")
	if err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
	large, small := make([]byte, 1<<20), make([]byte, 16)
	workload.Start()
	for workload.Running() {
		readAll(zeros, large)
		readAll(zeros, small)
	}
}
