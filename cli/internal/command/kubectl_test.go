package command

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"dhow.dev/cli/internal/connect"
)

func TestKubectlEnvironment(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(connect.Environment, filepath.Join(dir, "client.yaml"))
	file := filepath.Join(dir, kubeconfigName)
	ours := "KUBECONFIG=" + file

	check := func(what string, args, environment []string, want bool) {
		t.Helper()
		got, err := kubectlEnvironment(args, environment)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if slices.Contains(got, ours) != want {
			t.Errorf("%s: %v", what, got)
		}
	}
	check("no file was written", nil, []string{"HOME=/home/ann"}, false)
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	check("nothing chosen", []string{"get", "pods"}, []string{"HOME=/home/ann"}, true)
	check("an empty variable", nil, []string{"KUBECONFIG="}, true)
	check("by the environment", nil, []string{"KUBECONFIG=/other"}, false)
	check("by the flag", []string{"--kubeconfig", "/other"}, nil, false)
	check("by the flag with =", []string{"--kubeconfig=/other"}, nil, false)
}
