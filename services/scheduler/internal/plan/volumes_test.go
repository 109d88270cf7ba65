package plan_test

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"dhow.dev/services/scheduler/internal/cluster"
	"dhow.dev/services/scheduler/internal/fixture"
	"dhow.dev/services/scheduler/internal/plan"
	"dhow.dev/services/scheduler/internal/snapshot"
)

// disk is a volume of the model: where it can be used, and whose it is.
type disk struct {
	size  int
	zone  string // empty: everywhere
	claim string
}

// demand is a claim of the model that waits for its first pod.
type demand struct {
	size    int
	dynamic bool
	node    string // selected
	once    bool
	users   int
}

// shelf is a cluster's storage, about which is asked by trying everything.
type shelf struct {
	zones  map[string]string // by node
	disks  map[string]*disk
	claims map[string]*demand
	// allowed is the zone where volumes can be made; empty: everywhere.
	allowed string
}

// usable says whether a disk can be given to a claim of a pod on a node.
func (s *shelf) usable(d *disk, claim string, node string) bool {
	return (d.claim == "" || d.claim == claim) && d.size >= s.claims[claim].size && (d.zone == "" || d.zone == s.zones[node])
}

// offered are the disks that a claim could get on a node: its own if it has one.
func (s *shelf) offered(claim, node string) []string {
	var own, free []string
	if s.claims[claim].dynamic {
		return nil // disks are of the class that nobody makes volumes for
	}
	for name, d := range s.disks {
		if d.claim == claim {
			own = append(own, name)
		}
		if s.usable(d, claim, node) {
			free = append(free, name)
		}
	}
	if own != nil {
		return slices.DeleteFunc(free, func(name string) bool { return name != own[0] })
	}
	return free
}

func (s *shelf) makeable(claim, node string) bool {
	return s.claims[claim].dynamic && (s.allowed == "" || s.allowed == s.zones[node])
}

// allows says whether a pod with claims can go to a node: each gets a disk of its own, or one that can be made.
func (s *shelf) allows(claims []string, node string) bool {
	for _, claim := range claims {
		c := s.claims[claim]
		if c.once && c.users > 0 || c.node != "" && c.node != node {
			return false
		}
	}
	var try func(rest []string, taken []string) bool
	try = func(rest, taken []string) bool {
		if len(rest) == 0 {
			return true
		}
		if c := s.claims[rest[0]]; c.node == "" {
			for _, name := range s.offered(rest[0], node) {
				if !slices.Contains(taken, name) && try(rest[1:], append(slices.Clone(taken), name)) {
					return true
				}
			}
		}
		return s.makeable(rest[0], node) && try(rest[1:], taken)
	}
	return try(claims, nil)
}

