package up

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"dhow.dev/pkg/hosts"
)

// lockFile is locked by the process that runs the directory's cluster, and holds its id.
const lockFile = "lock"

// pool is where the private bridges of the clusters of one machine take their subnets from.
var pool = netip.MustParsePrefix("10.89.0.0/16")

// machine says what the cluster occupies of this machine. It is kept in cluster.json, for `dhow down` and for people and tests that look behind the API.
type machine struct {
	// ID tells this cluster's bridge, network namespaces, sockets and cgroups from those of others on the machine.
	ID     string       `json:"id"`
	Subnet netip.Prefix `json:"subnet"`
	// Gateway is the bridge's address: this machine as its nodes see it.
	Gateway netip.Addr `json:"gateway"`
	Bridge  string     `json:"bridge"`
	Nodes   []node     `json:"nodes"`
	// Hosts are those of the control plane, when it has its own.
	Hosts []host `json:"hosts,omitempty"`
	// Runtime is the folder of the bundled container runtime that was used last: who stops the cluster need not name it again.
	Runtime string `json:"runtime,omitempty"`
}

type node struct {
	Name    string     `json:"name"`
	Address netip.Addr `json:"address"`
	NetNS   string     `json:"netns"`
	// CRI is the gRPC target of the node's container runtime.
	CRI string `json:"cri"`
}

// directory is a cluster's data directory.
type directory string

func (d directory) path(elements ...string) string {
	return filepath.Join(append([]string{string(d)}, elements...)...)
}

func (d directory) pki() string     { return d.path("pki") }
func (d directory) keyFile() string { return d.path("pki", "encryption.key") }
func (d directory) client() string  { return d.path("client.yaml") }

// kubeconfig is for tools of Kubernetes what client is for dhow.
func (d directory) kubeconfig() string { return d.path("kubeconfig") }
func (d directory) node(name string, rest ...string) string {
	return d.path(append([]string{"nodes", name}, rest...)...)
}

// load reads cluster.json; found is false when there is none.
func (d directory) load() (m machine, found bool, err error) {
	file := d.path("cluster.json")
	content, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return m, false, nil
	}
	if err != nil {
		return m, false, err
	}
	if err := json.Unmarshal(content, &m); err != nil {
		return m, false, fmt.Errorf("%s: %w: restore it from a backup, or delete the directory to begin anew", file, err)
	}
	return m, true, nil
}

func (d directory) save(m machine) error {
	content, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	temporary := d.path("cluster.json.new")
	if err := os.WriteFile(temporary, append(content, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, d.path("cluster.json"))
}

// newMachine picks an id and a free subnet for a cluster that is started for the first time.
func newMachine() (machine, error) {
	id := make([]byte, 3)
	if _, err := rand.Read(id); err != nil {
		return machine{}, err
	}
	subnet, err := hosts.FreeSubnet(pool, 24)
	if err != nil {
		return machine{}, err
	}
	return machine{ID: hex.EncodeToString(id), Subnet: subnet}, nil
}

// ours refuses a directory that holds something else: its contents would be mixed with the cluster's.
func (d directory) ours() error {
	entries, err := os.ReadDir(d.path())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == "cluster.json" || e.Name() == lockFile {
			return nil
		}
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s holds other things than a cluster (%s): choose an empty --data-dir", d, entries[0].Name())
	}
	return nil
}

// purge deletes what `dhow up` has made, cluster.json last, and the directory when nothing else is in it.
func (d directory) purge() error {
	for _, name := range []string{"nodes", "services", "store", "pki", "client.yaml", "kubeconfig", lockFile, "cluster.json"} {
		if err := os.RemoveAll(d.path(name)); err != nil {
			return err
		}
	}
	if err := os.Remove(d.path()); err != nil && !errors.Is(err, syscall.ENOTEMPTY) {
		return err
	}
	return nil
}

// lock makes this process the only one that runs the directory's cluster, until release. The release of a lock under which no cluster was made takes
// the lock's file away, and the directory when nothing else is in it.
func (d directory) lock() (release func() error, err error) {
	for {
		file, err := os.OpenFile(d.path(lockFile), os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			return nil, err
		}
		if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			file.Close()
			if errors.Is(err, syscall.EWOULDBLOCK) {
				return nil, fmt.Errorf("a cluster runs on %s already (process %d): use it, stop it with `dhow down --data-dir %s`, or choose another --data-dir", d, d.holder(), d)
			}
			return nil, fmt.Errorf("lock %s: %w", d, err)
		}
		// Between the opening and the lock another release may have taken the file away: then this one locks nothing that others see.
		if current, err := d.isLockFile(file); err != nil || !current {
			file.Close()
			if err != nil {
				return nil, err
			}
			continue
		}
		if err := writeHolder(file); err != nil {
			file.Close()
			return nil, err
		}
		return func() error { return errors.Join(d.forget(), file.Close()) }, nil
	}
}

func (d directory) isLockFile(file *os.File) (bool, error) {
	mine, err := file.Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Stat(d.path(lockFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(mine, named), err
}

func writeHolder(file *os.File) error {
	if err := file.Truncate(0); err != nil {
		return err
	}
	_, err := file.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// forget takes away the lock's file, unless there is a cluster. The caller holds the lock.
func (d directory) forget() error {
	if _, err := os.Stat(d.path("cluster.json")); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Remove(d.path(lockFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Remove(d.path()); err != nil && !errors.Is(err, syscall.ENOTEMPTY) {
		return err
	}
	return nil
}

// unlock takes away the lock's file of a process that has ended without making a cluster, if asked to.
func (d directory) unlock(purge bool) error {
	if held, err := d.locked(); err != nil || held || !purge || d.holder() == 0 {
		return err
	}
	release, err := d.lock()
	if err != nil {
		return err
	}
	return release()
}

// locked says whether a process runs the directory's cluster.
func (d directory) locked() (bool, error) {
	file, err := os.Open(d.path(lockFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer file.Close()
	err = syscall.Flock(int(file.Fd()), syscall.LOCK_SH|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

// holder is the id of the process that holds, or held, the lock; 0 when unknown.
func (d directory) holder() int {
	content, err := os.ReadFile(d.path(lockFile))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil {
		return 0
	}
	return pid
}
