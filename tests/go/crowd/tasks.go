package main

import (
	"bytes"
	"compress/flate"
	"container/heap"
	"crypto/sha256"
	"encoding/base64"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"html"
	"io"
	"math/big"
	"math/rand"
	"net/url"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"text/template"
	"time"
)

// What services do, each for some tens of microseconds.
var tasks = []func(*rand.Rand) int{
	encodeJSON, decodeJSON, matchText, compress, hash, render, sortNames, numbers,
	parseURLs, encodeXML, encodeGob, queue, dates, mapWork, escape, splitLines,
}

type order struct {
	ID    int64             `json:"id" xml:"id"`
	Name  string            `json:"name" xml:"name"`
	Lines []line            `json:"lines" xml:"lines"`
	Tags  map[string]string `json:"tags" xml:"-"`
}

type line struct {
	Product  string  `json:"product" xml:"product"`
	Quantity int     `json:"quantity" xml:"quantity"`
	Price    float64 `json:"price" xml:"price"`
}

func newOrder(r *rand.Rand) order {
	o := order{ID: r.Int63(), Name: word(r), Tags: map[string]string{}}
	for i := 0; i < 3; i++ {
		o.Lines = append(o.Lines, line{word(r), r.Intn(9), r.Float64()})
		o.Tags[word(r)] = word(r)
	}
	return o
}

func word(r *rand.Rand) string {
	return strconv.FormatInt(r.Int63n(1<<40), 36)
}

func encodeJSON(r *rand.Rand) int {
	text, _ := json.Marshal(newOrder(r))
	return len(text)
}

const document = `{"id":7,"name":"x","lines":[{"product":"p","quantity":3,"price":1.25}],"tags":{"a":"b"}}`

func decodeJSON(*rand.Rand) int {
	var o order
	if err := json.Unmarshal([]byte(document), &o); err != nil {
		return 0
	}
	return len(o.Lines)
}

var pattern = regexp.MustCompile(`([a-z]+)-(\d+)(?:@([a-z.]+))?`)

func matchText(r *rand.Rand) int {
	return len(pattern.FindAllStringSubmatch("order-12@shop.example item-"+word(r)+" x-9", -1))
}

func compress(r *rand.Rand) int {
	var out bytes.Buffer
	w, _ := flate.NewWriter(&out, flate.BestSpeed)
	io.WriteString(w, strings.Repeat(word(r), 50))
	w.Close()
	return out.Len()
}

func hash(r *rand.Rand) int {
	sum := sha256.Sum256([]byte(strings.Repeat(word(r), 100)))
	return len(base64.StdEncoding.EncodeToString(sum[:]))
}

var page = template.Must(template.New("page").Parse(
	`{{range .Lines}}{{.Product}} {{.Quantity}} {{printf "%.2f" .Price}};{{end}}`))

func render(r *rand.Rand) int {
	var out strings.Builder
	page.Execute(&out, newOrder(r))
	return out.Len()
}

func sortNames(r *rand.Rand) int {
	names := make([]string, 60)
	for i := range names {
		names[i] = word(r)
	}
	sort.Strings(names)
	return sort.SearchStrings(names, "m")
}

func numbers(r *rand.Rand) int {
	x := new(big.Int).Exp(big.NewInt(r.Int63()), big.NewInt(20), nil)
	return len(x.Mod(x, big.NewInt(1_000_000_007)).String())
}

func parseURLs(r *rand.Rand) int {
	u, err := url.Parse("https://shop.example/orders/" + word(r) + "?a=b&c=%2F" + word(r))
	if err != nil {
		return 0
	}
	return len(u.Query()) + len(u.String())
}

func encodeXML(r *rand.Rand) int {
	text, _ := xml.Marshal(newOrder(r))
	return len(text)
}

func encodeGob(r *rand.Rand) int {
	var out bytes.Buffer
	gob.NewEncoder(&out).Encode(newOrder(r))
	return out.Len()
}

type priorities []int

func (p priorities) Len() int           { return len(p) }
func (p priorities) Less(i, j int) bool { return p[i] < p[j] }
func (p priorities) Swap(i, j int)      { p[i], p[j] = p[j], p[i] }
func (p *priorities) Push(x any)        { *p = append(*p, x.(int)) }
func (p *priorities) Pop() any {
	last := len(*p) - 1
	x := (*p)[last]
	*p = (*p)[:last]
	return x
}

func queue(r *rand.Rand) int {
	var p priorities
	for i := 0; i < 50; i++ {
		heap.Push(&p, r.Intn(1000))
	}
	return heap.Pop(&p).(int)
}

func dates(r *rand.Rand) int {
	text := time.Unix(r.Int63n(1<<31), 0).UTC().Format(time.RFC3339)
	parsed, _ := time.Parse(time.RFC3339, text)
	return parsed.YearDay()
}

func mapWork(r *rand.Rand) int {
	counts := map[string]int{}
	for i := 0; i < 60; i++ {
		counts[word(r)[:2]]++
	}
	return len(counts)
}

func escape(r *rand.Rand) int {
	return len(html.UnescapeString(html.EscapeString("<a href=\"" + word(r) + "\">&amp;</a>")))
}

func splitLines(r *rand.Rand) int {
	fields := strings.FieldsFunc(strings.Repeat("a,b;"+word(r)+" ", 20), func(c rune) bool {
		return c == ',' || c == ';' || c == ' '
	})
	return len(strings.Join(fields, "|"))
}
