package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"dhow.dev/services/node-agent/internal/bundle"
	"dhow.dev/services/node-agent/internal/volume"
)

// Runtime is the container runtime that the agent brings along.
type Runtime struct {
	// Dir holds its programs; empty: where FindRuntimeDir finds them.
	Dir string
	// State keeps sockets and mounts, on a tmpfs, in at most 40 characters. Root, with images and containers, is DataDir/runtime.
	State string
	// CgroupParent is the node's own cgroup, for example /dhow/demo/node-1.
	CgroupParent string
	// Registries are those that speak plain HTTP, as host:port, or NAME=URL where images name them otherwise than they are reached.
	Registries []string
	// Archives are image archives to import.
	Archives []string
}

// config is the bundle's.
func (r *Runtime) config(c Config) bundle.Config {
	b := bundle.Config{
		RuntimeDir: r.Dir, Root: filepath.Join(c.DataDir, "runtime"), State: r.State, CNIConfDir: c.Network.CNIConfDir,
		CgroupParent: r.CgroupParent, Archives: r.Archives, Logger: c.Logger,
	}
	for _, registry := range r.Registries {
		host, endpoint, _ := strings.Cut(registry, "=")
		b.Registries = append(b.Registries, bundle.Registry{Host: host, Endpoint: endpoint})
	}
	return b
}

// FindRuntimeDir finds the bundled runtime's programs: in dir, or, when that is empty, beside this program or where packages install them.
func FindRuntimeDir(dir string) (string, error) {
	if dir != "" {
		return filepath.Abs(dir)
	}
	return bundle.FindRuntimeDir()
}

// Preflight says what keeps this machine from running nodes with the bundled runtime in dir: one line each, with what to do.
func Preflight(dir string) []error { return bundle.Preflight(dir) }

// Stop ends the bundled runtime of a node whose agent has ended, with all its containers and what the agent had mounted; purge deletes its data too.
// Only NodeName, DataDir, Runtime and Network.CNIConfDir of the configuration count.
func Stop(ctx context.Context, config Config, purge bool) error {
	if config.Runtime == nil {
		return errors.New("node agent: only the bundled runtime can be stopped")
	}
	if err := bundle.Stop(ctx, config.Runtime.config(config), bundle.StopOptions{Containers: true, Data: purge}); err != nil {
		return fmt.Errorf("stop the runtime of node %q: %w", config.NodeName, err)
	}
	volumes := volume.New(config.podsDir())
	uids, err := volumes.Pods()
	if err != nil {
		return err
	}
	for _, uid := range uids {
		// Memory-backed volumes lose their contents as in a reboot; the rest stays unless everything goes.
		if err := volumes.Unmount(uid); err != nil {
			return err
		}
	}
	// What drivers have staged is gone as after a reboot; the agent shares its folder anew when it starts.
	if err := volume.UnmountBelow(filepath.Join(config.DataDir, "plugins")); err != nil {
		return err
	}
	if err := volume.Unshare(config.DataDir); err != nil {
		return err
	}
	if !purge {
		return nil
	}
	return removeAll(config)
}

// removeAll deletes the node's data.
func removeAll(config Config) error {
	dirs := []string{config.podsDir(), config.logDir(), config.stateDir()}
	for _, part := range []string{"plugins", "plugins_registry", "local-path"} {
		dirs = append(dirs, filepath.Join(config.DataDir, part))
	}
	for _, dir := range dirs {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("delete the data of node %q: %w", config.NodeName, err)
		}
	}
	return nil
}
