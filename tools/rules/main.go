// Rules checks what the compiler cannot: which imports are allowed where and why, and habits that tests must not have.
// It reads the tree that the working directory is in, prints one line per breach and exits 1 when there is any.
package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// maxLines bounds hand-written files: past it a stranger no longer finds anything.
const maxLines = 800

// ban forbids an import below a folder.
type ban struct {
	// in is a folder's path; except are folders below it that may.
	in     string
	except []string
	// imports is the prefix of import paths.
	imports string
	reason  string
}

var services = []string{"store", "apiserver", "scheduler", "controller-manager", "node-agent"}

func bans() []ban {
	list := []ban{
		{imports: "k8s.io/kubernetes", reason: "Dhow implements it"},
		{imports: "k8s.io/apiserver", reason: "Dhow implements it"},
		{imports: "k8s.io/apiextensions-apiserver", reason: "it imports k8s.io/apiserver"},
		{imports: "k8s.io/kube-aggregator", reason: "it imports k8s.io/apiserver"},
		{imports: "k8s.io/pod-security-admission", reason: "it imports k8s.io/apiserver"},
		{imports: "k8s.io/dynamic-resource-allocation", reason: "it imports k8s.io/apiserver"},
		{imports: "github.com/gogo/protobuf", reason: "unmaintained"},
		{in: "pkg", imports: "dhow.dev/services", reason: "pkg is what services share"},
		{in: "pkg", imports: "dhow.dev/cli", reason: "pkg is what services share"},
		{in: "services", imports: "dhow.dev/cli", reason: "only the command line composes services"},
		{imports: "dhow.dev/e2e", in: "services", reason: "services do not know their tests"},
		{imports: "go.etcd.io/etcd", except: []string{"services/store"}, reason: "only the store knows etcd"},
		{imports: "k8s.io/cri-api", except: []string{"services/node-agent", "e2e", "bench"}, reason: "only the node agent speaks CRI"},
	}
	for _, s := range services {
		for _, other := range services {
			if s != other {
				list = append(list, ban{in: "services/" + s, imports: "dhow.dev/services/" + other, reason: "no service imports another; they meet over gRPC"})
			}
		}
	}
	return list
}

func main() {
	breaches, err := check(".")
	if err != nil {
		fmt.Fprintln(os.Stderr, "rules:", err)
		os.Exit(2)
	}
	for _, b := range breaches {
		fmt.Println(b)
	}
	if len(breaches) > 0 {
		os.Exit(1)
	}
}

// check walks the tree below root and returns its breaches.
func check(root string) ([]string, error) {
	var breaches []string
	rules := bans()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			switch name := d.Name(); {
			case rel == "gen", rel == "bin", name == "node_modules", name == "testdata", rel != "." && strings.HasPrefix(name, "."):
				return filepath.SkipDir
			case name == "util" || name == "utils" || name == "common" || name == "helpers" || name == "misc":
				breaches = append(breaches, rel+": name the package by a noun of the field, not "+strconv.Quote(name))
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		found, err := checkFile(rel, source, rules)
		breaches = append(breaches, found...)
		return err
	})
	return breaches, err
}

// checkFile returns the breaches of one Go file.
func checkFile(rel string, source []byte, rules []ban) ([]string, error) {
	var breaches []string
	isTest := strings.HasSuffix(rel, "_test.go")
	if lines := bytes.Count(source, []byte{'\n'}); !isTest && lines > maxLines {
		breaches = append(breaches, fmt.Sprintf("%s: %d lines, at most %d: split it by what it does", rel, lines, maxLines))
	}
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, rel, source, parser.SkipObjectResolution)
	if err != nil {
		return breaches, err
	}
	for _, spec := range file.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return breaches, err
		}
		for _, b := range rules {
			// A service's integration tests may start the services that it talks to.
			if isTest && strings.HasPrefix(b.imports, "dhow.dev/services") && strings.HasPrefix(b.in, "services/") {
				continue
			}
			if within(imported, b.imports) && within(rel, b.in) && !withinAny(rel, b.except) {
				breaches = append(breaches, fmt.Sprintf("%s: imports %s: %s", fset.Position(spec.Pos()), imported, b.reason))
			}
		}
	}
	if !isTest {
		return breaches, nil
	}
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		selector, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		receiver, ok := selector.X.(*ast.Ident)
		if !ok {
			return true
		}
		switch receiver.Name + "." + selector.Sel.Name {
		case "time.Sleep":
			if !bytes.Contains(source, []byte(`"testing/synctest"`)) {
				breaches = append(breaches, fmt.Sprintf("%s: time.Sleep in a test: wait for the condition, or use testing/synctest", fset.Position(call.Pos())))
			}
		case "t.Skip", "t.Skipf", "t.SkipNow", "b.Skip", "testing.Short":
			breaches = append(breaches, fmt.Sprintf("%s: a check that skips itself cannot fail", fset.Position(call.Pos())))
		}
		return true
	})
	return breaches, nil
}

// within says whether path is prefix or below it. The empty prefix holds everything.
func within(path, prefix string) bool {
	return prefix == "" || path == prefix || strings.HasPrefix(path, prefix+"/")
}

func withinAny(path string, prefixes []string) bool {
	for _, p := range prefixes {
		if within(path, p) {
			return true
		}
	}
	return false
}
