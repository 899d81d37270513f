// Command frame_oracle tells what its own runtime knows of its own addresses.
//
// It reads lines "<delta>", each a signed hexadecimal distance from the entry
// of main.anchor, and writes one line per source frame at that address, leaf
// first: delta, symbol name, file, line, start line, tab-separated. The frames
// are those that runtime/pprof writes, wrappers left out as it does.
package main

import (
	"bufio"
	"fmt"
	"os"
	"reflect"
	"runtime"
	"runtime/pprof"
	"strconv"
)

//go:noinline
func anchor() {}

func main() {
	pprof.Profiles() // Links runtime/pprof, which the frame functions belong to.
	if len(os.Args) > 1 && os.Args[1] == "-run" {
		fmt.Println(exercise(len(os.Args)))
		return
	}
	base := reflect.ValueOf(anchor).Pointer()
	in := bufio.NewScanner(os.Stdin)
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	for in.Scan() {
		delta, err := strconv.ParseInt(in.Text(), 16, 64)
		if err != nil {
			panic(err)
		}
		tell(out, delta, base+uintptr(delta))
	}
}

func tell(out *bufio.Writer, delta int64, pc uintptr) {
	// The runtime takes return addresses. The byte after the last of a function
	// belongs to the next one or to none: it cannot be asked about such a pc.
	next := runtime.FuncForPC(pc + 1)
	if next == nil && runtime.FuncForPC(pc) != nil || next != nil && next.Entry() == pc+1 {
		fmt.Fprintf(out, "%x\tboundary\n", delta)
		return
	}
	stack := expand([]uintptr{pc + 1})
	for i := range stack {
		frame, _ := runtime.CallersFrames(stack[i : i+1]).Next()
		if frame.PC == 0 {
			continue
		}
		fmt.Fprintf(out, "%x\t%s\t%s\t%d\t%d\n", delta, symbolName(&frame), frame.File, frame.Line, startLine(&frame))
	}
	fmt.Fprintf(out, "%x\tend\n", delta)
}
