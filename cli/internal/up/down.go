package up

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"dhow.dev/pkg/process"
	nodeagent "dhow.dev/services/node-agent"
)

// DownConfig configures Down.
type DownConfig struct {
	DataDir string
	// Purge deletes the data too.
	Purge bool
	// RuntimeDir holds the bundled container runtime; empty: where `make setup` builds it.
	RuntimeDir string
	Out        io.Writer
	Err        io.Writer
}

// controlPlaneGrace is how long the control plane may take to end.
const controlPlaneGrace = 30 * time.Second

// Down ends a cluster of this machine: its control plane, its agents, its pods and its network. It ends what an `up` that was killed has left, too.
func Down(ctx context.Context, config DownConfig) error {
	if os.Geteuid() != 0 {
		return errors.New("dhow down ends containers and network namespaces: run it as root")
	}
	absolute, err := filepath.Abs(config.DataDir)
	if err != nil {
		return err
	}
	dir := directory(absolute)
	m, found, err := dir.load()
	if err != nil {
		return err
	}
	if !found {
		// Nothing is deleted that `dhow up` has not made: the directory may be anyone's. An `up` that was killed before it made anything leaves its lock.
		if err := dir.unlock(config.Purge); err != nil {
			return err
		}
		fmt.Fprintf(config.Out, "No cluster in %s: nothing was stopped or deleted.\n", dir)
		return nil
	}
	if err := stopControlPlane(ctx, dir); err != nil {
		return err
	}
	runtimeDir := ""
	if len(m.Nodes) > 0 {
		if runtimeDir, err = m.findRuntime(config.RuntimeDir); err != nil {
			return err
		}
	}
	logger := slog.New(slog.NewTextHandler(config.Err, &slog.HandlerOptions{Level: slog.LevelWarn}))
	group, groupCtx := errgroup.WithContext(ctx)
	for _, n := range m.Nodes {
		group.Go(func() error {
			if err := stopNode(groupCtx, dir, m, n, runtimeDir, config.Purge, logger); err != nil {
				return fmt.Errorf("node %s: %w", n.Name, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	network, err := m.network()
	if err != nil {
		return err
	}
	if err := network.Down(); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(sockets, m.ID)); err != nil {
		return err
	}
	if !config.Purge {
		fmt.Fprintf(config.Out, "Stopped. The data stays in %s: `dhow up` goes on with it, `dhow down --purge` deletes it.\n", dir)
		return nil
	}
	if err := dir.purge(); err != nil {
		return err
	}
	fmt.Fprintf(config.Out, "Stopped, and deleted the cluster in %s.\n", dir)
	return nil
}

// findRuntime finds the container runtime: the one that was given, else the one that the nodes were started with, else where `make setup` builds it.
func (m machine) findRuntime(given string) (string, error) {
	if given == "" {
		if _, err := os.Stat(m.Runtime); err == nil {
			return m.Runtime, nil
		}
	}
	return nodeagent.FindRuntimeDir(given)
}

// stopControlPlane ends the process that holds the directory's lock, and services of their own that one has left behind.
func stopControlPlane(ctx context.Context, dir directory) error {
	running, err := dir.locked()
	if err != nil {
		return err
	}
	if running {
		pid := dir.holder()
		if pid <= 1 {
			return fmt.Errorf("%s is locked by an unknown process", dir)
		}
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stop process %d: %w", pid, err)
		}
		deadline := time.Now().Add(controlPlaneGrace)
		for running {
			if time.Now().After(deadline) || ctx.Err() != nil {
				return fmt.Errorf("process %d did not end within %s: end it with `kill -9 %d` and run `dhow down` again", pid, controlPlaneGrace, pid)
			}
			// A lock cannot be waited for with a time limit.
			time.Sleep(50 * time.Millisecond)
			if running, err = dir.locked(); err != nil {
				return err
			}
		}
	}
	return stopLeftServices(ctx, dir)
}

// stopLeftServices ends services in processes of their own, the ones that need others first.
func stopLeftServices(ctx context.Context, dir directory) error {
	left, err := filepath.Glob(dir.path("services", "*.json"))
	if err != nil {
		return err
	}
	for _, file := range left {
		service, err := process.Find(file)
		if err != nil {
			return err
		}
		if service != nil {
			if err := service.Stop(ctx, serviceGrace); err != nil {
				return err
			}
		}
	}
	return nil
}

// stopNode ends a node's agent, then its pods and its runtime.
func stopNode(ctx context.Context, dir directory, m machine, n node, runtimeDir string, purge bool, logger *slog.Logger) error {
	agentProcess, err := process.Find(dir.node(n.Name, "agent.json"))
	if err != nil {
		return err
	}
	if agentProcess != nil {
		if err := agentProcess.Stop(ctx, agentGrace); err != nil {
			return err
		}
	}
	return nodeagent.Stop(ctx, nodeagent.Config{
		NodeName: n.Name, DataDir: dir.node(n.Name, "data"), Logger: logger,
		Runtime: &nodeagent.Runtime{Dir: runtimeDir, State: m.state(n.Name), CgroupParent: m.cgroup(n.Name)},
	}, purge)
}
