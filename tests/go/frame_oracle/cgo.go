//go:build cgo_call

package main

// static int triple(int n) { return 3 * n; }
import "C"

func init() {
	if C.triple(2) != 6 {
		panic("C cannot count")
	}
}
