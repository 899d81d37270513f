// Command waits does nothing but wait: a program that is there, for whoever
// asks who it is.
package main

import (
	"time"

	"example.com/fixtures/internal/workload"
)

func main() {
	workload.Start()
	for workload.Running() {
		time.Sleep(100 * time.Millisecond)
	}
}
