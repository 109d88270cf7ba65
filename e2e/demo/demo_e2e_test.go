//go:build e2e

package demo

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// config is a demo that is small enough for a test.
func config(t *testing.T, out *bytes.Buffer) Config {
	t.Helper()
	dhow, err := filepath.Abs(filepath.Join("..", "..", "bin", "dhow"))
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "dhow-demo-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return Config{
		Dhow: dhow, Repository: filepath.Join("..", ".."), DataDir: filepath.Join(dir, "data"), Listen: "127.0.0.1:7460", Kubernetes: "127.0.0.1:6460", Nodes: 3, Replicas: 12,
		StepTimeout: 3 * time.Minute, Out: out,
	}
}

func TestDemo(t *testing.T) {
	var out bytes.Buffer
	if err := Run(t.Context(), config(t, &out)); err != nil {
		t.Fatalf("%v:\n%s", err, out.String())
	}
	for _, s := range (&Demo{}).steps() {
		if !strings.Contains(out.String(), "== "+s.name+"\n") {
			t.Errorf("the step %q was not told:\n%s", s.name, out.String())
		}
	}
}

// Without any one of the services the demo must fail, and say in which step.
func TestDemoFailsWithoutAService(t *testing.T) {
	for service, step := range map[string]string{
		"store":              "start a cluster",
		"apiserver":          "start a cluster",
		"node-agent":         "start a cluster",
		"scheduler":          "wait until it is ready",
		"controller-manager": "wait until it is ready",
	} {
		t.Run(service, func(t *testing.T) {
			var out bytes.Buffer
			c := config(t, &out)
			c.Without = service
			// Long enough for what works, which takes a second; what is missing never comes.
			c.StepTimeout = 20 * time.Second
			err := Run(t.Context(), c)
			if err == nil {
				t.Fatalf("the demo passed without %s:\n%s", service, out.String())
			}
			if !strings.Contains(err.Error(), `step "`+step+`"`) {
				t.Errorf("%v; want it to fail in %q:\n%s", err, step, out.String())
			}
			if strings.Contains(err.Error(), "leave nothing behind") {
				t.Errorf("it left something behind: %v", err)
			}
		})
	}
}
