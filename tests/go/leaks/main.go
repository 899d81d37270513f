// Command leaks is a server that is healthy until it is told to leak by a line on
// standard input. A test has the leaks found, and nothing of the healthy part.
package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"example.com/fixtures/internal/workload"
)

// every is the time between two leaks of a kind.
const every = 20 * time.Millisecond

var (
	url     string
	results = make(chan int)
	jobs    = make(chan int)
	big     = strings.Repeat("x", 8<<20)
)

//go:noinline
func blockedSend() { results <- 1 }

//go:noinline
func forgottenTicker() {
	ticker := time.NewTicker(10 * time.Millisecond)
	for range ticker.C {
	}
}

// unreadBody leaves a response's body unread and open: the transport's two
// goroutines and the connection stay.
//
//go:noinline
func unreadBody(client *http.Client) {
	if _, err := client.Get(url + "/big"); err != nil {
		panic(err)
	}
}

// leak starts a leak of each kind again and again.
func leak() {
	client := &http.Client{Transport: &http.Transport{}}
	for {
		go blockedSend()
		go forgottenTicker()
		unreadBody(client)
		time.Sleep(every)
	}
}

//go:noinline
func works() {
	for range jobs {
		time.Sleep(time.Millisecond)
	}
}

// asks has requests answered, over connections that are kept and over new ones.
func asks(keeps bool) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: !keeps}}
	path := "/small"
	if !keeps {
		path = "/none"
	}
	for {
		response, err := client.Get(url + path)
		if err != nil {
			panic(err)
		}
		_, _ = io.Copy(io.Discard, response.Body)
		_ = response.Body.Close()
		time.Sleep(5 * time.Millisecond)
	}
}

// bursts has many goroutines from time to time, that end after a while.
func bursts() {
	for {
		var burst sync.WaitGroup
		for i := 0; i < 200; i++ {
			burst.Add(1)
			go func() {
				defer burst.Done()
				ticker := time.NewTicker(time.Second)
				defer ticker.Stop()
				<-ticker.C
			}()
		}
		burst.Wait()
		time.Sleep(300 * time.Millisecond)
	}
}

func serve() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	url = "http://" + listener.Addr().String()
	mux := http.NewServeMux()
	mux.HandleFunc("/small", func(w http.ResponseWriter, _ *http.Request) {
		jobs <- 1
		fmt.Fprintln(w, "small")
	})
	// An answer without a body: the connection's goroutine does not wait for one to
	// be read, as those do that leak.
	mux.HandleFunc("/none", func(w http.ResponseWriter, _ *http.Request) {
		jobs <- 1
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("/big", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, big)
	})
	go func() { panic(http.Serve(listener, mux)) }()
	return nil
}

func main() {
	if err := serve(); err != nil {
		panic(err)
	}
	for i := 0; i < 50; i++ {
		go works()
	}
	for i := 0; i < 8; i++ {
		go asks(i%2 == 0)
	}
	go bursts()
	workload.Start()
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		switch lines.Text() {
		case "leak":
			go leak()
			fmt.Println("done")
		default:
			fmt.Println("failed: no such command")
		}
	}
}
