package pod

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dhow.dev/services/node-agent/internal/cri"
)

// TestTheEndOfAMessageCounts has one that is longer than what is kept, and one that is no file.
func TestTheEndOfAMessageCounts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "message")
	if err := os.WriteFile(file, []byte(strings.Repeat("x", 5000)+"the end"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := lastWords(cri.Container{Annotations: map[string]string{cri.AnnotationMessageFile: file}})
	if len(got) != maxMessage || !strings.HasSuffix(got, "the end") {
		t.Errorf("%d bytes, %.20q", len(got), got)
	}
	if got := lastWords(cri.Container{Annotations: map[string]string{cri.AnnotationMessageFile: filepath.Dir(file)}}); got != "" {
		t.Errorf("of a folder: %q", got)
	}
}
