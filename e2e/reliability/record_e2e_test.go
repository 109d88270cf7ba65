//go:build e2e

package reliability

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// Marks around what is written into the page.
const (
	begin = "<!-- figures: written by `RECORD=1 go test -tags e2e ./e2e/reliability` -->\n"
	end   = "<!-- figures end -->\n"
)

// record collects what was measured.
type record struct {
	mu   sync.Mutex
	rows []string
}

// add adds a row: what was done, and what was noticed of it.
func (r *record) add(t *testing.T, what, noticed string) {
	t.Helper()
	t.Logf("%s: %s", what, noticed)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rows = append(r.rows, fmt.Sprintf("| %s | %s |\n", what, noticed))
}

// took adds how long something took. A run that records figures fails when it is more than was promised; others do not, on whatever machine they run.
func (r *record) took(t *testing.T, what string, took, promised time.Duration) {
	t.Helper()
	r.add(t, what, seconds(took))
	if os.Getenv("RECORD") != "" && took > promised {
		t.Errorf("%s: %s, and %s is promised", what, seconds(took), promised)
	}
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

// write puts the figures into the page.
func (r *record) write(page string) error {
	text, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	before, rest, found := strings.Cut(string(text), begin)
	_, after, ended := strings.Cut(rest, end)
	if !found || !ended {
		return fmt.Errorf("%s has no place for figures, between %q and %q", page, begin, end)
	}
	var out strings.Builder
	fmt.Fprintf(&out, "%s%s\n%d cores, %s/%s.\n\n| what | figure |\n|---|---|\n", before, begin, runtime.NumCPU(), runtime.GOOS, runtime.GOARCH)
	for _, row := range r.rows {
		out.WriteString(row)
	}
	out.WriteString("\n" + end + after)
	return os.WriteFile(page, []byte(out.String()), 0o644)
}
