// Package frameless calls C code that has no frame pointers and uses the frame
// pointer register for data.
package frameless

// #cgo CFLAGS: -O2 -fomit-frame-pointer
// #include "frameless.h"
import "C"

// Burn spends its time in C.
//
//go:noinline
func Burn(seed uint64) uint64 {
	return uint64(C.frameless_outer(C.ulong(seed)))
}
