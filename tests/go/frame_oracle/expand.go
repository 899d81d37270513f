package main

import _ "unsafe" // For go:linkname.

//go:linkname expand runtime/pprof.runtime_expandFinalInlineFrame
func expand(stack []uintptr) []uintptr
