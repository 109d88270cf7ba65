package fieldtable_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/fieldtable"
)

var update = flag.Bool("update", false, "write the pages of docs/fields")

const pages = "../../../../docs/fields"

// The pages in docs/fields say what the table says.
func TestPages(t *testing.T) {
	c, err := codec.New()
	if err != nil {
		t.Fatal(err)
	}
	written := map[string][]byte{}
	index := &bytes.Buffer{}
	fmt.Fprint(index, `# What becomes of each field

Generated from services/apiserver/internal/fieldtable/table.go: `+"`go test ./apiserver/internal/fieldtable -run TestPages -update`"+` in services/ writes these pages.

**Accepted** fields do what Kubernetes v1.36 says. **Not enforced yet** means: stored, served, without effect, and answered with a warning.
**Rejected** fields may not be set. What nodes **refuse** is stored, and the pod's events say that it is refused, as on Kubernetes' nodes. **Dropped** fields are taken away when they are
written, with a warning, because Kubernetes v1.36 has them behind a feature gate that is closed by default; an object that has one already keeps it.
What is not listed below a field that is not enforced, rejected, refused or dropped shares its verdict.

| kind | fields | not enforced yet | rejected | refused by nodes | dropped |
|---|---|---|---|---|---|
`)
	stored := &bytes.Buffer{}
	for _, res := range resource.All() {
		if res.Virtual || resource.Lookup(res.Group, res.Plural) != res {
			continue
		}
		kind, err := fieldtable.Of(res, reflect.TypeOf(c.New(res)).Elem())
		if err != nil {
			t.Fatal(err)
		}
		if kind.Reason != "" {
			fmt.Fprintf(stored, "| %s | %s |\n", kindName(res), kind.Reason)
			continue
		}
		name := pageName(res)
		page, counts := render(res, kind)
		written[name] = page
		all := 0
		for _, n := range counts {
			all += n
		}
		fmt.Fprintf(index, "| [%s](%s) | %d | %d | %d | %d | %d |\n", kindName(res), name, all, counts[fieldtable.NotEnforced], counts[fieldtable.Rejected],
			counts[fieldtable.Refused], counts[fieldtable.Dropped])
	}
	fmt.Fprintf(index, "\n## Kinds that are stored and served, and that nothing acts on yet\n\nWriting one is answered with a warning.\n\n| kind | why |\n|---|---|\n%s", stored)
	written["README.md"] = index.Bytes()
	if *update {
		if err := os.MkdirAll(pages, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, page := range written {
			if err := os.WriteFile(filepath.Join(pages, name), page, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, page := range written {
		there, err := os.ReadFile(filepath.Join(pages, name))
		if err != nil || !bytes.Equal(there, page) {
			t.Errorf("docs/fields/%s is out of date (%v): run this test with -update", name, err)
		}
	}
	entries, err := os.ReadDir(pages)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if written[e.Name()] == nil {
			t.Errorf("docs/fields/%s is of no kind", e.Name())
		}
	}
}

func pageName(res *resource.Resource) string {
	return strings.ToLower(kindName(res)) + ".md"
}

// render writes a kind's page. The pod of a template is on the page of pods; here stands what differs.
func render(res *resource.Resource, kind *fieldtable.Kind) ([]byte, [5]int) {
	page := &bytes.Buffer{}
	var counts [5]int
	fmt.Fprintf(page, "# %s\n\nWhat becomes of each field: see [README.md](README.md), from which this page is generated too.\n\n| field | type | verdict | |\n|---|---|---|---|\n", kindName(res))
	hidden := ""
	for _, f := range kind.Fields() {
		if hidden != "" && (strings.HasPrefix(f.Path, hidden+".") || strings.HasPrefix(f.Path, hidden+"[].")) {
			continue
		}
		hidden = ""
		counts[f.Verdict]++
		verdict := f.Verdict.String()
		if condition := f.Condition.String(); condition != "" {
			verdict += " " + condition
		}
		detail := f.Detail
		switch {
		case f.Verdict == fieldtable.Rejected:
			detail = "`" + detail + "`"
		case f.Path == "status":
			detail = "reported by Dhow through the subresource status"
		}
		if f.Whole || f.Type == "ObjectMeta" {
			hidden = f.Path
		}
		if strings.HasSuffix(f.Path, "template.spec") && f.Type == "PodSpec" {
			hidden = f.Path
			detail = "as in [pods](pod.md)"
			if res.Group == "apps" {
				detail += "; `activeDeadlineSeconds` and `ephemeralContainers` are rejected"
			}
		}
		fmt.Fprintf(page, "| %s | %s | %s | %s |\n", f.Path, f.Type, verdict, strings.ReplaceAll(detail, "|", "\\|"))
	}
	return page.Bytes(), counts
}
