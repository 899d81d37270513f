// Package ownprofile lets a test take a program's own CPU profile, at the rate
// that it asks for.
package ownprofile

import (
	"net"
	"net/http"
	_ "net/http/pprof"
	"os"
	"runtime"
	"runtime/pprof"
	"strconv"
	"time"
)

// Serve answers on a port of its own and returns the URL: net/http/pprof, and
// /profile?ms=5000&hz=250, which is its CPU profile but for the rate.
func Serve() string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
	http.HandleFunc("/profile", profile)
	go http.Serve(listener, nil)
	return "http://" + listener.Addr().String()
}

// The rate that is set first stays: StartCPUProfile asks for 100 Hz, and the
// runtime refuses that with a line on standard error. The profile states the
// rate it was taken at.
func profile(w http.ResponseWriter, r *http.Request) {
	ms, err := strconv.Atoi(r.FormValue("ms"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	hz, err := strconv.Atoi(r.FormValue("hz"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	runtime.SetCPUProfileRate(hz)
	if err := pprof.StartCPUProfile(w); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	time.Sleep(time.Duration(ms) * time.Millisecond)
	pprof.StopCPUProfile()
}
