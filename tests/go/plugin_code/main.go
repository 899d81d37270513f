// Command plugin_code is a plugin for plugin_host: built with
// -buildmode=plugin, it has one function that works for a moment.
package main

func mix(x uint64) uint64 { return x*6364136223846793005 + 1442695040888963407 }

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
