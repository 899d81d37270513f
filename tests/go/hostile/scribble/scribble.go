// Package scribble is a C library that overwrites what profilers follow: its
// frame pointer, its stack pointer, and the word that leads to the goroutine.
package scribble

// #cgo CFLAGS: -O2
// #cgo LDFLAGS: -pthread
// #include "scribble.h"
import "C"

import "unsafe"

// Prepare starts threads of its own and returns memory that holds what it
// should not, and changes all the time.
func Prepare() unsafe.Pointer { return C.prepare() }

func slot(slot uintptr) *C.uint64_t { return (*C.uint64_t)(unsafe.Pointer(slot)) }

// Loop has two frames that call each other.
func Loop(at uintptr) { C.spin_in_loop(slot(at)) }

// Chain has more frames than any stack.
func Chain(at uintptr) { C.spin_in_chain(slot(at)) }

// Frame has a frame pointer that leads astray.
func Frame(at uintptr) { C.spin_off_frame(slot(at)) }

// Stack has a stack pointer that leads astray as well.
func Stack(at uintptr) { C.spin_off_stack(slot(at)) }

// G has a g that leads astray.
func G(at uintptr) { C.spin_off_g(slot(at)) }

// Lies has a g that can be read but is none, and changes meanwhile.
func Lies(at uintptr) { C.spin_in_lies(slot(at)) }
