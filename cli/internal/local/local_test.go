package local_test

import (
	"os"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"dhow.dev/cli/internal/command"
	"dhow.dev/cli/internal/local"
)

// TestDocsNameEveryFlag holds docs/cli.md to the commands.
func TestDocsNameEveryFlag(t *testing.T) {
	content, err := os.ReadFile("../../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(content), "\n### dhow up\n")
	section, _, _ = strings.Cut(section, "\n## ")
	for _, c := range local.Commands(command.Streams{}) {
		if c.Hidden {
			continue
		}
		c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" && !strings.Contains(section, "`--"+f.Name+"`") {
				t.Errorf("docs/cli.md, dhow up: --%s of dhow %s is missing: add a row", f.Name, c.Name())
			}
		})
	}
}
