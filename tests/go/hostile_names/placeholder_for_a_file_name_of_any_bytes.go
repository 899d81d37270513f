package main

//go:noinline
func placeholderForAFunctionNameOfAnyBytes(x uint64) uint64 {
	for i := 0; i < 5_000_000; i++ {
		x = x*6364136223846793005 + 1442695040888963407
	}
	return x
}
