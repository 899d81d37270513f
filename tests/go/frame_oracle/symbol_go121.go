//go:build go1.21

package main

import (
	"runtime"
	_ "unsafe" // For go:linkname.
)

//go:linkname symbolName runtime/pprof.runtime_FrameSymbolName
func symbolName(f *runtime.Frame) string
