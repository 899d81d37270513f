package main

import (
	"crypto/sha256"
	"encoding/json"
	"hash/crc32"
	"sort"
	"strconv"
	"strings"
)

//go:noinline
func (w *worker) mapUpdates() {
	for _, k := range w.keys {
		w.counts[k]++
	}
	for _, k := range w.keys[:len(w.keys)/4] {
		delete(w.counts, k)
	}
}

//go:noinline
func (w *worker) mapReads() {
	total := 0
	for i := 0; i < 2; i++ {
		for _, k := range w.keys {
			total += w.counts[k]
		}
	}
	for _, v := range w.counts {
		total += v
	}
	w.sum += uint64(total)
}

const sentence = "The quick brown fox jumps over the lazy dog, again and again, until the dog wakes up."

//go:noinline
func (w *worker) textWork() {
	var b strings.Builder
	for i := 0; i < 40; i++ {
		for _, word := range strings.Fields(sentence) {
			b.WriteString(strings.ToUpper(word))
		}
		b.WriteString(strconv.Itoa(i * 7919))
		b.WriteString(strconv.FormatFloat(float64(i)/3, 'g', -1, 64))
	}
	text := b.String()
	w.sum += uint64(strings.Count(text, "DOG") + strings.Index(text, "WAKES"))
	w.sum += uint64(len(strings.ReplaceAll(text, "FOX", "cat")))
}

type byLastDigit []int

func (s byLastDigit) Len() int           { return len(s) }
func (s byLastDigit) Less(i, j int) bool { return s[i]%1000 < s[j]%1000 }
func (s byLastDigit) Swap(i, j int)      { s[i], s[j] = s[j], s[i] }

//go:noinline
func (w *worker) sorting() {
	w.fillScratch()
	sort.Ints(w.scratch)
	w.fillScratch()
	sort.Sort(byLastDigit(w.scratch))
	w.fillScratch()
	sort.Slice(w.scratch, func(i, j int) bool { return w.scratch[i] > w.scratch[j] })
}

//go:noinline
func (w *worker) fillScratch() {
	x := w.sum
	for i := range w.scratch {
		x = x*6364136223846793005 + 1442695040888963407
		w.scratch[i] = int(x >> 40)
	}
	w.sum = x
}

type order struct {
	ID    int               `json:"id"`
	Buyer string            `json:"buyer"`
	Items []item            `json:"items"`
	Tags  map[string]string `json:"tags"`
}

type item struct {
	Name  string  `json:"name"`
	Price float64 `json:"price"`
}

//go:noinline
func (w *worker) jsonRoundTrip() {
	in := order{ID: int(w.sum % 1000), Buyer: "Ada", Tags: map[string]string{"a": "b", "c": "d"}}
	for i := 0; i < 20; i++ {
		in.Items = append(in.Items, item{Name: w.keys[i], Price: float64(i) * 1.25})
	}
	data, err := json.Marshal(in)
	if err != nil {
		panic(err)
	}
	var out order
	if err := json.Unmarshal(data, &out); err != nil {
		panic(err)
	}
	w.sum += uint64(out.ID + len(data))
}

//go:noinline
func (w *worker) copying() {
	for i := 0; i < 16; i++ {
		w.sum += uint64(copy(w.to, w.from))
	}
}

//go:noinline
func (w *worker) digests() {
	digest := sha256.Sum256(w.from[:64<<10])
	w.sum += uint64(digest[0]) + uint64(crc32.ChecksumIEEE(w.from))
}
