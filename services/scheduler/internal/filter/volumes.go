package filter

import (
	"slices"

	"dhow.dev/services/scheduler/internal/snapshot"
	"dhow.dev/services/scheduler/internal/volume"
)

// diskConflicts keeps pods from nodes where others have disks that theirs cannot share.
func diskConflicts(c *Context, slot int, reasons []string) []string {
	used := c.Snapshot.Disks(slot)
	for i := range c.Class.Disks {
		if slices.ContainsFunc(used, func(d snapshot.Disk) bool { return c.Class.Disks[i].Conflicts(&d) }) {
			return append(reasons, volume.ReasonNoDisk)
		}
	}
	return reasons
}

// volumeRestrictions keeps a pod waiting while another uses a claim that only one pod may use.
func volumeRestrictions(c *Context, _ int, reasons []string) []string {
	if c.Volumes.InUse() {
		return append(reasons, volume.ReasonInUse)
	}
	return reasons
}

// volumeLimits keeps pods from nodes that have all the volumes of a driver that they may have.
func volumeLimits(c *Context, slot int, reasons []string) []string {
	if c.Volumes.TooMany(slot) {
		return append(reasons, volume.ReasonTooMany)
	}
	return reasons
}

// volumeBinding keeps pods from nodes that cannot use their volumes, and for which none are there or can be made.
func volumeBinding(c *Context, slot int, reasons []string) []string {
	_, reasons = c.Volumes.Find(slot, reasons)
	return reasons
}

// volumeZone keeps pods from nodes outside of the zones that their volumes' labels name.
func volumeZone(c *Context, slot int, reasons []string) []string {
	if c.Volumes.ElsewhereByLabel(slot) {
		return append(reasons, volume.ReasonZone)
	}
	return reasons
}
