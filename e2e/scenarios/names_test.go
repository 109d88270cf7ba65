package scenarios

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// reference is a file of this repository and a test in it, as docs/testing.md writes them.
var reference = regexp.MustCompile("`([a-z0-9_/-]+\\.go): ([A-Za-z]+)(?:/([^`]+))?`")

// TestTheNamesHaveTheirTests reads the tables of docs/testing.md: each name has tests, and each test is where they say.
func TestTheNamesHaveTheirTests(t *testing.T) {
	root := filepath.Join("..", "..")
	page, err := os.ReadFile(filepath.Join(root, "docs", "testing.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(page), "## Name by name\n")
	section, _, ended := strings.Cut(section, "\n## ")
	if !found || !ended {
		t.Fatal("docs/testing.md has no section Name by name")
	}
	sources := map[string]string{}
	names := 0
	for row := range strings.Lines(section) {
		cells := strings.Split(strings.TrimSpace(row), " | ")
		if !strings.HasPrefix(row, "| ") || len(cells) != 2 || strings.HasSuffix(cells[1], "tests |") {
			continue
		}
		names++
		tests := reference.FindAllStringSubmatch(cells[1], -1)
		if len(tests) == 0 || len(tests) != strings.Count(cells[1], "`")/2 {
			t.Errorf("%s: %d tests are understood: %s", cells[0], len(tests), cells[1])
		}
		for _, test := range tests {
			file, name, part := test[1], test[2], test[3]
			if sources[file] == "" {
				source, err := os.ReadFile(filepath.Join(root, file))
				if err != nil {
					t.Errorf("%s: %v", cells[0], err)
					continue
				}
				sources[file] = string(source)
			}
			if !strings.Contains(sources[file], "\nfunc "+name+"(") {
				t.Errorf("%s: %s has no %s", cells[0], file, name)
			}
			if part != "" && !strings.Contains(sources[file], `"`+part+`"`) {
				t.Errorf("%s: %s of %s has no part %q", cells[0], name, file, part)
			}
		}
	}
	if names < 50 {
		t.Errorf("%d names are understood", names)
	}
}
