package kind

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// workflow is what is looked at of a workflow of GitHub's: https://docs.github.com/actions/reference/workflow-syntax-for-github-actions.
type workflow struct {
	Jobs map[string]struct {
		RunsOn  string `json:"runs-on"`
		Timeout int    `json:"timeout-minutes"`
		Steps   []struct {
			Name string         `json:"name"`
			Uses string         `json:"uses"`
			With map[string]any `json:"with"`
			Run  string         `json:"run"`
		} `json:"steps"`
	} `json:"jobs"`
}

// TestWorkflows: workflows run what this repository has: targets of the Makefile, scripts and files that are there, clusters that the end-to-end tests know.
func TestWorkflows(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	targets := map[string]bool{}
	for _, found := range regexp.MustCompile(`(?m)^([a-z0-9-]+):`).FindAllSubmatch(makefile, -1) {
		targets[string(found[1])] = true
	}
	files, err := filepath.Glob(filepath.Join(root, ".github", "workflows", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no workflows: %v", err)
	}
	made := map[string]bool{}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var w workflow
		if err := yaml.Unmarshal(content, &w); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for name, job := range w.Jobs {
			if job.RunsOn == "" || job.Timeout == 0 {
				t.Errorf("%s: job %s runs on %q for at most %d minutes", file, name, job.RunsOn, job.Timeout)
			}
			for _, step := range job.Steps {
				if (step.Uses == "") == (step.Run == "") {
					t.Errorf("%s: a step of job %s uses %q and runs %q", file, name, step.Uses, step.Run)
				}
				if version, ok := step.With["go-version-file"].(string); ok {
					exists(t, file, version)
				}
				for line := range strings.Lines(step.Run) {
					for _, target := range makes(line) {
						if made[target] = true; !targets[target] {
							t.Errorf("%s: make %s: the Makefile has no such target", file, target)
						}
					}
					for _, script := range regexp.MustCompile(`\btools/[a-z0-9-]+\.sh`).FindAllString(line, -1) {
						exists(t, file, script)
					}
					for _, found := range regexp.MustCompile(`\bCLUSTER=(\S+)`).FindAllStringSubmatch(line, -1) {
						if script := read(t, filepath.Join(root, "tools", "e2e.sh")); !strings.Contains(script, "\n    "+found[1]+")") {
							t.Errorf("%s: tools/e2e.sh does not know the cluster %s", file, found[1])
						}
						made["e2e CLUSTER="+found[1]] = true
					}
				}
			}
		}
	}
	for _, wanted := range []string{"test", "e2e CLUSTER=kind"} {
		if !made[wanted] {
			t.Errorf("no workflow makes %q", wanted)
		}
	}
}

// makes are the targets of a line's calls of make.
func makes(line string) (targets []string) {
	calls := false
	for word := range strings.FieldsSeq(line) {
		switch {
		case word == "make":
			calls = true
		case strings.HasPrefix(word, "&&"), strings.HasPrefix(word, ";"), strings.HasPrefix(word, "|"):
			calls = false
		case calls && !strings.Contains(word, "=") && !strings.HasPrefix(word, "-"):
			targets = append(targets, word)
		}
	}
	return targets
}

func TestMakes(t *testing.T) {
	if got := strings.Join(makes(`sudo -E env "PATH=$PATH" make e2e CLUSTER=kind && make -s lint test`), " "); got != "e2e lint test" {
		t.Errorf("targets %q", got)
	}
}

func exists(t *testing.T, by, file string) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(root, file)); err != nil {
		t.Errorf("%s: %v", by, err)
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
