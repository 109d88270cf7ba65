package manifest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func read(t *testing.T, content string) ([]Object, error) {
	t.Helper()
	return Read(Options{Paths: []string{"-"}, In: strings.NewReader(content), Namespace: "default"})
}

func TestDocumentsAndLists(t *testing.T) {
	objects, err := read(t, `# only a comment
---
apiVersion: v1
kind: ConfigMap
metadata: {name: a}
---
apiVersion: v1
kind: List
items:
- {apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: shop}}
- {apiVersion: v1, kind: Namespace, metadata: {name: shop}}
`)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, o := range objects {
		got = append(got, o.Namespace+" "+o.String()+" @ "+o.Source)
	}
	want := []string{
		"default configmap/a @ standard input, document 2",
		"shop deployment.apps/web @ standard input, document 3, items[0]",
		" namespace/shop @ standard input, document 3, items[1]",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestEveryErrorIsTold(t *testing.T) {
	_, err := read(t, `{"kind": "Pod"}
---
apiVersion: v1
kind: Gizmo
metadata: {name: x}
---
apiVersion: v1
kind: Pod
metadata: {}
---
apiVersion: v1
kind: Namespace
metadata: {name: x, namespace: shop}
---
apiVersion: v1
kind: Pod
kind: Pod
---
apiVersion: v1
kind: Pod
metadata: {generateName: x-}
`)
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		"standard input, document 1: apiVersion: Required value",
		`standard input, document 2: no matches for kind "Gizmo" in version "v1"`,
		"standard input, document 3: Pod: metadata.name: Required value",
		"standard input, document 4: namespace/x: metadata.namespace: Forbidden",
		`document 5: yaml: unmarshal errors`,
		"document 6: Pod: metadata.generateName cannot be applied",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q not in\n%v", want, err)
		}
	}
}

func TestFolders(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for file, name := range map[string]string{"b.yaml": "b", "a.yml": "a", "notes.txt": "no", "sub/c.json": "c"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"`+name+`"}}`), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for recursive, want := range map[bool]string{false: "ab", true: "abc"} {
		objects, err := Read(Options{Paths: []string{dir}, Recursive: recursive})
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, o := range objects {
			got += o.Name
		}
		if got != want {
			t.Errorf("recursive %v: %s, want %s", recursive, got, want)
		}
	}
	if _, err := Read(Options{Paths: []string{filepath.Join(dir, "absent")}}); err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Error(err)
	}
	if _, err := Read(Options{Paths: []string{t.TempDir()}}); err == nil || !strings.Contains(err.Error(), "no objects") {
		t.Error(err)
	}
}
