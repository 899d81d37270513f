// Package framed goes through C code that keeps frame pointers.
package framed

// #cgo CFLAGS: -O2 -fno-omit-frame-pointer
// #include "framed.h"
import "C"

// Up is what C calls.
var Up func(depth uint64) uint64

// Down calls C.
//
//go:noinline
func Down(depth uint64) uint64 { return uint64(C.framed_outer(C.ulong(depth))) }

//export goFramed
func goFramed(depth C.ulong) C.ulong { return C.ulong(Up(uint64(depth))) }
