package main

import (
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html/template"
	"math/rand"
	"net/http"
	"regexp"
	"sort"
	"sync"
)

type product struct {
	ID    int      `json:"id"`
	Name  string   `json:"name"`
	Price float64  `json:"price"`
	Tags  []string `json:"tags"`
}

type shop struct {
	products []product
	byTag    map[string][]int
	pages    *template.Template

	mu    sync.Mutex
	stock map[int]int
}

const pageText = `<html><body><h1>{{.Title}}</h1><ul>
{{range .Products}}<li><a href="/page?id={{.ID}}">{{.Name}}</a> {{printf "%.2f" .Price}}
{{range .Tags}}<em>{{.}}</em> {{end}}</li>{{end}}</ul></body></html>`

func newShop() *shop {
	random := rand.New(rand.NewSource(1))
	adjectives := []string{"red", "small", "quiet", "heavy", "round", "cheap", "northern"}
	nouns := []string{"lamp", "chair", "kettle", "bicycle", "clock", "tent", "violin"}
	s := &shop{
		byTag: make(map[string][]int),
		pages: template.Must(template.New("page").Parse(pageText)),
		stock: make(map[int]int),
	}
	for id := 0; id < 2000; id++ {
		tags := []string{adjectives[random.Intn(len(adjectives))], nouns[random.Intn(len(nouns))]}
		s.products = append(s.products, product{
			ID:    id,
			Name:  fmt.Sprintf("%s %s %04d", tags[0], tags[1], id),
			Price: float64(random.Intn(100_000)) / 100,
			Tags:  tags,
		})
		for _, tag := range tags {
			s.byTag[tag] = append(s.byTag[tag], id)
		}
		s.stock[id] = 1_000
	}
	return s
}

// search answers /search?q=REGEXP with the cheapest products that match,
// as compressed JSON.
func (s *shop) search(w http.ResponseWriter, r *http.Request) {
	pattern, err := regexp.Compile(r.FormValue("q"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	writeCompressed(w, cheapest(s.matching(pattern), 50))
}

func (s *shop) matching(pattern *regexp.Regexp) []product {
	var found []product
	for _, p := range s.products {
		if pattern.MatchString(p.Name) {
			found = append(found, p)
		}
	}
	return found
}

func cheapest(products []product, limit int) []product {
	sort.Slice(products, func(i, j int) bool { return products[i].Price < products[j].Price })
	if len(products) > limit {
		products = products[:limit]
	}
	return products
}

func writeCompressed(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Encoding", "gzip")
	compressed := gzip.NewWriter(w)
	defer compressed.Close()
	if err := json.NewEncoder(compressed).Encode(value); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

type orderRequest struct {
	Customer string      `json:"customer"`
	Lines    map[int]int `json:"lines"`
}

type receipt struct {
	Total float64 `json:"total"`
	Proof string  `json:"proof"`
}

// order answers a POST of an orderRequest with a signed receipt.
func (s *shop) order(w http.ResponseWriter, r *http.Request) {
	var request orderRequest
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	total := s.take(request.Lines)
	writeCompressed(w, receipt{Total: total, Proof: proof(request.Customer, total)})
}

func (s *shop) take(lines map[int]int) float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	total := 0.0
	for id, count := range lines {
		if id < 0 || id >= len(s.products) {
			continue
		}
		s.stock[id] -= count
		if s.stock[id] < 0 {
			s.stock[id] = 1_000
		}
		total += s.products[id].Price * float64(count)
	}
	return total
}

// proof hashes the receipt over and over, as a key derivation would.
func proof(customer string, total float64) string {
	digest := sha256.Sum256([]byte(fmt.Sprintf("%s:%.2f", customer, total)))
	for i := 0; i < 500; i++ {
		digest = sha256.Sum256(digest[:])
	}
	return hex.EncodeToString(digest[:])
}

// page answers /page?tag=TAG with HTML.
func (s *shop) page(w http.ResponseWriter, r *http.Request) {
	tag := r.FormValue("tag")
	var listed []product
	for _, id := range s.byTag[tag] {
		listed = append(listed, s.products[id])
	}
	err := s.pages.Execute(w, struct {
		Title    string
		Products []product
	}{tag, cheapest(listed, 30)})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}
