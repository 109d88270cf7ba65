package hosts

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// nsfsMagic is the file system type of a namespace's file (NSFS_MAGIC in linux/magic.h).
const nsfsMagic = 0x6e736673

// known is a network that this machine has an address or a route for.
type known struct {
	prefix netip.Prefix
	device string
}

func knownNetworks() ([]known, error) {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	devices := make(map[int]string, len(links))
	for _, link := range links {
		devices[link.Attrs().Index] = link.Attrs().Name
	}
	var networks []known
	add := func(ip []byte, ones, index int) {
		addr, ok := netip.AddrFromSlice(ip)
		if ok && ones > 0 {
			networks = append(networks, known{netip.PrefixFrom(addr.Unmap(), ones).Masked(), devices[index]})
		}
	}
	addresses, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addresses {
		ones, _ := a.Mask.Size()
		add(a.IP, ones, a.LinkIndex)
	}
	routes, err := dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst != nil {
			ones, _ := r.Dst.Mask.Size()
			add(r.Dst.IP, ones, r.LinkIndex)
		}
	}
	return networks, nil
}

// dump repeats a listing that the kernel interrupted because something changed meanwhile, as other networks on the machine may.
func dump[T any](read func() ([]T, error)) ([]T, error) {
	for attempt := 0; ; attempt++ {
		items, err := read()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || attempt == 10 {
			return items, err
		}
	}
}

func list(network string) ([]Host, error) {
	prefix := "dhow_" + network + "_"
	files, err := filepath.Glob(filepath.Join(netnsDir, prefix+"*"))
	if err != nil {
		return nil, err
	}
	sort.Strings(files)
	hosts := make([]Host, 0, len(files))
	for _, file := range files {
		host := Host{Name: strings.TrimPrefix(filepath.Base(file), prefix), NetNS: file}
		// A host that was made in part has no address, but has to be listed, or nobody would delete it.
		host.Address, _ = addressOf(file)
		hosts = append(hosts, host)
	}
	return hosts, nil
}

func addressOf(file string) (netip.Addr, error) {
	ns, err := os.Open(file)
	if err != nil {
		return netip.Addr{}, err
	}
	defer ns.Close()
	handle, err := handleAt(ns)
	if err != nil {
		return netip.Addr{}, err
	}
	defer handle.Close()
	link, err := handle.LinkByName("eth0")
	if err != nil {
		return netip.Addr{}, err
	}
	addresses, err := handle.AddrList(link, netlink.FAMILY_V4)
	if err != nil || len(addresses) == 0 {
		return netip.Addr{}, errors.Join(err, errors.New("eth0 has no address"))
	}
	addr, _ := netip.AddrFromSlice(addresses[0].IP)
	return addr.Unmap(), nil
}

func handleAt(ns *os.File) (*netlink.Handle, error) {
	handle, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()))
	if err != nil {
		return nil, fmt.Errorf("enter %s: %w", ns.Name(), hint(err))
	}
	return handle, nil
}

// setAddress gives the interface exactly this IPv4 address.
func setAddress(handle *netlink.Handle, link netlink.Link, want netip.Prefix) error {
	have, err := handle.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range have {
		ones, _ := a.Mask.Size()
		if addr, ok := netip.AddrFromSlice(a.IP); ok && netip.PrefixFrom(addr.Unmap(), ones) == want {
			continue
		}
		if err := handle.AddrDel(link, &a); err != nil {
			return fmt.Errorf("remove address %s: %w", a.IPNet, err)
		}
	}
	address, err := netlink.ParseAddr(want.String())
	if err != nil {
		return err
	}
	if err := handle.AddrReplace(link, address); err != nil {
		return fmt.Errorf("set address %s: %w", want, err)
	}
	return nil
}

// createNamespace makes a network namespace and keeps it by a bind mount at file.
func createNamespace(file string) error {
	if isNamespace(file) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("create %s: %w", filepath.Dir(file), err)
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("create network namespace: %w", err)
	}
	if err := f.Close(); err != nil {
		return err
	}
	return OnOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("create network namespace: %w", hint(err))
		}
		if err := unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), file, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount network namespace at %s: %w", file, hint(err))
		}
		return nil
	})
}

func isNamespace(file string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(file, &fs) == nil && fs.Type == nsfsMagic
}

func deleteNamespace(file string) error {
	// Mounts stack when two processes made the same host at once.
	for isNamespace(file) {
		if err := unix.Unmount(file, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", file, hint(err))
		}
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove network namespace: %w", err)
	}
	return nil
}

// inNamespace runs f on a thread of its own in the namespace.
func inNamespace(ns *os.File, f func() error) error {
	return OnOwnThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter %s: %w", ns.Name(), hint(err))
		}
		return f()
	})
}

// OnOwnThread runs f on an operating system thread that ends with it, so that f may change what belongs to a thread: its namespaces.
func OnOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		// Go cannot end the main thread, and its namespaces are what /proc/self/net and other processes see. So it is kept busy here
		// while another thread does the work.
		if unix.Gettid() == os.Getpid() {
			defer runtime.UnlockOSThread()
			done <- OnOwnThread(f)
			return
		}
		// Never unlocked: that is what ends the thread with this goroutine.
		done <- f()
	}()
	return <-done
}

func deleteLink(name string) error {
	link, err := netlink.LinkByName(name)
	if isMissing(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	// The other end of a veth pair may be on its way out with its namespace.
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete interface %s: %w", name, hint(err))
	}
	return nil
}

func isMissing(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing)
}

// hint says what to do about the errors that mean a machine is not set up for this.
func hint(err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: run as root, with CAP_NET_ADMIN and CAP_SYS_ADMIN", err)
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: the kernel lacks bridge or veth, load the modules bridge and veth", err)
	}
	return err
}
