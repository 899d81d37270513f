// Command shop is the workload of the demo: a small web shop, and customers in
// the same process who keep it busy.
//
// It searches and prices a catalogue, renders pages, takes orders as JSON and
// answers compressed, which is about what a Go service spends its CPU on.
package main

import (
	"flag"
	"net"
	"net/http"
	_ "net/http/pprof"
	"os"

	"example.com/fixtures/internal/workload"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "the address to serve on")
	customers := flag.Int("customers", 4, "how many customers shop at once")
	flag.Parse()
	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		os.Stderr.WriteString("shop: " + err.Error() + "\n")
		os.Exit(1)
	}
	shop := newShop()
	http.HandleFunc("/search", shop.search)
	http.HandleFunc("/order", shop.order)
	http.HandleFunc("/page", shop.page)
	go http.Serve(listener, nil)
	url := "http://" + listener.Addr().String()
	workload.Start(url)
	for i := 1; i < *customers; i++ {
		go visit(url, int64(i))
	}
	visit(url, 0)
}
