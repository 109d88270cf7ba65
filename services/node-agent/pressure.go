package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/cgroup"
	"dhow.dev/services/node-agent/internal/cri"
	"dhow.dev/services/node-agent/internal/evictor"
	"dhow.dev/services/node-agent/internal/machine"
	"dhow.dev/services/node-agent/internal/pod"
	"dhow.dev/services/node-agent/internal/usage"
	"dhow.dev/services/node-agent/internal/volume"
)

// Eviction is when pods are evicted for want of resources, in Kubernetes' notation. Hard empty: Kubernetes' defaults; "none": no hard thresholds.
type Eviction struct {
	Hard, Soft, SoftGrace, MinReclaim string
	// MaxGrace bounds what pods have to end after a soft threshold, Transition how long a condition stays. 0: no bound of its own; 5 minutes.
	MaxGrace, Transition time.Duration
}

func (e Eviction) thresholds() ([]evictor.Threshold, error) {
	hard := e.Hard
	switch hard {
	case "":
		hard = evictor.Defaults
	case "none":
		hard = ""
	}
	return evictor.Parse(hard, e.Soft, e.SoftGrace, e.MinReclaim)
}

// gauge measures what is left on the node and what its pods use.
type gauge struct {
	dir     string
	runtime cri.Runtime
	cgroups *cgroup.Manager
	volumes *volume.Manager
	logDir  string
	memory  int64
	// used is what all of the node uses.
	used func() (time.Duration, uint64, error)
	// part is the node's part of a machine that it shares, 0 when it has all of it; root is its cgroup.
	part float64
	root string

	mu sync.Mutex
	// images is the images' folder, once the runtime has said it: it never moves while the runtime runs.
	images string
}

func (g *gauge) imageDir(ctx context.Context) (string, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.images != "" {
		return g.images, nil
	}
	dir, err := g.runtime.ImageDir(ctx)
	if err != nil {
		return "", err
	}
	g.images = dir
	return dir, nil
}

// disk is the state of a file system.
func disk(dir string) (free, size, inodesFree, inodes int64, err error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, 0, 0, 0, fmt.Errorf("disk space of %s: %w", dir, err)
	}
	return int64(fs.Bavail) * fs.Bsize, int64(fs.Blocks) * fs.Bsize, int64(fs.Ffree), int64(fs.Files), nil
}

func (g *gauge) observe(ctx context.Context) (map[evictor.Signal]evictor.Observation, error) {
	seen := map[evictor.Signal]evictor.Observation{}
	_, used, err := g.used()
	if err != nil {
		return nil, err
	}
	seen[evictor.Memory] = evictor.Observation{Available: g.memory - int64(used), Capacity: g.memory}
	put := func(dir string, space, nodes evictor.Signal) error {
		free, size, inodesFree, inodes, err := disk(dir)
		if err != nil {
			return err
		}
		seen[space] = evictor.Observation{Available: free, Capacity: size}
		if inodes > 0 { // some file systems make them as they are needed
			seen[nodes] = evictor.Observation{Available: inodesFree, Capacity: inodes}
		}
		return nil
	}
	if err := put(g.dir, evictor.NodeDisk, evictor.NodeInodes); err != nil {
		return nil, err
	}
	// Images on the same file system have no thresholds of their own: the node's say when it is full.
	if images, err := g.imageDir(ctx); err == nil && !sameDisk(images, g.dir) {
		if err := put(images, evictor.ImageDisk, evictor.ImageInodes); err != nil {
			return nil, err
		}
	}
	if used, limit, err := machine.Processes(); err == nil {
		seen[evictor.PIDs] = evictor.Observation{Available: limit - used, Capacity: limit}
		if own, err := g.cgroups.ProcessesBelow(g.root); err == nil && g.part > 0 && g.part < 1 {
			seen[evictor.PIDs] = partOf(seen[evictor.PIDs], own, g.part)
		}
	}
	return seen, nil
}

// partOf is what a node has left of process IDs that it shares with the other nodes of its machine, of which it uses own: no more than its part, and no more than there are.
func partOf(machine evictor.Observation, own int64, part float64) evictor.Observation {
	capacity := int64(float64(machine.Capacity) * part)
	return evictor.Observation{Available: min(capacity-own, machine.Available), Capacity: capacity}
}

func sameDisk(a, b string) bool {
	var x, y unix.Stat_t
	return unix.Stat(a, &x) != nil || unix.Stat(b, &y) != nil || x.Dev == y.Dev // what is not known does not count
}

// imageSpace is what is free of the images' disk.
func (g *gauge) imageSpace(ctx context.Context) (free, size int64, err error) {
	dir, err := g.imageDir(ctx)
	if err != nil {
		return 0, 0, err
	}
	free, size, _, _, err = disk(dir)
	return free, size, err
}

// stored returns what pods have on the disk, by UID.
func (g *gauge) stored(ctx context.Context, pods []*corev1.Pod) (map[string]evictor.Stored, error) {
	containers, err := g.runtime.Usage(ctx)
	if err != nil {
		return nil, err
	}
	all := map[string]evictor.Stored{}
	for _, p := range pods {
		uid, logs := p.GetMetadata().GetUid(), pod.LogDirectory(g.logDir, p)
		s := evictor.Stored{Containers: map[string]int64{}}
		for _, c := range containers {
			if c.PodUID == uid {
				s.Pod += int64(c.Disk)
				s.Containers[c.Name] += int64(c.Disk)
			}
		}
		for name := range s.Containers {
			bytes, _, err := usage.Tree(ctx, filepath.Join(logs, name))
			if err != nil {
				return nil, err
			}
			s.Containers[name] += bytes
		}
		for _, dir := range []string{g.volumes.PodDir(uid), logs} {
			bytes, _, err := usage.Tree(ctx, dir)
			if err != nil {
				return nil, err
			}
			s.Pod += bytes
		}
		all[uid] = s
	}
	return all, nil
}

// uses returns what pods use of what a signal is about, by UID.
func (g *gauge) uses(ctx context.Context, signal evictor.Signal, pods []*corev1.Pod) (map[string]evictor.Use, error) {
	uses := map[string]evictor.Use{}
	if signal == evictor.PIDs {
		var failed error
		for _, p := range pods {
			n, err := g.cgroups.Processes(p)
			failed = errors.Join(failed, err)
			uses[p.GetMetadata().GetUid()] = evictor.Use{Processes: n}
		}
		return uses, failed
	}
	containers, err := g.runtime.Usage(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range containers {
		u := uses[c.PodUID]
		u.Memory, u.Disk, u.Inodes = u.Memory+int64(c.Memory), u.Disk+int64(c.Disk), u.Inodes+int64(c.Inodes)
		if u.Containers == nil {
			u.Containers = map[string]int64{}
		}
		u.Containers[c.Name] = int64(c.Memory)
		uses[c.PodUID] = u
	}
	if signal == evictor.Memory {
		return uses, nil
	}
	for _, p := range pods {
		uid := p.GetMetadata().GetUid()
		u := uses[uid]
		for _, dir := range []string{g.volumes.PodDir(uid), pod.LogDirectory(g.logDir, p)} {
			bytes, inodes, err := usage.Tree(ctx, dir)
			if err != nil {
				return uses, err
			}
			u.Disk, u.Inodes = u.Disk+bytes, u.Inodes+inodes
		}
		uses[uid] = u
	}
	return uses, nil
}
