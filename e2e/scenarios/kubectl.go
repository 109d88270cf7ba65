package scenarios

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"dhow.dev/e2e/cluster"
)

// kubectl runs the kubectl that comes with dhow, for what dhow's own commands do not say or do.
type kubectl struct {
	cluster *cluster.Any
	// home is where kubectl keeps what it has discovered.
	home, namespace string
}

func newKubectl(t *testing.T, c *cluster.Any, namespace string) kubectl {
	t.Helper()
	return kubectl{cluster: c, home: t.TempDir(), namespace: namespace}
}

func (k kubectl) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), cluster.Deadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join("..", "..", "bin", "dhow-kubectl"), append([]string{"--kubeconfig=" + k.cluster.Kubeconfig(), "-n", k.namespace}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+k.home)
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("kubectl %s: %w: %s%s", strings.Join(args, " "), err, &out, &problems)
	}
	return out.String(), nil
}

// does runs a command that must succeed.
func (k kubectl) does(t *testing.T, args ...string) string {
	t.Helper()
	out, err := k.try(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// soon waits until a field of an object is as it should be.
func (k kubectl) soon(t *testing.T, object, path, want string) {
	t.Helper()
	cluster.Eventually(t, func(context.Context) error {
		got, err := k.try("get", object, "-o", "jsonpath="+path)
		if err == nil && strings.TrimSpace(got) != want {
			err = fmt.Errorf("%s of %s is %q, want %q", path, object, got, want)
		}
		return err
	})
}
