package telemetry_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
)

// made is a method of a meter by which the code makes an instrument.
var made = regexp.MustCompile(`^(Int64|Float64)(Observable)?(Counter|UpDownCounter|Gauge|Histogram)$`)

// TestMetricsAreDocumented: docs/observability.md has every metric that the code makes, by the name and with the type that Prometheus gets, and no other of ours.
func TestMetricsAreDocumented(t *testing.T) {
	repository := filepath.Join("..", "..")
	coded := map[string]string{}
	for _, module := range []string{"pkg", "services", "cli"} {
		err := filepath.WalkDir(filepath.Join(repository, module), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok || len(call.Args) == 0 {
					return true
				}
				kind := made.FindStringSubmatch(method(call))
				if kind == nil {
					return true
				}
				name, ok := literal(call.Args[0])
				if !ok {
					t.Errorf("%s makes an instrument whose name is no literal: it cannot be found in the documentation", path)
					return true
				}
				unit := ""
				for _, argument := range call.Args[1:] {
					if option, ok := argument.(*ast.CallExpr); ok && method(option) == "WithUnit" {
						unit, _ = literal(option.Args[0])
					}
				}
				served, as := prometheusName(t, kind[3], name, unit)
				coded[served] = as
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(coded) < 40 {
		t.Errorf("only %d instruments found: %v", len(coded), coded)
	}

	page, err := os.ReadFile(filepath.Join(repository, "docs", "observability.md"))
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `((?:dhow|http|kubelet)_[a-z_]+)` \\| ([a-z]+) \\|").FindAllStringSubmatch(string(page), -1) {
		documented[row[1]] = row[2]
	}
	for name, as := range coded {
		if documented[name] != as {
			t.Errorf("docs/observability.md has %s as %q, the code as a %s", name, documented[name], as)
		}
		delete(documented, name)
	}
	for name := range documented {
		t.Errorf("docs/observability.md has %s, the code does not", name)
	}
}

// method is the name of the method, or the function of a package, that is called.
func method(call *ast.CallExpr) string {
	if selector, ok := call.Fun.(*ast.SelectorExpr); ok {
		return selector.Sel.Name
	}
	return ""
}

func literal(e ast.Expr) (string, bool) {
	text, ok := e.(*ast.BasicLit)
	if !ok || text.Kind != token.STRING {
		return "", false
	}
	value, err := strconv.Unquote(text.Value)
	return value, err == nil
}

// prometheusName makes such an instrument and looks what Prometheus is told of it.
func prometheusName(t *testing.T, kind, name, unit string) (served, as string) {
	t.Helper()
	registry := prometheus.NewRegistry()
	exporter, err := otelprometheus.New(otelprometheus.WithRegisterer(registry), otelprometheus.WithoutTargetInfo())
	if err != nil {
		t.Fatal(err)
	}
	meter := sdkmetric.NewMeterProvider(sdkmetric.WithReader(exporter)).Meter("test")
	switch kind {
	case "Counter":
		i, err := meter.Int64Counter(name, metric.WithUnit(unit))
		if err != nil {
			t.Fatal(err)
		}
		i.Add(t.Context(), 1)
	case "Histogram":
		i, err := meter.Int64Histogram(name, metric.WithUnit(unit))
		if err != nil {
			t.Fatal(err)
		}
		i.Record(t.Context(), 1)
	default:
		i, err := meter.Int64Gauge(name, metric.WithUnit(unit))
		if err != nil {
			t.Fatal(err)
		}
		i.Record(t.Context(), 1)
	}
	families, err := registry.Gather()
	if err != nil || len(families) != 1 {
		t.Fatalf("%s: %v %v", name, families, err)
	}
	return families[0].GetName(), strings.ToLower(families[0].GetType().String())
}
