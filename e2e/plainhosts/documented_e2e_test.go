//go:build e2e

package plainhosts

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"dhow.dev/e2e/cluster"
)

// document is what the commands are taken from.
var document = filepath.Join("..", "..", "docs", "plain-hosts.md")

var fenced = regexp.MustCompile("(?s)```sh\n(.*?)```")

// commands are the blocks of commands of a section of the document.
func commands(t *testing.T, section string) []string {
	t.Helper()
	content, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	_, after, found := strings.Cut(string(content), "\n## "+section+"\n")
	if !found {
		t.Fatalf("%s has no section %q", document, section)
	}
	text, _, _ := strings.Cut(after, "\n## ")
	var blocks []string
	for _, match := range fenced.FindAllStringSubmatch(text, -1) {
		blocks = append(blocks, match[1])
	}
	return blocks
}

// desk is the machine of who follows the document: a folder with the repository's bin and deploy, and ssh to the machines.
type desk struct {
	t        *testing.T
	dir      string
	machines []*machine
	// instead replaces what the document has as an example.
	instead []string
}

func newDesk(t *testing.T, machines ...*machine) *desk {
	t.Helper()
	d := &desk{t: t, dir: t.TempDir(), machines: machines}
	for _, name := range []string{"bin", "deploy"} {
		target, err := filepath.Abs(filepath.Join("..", "..", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(d.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, program := range []string{"dhow", "dhow-store", "dhow-apiserver", "dhow-scheduler", "dhow-controller-manager", "dhow-node-agent"} {
		if _, err := os.Stat(filepath.Join(d.dir, "bin", program)); err != nil {
			t.Fatalf("%v: `make build` makes it", err)
		}
	}
	// Addresses of the document are those of the machines.
	for i, m := range machines {
		d.instead = append(d.instead, fmt.Sprintf("10.0.0.%d", i+1), m.address.String())
	}
	d.reach()
	return d
}

// reach writes a program ssh that leads to the machines as they run now.
func (d *desk) reach() {
	d.t.Helper()
	var script strings.Builder
	script.WriteString("#!/bin/sh\ncase $1 in\n")
	for _, m := range d.machines {
		if m.process != nil {
			fmt.Fprintf(&script, "root@%s) shift; exec nsenter %s '%s'\"$*\" ;;\n", m.name, strings.Join(m.enter(), " "), inside)
		}
	}
	script.WriteString("*) echo \"ssh: $1 does not answer\" >&2; exit 255 ;;\nesac\n")
	if err := os.WriteFile(filepath.Join(d.dir, "ssh"), []byte(script.String()), 0o755); err != nil {
		d.t.Fatal(err)
	}
}

// do runs a block of commands as it is in the document.
func (d *desk) do(block string) string {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 2*cluster.Deadline)
	defer cancel()
	script := strings.NewReplacer(d.instead...).Replace(block)
	command := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", script)
	command.Dir = d.dir
	command.Env = append(os.Environ(), "PATH="+d.dir+":"+os.Getenv("PATH"), "DHOW_CONFIG=cluster/admin/client.yaml")
	var out, problems bytes.Buffer
	command.Stdout, command.Stderr = &out, &problems
	if err := command.Run(); err != nil {
		d.t.Fatalf("%s\n%v:\n%s%s", script, err, out.String(), problems.String())
	}
	d.t.Logf("%s\n%s%s", script, out.String(), problems.String())
	return out.String()
}

// dhow runs the command line as the administrator.
func (d *desk) dhow(stdin string, arguments ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), cluster.Deadline)
	defer cancel()
	command := exec.CommandContext(ctx, filepath.Join(d.dir, "bin", "dhow"), append([]string{"--config", filepath.Join(d.dir, "cluster", "admin", "client.yaml")}, arguments...)...)
	command.Stdin = strings.NewReader(stdin)
	out, err := command.CombinedOutput()
	return string(out), err
}

func (d *desk) must(stdin string, arguments ...string) string {
	d.t.Helper()
	out, err := d.dhow(stdin, arguments...)
	if err != nil {
		d.t.Fatalf("dhow %s: %v: %s", strings.Join(arguments, " "), err, out)
	}
	return out
}
