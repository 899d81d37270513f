// Command exits_at_once ends before anything can be sampled; -code sets its
// exit code.
package main

import (
	"flag"
	"os"
)

func main() {
	code := flag.Int("code", 0, "the exit code")
	flag.Parse()
	os.Exit(*code)
}
