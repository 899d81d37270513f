//go:build cgo

package main

import "C"

// RuntimeFacts is main for a C program that holds the library.
//
//export RuntimeFacts
func RuntimeFacts() {
	run()
}
