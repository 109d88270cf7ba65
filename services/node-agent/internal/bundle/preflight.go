package bundle

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"dhow.dev/pkg/hosts"
	"dhow.dev/services/node-agent/internal/bundle/cgroup"
)

// needed are the capabilities that starting containers and networks takes, with their numbers from linux/capability.h.
var needed = []struct {
	name   string
	number uint
}{
	{"CAP_CHOWN", unix.CAP_CHOWN}, {"CAP_DAC_OVERRIDE", unix.CAP_DAC_OVERRIDE}, {"CAP_FOWNER", unix.CAP_FOWNER},
	{"CAP_KILL", unix.CAP_KILL}, {"CAP_SETGID", unix.CAP_SETGID}, {"CAP_SETUID", unix.CAP_SETUID}, {"CAP_SETPCAP", unix.CAP_SETPCAP},
	{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN}, {"CAP_NET_RAW", unix.CAP_NET_RAW}, {"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN},
	{"CAP_SYS_CHROOT", unix.CAP_SYS_CHROOT}, {"CAP_MKNOD", unix.CAP_MKNOD}, {"CAP_SETFCAP", unix.CAP_SETFCAP},
}

// Preflight looks whether this machine can run a node with the bundle in runtimeDir (empty: do not look at the bundle, for nodes with a
// runtime of their own). Each problem is one line that says what to do. It changes nothing that outlives it.
func Preflight(runtimeDir string) []error {
	if os.Geteuid() != 0 {
		return []error{errors.New("not running as root: containers and their networks need root, run this with sudo")}
	}
	var problems []error
	add := func(err error) {
		if err != nil {
			problems = append(problems, err)
		}
	}
	add(checkCapabilities())
	if runtimeDir != "" {
		if err := checkRuntimeDir(runtimeDir); err != nil {
			add(fmt.Errorf("%w: run `make setup`", err))
		}
		add(checkOverlay())
	}
	if _, err := exec.LookPath("nsenter"); err != nil {
		add(errors.New("nsenter is not installed: install the package util-linux"))
	}
	if _, err := exec.LookPath("nft"); err != nil {
		add(errors.New("nft is not installed: run `make setup`, or install the package nftables"))
	}
	add(checkCgroups())
	problems = append(problems, checkNetwork()...)
	return problems
}

func checkCapabilities() error {
	var missing []string
	for _, c := range needed {
		has, err := effectiveCapability(c.number)
		if err != nil {
			return err
		}
		if !has {
			missing = append(missing, c.name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("this root user lacks %s: run in a privileged container or on the machine itself", strings.Join(missing, ", "))
	}
	return nil
}

func checkOverlay() error {
	data, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	if slices.Contains(strings.Fields(string(data)), "overlay") {
		return nil
	}
	// The kernel loads the module when somebody mounts one, so its absence from the list proves nothing.
	dir, err := os.MkdirTemp("", "dhow-preflight-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := unix.Mount("overlay", dir, "overlay", unix.MS_RDONLY, "lowerdir=/:"+filepath.Dir(dir)); err == nil {
		return unix.Unmount(dir, unix.MNT_DETACH)
	}
	return errors.New("the kernel has no overlayfs, images would be copied whole for each container: load the module overlay")
}

func checkCgroups() error {
	cgroups, err := cgroup.Open()
	if err != nil {
		return err
	}
	have, err := cgroups.Controllers()
	if err != nil {
		return fmt.Errorf("read cgroup controllers: %w", err)
	}
	required := []string{"cpu", "memory", "pids"}
	if cgroups.Version() == cgroup.V1 {
		required = append(required, "devices", "freezer")
	}
	var missing []string
	for _, name := range required {
		if !slices.Contains(have, name) {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("the cgroup %s controllers %s are not available: enable them with the kernel parameter cgroup_enable, or mount them", cgroups.Version(), strings.Join(missing, ", "))
	}
	return nil
}

// checkNetwork makes one of each thing that nodes need in a network namespace that vanishes with its thread.
func checkNetwork() []error {
	var problems []error
	err := hosts.OnOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("cannot create a network namespace: %w: run as root with CAP_SYS_ADMIN and a kernel with CONFIG_NET_NS", err)
		}
		for _, link := range []netlink.Link{
			&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "check-br"}},
			&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "check-a"}, PeerName: "check-b"},
		} {
			if err := netlink.LinkAdd(link); err != nil {
				problems = append(problems, fmt.Errorf("the kernel cannot make a %[1]s interface: %[2]w: load the module %[1]s", link.Type(), err))
			}
		}
		if err := checkNftables(); err != nil {
			problems = append(problems, fmt.Errorf("the kernel's nftables cannot be used: %w: load the modules nf_tables and nft_chain_nat", err))
		}
		return nil
	})
	if err != nil {
		problems = append(problems, err)
	}
	return problems
}

func checkNftables() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "dhow-check"})
	conn.AddChain(&nftables.Chain{
		Name: "check", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	return conn.Flush()
}
