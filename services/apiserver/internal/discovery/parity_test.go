package discovery_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/discovery"
	"dhow.dev/services/apiserver/internal/fieldtable"
)

var update = flag.Bool("update", false, "write docs/kubernetes.md")

const (
	parityPage  = "../../../../docs/kubernetes.md"
	parityNotes = "testdata/parity.md"
)

// usual are the verbs that most kinds have; the page tells only what is different.
var usual = []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}

// The page docs/kubernetes.md says what discovery says, and which kinds nothing acts on.
func TestParityPage(t *testing.T) {
	c, err := codec.New()
	if err != nil {
		t.Fatal(err)
	}
	notes, err := os.ReadFile(parityNotes)
	if err != nil {
		t.Fatal(err)
	}
	page := bytes.NewBuffer(notes)
	fmt.Fprint(page, "\n## Kind by kind\n\nVerbs are all eight of Kubernetes (create, delete, deletecollection, get, list, patch, update, watch) where none are named.\n\n"+
		"| kind | verbs | subresources | what becomes of it |\n|---|---|---|---|\n")
	for _, res := range resource.All() {
		var subresources []string
		for _, s := range discovery.Subresources(res) {
			subresources = append(subresources, fmt.Sprintf("%s (%s)", s.Name, strings.Join(s.Verbs, ", ")))
		}
		verbs := slices.Sorted(slices.Values(res.Verbs))
		told := strings.Join(verbs, ", ")
		if slices.Equal(verbs, usual) || len(verbs) == 0 {
			told = ""
		}
		fmt.Fprintf(page, "| %s | %s | %s | %s |\n", res.APIVersion()+" "+res.Kind, told, strings.Join(subresources, "; "), outcome(t, c, res))
	}
	if *update {
		if err := os.WriteFile(parityPage, page.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if have, err := os.ReadFile(parityPage); err != nil || !bytes.Equal(have, page.Bytes()) {
		t.Errorf("docs/kubernetes.md is not what the tables say (%v): go test ./apiserver/internal/discovery -run TestParityPage -update", err)
	}
}

// outcome says what Dhow does with the objects of a kind.
func outcome(t *testing.T, c *codec.Codec, res *resource.Resource) string {
	t.Helper()
	if res.Virtual {
		return "answered, not stored"
	}
	if stored := res.StoredAs(); stored != res {
		return "a view of " + stored.APIVersion()
	}
	kind, err := fieldtable.Of(res, reflect.TypeOf(c.New(res)).Elem())
	if err != nil {
		t.Fatal(err)
	}
	if kind.Reason != "" {
		return "stored and served; " + kind.Reason
	}
	// What is below a field without effect has none either, and is not counted.
	passive, last := 0, "-"
	for _, f := range kind.Fields() {
		if f.Verdict == fieldtable.NotEnforced && !strings.HasPrefix(f.Path, last) {
			passive, last = passive+1, f.Path
		}
	}
	if passive == 0 {
		return "as Kubernetes"
	}
	return fmt.Sprintf("as Kubernetes; [fields](fields) without effect yet: %d", passive)
}
