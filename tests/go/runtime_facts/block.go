//go:build cgo

package main

/*
#include <unistd.h>

#ifdef LARGE_TLS
// Moves whatever else is in the program's thread-local storage.
static volatile __thread char large[4096];
#endif

static void block(int fd) {
	char byte_read = 0;
#ifdef LARGE_TLS
	large[fd] = 1;
#endif
	while (read(fd, &byte_read, 1) > 0) {
	}
}
*/
import "C"

func init() {
	blockInC = func(fd int) { C.block(C.int(fd)) }
}
