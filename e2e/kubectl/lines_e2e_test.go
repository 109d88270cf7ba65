//go:build e2e

package kubectl

import (
	"bytes"
	"regexp"
	"sync"
	"testing"
	"time"

	"dhow.dev/e2e/cluster"
)

// lines is what a program prints, to be waited for.
type lines struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{}
}

func newLines() *lines { return &lines{changed: make(chan struct{})} }

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.changed = make(chan struct{})
	return l.text.Write(p)
}

// waitFor waits until the text matches and returns the match and its groups.
func (l *lines) waitFor(t *testing.T, pattern string) []string {
	t.Helper()
	compiled := regexp.MustCompile("(?sm)" + pattern)
	timeout := time.After(cluster.Deadline)
	for {
		l.mu.Lock()
		changed, text := l.changed, l.text.String()
		l.mu.Unlock()
		if found := compiled.FindStringSubmatch(text); found != nil {
			return found
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("%s did not come within %s:\n%s", pattern, cluster.Deadline, text)
		}
	}
}
