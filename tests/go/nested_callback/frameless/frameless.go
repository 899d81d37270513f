// Package frameless goes through C code that has no frame pointers and uses
// their register for data.
package frameless

// #cgo CFLAGS: -O2 -fomit-frame-pointer
// #include "frameless.h"
import "C"

// Up is what C calls.
var Up func(depth uint64) uint64

// Down calls C.
//
//go:noinline
func Down(depth uint64) uint64 { return uint64(C.frameless_outer(C.ulong(depth))) }

//export goFrameless
func goFrameless(depth C.ulong) C.ulong { return C.ulong(Up(uint64(depth))) }
