package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/telemetry/logkey"
)

// measureEvery is how old what is known of a volume may be: drivers are asked no more often, whoever wants to know. Kubernetes' time.
const measureEvery = time.Minute

// measureTime bounds how long volumes are measured.
const measureTime = 5 * time.Second

// Stat is how full the volume of a claim is.
type Stat struct {
	// Pod is the UID of a pod that uses it, Volume its name in that pod.
	Pod, Volume      string
	Namespace, Claim string
	// In bytes and inodes; negative: not known.
	Capacity, Available, Used      int64
	Inodes, InodesFree, InodesUsed int64
	// Abnormal is what the driver says of the volume's health, with its words; nil: it says nothing.
	Abnormal *bool
	Message  string
}

// measurable is the volume of a claim that a pod uses.
type measurable struct {
	namespace, claim, path string
	block                  bool
	// csi is nil when the volume is the machine's own.
	csi *record
}

// measure notes a volume of a claim that was made available to a pod.
func (m *Manager) measure(uid, volume string, what measurable) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.measured[uid] == nil {
		m.measured[uid] = map[string]measurable{}
	}
	if _, known := m.measured[uid][volume]; !known {
		m.unmeasured = true
	}
	m.measured[uid][volume] = what
}

// Stats returns how full the volumes of claims are that pods use; what cannot be measured is left out.
func (m *Manager) Stats(ctx context.Context) []Stat {
	m.statsMu.Lock()
	defer m.statsMu.Unlock()
	m.mu.Lock()
	if !m.unmeasured && time.Since(m.statsAt) < measureEvery {
		m.mu.Unlock()
		return m.stats
	}
	m.unmeasured = false
	all := map[string]map[string]measurable{}
	for uid, volumes := range m.measured {
		all[uid] = map[string]measurable{}
		for name, v := range volumes {
			all[uid][name] = v
		}
	}
	m.mu.Unlock()
	// Who asks is not kept waiting by a driver that does not answer.
	ctx, cancel := context.WithTimeout(ctx, measureTime)
	defer cancel()
	var stats []Stat
	for uid, volumes := range all {
		for name, v := range volumes {
			s, err := m.stat(ctx, v)
			if err != nil {
				m.config.Logger.DebugContext(ctx, "volume not measured", logkey.UID(uid), logkey.Err(err))
				continue
			}
			if s == nil {
				continue
			}
			s.Pod, s.Volume, s.Namespace, s.Claim = uid, name, v.namespace, v.claim
			stats = append(stats, *s)
		}
	}
	slices.SortFunc(stats, func(a, b Stat) int { return cmp.Or(cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.Volume, b.Volume)) })
	m.stats, m.statsAt = stats, time.Now()
	return stats
}

// stat measures a volume; nil: nobody can.
func (m *Manager) stat(ctx context.Context, v measurable) (*Stat, error) {
	if v.csi != nil {
		return m.statOfDriver(ctx, v)
	}
	if v.block {
		return nil, nil
	}
	fs, err := m.spaceOf(ctx, v.path)
	if err != nil {
		return nil, fmt.Errorf("space of %s: %w", v.path, err)
	}
	return &Stat{
		Capacity: int64(fs.Blocks) * fs.Bsize, Available: int64(fs.Bavail) * fs.Bsize, Used: int64(fs.Blocks-fs.Bfree) * fs.Bsize,
		Inodes: int64(fs.Files), InodesFree: int64(fs.Ffree), InodesUsed: int64(fs.Files - fs.Ffree),
	}, nil
}

func (m *Manager) statOfDriver(ctx context.Context, v measurable) (*Stat, error) {
	driver, err := m.config.Driver(v.csi.Driver)
	if err != nil {
		return nil, err
	}
	if !driver.Measures() {
		return nil, nil
	}
	answer, err := driver.Stats(ctx, &csispec.NodeGetVolumeStatsRequest{VolumeId: v.csi.Handle, VolumePath: v.csi.Target, StagingTargetPath: v.csi.Staging})
	if err != nil {
		return nil, err
	}
	s := &Stat{Capacity: -1, Available: -1, Used: -1, Inodes: -1, InodesFree: -1, InodesUsed: -1}
	for _, u := range answer.GetUsage() {
		switch u.GetUnit() {
		case csispec.VolumeUsage_BYTES:
			s.Capacity, s.Available, s.Used = u.GetTotal(), u.GetAvailable(), u.GetUsed()
		case csispec.VolumeUsage_INODES:
			s.Inodes, s.InodesFree, s.InodesUsed = u.GetTotal(), u.GetAvailable(), u.GetUsed()
		default:
			return nil, errors.New("driver " + v.csi.Driver + " measures in a unit that is neither bytes nor inodes")
		}
	}
	if c := answer.GetVolumeCondition(); c != nil && driver.KnowsHealth() {
		s.Abnormal, s.Message = &c.Abnormal, c.GetMessage()
	}
	return s, nil
}

// claimOf returns the name of the claim that a pod's volume is.
func claimOf(pod *corev1.Pod, v *corev1.Volume) string {
	if v.GetVolumeSource().HasEphemeral() {
		return pod.GetMetadata().GetName() + "-" + v.GetName()
	}
	return v.GetVolumeSource().GetPersistentVolumeClaim().GetClaimName()
}
