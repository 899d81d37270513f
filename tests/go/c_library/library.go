// Command c_library is Go code for a C program to call.
package main

import "C"

import "fmt"

//export triple
//go:noinline
func triple(n C.int) C.int {
	if n < 0 {
		fmt.Println("negative")
	}
	return 3 * n
}

func main() {}
