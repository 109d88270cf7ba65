package volume

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/api/resource"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/downward"
)

// limitInterval is how often volumes with a bound are measured: Kubernetes' time.
const limitInterval = 10 * time.Second

// limited is an emptyDir on disk that may hold only so much.
type limited struct {
	name, dir string
	limit     resource.Quantity
}

// watchLimits ends pods that store more in an emptyDir than its sizeLimit. The kernel has no event for it.
func (m *Manager) watchLimits(ctx context.Context) {
	ticker := time.NewTicker(limitInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			m.checkLimits()
		}
	}
}

// checkLimits measures once.
func (m *Manager) checkLimits() {
	m.mu.Lock()
	all := map[string][]limited{}
	for uid, list := range m.limits {
		all[uid] = list
	}
	m.mu.Unlock()
	for uid, list := range all {
		for _, l := range list {
			if used := stored(l.dir); used > l.limit.Value() && m.config.Evict != nil {
				m.mu.Lock()
				delete(m.limits, uid)
				m.mu.Unlock()
				m.config.Evict(uid, fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", l.name, l.limit.String()))
				break
			}
		}
	}
}

// stored returns how many bytes of the disk the files below a folder take; one with several names counts once.
func stored(dir string) int64 {
	var total int64
	seen := map[uint64]bool{}
	// What goes away while it is counted does not count.
	_ = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return nil
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok || stat.Nlink > 1 && !info.IsDir() && seen[stat.Ino] {
			return nil
		}
		seen[stat.Ino] = true
		total += stat.Blocks * 512
		return nil
	})
	return total
}

// limit notes a volume with a bound.
func (m *Manager) limit(uid string, l limited) {
	m.mu.Lock()
	defer m.mu.Unlock()
	// A new list each time: checkLimits reads the old one without the lock.
	list := []limited{l}
	for _, have := range m.limits[uid] {
		if have.name != l.name {
			list = append(list, have)
		}
	}
	m.limits[uid] = list
}

// memorySize is how large a volume in memory may become: its limit, and no more than all containers of the pod together, or the node.
func memorySize(pod *corev1.Pod, limit int64, facts downward.Facts) int64 {
	size := limit
	lower := func(bound int64) {
		if bound > 0 && (size == 0 || bound < size) {
			size = bound
		}
	}
	var total int64
	for _, c := range pod.GetSpec().GetContainers() {
		q, err := resource.ParseQuantity(c.GetResources().GetLimits()["memory"].GetString())
		if err != nil {
			total = 0
			break
		}
		total += q.Value()
	}
	if q, err := resource.ParseQuantity(pod.GetSpec().GetResources().GetLimits()["memory"].GetString()); err == nil {
		total = q.Value()
	}
	lower(total)
	if q, err := resource.ParseQuantity(facts.Allocatable["memory"].GetString()); err == nil {
		lower(q.Value())
	}
	return size
}

// mountHugePages mounts huge pages at dir. Without a size in the medium it is the one that the pod's containers ask for.
func mountHugePages(pod *corev1.Pod, dir, medium string) error {
	size := strings.TrimPrefix(strings.TrimPrefix(medium, "HugePages"), "-")
	if size == "" {
		sizes := map[string]bool{}
		for _, c := range slices.Concat(pod.GetSpec().GetInitContainers(), pod.GetSpec().GetContainers()) {
			for name := range c.GetResources().GetRequests() {
				if s, ok := strings.CutPrefix(name, "hugepages-"); ok {
					sizes[s] = true
				}
			}
		}
		if len(sizes) != 1 {
			return fmt.Errorf("emptyDir.medium HugePages: the pod asks for %d sizes of huge pages; name one as HugePages-SIZE", len(sizes))
		}
		for s := range sizes {
			size = s
		}
	}
	q, err := resource.ParseQuantity(size)
	if err != nil {
		return fmt.Errorf("emptyDir.medium %s: %w", medium, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("nodev", dir, "hugetlbfs", 0, fmt.Sprintf("pagesize=%d", q.Value())); err != nil {
		return fmt.Errorf("mount huge pages of %s: %w", size, err)
	}
	return nil
}
