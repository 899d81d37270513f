// Package thread gives a program what Go keeps from it: where the runtime
// looks for the current goroutine, and its labels as bare memory.
package thread

import "unsafe"

// current returns the base of the thread's own memory and the address of its g;
// zeros where g is in a register alone.
func current() (base, routine uintptr)

// Slot returns the address of the word of this thread that holds g, 0 where
// there is none. Lock the thread before.
func Slot() uintptr {
	base, routine := current()
	for slot := base - 8; base != 0 && slot > base-4096; slot -= 8 {
		if *(*uintptr)(unsafe.Pointer(slot)) == routine {
			return slot
		}
	}
	return 0
}

// SetLabels makes the memory at labels those of the goroutine.
//
//go:linkname SetLabels runtime/pprof.runtime_setProfLabel
func SetLabels(labels unsafe.Pointer)
