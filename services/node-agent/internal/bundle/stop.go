package bundle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"dhow.dev/pkg/process"
	"dhow.dev/services/node-agent/internal/bundle/cgroup"
)

// libcni caches results here and offers plugins' callers no other place.
const cniCacheDir = "/var/lib/cni/results"

const (
	// orderlyLimit bounds how long sandboxes are removed one by one before everything is killed.
	orderlyLimit = 30 * time.Second
	stopWorkers  = 8
)

// StopOptions says how much Stop ends. The zero value ends containerd alone; containers run on.
type StopOptions struct {
	// Containers ends containers, their shims, mounts and cgroups too. It does not wait for containers' own grace periods: end pods first.
	Containers bool
	// Data deletes Root as well, with images and logs, and implies Containers.
	Data bool
}

// Stop ends a node's runtime, whether or not anything supervises it. It is idempotent: a second call ends what the first could not.
// The supervisor (Run) must have returned; Stop refuses when one is alive, because that would start containerd again.
func Stop(ctx context.Context, cfg Config, opts StopOptions) error {
	cfg, err := complete(cfg)
	if err != nil {
		return err
	}
	cgroups, err := cgroup.Open()
	if err != nil {
		return err
	}
	if _, err := os.Stat(cfg.Root); errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat(cfg.State); errors.Is(err, os.ErrNotExist) {
			return nil
		}
	}
	held, err := lock(cfg)
	if err != nil {
		return err
	}
	defer held.Close()
	opts.Containers = opts.Containers || opts.Data

	proc, err := findProcess(cfg)
	if err != nil {
		return fmt.Errorf("stop container runtime: %w", err)
	}
	if proc != nil {
		if opts.Containers {
			if err := removeSandboxes(ctx, cfg); err != nil {
				// Not fatal: what is left is killed below.
				cfg.Logger.Warn("pods could not all be removed in order", "error", err)
			}
		}
		if err := proc.Stop(ctx, stopGrace); err != nil {
			return fmt.Errorf("stop container runtime: %w", err)
		}
	}
	if err := os.Remove(recordFile(cfg)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if !opts.Containers {
		return nil
	}
	if err := clearContainers(ctx, cfg, cgroups); err != nil {
		return fmt.Errorf("stop containers: %w", err)
	}
	if !opts.Data {
		return nil
	}
	if left, err := mountsBelow(cfg.Root); err != nil || len(left) > 0 {
		return errors.Join(err, fmt.Errorf("not deleting %s: %d file systems are mounted there, the first at %s", cfg.Root, len(left), slices.Concat(left, []string{"?"})[0]))
	}
	return os.RemoveAll(cfg.Root)
}

// removeSandboxes lets containerd take its pods down, which also releases their addresses.
func removeSandboxes(ctx context.Context, cfg Config) error {
	ctx, cancel := context.WithTimeout(ctx, orderlyLimit)
	defer cancel()
	if !listening(ctx, cfg.Socket) {
		return errors.New("containerd does not answer")
	}
	conn, err := dial(cfg)
	if err != nil {
		return err
	}
	defer conn.Close()
	client := runtimeapi.NewRuntimeServiceClient(conn)
	list, err := client.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	var (
		wait   sync.WaitGroup
		mu     sync.Mutex
		failed []error
		slots  = make(chan struct{}, stopWorkers)
	)
	for _, sandbox := range list.GetItems() {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			_, err := client.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox.GetId()})
			if err == nil {
				_, err = client.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox.GetId()})
			}
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed = append(failed, fmt.Errorf("pod sandbox %s: %w", sandbox.GetId(), err))
			}
		})
	}
	wait.Wait()
	return errors.Join(failed...)
}

// clearContainers ends and removes all that belongs to the runtime, as found on the machine and not as containerd remembers it.
func clearContainers(ctx context.Context, cfg Config, cgroups *cgroup.Hierarchies) error {
	if err := cgroups.Kill(ctx, cfg.CgroupParent); err != nil {
		return err
	}
	// Shims belong into the cgroup; one that was caught before it got there is known by its socket.
	if err := killShims(ctx, cfg); err != nil {
		return err
	}
	for _, dir := range []string{cfg.State, cfg.Root} {
		if err := unmountBelow(dir); err != nil {
			return err
		}
	}
	if err := cgroups.Remove(cfg.CgroupParent); err != nil {
		return err
	}
	names, err := networkNames(cfg.CNIConfDir)
	if err != nil {
		return err
	}
	for _, name := range names {
		cached, err := filepath.Glob(filepath.Join(cniCacheDir, name+"-*"))
		if err != nil {
			return err
		}
		for _, file := range cached {
			if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	// Pods that were killed left their addresses reserved.
	for _, dir := range []string{cniDataDir(cfg), cfg.State} {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	if err := os.Remove(cfg.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func killShims(ctx context.Context, cfg Config) error {
	shims, err := process.Search(func(args []string) bool { return isShim(args, cfg) })
	if err != nil {
		return err
	}
	for _, shim := range shims {
		cfg.Logger.Info("stopping a stray shim", slog.Int("pid", shim.PID()))
		err := shim.Signal(unix.SIGKILL)
		if err == nil {
			err = shim.Wait(ctx)
		}
		shim.Release()
		if err != nil {
			return fmt.Errorf("kill shim: %w", err)
		}
	}
	return nil
}

func isShim(args []string, cfg Config) bool {
	i := slices.Index(args, "-address")
	return len(args) > 0 && filepath.Base(args[0]) == "containerd-shim-runc-v2" && i > 0 && i+1 < len(args) &&
		(args[i+1] == cfg.Socket || args[i+1] == cfg.Socket+".ttrpc")
}

// mountsBelow lists mount points in the folder, the newest first.
func mountsBelow(dir string) ([]string, error) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var found []string
	for line := range strings.Lines(string(info)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		point := unescape(fields[4])
		if strings.HasPrefix(point, dir+"/") {
			found = append(found, point)
		}
	}
	slices.Reverse(found)
	return found, nil
}

// unescape undoes the octal escapes of mountinfo for space, tab, newline and backslash.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func unmountBelow(dir string) error {
	points, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	for _, point := range points {
		// EINVAL: gone already, with the mount that it was propagated from.
		if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
	}
	return nil
}
