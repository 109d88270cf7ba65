package kind

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var root = filepath.Join("..", "..")

// fakes makes a folder of programs that are shell scripts, beside those that the repository's scripts use.
func fakes(t *testing.T, scripts map[string]string) (path string) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"bash", "env", "cat", "dirname"} {
		program, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(program, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, script := range scripts {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestWhatIsMissing: one line says what a run with kind lacks, before anything is built.
func TestWhatIsMissing(t *testing.T) {
	image := strings.TrimSpace(nodeImage)
	for name, c := range map[string]struct {
		docker *string
		want   string
	}{
		"no docker":            {nil, "kind: Docker is missing: kind's nodes are its containers\n"},
		"docker does not run":  {new("exit 1"), "kind: Docker does not answer: `docker info` says why\n"},
		"no node image":        {new("test $1 = info"), "kind: the node image " + image + " is not here, and cannot be pulled: `docker pull` says why\n"},
		"all is there":         {new("test \"$*\" = info || test \"$*\" = 'image inspect " + image + "'"), ""},
		"the image was pulled": {new("test \"$*\" = info || test \"$*\" = 'pull --quiet " + image + "'"), ""},
	} {
		scripts := map[string]string{}
		if c.docker != nil {
			scripts["docker"] = *c.docker
		}
		cmd := exec.CommandContext(t.Context(), filepath.Join(root, "tools", "e2e.sh"), "--check", "kind")
		cmd.Env = []string{"PATH=" + fakes(t, scripts)}
		out, err := cmd.CombinedOutput()
		if string(out) != c.want || (err == nil) != (c.want == "") {
			t.Errorf("%s: %v: %q, want %q", name, err, out, c.want)
		}
	}
}

// TestWhichClusters: what a run needs to know is asked for, and other clusters are refused.
func TestWhichClusters(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		cluster string
		env     []string
		want    string
	}{
		{"nosuch", nil, "e2e: CLUSTER is local, kind or kubeconfig, not nosuch\n"},
		{"kubeconfig", nil, "e2e: CLUSTER=kubeconfig: KUBECONFIG must name a cluster's file\n"},
		{"kubeconfig", []string{"KUBECONFIG=/nonexistent"}, "e2e: CLUSTER=kubeconfig: KUBECONFIG must name a cluster's file\n"},
		{"kubeconfig", []string{"KUBECONFIG=" + file}, "e2e: CLUSTER=kubeconfig: PUSH must name the registry, HOST/PREFIX, from which the cluster's nodes pull images\n"},
		{"kubeconfig", []string{"KUBECONFIG=" + file, "PUSH=registry.example.com/dhow"}, ""},
	} {
		cmd := exec.CommandContext(t.Context(), filepath.Join(root, "tools", "e2e.sh"), "--check", c.cluster)
		cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, c.env...)
		out, err := cmd.CombinedOutput()
		if string(out) != c.want || (err == nil) != (c.want == "") {
			t.Errorf("%s %v: %v: %q, want %q", c.cluster, c.env, err, out, c.want)
		}
	}
}

// TestOnePlace: the pinned versions are what they are read as, and every command that is used is documented.
func TestOnePlace(t *testing.T) {
	version, err := os.ReadFile("version")
	if err != nil || !strings.HasPrefix(string(version), "v0.") {
		t.Errorf("version %q, %v", version, err)
	}
	if image := strings.TrimSpace(nodeImage); !strings.HasPrefix(image, "kindest/node:v1.") || !strings.Contains(image, "@sha256:") {
		t.Errorf("node image %q", image)
	}
	for _, command := range Commands {
		if !strings.Contains(Usage(command), "kind "+command) {
			t.Errorf("kind %s is not documented: %q", command, Usage(command))
		}
	}
}
