//go:build e2e

package plainhosts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"dhow.dev/e2e/cluster"
)

// imageTag is that of the images that are made here.
const imageTag = "e2e"

// images makes the images of the programs in bin/ by their Dockerfiles, as `make images` does, into the desk's dist/images.
func (d *desk) images() {
	d.t.Helper()
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		d.t.Fatal(err)
	}
	dist := filepath.Join(d.dir, "dist")
	programs := filepath.Join(dist, "linux_"+runtime.GOARCH)
	if err := os.MkdirAll(filepath.Join(programs, "bin"), 0o755); err != nil {
		d.t.Fatal(err)
	}
	for _, program := range []string{"dhow", "dhow-kubectl", "dhow-store", "dhow-apiserver", "dhow-scheduler", "dhow-controller-manager", "dhow-node-agent"} {
		d.command("cp", filepath.Join(root, "bin", program), filepath.Join(programs, "bin", program))
	}
	d.command(filepath.Join(root, "tools", "image-runtime.sh"), runtime.GOARCH, programs)
	build := exec.CommandContext(d.t.Context(), "go", "run", "./cmd/dhow-images", "-dockerfiles", "images", "-dist", dist, "-platforms", "linux/"+runtime.GOARCH,
		"-version", imageTag, "-revision", "0000000", "-created", "2026-01-01T00:00:00Z")
	build.Dir = filepath.Join(root, "deploy")
	build.Env = append(os.Environ(), "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		d.t.Fatalf("make the images: %v: %s", err, out)
	}
}

// runcAble is runc for machines whose root may not do all that there is, as in a virtual machine that was given away without CAP_SYS_RESOURCE: a privileged container gets
// what there is, as it does from Dhow's own runtime, where docker would not start it.
const runcAble = `#!/bin/bash
if (( (0x$(sed -n 's/^CapEff:\s*//p' /proc/self/status) >> 24 & 1) == 0 )); then
  for (( i = 1; i < $#; i++ )); do
    if [ "${!i}" = --bundle ]; then
      j=$((i + 1))
      sed -i 's/"CAP_SYS_RESOURCE",\?//g' "${!j}/config.json"
    fi
  done
fi
exec runc "$@"
`

func (d *desk) command(name string, arguments ...string) {
	d.t.Helper()
	if out, err := exec.CommandContext(d.t.Context(), name, arguments...).CombinedOutput(); err != nil {
		d.t.Fatalf("%s: %v: %s", name, err, out)
	}
}

// docker starts a docker daemon on the machine, which its systemd ends with it. Dhow needs none of docker's networks, and who runs this
// may not be allowed to protect processes from a lack of memory.
func (m *machine) docker() {
	m.t.Helper()
	if out, err := m.try("command -v dockerd docker docker-compose"); err != nil {
		m.t.Fatalf("docker is missing: `make setup` unpacks it into bin/docker: %s", out)
	}
	m.run("cat >/usr/local/bin/runc-able <<'END'\n" + runcAble + "END\nchmod +x /usr/local/bin/runc-able")
	m.run("systemd-run --unit=docker --property=Delegate=yes --property=KillMode=process --setenv=PATH=" + path +
		" dockerd --bridge=none --iptables=false --ip-masq=false --oom-score-adjust=0 --add-runtime=able=/usr/local/bin/runc-able --default-runtime=able")
	cluster.Eventually(m.t, func(context.Context) error {
		if out, err := m.try("docker version"); err != nil {
			return errors.Join(fmt.Errorf("dockerd: %s", out), err)
		}
		return nil
	})
}
