package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// unmountShareWithin is how long a server may take to let go of a share before it is no longer asked; Kubernetes' time.
const unmountShareWithin = time.Minute

// shares are NFS exports, which are mounted for each pod.
type shares struct{ m *Manager }

func (m *Manager) nfs(d *described, source *corev1.NFSVolumeSource) (*mounting, error) {
	v := m.mounting(d, kindNFS, "")
	v.readOnly = v.readOnly || source.GetReadOnly()
	server := source.GetServer()
	if address, err := netip.ParseAddr(server); err == nil && address.Is6() {
		server = "[" + server + "]"
	}
	if strings.HasPrefix(server, "-") {
		return nil, fmt.Errorf("nfs: %q is no server", server) // but would be an option
	}
	v.share = server + ":" + source.GetPath()
	return v, nil
}

func (shares) attach(context.Context, *mounting) (string, error) { return "", nil }

func (shares) stage(context.Context, *mounting) error { return nil }

func (s shares) publish(ctx context.Context, v *mounting) error {
	options := v.options
	if v.readOnly {
		options = append(slices.Clone(options), "ro")
	}
	arguments := []string{"-t", "nfs"}
	if options = joined(options); len(options) > 0 {
		arguments = append(arguments, "-o", strings.Join(options, ","))
	}
	_, err := run(ctx, "mount", append(arguments, v.share, v.record.Target)...)
	if err != nil && !s.m.hasHelper("mount.nfs") {
		return fmt.Errorf("%w (this node has no mount.nfs: install the package nfs-common of Debian and Ubuntu, nfs-utils of Fedora and Red Hat, or nfs-client of SUSE)", err)
	}
	return err
}

// hasHelper says whether mount(8) finds its helper for a kind of file system, for which it does not look at PATH.
func (m *Manager) hasHelper(name string) bool {
	return slices.ContainsFunc(m.helperDirs, func(dir string) bool {
		_, err := os.Stat(filepath.Join(dir, name))
		return err == nil
	})
}

// unpublish unmounts a share: properly, or else by force, or else it is only taken out of sight. A server that is gone must not keep a pod from ending.
func (s shares) unpublish(ctx context.Context, r *mountRecord) error {
	var failed error
	// The table of mounts is asked, and not the share, which might never answer.
	for _, how := range [][]string{nil, {"-f"}, {"-l"}} {
		if is, err := isMountPoint(r.Target); err != nil {
			return err
		} else if !is {
			break
		}
		bounded, cancel := ctx, context.CancelFunc(func() {})
		if !slices.Contains(how, "-l") { // which asks no server
			bounded, cancel = context.WithTimeout(ctx, s.m.unmountWithin)
		}
		_, err := run(bounded, "umount", append(how, r.Target)...)
		cancel()
		failed = errors.Join(failed, err)
	}
	if is, err := isMountPoint(r.Target); err != nil || is {
		return errors.Join(failed, err, errors.New("it is still mounted"))
	}
	if err := os.Remove(r.Target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (shares) unstage(context.Context, *mountRecord) error { return nil }

func (shares) detach(context.Context, *mountRecord) error { return nil }

// spaceOf measures a file system. One that does not answer, as a share of a server that is gone, is not asked again before it has.
func (m *Manager) spaceOf(ctx context.Context, path string) (*unix.Statfs_t, error) {
	m.mu.Lock()
	if m.silent[path] {
		m.mu.Unlock()
		return nil, errors.New("it has not answered for a while")
	}
	m.silent[path] = true
	m.mu.Unlock()
	type answer struct {
		space unix.Statfs_t
		err   error
	}
	answers := make(chan answer, 1)
	go func() {
		var a answer
		a.err = unix.Statfs(path, &a.space)
		m.mu.Lock()
		delete(m.silent, path)
		m.mu.Unlock()
		answers <- a
	}()
	select {
	case a := <-answers:
		return &a.space, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
