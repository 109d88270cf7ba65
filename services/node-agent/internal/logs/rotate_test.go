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
