package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"os"

	"example.com/fixtures/internal/workload"
)

var searches = []string{
	`^red\+.*`, `lamp`, `(small|round)\+(clock|tent)`, `[0-9]*7$`, `h.*r`,
}

// visit shops until the run is over.
func visit(url string, seed int64) {
	random := rand.New(rand.NewSource(seed))
	for workload.Running() {
		get(url + "/search?q=" + searches[random.Intn(len(searches))])
		get(url + "/page?tag=" + []string{"red", "lamp", "clock", "cheap"}[random.Intn(4)])
		buy(url, random)
	}
}

func buy(url string, random *rand.Rand) {
	lines := make(map[int]int)
	for i := 0; i < 20; i++ {
		lines[random.Intn(2000)] = 1 + random.Intn(3)
	}
	body, err := json.Marshal(orderRequest{Customer: fmt.Sprint("customer ", random.Intn(100)), Lines: lines})
	if err != nil {
		panic(err)
	}
	response, err := http.Post(url+"/order", "application/json", bytes.NewReader(body))
	finish(response, err)
}

func get(url string) {
	response, err := http.Get(url)
	finish(response, err)
}

// finish reads the answer to its end, so that the connection is used again.
func finish(response *http.Response, err error) {
	if err != nil {
		os.Stderr.WriteString("shop: " + err.Error() + "\n")
		os.Exit(1)
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil || response.StatusCode != http.StatusOK {
		os.Stderr.WriteString(fmt.Sprintln("shop:", response.Status, err))
		os.Exit(1)
	}
}
