package snapshot

import (
	"slices"
	"strconv"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// Disk is a volume of a pod's own spec that pods of one node cannot share, or only to read.
type Disk struct {
	// Kind is the field's name, Name what tells disks of the kind apart, but for those of RBD, which are also told apart by their pool and their monitors.
	Kind, Name, Pool string
	Monitors         []string
	// Reads says that it is only read. No two pods have one Alone, even so.
	Reads, Alone bool
	Holder       string
}

// Conflicts says whether two pods with these disks cannot be on one node, as Kubernetes' NoDiskConflict has it.
func (d *Disk) Conflicts(other *Disk) bool {
	if d.Kind != other.Kind || d.Name != other.Name || d.Pool != other.Pool {
		return false
	}
	if len(d.Monitors) > 0 && !slices.ContainsFunc(d.Monitors, func(m string) bool { return slices.Contains(other.Monitors, m) }) {
		return false
	}
	return d.Alone || !d.Reads || !other.Reads
}

// disksOf returns the disks of a pod's own spec.
func disksOf(spec *corev1.PodSpec) []Disk {
	var out []Disk
	for _, v := range spec.GetVolumes() {
		s := v.GetVolumeSource()
		switch {
		case s.HasGcePersistentDisk():
			out = append(out, Disk{Kind: "gcePersistentDisk", Name: s.GetGcePersistentDisk().GetPdName(), Reads: s.GetGcePersistentDisk().GetReadOnly()})
		case s.HasAwsElasticBlockStore():
			out = append(out, Disk{Kind: "awsElasticBlockStore", Name: s.GetAwsElasticBlockStore().GetVolumeId(), Alone: true})
		case s.HasIscsi():
			// Disks of one target count as one.
			out = append(out, Disk{Kind: "iscsi", Name: s.GetIscsi().GetIqn(), Reads: s.GetIscsi().GetReadOnly()})
		case s.HasRbd():
			r := s.GetRbd()
			out = append(out, Disk{Kind: "rbd", Name: r.GetImage(), Pool: r.GetPool(), Monitors: r.GetMonitors(), Reads: r.GetReadOnly()})
		}
	}
	return out
}

func appendDisks(b []byte, disks []Disk) []byte {
	for i := range disks {
		d := &disks[i]
		b = appendString(b, d.Kind)
		b = appendString(b, d.Name)
		b = appendString(b, d.Pool)
		b = appendStrings(b, d.Monitors)
		b = strconv.AppendBool(b, d.Reads)
	}
	return append(b, ';')
}
