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
func python(t *testing.T, c *cluster.Any) {
	ctx, cancel := context.WithTimeout(t.Context(), cluster.Deadline)
	defer cancel()
	files := c.Administrator()
	cmd := exec.CommandContext(ctx, filepath.Join("..", "..", "examples", "clients", "python", "run.sh"),
		"--address", c.Address(), "--ca", files.Authority, "--cert", files.Certificate, "--key", files.Key)
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Contains(string(out), "FAILED") {
		t.Errorf("%v: %s", err, out)
	}
}
