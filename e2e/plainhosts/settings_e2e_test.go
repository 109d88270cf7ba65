//go:build e2e

package plainhosts

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

var defaulted = regexp.MustCompile(`\$\{?([A-Z_]+)(:[-?][^}]*)?\}?`)

// words are a command's arguments, sorted, with variables and the certificates' folder written in one way.
func words(command, service string) []string {
	command = defaulted.ReplaceAllString(command, `$$$1`)
	command = strings.ReplaceAll(command, "/etc/dhow/"+service+"/", "/etc/dhow/")
	return slices.Sorted(slices.Values(strings.Fields(command)))
}

// TestSameSettings: a service has the same flags from compose as from systemd.
func TestSameSettings(t *testing.T) {
	content, err := os.ReadFile(filepath.Join("..", "..", "deploy", "compose", "compose.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var compose struct {
		Services map[string]struct{ Command string }
	}
	if err := yaml.Unmarshal(content, &compose); err != nil {
		t.Fatal(err)
	}
	for _, service := range []string{"store", "apiserver", "scheduler", "controller-manager", "node-agent"} {
		unit, err := os.ReadFile(filepath.Join("..", "..", "deploy", "systemd", "dhow-"+service+".service"))
		if err != nil {
			t.Fatal(err)
		}
		_, after, _ := strings.Cut(strings.ReplaceAll(string(unit), "\\\n", " "), "\nExecStart=/opt/dhow/dhow-"+service+" ")
		command, _, found := strings.Cut(after, "\n")
		if !found {
			t.Fatalf("dhow-%s.service starts something else", service)
		}
		if systemd, docker := words(command, service), words(compose.Services[service].Command, service); len(docker) == 0 || !slices.Equal(systemd, docker) {
			t.Errorf("%s: by systemd\n%s\nby compose\n%s", service, strings.Join(systemd, "\n"), strings.Join(docker, "\n"))
		}
	}
}
