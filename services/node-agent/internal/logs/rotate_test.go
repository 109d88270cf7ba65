package logs_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dhow.dev/services/node-agent/internal/logs"
)

// TestALogStaysWithinItsBounds fills a log again and again: so many files are left, the newest as it was, the older ones compressed.
func TestALogStaysWithinItsBounds(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "0.log")
	write := func() {
		if err := os.WriteFile(path, bytes.Repeat([]byte("2026-01-01T00:00:00Z stdout F line\n"), 100), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	files := func() (plain, packed int) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".gz") {
				packed++
			} else {
				plain++
			}
		}
		return plain, packed
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		r := &logs.Rotator{MaxSize: 1000, MaxFiles: 4, Logger: slog.New(slog.DiscardHandler), Running: func() map[string]string { return map[string]string{"id": path} },
			Reopen: func(context.Context, string) error { write(); return nil }}
		write()
		go func() { _ = r.Run(ctx) }()
		synctest.Wait()
		for range 8 {
			time.Sleep(10 * time.Second)
			synctest.Wait()
		}
		cancel()
		synctest.Wait()
	})
	if plain, packed := files(); plain != 2 || packed != 2 {
		t.Errorf("%d files, and %d compressed ones", plain, packed)
	}
}

// TestARunsLogGoesWithAllItsParts and leaves the logs of other runs.
func TestARunsLogGoesWithAllItsParts(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"1.log", "1.log.20260101-000000", "1.log.20260101-000000.gz", "11.log", "1.logs"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // what is gone is no error
		if err := logs.Remove(filepath.Join(dir, "1.log")); err != nil {
			t.Fatal(err)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) != 2 || filepath.Base(left[0]) != "1.logs" || filepath.Base(left[1]) != "11.log" {
		t.Errorf("%q, %v", left, err)
	}
}
