// Package native works in C that has no frame pointers and uses their register
// for data.
package native

// #cgo CFLAGS: -O2 -fomit-frame-pointer
// #include "native.h"
import "C"

// Burn spends its time in C.
//
//go:noinline
func Burn(seed uint64) uint64 {
	return uint64(C.native_outer(C.ulong(seed)))
}
