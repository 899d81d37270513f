// Command plugin_host opens the plugin named by -plugin, at once or -after a
// while, and has it work.
package main

import (
	"flag"
	"os"
	"plugin"
	"time"

	"example.com/fixtures/internal/workload"
)

func open(path string) func(uint64) uint64 {
	opened, err := plugin.Open(path)
	if err == nil {
		var work plugin.Symbol
		if work, err = opened.Lookup("Work"); err == nil {
			return work.(func(uint64) uint64)
		}
	}
	os.Stderr.WriteString("plugin_host: " + err.Error() + "\n")
	os.Exit(1)
	return nil
}

//go:noinline
func usePlugin(work func(uint64) uint64) {
	x := uint64(1)
	for workload.Running() {
		x = work(x)
	}
}

func main() {
	path := flag.String("plugin", "", "the plugin to open")
	after := flag.Duration("after", 0, "how long to wait before it is opened")
	flag.Parse()
	if *after > 0 {
		workload.Start()
		time.Sleep(*after)
		usePlugin(open(*path))
		return
	}
	work := open(*path)
	workload.Start()
	usePlugin(work)
}
