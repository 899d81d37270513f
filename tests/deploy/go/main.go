// Command inspect reads what deploy/ holds with the types of those who will read
// it: the Prometheus Operator's and Grafana's own. Fields that they do not know are
// errors.
//
//	inspect json FILE              every YAML document of FILE, as a JSON list
//	inspect operator FILE          every document of FILE is the operator's
//	inspect dashboard FILE         FILE is a dashboard
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/grafanapyroscope"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return errors.New("usage: inspect json|operator|dashboard FILE")
	}
	text, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	switch args[0] {
	case "json":
		return printJSON(text)
	case "operator":
		return checkOperator(text)
	case "dashboard":
		return checkDashboard(text)
	}
	return fmt.Errorf("inspect knows no %s", args[0])
}

// documents splits a YAML stream; empty documents are left out.
func documents(text []byte) ([][]byte, error) {
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	var all [][]byte
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		plain, err := yaml.YAMLToJSONStrict(document)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(plain, []byte("null")) {
			all = append(all, plain)
		}
	}
}

func printJSON(text []byte) error {
	all, err := documents(text)
	if err != nil {
		return err
	}
	list := make([]json.RawMessage, len(all))
	for i, document := range all {
		list[i] = document
	}
	return json.NewEncoder(os.Stdout).Encode(list)
}

func checkOperator(text []byte) error {
	all, err := documents(text)
	if err != nil {
		return err
	}
	for _, document := range all {
		var kind struct {
			APIVersion string `json:"apiVersion"`
			Kind       string `json:"kind"`
		}
		if err := json.Unmarshal(document, &kind); err != nil {
			return err
		}
		var into any
		switch kind.APIVersion + " " + kind.Kind {
		case "monitoring.coreos.com/v1 PodMonitor":
			into = &monitoring.PodMonitor{}
		case "monitoring.coreos.com/v1 PrometheusRule":
			into = &monitoring.PrometheusRule{}
		default:
			return fmt.Errorf("%s %s is not known here", kind.APIVersion, kind.Kind)
		}
		if err := yaml.UnmarshalStrict(document, into); err != nil {
			return fmt.Errorf("%s: %w", kind.Kind, err)
		}
	}
	return nil
}

func checkDashboard(text []byte) error {
	// Those in use; all of them take minutes to build.
	runtime := cog.NewRuntime()
	runtime.RegisterPanelcfgVariant(stat.VariantConfig())
	runtime.RegisterPanelcfgVariant(table.VariantConfig())
	runtime.RegisterPanelcfgVariant(timeseries.VariantConfig())
	// The name by which dashboards know it is another than the types'.
	pyroscope := grafanapyroscope.VariantConfig()
	pyroscope.Identifier = "grafana-pyroscope-datasource"
	runtime.RegisterDataqueryVariant(pyroscope)
	runtime.RegisterDataqueryVariant(prometheus.VariantConfig())
	var read dashboard.Dashboard
	err := read.UnmarshalJSONStrict(text)
	// It also returns an empty list.
	var all cog.BuildErrors
	if err != nil && !(errors.As(err, &all) && len(all) == 0) {
		return err
	}
	return read.Validate()
}
