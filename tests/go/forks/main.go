// Command forks spins in C, and so does a child that it has forked without running
// another program in it: a copy of the memory of a Go program with one thread of it.
package main

/*
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/types.h>
#include <unistd.h>

static volatile unsigned long sink;

__attribute__((noinline)) void parent_spins(void)
{
	for (unsigned long i = 0; i < 3000000; i++)
		sink += i;
}

__attribute__((noinline)) void child_spins(void)
{
	for (;;)
		sink++;
}

pid_t fork_child(void)
{
	pid_t child = fork();
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		child_spins();
	}
	return child;
}
*/
import "C"

import (
	"fmt"
	"runtime"

	"example.com/fixtures/internal/workload"
)

func main() {
	// The child dies with the thread that it was forked by.
	runtime.LockOSThread()
	child := C.fork_child()
	workload.Start(fmt.Sprint(child))
	for workload.Running() {
		C.parent_spins()
	}
}
