// Command receivers takes profiles as Pyroscope, Parca and an OpenTelemetry
// collector do, by the code that is generated from their definitions, reads each
// with their own decoders, and writes a line of JSON of what came to a file.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"sync"

	"github.com/grafana/pyroscope/api/gen/proto/go/push/v1/pushv1connect"
	parca "github.com/parca-dev/parca/gen/proto/go/parca/profilestore/v1alpha1"
	otlp "go.opentelemetry.io/proto/otlp/collector/profiles/v1development"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

var (
	pyroscopeAddr = flag.String("pyroscope", "", "address to serve Pyroscope's push at")
	parcaAddr     = flag.String("parca", "", "address to serve Parca's profile store at")
	otlpAddr      = flag.String("otlp", "", "address to serve OTLP profiles at")
	out           = flag.String("out", "", "file to append a line of JSON to for each profile")
	httpStatus    = flag.Int("status", 200, "HTTP status that stands for the answer to everything")
	certFile      = flag.String("cert", "", "certificate to serve TLS with")
	keyFile       = flag.String("key", "", "its key")
	clientCA      = flag.String("client-ca", "", "certificate that has to speak for clients")
	_             = flag.Duration("duration", 0, "ignored")
)

// Received is a profile, or an answer other than success.
type Received struct {
	Receiver      string            `json:"receiver"`
	Tenant        string            `json:"tenant"`
	Authorization string            `json:"authorization"`
	Refused       int               `json:"refused"`
	Invalid       string            `json:"invalid"`
	ID            string            `json:"id"`
	Labels        map[string]string `json:"labels"`
	Types         []string          `json:"types"`
	Period        string            `json:"period"`
	TimeNs        int64             `json:"time_ns"`
	DurationNs    int64             `json:"duration_ns"`
	Samples       int               `json:"samples"`
	Totals        []int64           `json:"totals"`
	// Values of the last type below each function.
	Cumulative map[string]int64 `json:"cumulative"`
	// Each text label of a sample, as key=value.
	SampleLabels map[string]int64 `json:"sample_labels"`
}

var (
	turn sync.Mutex
	file *os.File
)

// keep writes a line.
func keep(received *Received) {
	line, err := json.Marshal(received)
	if err != nil {
		log.Fatal(err)
	}
	turn.Lock()
	defer turn.Unlock()
	if _, err := file.Write(append(line, '\n')); err != nil {
		log.Fatal(err)
	}
}

// refusal is the error that all are to get, if any.
func refusal(receiver string) error {
	if *httpStatus == 200 {
		return nil
	}
	keep(&Received{Receiver: receiver, Refused: *httpStatus})
	return fmt.Errorf("refused with %d", *httpStatus)
}

func security() *tls.Config {
	if *certFile == "" {
		return nil
	}
	certificate, err := tls.LoadX509KeyPair(*certFile, *keyFile)
	if err != nil {
		log.Fatal(err)
	}
	config := &tls.Config{
		Certificates: []tls.Certificate{certificate},
		NextProtos:   []string{"h2", "http/1.1"},
	}
	if *clientCA != "" {
		pem, err := os.ReadFile(*clientCA)
		if err != nil {
			log.Fatal(err)
		}
		config.ClientCAs = x509.NewCertPool()
		config.ClientCAs.AppendCertsFromPEM(pem)
		config.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return config
}

func listen(address string) net.Listener {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	return listener
}

func grpcServer() *grpc.Server {
	if config := security(); config != nil {
		return grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
	}
	return grpc.NewServer()
}

func main() {
	flag.Parse()
	var err error
	file, err = os.OpenFile(*out, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		log.Fatal(err)
	}
	failed := make(chan error)
	if *pyroscopeAddr != "" {
		listener := listen(*pyroscopeAddr)
		mux := http.NewServeMux()
		mux.Handle(pushv1connect.NewPusherServiceHandler(pyroscope{}))
		server := &http.Server{Handler: mux, TLSConfig: security()}
		go func() {
			if server.TLSConfig != nil {
				failed <- server.ServeTLS(listener, "", "")
			} else {
				failed <- server.Serve(listener)
			}
		}()
	}
	if *parcaAddr != "" {
		listener, server := listen(*parcaAddr), grpcServer()
		parca.RegisterProfileStoreServiceServer(server, parcaStore{})
		go func() { failed <- server.Serve(listener) }()
	}
	if *otlpAddr != "" {
		listener, server := listen(*otlpAddr), grpcServer()
		otlp.RegisterProfilesServiceServer(server, collector{})
		go func() { failed <- server.Serve(listener) }()
	}
	fmt.Println("ready")
	log.Fatal(<-failed)
}
