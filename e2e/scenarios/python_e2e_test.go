//go:build e2e

package scenarios

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"dhow.dev/e2e/cluster"
)

// python: the example client, generated from proto/, lists, creates and watches pods, run as its README says.
func python(t *testing.T, c *cluster.Cluster) {
	ctx, cancel := context.WithTimeout(t.Context(), cluster.Deadline)
	defer cancel()
	pki := filepath.Join(c.DataDir, "pki")
	cmd := exec.CommandContext(ctx, filepath.Join("..", "..", "examples", "clients", "python", "run.sh"),
		"--address", c.Address(), "--ca", filepath.Join(pki, "ca.crt"), "--cert", filepath.Join(pki, "admin.crt"), "--key", filepath.Join(pki, "admin.key"))
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Contains(string(out), "FAILED") {
		t.Errorf("%v: %s", err, out)
	}
}
