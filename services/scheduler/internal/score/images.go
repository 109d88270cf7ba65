package score

import "dhow.dev/services/scheduler/internal/snapshot"

// The range of sizes that Kubernetes' ImageLocality scores: below, to pull costs too little to care; above, for each container, a node cannot be better.
const (
	smallImages  = 23 << 20
	largeImage   = 1000 << 20
	perContainer = largeImage
)

// locality scores nodes by the size of the pod's images that they have, each scaled down by how few nodes have it: else a new image's first nodes would
// get all its pods. It returns nil where no node has any of them.
func locality(s *snapshot.Snapshot, c *snapshot.Class) []int64 {
	if s.Len() == 0 {
		return nil
	}
	var sums []int64
	for _, image := range c.Images {
		var nodes int64
		for slot := range s.Slots() {
			if n := s.Node(slot); n != nil && n.Images[image] > 0 {
				nodes++
			}
		}
		if nodes == 0 {
			continue
		}
		if sums == nil {
			sums = make([]int64, s.Slots())
		}
		for slot := range s.Slots() {
			if n := s.Node(slot); n != nil {
				sums[slot] += int64(float64(n.Images[image]) * float64(nodes) / float64(s.Len()))
			}
		}
	}
	if sums == nil {
		return nil
	}
	most := perContainer * int64(len(c.Images))
	for slot, sum := range sums {
		sums[slot] = highest * (min(max(sum, smallImages), most) - smallImages) / (most - smallImages)
	}
	return sums
}
