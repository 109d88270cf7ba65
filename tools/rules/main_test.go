package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBreaches(t *testing.T) {
	for _, c := range []struct{ path, source, want string }{
		{"services/scheduler/a.go", "package a\nimport _ \"dhow.dev/services/store\"\n", "no service imports another"},
		{"services/scheduler/a_test.go", "package a\nimport _ \"dhow.dev/services/store\"\n", ""},
		{"services/store/a.go", "package a\nimport _ \"dhow.dev/services/store/internal/engine\"\n", ""},
		{"services/apiserver/a.go", "package a\nimport _ \"k8s.io/apiserver/pkg/server\"\n", "Dhow implements it"},
		{"pkg/a/a.go", "package a\nimport _ \"go.etcd.io/etcd/client/v3\"\n", "only the store"},
		{"pkg/a/a_test.go", "package a\nimport \"time\"\nfunc f() { time.Sleep(1) }\n", "time.Sleep"},
		{"pkg/a/a_test.go", "package a\nimport (\"time\"; _ \"testing/synctest\")\nfunc f() { time.Sleep(1) }\n", ""},
		{"pkg/a/a_test.go", "package a\nimport \"testing\"\nfunc TestX(t *testing.T) { t.Skip() }\n", "skips itself"},
		{"pkg/a/a.go", "package a\n" + strings.Repeat("//\n", maxLines), "split it"},
		{"pkg/util/a.go", "package util\n", "noun of the field"},
		{"gen/go/a.go", "package a\nimport _ \"k8s.io/apiserver\"\n", ""},
	} {
		root := t.TempDir()
		file := filepath.Join(root, c.path)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(c.source), 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := check(root)
		if err != nil {
			t.Fatal(err)
		}
		if all := strings.Join(got, "\n"); c.want == "" && all != "" || !strings.Contains(all, c.want) {
			t.Errorf("%s: %q, want %q", c.path, all, c.want)
		}
	}
}
