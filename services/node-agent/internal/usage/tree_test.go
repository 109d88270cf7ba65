package usage_test

import (
	"os"
	"path/filepath"
	"testing"

	"dhow.dev/services/node-agent/internal/usage"
)

func TestTreeCountsEachFileOnce(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "sub", "file")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(file, filepath.Join(dir, "again")); err != nil {
		t.Fatal(err)
	}
	bytes, inodes, err := usage.Tree(t.Context(), dir)
	if err != nil || inodes != 3 || bytes < 1<<20 || bytes >= 2<<20 {
		t.Errorf("%d bytes, %d inodes, %v", bytes, inodes, err)
	}
	if bytes, inodes, err := usage.Tree(t.Context(), filepath.Join(dir, "none")); bytes != 0 || inodes != 0 || err != nil {
		t.Errorf("a folder that is not there: %d, %d, %v", bytes, inodes, err)
	}
}

// TestTreeLeavesServersAlone: shares of NFS servers are not counted, nor looked at.
func TestTreeLeavesServersAlone(t *testing.T) {
	dir := t.TempDir()
	share := filepath.Join(dir, "volumes", "kubernetes.io~nfs", "data")
	if err := os.MkdirAll(share, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(share, "file"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if bytes, inodes, err := usage.Tree(t.Context(), dir); err != nil || inodes != 2 || bytes >= 1<<20 {
		t.Errorf("%d bytes, %d inodes, %v", bytes, inodes, err)
	}
}
