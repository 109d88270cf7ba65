//go:build e2e

package bundle

import (
	"debug/buildinfo"
	"path/filepath"
	"testing"
)

// TestTheShimIsTheQuietOne: the bundle's shim is built of the copy that gives memory back only after work.
func TestTheShimIsTheQuietOne(t *testing.T) {
	info, err := buildinfo.ReadFile(filepath.Join(bundleDir(t), "containerd-shim-runc-v2"))
	if err != nil {
		t.Fatal(err)
	}
	if from := info.Main.Replace; from == nil || from.Path != "./containerd" {
		t.Errorf("built of %+v, want the changed copy of tools/setup.sh: run make setup", info.Main)
	}
}