// Pods with unbound claims go only where their volumes are or can be made, none is given twice, and none is left out that has a place.
func TestVolumesAreChosenAsTheReferenceAllows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := cluster.New(noServices)
		s := &shelf{zones: map[string]string{}, disks: map[string]*disk{}, claims: map[string]*demand{}}
		nodes := rapid.IntRange(1, 4).Draw(t, "nodes")
		for i := range nodes {
			name, zone := fmt.Sprintf("n%d", i), rapid.SampledFrom([]string{"a", "b"}).Draw(t, "zone")
			s.zones[name] = zone
			c.SetNode(fixture.Node(fmt.Sprintf(`{"metadata":{"name":%q,"labels":{"kubernetes.io/hostname":%q,"topology.kubernetes.io/zone":%q}},"status":{"allocatable":{"cpu":"4","memory":"4Gi","pods":"100"}}}`, name, name, zone)))
		}
		s.allowed = rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "allowed")
		topologies := ""
		if s.allowed != "" {
			topologies = fmt.Sprintf(`,"allowedTopologies":[{"matchLabelExpressions":[{"key":"topology.kubernetes.io/zone","values":[%q]}]}]`, s.allowed)
		}
		for class, provisioner := range map[string]string{"static": snapshot.NoProvisioner, "dynamic": "csi.example.com"} {
			c.SetStorageClass(class, fixture.StorageClass(fmt.Sprintf(`{"metadata":{"name":%q},"provisioner":%q,"volumeBindingMode":"WaitForFirstConsumer"%s}`, class, provisioner, topologies)))
		}
		claims := rapid.IntRange(1, 5).Draw(t, "claims")
		for i := range claims {
			d := &demand{size: rapid.IntRange(1, 3).Draw(t, "claim size"), dynamic: rapid.Bool().Draw(t, "dynamic"), once: rapid.Bool().Draw(t, "once")}
			s.claims[fmt.Sprintf("c%d", i)] = d
			class, mode := "static", "ReadWriteOnce"
			if d.dynamic {
				class = "dynamic"
			}
			if d.once {
				mode = snapshot.OncePod
			}
			c.SetClaim(fixture.Claim(fmt.Sprintf(`{"metadata":{"namespace":"default","name":"c%d","uid":"uid-%d"},"spec":{"storageClassName":%q,"accessModes":[%q],"resources":{"requests":{"storage":"%dGi"}}}}`, i, i, class, mode, d.size)))
		}
		for i := range rapid.IntRange(0, 4).Draw(t, "disks") {
			// All are of the class without a provisioner, for claims of the same.
			name := fmt.Sprintf("pv%d", i)
			d := &disk{size: rapid.IntRange(1, 3).Draw(t, "disk size"), zone: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "disk zone")}
			s.disks[name] = d
			affinity := ""
			if d.zone != "" {
				affinity = fmt.Sprintf(`,"nodeAffinity":{"required":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"topology.kubernetes.io/zone","operator":"In","values":[%q]}]}]}}`, d.zone)
			}
			c.SetVolume(fixture.Volume(fmt.Sprintf(`{"metadata":{"name":%q},"spec":{"storageClassName":"static","accessModes":["ReadWriteOnce","ReadWriteOncePod"],"capacity":{"storage":"%dGi"}%s},"status":{"phase":"Available"}}`, name, d.size, affinity)))
		}
		var pods []plan.Pod
		var uses [][]string
		for i := range rapid.IntRange(1, 6).Draw(t, "pods") {
			// One claim each: of several, Kubernetes gives the smallest volume to the smallest claim and does not look back.
			used := []string{fmt.Sprintf("c%d", rapid.IntRange(0, claims-1).Draw(t, "uses"))}
			p, _, _, err := c.SetPod(fixture.Pod(fmt.Sprintf(`{"metadata":{"namespace":"default","name":"p%d","uid":"p%d"},"spec":{"containers":[],"volumes":[{"name":"v","persistentVolumeClaim":{"claimName":%q}}]}}`, i, i, used[0])))
			if err != nil {
				t.Fatal(err)
			}
			pods, uses = append(pods, plan.Pod{Key: p.Key.String(), Class: p.Class()}), append(uses, used)
		}
		for i, d := range plan.Make(c.Snapshot(), pods, 7) {
			s.take(t, pods[i].Key, uses[i], d)
		}
	})
}

// take checks a decision and makes it.
func (s *shelf) take(t *rapid.T, pod string, claims []string, d plan.Decision) {
	if d.Slot < 0 {
		for node := range s.zones {
			if s.allows(claims, node) {
				t.Fatalf("pod %s was left out (%s) and could go to %s", pod, d.Failure.Message(), node)
			}
		}
		return
	}
	if !s.allows(claims, d.Node) {
		t.Fatalf("pod %s cannot go to %s", pod, d.Node)
	}
	for _, b := range d.Volumes {
		name := b.Claim[len("default/"):]
		claim := s.claims[name]
		offered := s.offered(name, d.Node)
		switch {
		case b.Volume == "" && (len(offered) > 0 || !s.makeable(name, d.Node)):
			t.Fatalf("pod %s: a volume is to be made for %s on %s, where %v are offered", pod, name, d.Node, offered)
		case b.Volume == "":
			claim.node = d.Node
		case !slices.Contains(offered, b.Volume):
			t.Fatalf("pod %s: %s gets %s, of %v", pod, name, b.Volume, offered)
		default:
			for _, other := range offered {
				if s.disks[other].size < s.disks[b.Volume].size {
					t.Fatalf("pod %s: %s gets %s, and %s is smaller", pod, name, b.Volume, other)
				}
			}
			s.disks[b.Volume].claim = name
		}
	}
	for _, name := range claims {
		s.claims[name].users++
	}
}
