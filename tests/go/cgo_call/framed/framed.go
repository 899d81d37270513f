// Package framed calls C code that keeps frame pointers.
package framed

// #cgo CFLAGS: -O2 -fno-omit-frame-pointer
// #include "framed.h"
import "C"

// Burn spends its time in C.
//
//go:noinline
func Burn(seed uint64) uint64 {
	return uint64(C.framed_outer(C.ulong(seed)))
}
