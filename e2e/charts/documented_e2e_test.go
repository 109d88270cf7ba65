//go:build e2e

package charts

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write values.schema.json and the tables of README.md; read them before you commit them")

// all are the charts, each after those that it needs.
var all = []string{"store", "apiserver", "scheduler", "controller-manager", "node-agent", "dhow"}

// TestDocumented: every value has a comment, and the schema and the README say what the comments do.
func TestDocumented(t *testing.T) {
	for _, chart := range all {
		t.Run(chart, func(t *testing.T) {
			dir := filepath.Join("..", "..", "helm", chart)
			values := valuesOf(t, chart)
			schema, err := Schema(values)
			if err != nil {
				t.Fatal(err)
			}
			table, err := Table(values)
			if err != nil {
				t.Fatal(err)
			}
			readme := read(t, filepath.Join(dir, "README.md"))
			before, rest, found := strings.Cut(readme, tableBegin)
			_, after, ended := strings.Cut(rest, tableEnd)
			if !found || !ended {
				t.Fatalf("README.md has no place for the table: the lines\n%s%s", tableBegin, tableEnd)
			}
			for file, want := range map[string]string{"values.schema.json": string(schema), "README.md": before + table + after} {
				path := filepath.Join(dir, file)
				if *update {
					if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				if read(t, path) != want {
					t.Errorf("%s is not what values.yaml says: go test -tags e2e ./charts -run TestDocumented -update", file)
				}
			}
		})
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func valuesOf(t *testing.T, chart string) []Value {
	t.Helper()
	values, err := Values([]byte(read(t, filepath.Join("..", "..", "helm", chart, "values.yaml"))))
	if err != nil {
		t.Fatalf("%s/values.yaml: %v", chart, err)
	}
	return values
}

// TestValuesThatAreNotDocumented: what the source of schema and README must have.
func TestValuesThatAreNotDocumented(t *testing.T) {
	for content, want := range map[string]string{
		"a: 1\n":                             "line 1: a has no comment",
		"# An a.\n\na: 1\n":                  "line 3: a has no comment",
		"# An a.\na:\n  b: 1\n":              "line 3: a.b has no comment",
		"# An a.\n# @schema {\na: 1\n":       "line 3: a: @schema: unexpected end of JSON input",
		"# An a.\na: []\n# What?\n- b\nc: 1": "yaml",
	} {
		if _, err := Values([]byte(content)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", content, err, want)
		}
	}
}
