// Command plugin_code is a plugin for plugin_host: built with
// -buildmode=plugin, it has one function that works for a moment.
package main

// mix is all that the loop waits for, on any processor: of one that is shorter, some
// show no instruction but the loop's own.
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 29
	return x*0xc4ceb9fe1a85ec53 + 1
}

//go:noinline
func burn(x uint64) uint64 {
	for i := 0; i < 200_000; i++ {
		x = mix(x) // line:mix
	}
	return x
}

// Work is what the host calls.
//
//go:noinline
func Work(x uint64) uint64 {
	return burn(x) // line:burn
}

func main() {}
