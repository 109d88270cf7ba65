package logs_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"dhow.dev/services/node-agent/internal/logs"
)

// stamp is the time of the nth record.
func stamp(n int) string {
	return time.Date(2026, 1, 2, 3, 4, n, 500, time.UTC).Format(time.RFC3339Nano)
}

func write(t *testing.T, path string, records ...string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(strings.Join(records, "")); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func sample(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path, stamp(1)+" stdout F one\n", stamp(2)+" stderr P two, \n", stamp(3)+" stderr F continued\n", "garbage\n", stamp(4)+" stdout F \n", stamp(5)+" stdout F five\n")
	return path
}

func TestSelections(t *testing.T) {
	path := sample(t)
	all := "one\ntwo, continued\n\nfive\n"
	at := time.Date(2026, 1, 2, 3, 4, 3, 0, time.UTC)
	for _, c := range []struct {
		name string
		o    logs.Options
		want string
	}{
		{"all", logs.Options{Lines: -1, Bytes: -1}, all},
		{"none", logs.Options{Lines: 0, Bytes: -1}, ""},
		{"one", logs.Options{Lines: 1, Bytes: -1}, "five\n"},
		{"two", logs.Options{Lines: 2, Bytes: -1}, "\nfive\n"},
		{"three", logs.Options{Lines: 3, Bytes: -1}, "two, continued\n\nfive\n"},
		{"many", logs.Options{Lines: 99, Bytes: -1}, all},
		{"stdout", logs.Options{Lines: -1, Bytes: -1, Stream: "stdout"}, "one\n\nfive\n"},
		{"stderr", logs.Options{Lines: -1, Bytes: -1, Stream: "stderr"}, "two, continued\n"},
		{"bytes", logs.Options{Lines: -1, Bytes: 6}, "one\ntw"},
		{"no bytes", logs.Options{Lines: -1, Bytes: 0}, ""},
		{"since", logs.Options{Lines: -1, Bytes: -1, Since: at}, "continued\n\nfive\n"},
		{"timestamps", logs.Options{Lines: 3, Bytes: -1, Timestamps: true}, stamp(2) + " two, continued\n" + stamp(4) + " \n" + stamp(5) + " five\n"},
	} {
		var b strings.Builder
		if err := logs.Read(t.Context(), path, c.o, &b); err != nil || b.String() != c.want {
			t.Errorf("%s: %q, %v; want %q", c.name, b.String(), err, c.want)
		}
	}
}

func TestTailOfALongLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	var b strings.Builder
	for n := range 5000 {
		fmt.Fprintf(&b, "%s stdout F line %d %s\n", stamp(1), n, strings.Repeat("x", n%97))
	}
	write(t, path, b.String())
	for _, n := range []int64{1, 2, 999, 4999, 5000, 6000} {
		var out strings.Builder
		if err := logs.Read(t.Context(), path, logs.Options{Lines: n, Bytes: -1}, &out); err != nil {
			t.Fatal(err)
		}
		if got := int64(strings.Count(out.String(), "\n")); got != min(n, 5000) {
			t.Errorf("tail of %d gave %d lines", n, got)
		}
		if !strings.HasPrefix(out.String(), fmt.Sprintf("line %d ", 5000-min(n, 5000))) {
			t.Errorf("tail of %d begins with %.20q", n, out.String())
		}
	}
}

// buffer lets a test wait for what a follower writes.
type buffer struct {
	mu      sync.Mutex
	text    strings.Builder
	changed chan struct{}
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer func() {
		select {
		case b.changed <- struct{}{}:
		default:
		}
	}()
	return b.text.Write(p)
}

func (b *buffer) await(t *testing.T, want string) {
	t.Helper()
	timeout := time.After(time.Minute)
	for {
		b.mu.Lock()
		got := b.text.String()
		b.mu.Unlock()
		if got == want {
			return
		}
		select {
		case <-b.changed:
		case <-timeout:
			t.Fatalf("got %q, want %q", got, want)
		}
	}
}

func TestFollowThroughRotation(t *testing.T) {
	path := sample(t)
	out := &buffer{changed: make(chan struct{}, 1)}
	ended, read := make(chan struct{}), make(chan error, 1)
	go func() {
		read <- logs.Read(context.Background(), path, logs.Options{Lines: 1, Bytes: -1, Follow: true, Ended: ended}, out)
	}()
	out.await(t, "five\n")
	write(t, path, stamp(6)+" stdout F si")
	write(t, path, "x\n")
	out.await(t, "five\nsix\n")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	write(t, path, stamp(7)+" stdout F seven\n")
	out.await(t, "five\nsix\nseven\n")
	write(t, path, stamp(8)+" stdout F last\n")
	close(ended)
	if err := <-read; err != nil {
		t.Fatal(err)
	}
	out.await(t, "five\nsix\nseven\nlast\n")
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(stamp(1)+" stdout F one\n"), int64(1))
	f.Add([]byte("\n\n\n"), int64(2))
	f.Add([]byte(stamp(1)+" stdout P a"), int64(3))
	f.Fuzz(func(t *testing.T, data []byte, lines int64) {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		if err := logs.Read(t.Context(), path, logs.Options{Lines: lines, Bytes: -1}, &b); err != nil {
			t.Fatal(err)
		}
		if lines >= 0 && int64(strings.Count(b.String(), "\n")) > lines {
			t.Errorf("%d lines asked, got %q", lines, b.String())
		}
	})
}
