//go:build e2e

// Package plainhosts runs the commands of docs/plain-hosts.md on machines that have systemd, or docker beside it, and no Kubernetes. A machine is a network namespace
// (pkg/hosts) with process, mount and control group namespaces: systemd is its first process, and its files are those of this machine with its own over them.
package plainhosts

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dhow.dev/e2e/cluster"
	"dhow.dev/pkg/hosts"
)

//go:embed boot.sh
var boot []byte

// path is that of programs on a machine. The last two are those of docker, which `make setup` unpacks beside the other programs and does not install.
const path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/docker/usr/bin:/opt/docker/usr/sbin"

// namespaces that a machine has of its own.
const namespaces = unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC

// cgroupMount is a hierarchy of this machine's control groups.
type cgroupMount struct{ at, kind, options string }

// cgroupMounts finds the hierarchies.
func cgroupMounts(t *testing.T) []cgroupMount {
	t.Helper()
	content, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var list []cgroupMount
	for line := range strings.Lines(string(content)) {
		// proc_pid_mountinfo(5): the mount point is the fifth field, and behind the dash are type, source and the file system's options.
		before, after, _ := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if len(left) < 5 || len(right) < 3 || right[0] != "cgroup" && right[0] != "cgroup2" {
			continue
		}
		m := cgroupMount{at: left[4], kind: right[0], options: "rw"}
		for _, option := range strings.Split(right[2], ",") {
			if m.kind == "cgroup" && option != "rw" && option != "xattr" && option != "clone_children" && !strings.HasPrefix(option, "release_agent=") {
				m.options += "," + option
			}
		}
		if strings.Contains(m.options, "name=") {
			m.options += ",none"
		}
		list = append(list, m)
	}
	if len(list) == 0 {
		t.Fatal("no control groups are mounted")
	}
	return list
}

// make makes a group, ready for a machine to be in it.
func (m cgroupMount) make(group string) error {
	parent := m.at
	for step := range strings.SplitSeq(strings.Trim(group, "/"), "/") {
		if m.kind == "cgroup2" {
			available, err := os.ReadFile(filepath.Join(parent, "cgroup.controllers"))
			if err != nil {
				return err
			}
			for _, controller := range strings.Fields(string(available)) {
				// Some may refuse; what a machine cannot do without it says itself.
				_ = os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
			}
		}
		dir := filepath.Join(parent, step)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		// A cpuset begins empty, and takes no process then.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if value, err := os.ReadFile(filepath.Join(parent, file)); err == nil && m.kind == "cgroup" {
				if err := os.WriteFile(filepath.Join(dir, file), value, 0o644); err != nil {
					return err
				}
			}
		}
		parent = dir
	}
	return nil
}

// remove removes a group and all below it, whose processes have ended.
func (m cgroupMount) remove(group string) error {
	var dirs []string
	err := filepath.WalkDir(filepath.Join(m.at, group), func(path string, entry os.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, dir := range slices.Backward(dirs) {
		err = errors.Join(err, unix.Rmdir(dir))
	}
	return err
}

// network is the machines' network, on this machine's bridge.
type network struct {
	*hosts.Network
	// dir has the machines' disks, and group is their control group.
	dir, group string
	cgroups    []cgroupMount
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	// For benchmarking networks (RFC 2544), which no machine routes.
	subnet, err := hosts.FreeSubnet(netip.MustParsePrefix("198.18.0.0/15"), 28)
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("plain%d", os.Getpid())
	made, err := hosts.New(hosts.Config{Name: name, Subnet: subnet})
	if err != nil {
		t.Fatal(err)
	}
	n := &network{Network: made, group: "/dhow-" + name, cgroups: cgroupMounts(t)}
	// On a disk: a container's file system cannot be laid over one that is itself in memory or laid over another.
	if n.dir, err = os.MkdirTemp("", "dhow-plain-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Down(); err != nil {
			t.Error(err)
		}
		if err := n.removeGroups(n.group); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(n.dir); err != nil {
			t.Error(err)
		}
	})
	if err := n.Up(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.dir, "boot.sh"), boot, 0o755); err != nil {
		t.Fatal(err)
	}
	return n
}

// removeGroups removes a control group of the machines and those below it. The kernel may take its time to free what is in them last.
func (n *network) removeGroups(group string) error {
	deadline := time.After(cluster.Deadline)
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		var failed []error
		for _, m := range n.cgroups {
			failed = append(failed, m.remove(group))
		}
		err := errors.Join(failed...)
		if err == nil {
			return nil
		}
		select {
		case <-ticker.C:
		case <-deadline:
			return err
		}
	}
}

