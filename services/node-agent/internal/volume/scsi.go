package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	// deviceWithin is how long a device may take to appear after it was asked for; Kubernetes' time.
	deviceWithin = 30 * time.Second
	// multipathWithin is how long several paths may take to become one device; Kubernetes' time.
	multipathWithin = 10 * time.Second
	// lookEvery is how often it is looked for.
	lookEvery = 100 * time.Millisecond
)

// dev and sys are paths in the machine's folders of devices.
func (m *Manager) dev(parts ...string) string {
	return filepath.Join(append([]string{m.config.Machine.Dev}, parts...)...)
}

func (m *Manager) sys(parts ...string) string {
	return filepath.Join(append([]string{m.config.Machine.Sys}, parts...)...)
}

// await looks again and again until something is found, but not for longer than within.
func await(ctx context.Context, within time.Duration, find func() string) string {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		if found := find(); found != "" {
			return found
		}
		select {
		case <-ctx.Done():
			return ""
		case <-ticker.C:
		}
	}
}

// multipathOf returns the device that joins a device with its other paths; empty: there is none.
func (m *Manager) multipathOf(device string) string {
	real, err := filepath.EvalSymlinks(device)
	if err != nil {
		return ""
	}
	if strings.HasPrefix(filepath.Base(real), "dm-") {
		return m.dev(filepath.Base(real))
	}
	return m.joint(filepath.Base(real))
}

// joint is multipathOf for the name of a device.
func (m *Manager) joint(name string) string {
	joins, _ := filepath.Glob(m.sys("block", "dm-*", "slaves", name))
	if len(joins) == 0 {
		return ""
	}
	return m.dev(filepath.Base(filepath.Dir(filepath.Dir(joins[0]))))
}

// pathsOf returns the names of the devices that a multipath device joins.
func (m *Manager) pathsOf(multipath string) ([]string, error) {
	entries, err := os.ReadDir(m.sys("block", filepath.Base(multipath), "slaves"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// tellKernel writes to a file of the kernel's; one that is not there has nobody to tell.
func tellKernel(file, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// removeDevice takes a SCSI device from the kernel.
func (m *Manager) removeDevice(name string) error {
	if err := tellKernel(m.sys("block", name, "device", "delete"), "1"); err != nil {
		return fmt.Errorf("remove device %s: %w", name, err)
	}
	return nil
}
