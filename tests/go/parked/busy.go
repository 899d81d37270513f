package main

import "time"

// churn keeps goroutines going that wait in one of two functions with frames of one
// size, so that a stack put together of two would show: one and two never call each
// other.
func churn() {
	for i := 0; i < 256; i++ {
		c := make(chan int)
		go feeds(c)
		go alternates(c)
	}
	for i := 0; i < 4; i++ {
		go comesAndGoes()
	}
}

//go:noinline
func feeds(c chan int) {
	for {
		c <- 1
	}
}

//go:noinline
func alternates(c chan int) {
	total := 0
	for {
		total += one(c)
		total += two(c)
	}
}

//go:noinline
func one(c chan int) int { return innerOne(c) + 1 }

//go:noinline
func innerOne(c chan int) int { return <-c + 1 }

//go:noinline
func two(c chan int) int { return innerTwo(c) + 2 }

//go:noinline
func innerTwo(c chan int) int { return <-c + 2 }

//go:noinline
func comesAndGoes() {
	for {
		done := make(chan int)
		go gives(done)
		sum := <-done
		if sum == 0 {
			time.Sleep(time.Microsecond)
		}
	}
}

//go:noinline
func gives(done chan int) { done <- 1 }

//go:noinline
func crash(at *int) { *at = 1 }