// machine is one that has systemd.
type machine struct {
	t       *testing.T
	name    string
	address netip.Addr
	network *network
	process *exec.Cmd
	// console is what was said before there was a log.
	console bytes.Buffer
}

// machine makes the i-th machine and starts it.
func (n *network) machine(t *testing.T, i int, name string) *machine {
	t.Helper()
	address, err := n.Address(i)
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, name: name, address: address, network: n}
	for _, dir := range []string{"root", "upper", "work", "dhow", "docker"} {
		if err := os.MkdirAll(m.disk(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := m.try(`systemctl --no-pager --failed; journalctl --no-pager --output=short-monotonic | grep -v 'audit\|kernel' | tail -n 300; tail -n 30 /var/lib/dhow/node/runtime/containerd.log; cd /etc/dhow && docker-compose --profile node ps && docker-compose --profile node logs --no-color --tail=60`)
			t.Logf("%s: %s\n%s", m.name, m.console.String(), out)
		}
		m.off()
	})
	m.on()
	return m
}

// disk is a file of the machine's disk: dhow is its /var/lib/dhow.
func (m *machine) disk(path ...string) string {
	return filepath.Join(append([]string{m.network.dir, m.name}, path...)...)
}

// on starts the machine, and waits until its systemd takes commands.
func (m *machine) on() {
	m.t.Helper()
	host, err := m.network.Add(m.name, m.address)
	if err != nil {
		m.t.Fatal(err)
	}
	group := m.network.group + "/" + m.name
	// A machine that starts has no groups, whatever it had when it lost its power. One with controllers handed down to others below it would take no process.
	if err := m.network.removeGroups(group); err != nil {
		m.t.Fatal(err)
	}
	var lines []string
	for _, c := range m.network.cgroups {
		if err := c.make(group); err != nil {
			m.t.Fatal(err)
		}
		lines = append(lines, strings.Join([]string{c.at, c.kind, c.options, group}, " "))
	}
	binds := m.disk("dhow") + ":/var/lib/dhow " + m.disk("docker") + ":/var/lib/docker"
	if docker, err := filepath.Abs(filepath.Join("..", "..", "bin", "docker")); err == nil {
		if _, err := os.Stat(docker); err == nil {
			binds += " " + docker + ":/opt/docker"
		}
	}
	m.process = exec.Command("nsenter", "--net="+host.NetNS, "--", filepath.Join(m.network.dir, "boot.sh"))
	m.process.Env = []string{"PATH=" + os.Getenv("PATH"), "DIR=" + m.disk(), "NAME=" + m.name, "BINDS=" + binds, "CGROUPS=" + strings.Join(lines, "\n")}
	m.process.Stdout, m.process.Stderr = &m.console, &m.console
	m.process.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces, Setsid: true}
	// Whoever else holds the console is killed with the machine.
	m.process.WaitDelay = 10 * time.Second
	if err := m.process.Start(); err != nil {
		m.t.Fatal(err)
	}
	cluster.Eventually(m.t, func(context.Context) error {
		if out, err := m.try("systemctl is-active multi-user.target"); err != nil {
			return fmt.Errorf("%s does not start: %w: %s", m.name, err, out)
		}
		return nil
	})
}

// off takes its power away: all processes end with the first one, and nothing answers at its address.
func (m *machine) off() {
	if m.process == nil {
		return
	}
	if err := m.process.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		m.t.Error(err)
	}
	_ = m.process.Wait() // it was killed
	m.process = nil
	if err := m.network.Remove(m.name); err != nil {
		m.t.Error(err)
	}
}

// inside keeps a script from running on this machine instead, while the other one is not yet made, and begins at home.
const inside = "test -e /etc/dhow-test || exit 1; cd; "

// enter are the arguments of nsenter that lead into the machine.
func (m *machine) enter() []string {
	return []string{"--target", fmt.Sprint(m.process.Process.Pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--",
		"env", "-i", "PATH=" + path, "HOME=/root", "/bin/bash", "-c"}
}

// try runs a script on the machine, and returns what it printed.
func (m *machine) try(script string) (string, error) {
	if m.process == nil {
		return "", errors.New("the machine is off")
	}
	ctx, cancel := context.WithTimeout(context.Background(), cluster.Deadline)
	defer cancel()
	out, err := exec.CommandContext(ctx, "nsenter", append(m.enter(), inside+script)...).CombinedOutput()
	return string(out), err
}

// run runs a script that must succeed.
func (m *machine) run(script string) string {
	m.t.Helper()
	out, err := m.try(script)
	if err != nil {
		m.t.Fatalf("%s: %s: %v\n%s", m.name, script, err, out)
	}
	return out
}
