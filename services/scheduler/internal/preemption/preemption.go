// Package preemption finds, for a pod that no node can take, the node where the fewest and least important pods would have to go, by the rules of Kubernetes'
// DefaultPreemption. It decides on a copy of the cluster's picture, and calls nobody.
package preemption

import (
	"cmp"
	"math"
	"slices"

	"dhow.dev/services/scheduler/internal/filter"
	"dhow.dev/services/scheduler/internal/snapshot"
)

// Kubernetes' bounds of how many nodes are tried in earnest (minCandidateNodesPercentage, minCandidateNodesAbsolute).
const (
	candidatesDivisor = 10
	candidatesAtLeast = 100
)

// Words of Kubernetes' scheduler.
const (
	NotHelpful    = "Preemption is not helpful for scheduling"
	NoVictims     = "No preemption victims found for incoming pod"
	NeverPreempts = "not eligible due to preemptionPolicy=Never."
	Terminating   = "not eligible due to a terminating pod on the nominated node."
)

// Resident is a pod on a node.
type Resident struct {
	// Key names the pod, and holds its host ports.
	Key, UID string
	Class    *snapshot.Class
	Priority int32
	// Started is when the pod was started, in seconds.
	Started int64
	// Terminating pods are on their way already, or were asked to go. They count as victims that cost nothing more.
	Terminating bool
	// Counted says that topology spread counts the pod: its end is not in the API yet.
	Counted bool
	// Budgets are the indexes of the budgets that a disruption of the pod takes from.
	Budgets []int
}

// World is what is decided about. Find changes it while it looks, and leaves it as it was.
type World struct {
	Snapshot *snapshot.Snapshot
	// Residents are by slot, only those that are less important than some pod that looks for a place.
	Residents map[int][]Resident
	// Allowed is how many disruptions each budget allows.
	Allowed []int32
	Seed    uint64
}

// Choice is a node and who has to leave it.
type Choice struct {
	Slot    int
	Node    string
	Victims []Resident
	// violations is how many of them a budget protects.
	violations int
}

// Outcome is what became of a search: a choice, or each node's reason, counted.
type Outcome struct {
	Choice  *Choice
	Nodes   int
	Reasons map[string]int
}

// Find looks for the best node. Priority is the pod's.
func (w *World) Find(key string, class *snapshot.Class, priority int32) Outcome {
	context, filters := filter.NewContext(w.Snapshot, class), filter.All()
	out := Outcome{Reasons: map[string]int{}}
	slots := w.Snapshot.Slots()
	enough := max(candidatesAtLeast, slots/candidatesDivisor)
	var best *Choice
	found := 0
	start := 0
	if slots > 0 {
		start = int(hash(key, w.Seed) % uint64(slots))
	}
	for i := range slots {
		slot := (start + i) % slots
		if w.Snapshot.Node(slot) == nil {
			continue
		}
		out.Nodes++
		if found == enough {
			continue
		}
		if !filter.Preemptible(filters, context, slot) {
			out.Reasons[NotHelpful]++
			continue
		}
		choice, reasons := w.try(context, filters, slot, priority)
		if choice == nil {
			for _, reason := range reasons {
				out.Reasons[reason]++
			}
			continue
		}
		found++
		if best == nil || better(choice, best) {
			best = choice
		}
	}
	out.Choice = best
	return out
}

// hash begins the search elsewhere for each pod, so that pods of a large cluster do not all look at the same nodes. It is FNV-1a.
func hash(key string, seed uint64) uint64 {
	h := uint64(14695981039346656037) ^ seed
	for i := range len(key) {
		h = (h ^ uint64(key[i])) * 1099511628211
	}
	return h
}

// try finds the least that has to leave a node, or says why nothing helps.
func (w *World) try(context *filter.Context, filters []filter.Filter, slot int, priority int32) (*Choice, []string) {
	var lower []Resident
	for _, r := range w.Residents[slot] {
		if r.Priority < priority {
			lower = append(lower, r)
		}
	}
	if len(lower) == 0 {
		return nil, []string{NoVictims}
	}
	for _, r := range lower {
		w.move(context, slot, r, -1)
	}
	rejection, rejected := filter.First(filters, context, slot, nil)
	var victims []Resident
	violations := 0
	if !rejected {
		slices.SortStableFunc(lower, moreImportant)
		protected, free := w.protected(lower)
		reprieve := func(r Resident) bool {
			w.move(context, slot, r, 1)
			if _, rejected := filter.First(filters, context, slot, nil); !rejected {
				return true
			}
			w.move(context, slot, r, -1)
			victims = append(victims, r)
			return false
		}
		for _, r := range protected {
			if !reprieve(r) {
				violations++
			}
		}
		for _, r := range free {
			reprieve(r)
		}
		for _, r := range victims {
			w.move(context, slot, r, 1)
		}
	} else {
		for _, r := range lower {
			w.move(context, slot, r, 1)
		}
		return nil, rejection.Reasons
	}
	slices.SortStableFunc(victims, moreImportant)
	return &Choice{Slot: slot, Node: w.Snapshot.Node(slot).Name, Victims: victims, violations: violations}, nil
}

// move takes a pod off a node (-1) or puts it back (1).
func (w *World) move(context *filter.Context, slot int, r Resident, pods int32) {
	if pods < 0 {
		w.Snapshot.RemovePod(slot, r.Class, r.Key)
	} else {
		w.Snapshot.AddPod(slot, r.Class, r.Key)
	}
	if r.Counted {
		w.Snapshot.Count(slot, r.Class, pods)
	}
	context.Move(slot, r.Class, pods, r.Counted)
}

// moreImportant orders pods: by priority, then those that started earlier; those that go already are the least important.
func moreImportant(a, b Resident) int {
	if a.Terminating != b.Terminating {
		if a.Terminating {
			return 1
		}
		return -1
	}
	return cmp.Or(cmp.Compare(b.Priority, a.Priority), cmp.Compare(a.Started, b.Started), cmp.Compare(a.Key, b.Key))
}

// protected divides pods, the most important first, into those that a budget does not let go after those before them, and the others.
func (w *World) protected(pods []Resident) (protected, free []Resident) {
	allowed := slices.Clone(w.Allowed)
	for _, r := range pods {
		violates := false
		if !r.Terminating {
			for _, budget := range r.Budgets {
				allowed[budget]--
				violates = violates || allowed[budget] < 0
			}
		}
		if violates {
			protected = append(protected, r)
		} else {
			free = append(free, r)
		}
	}
	return protected, free
}

// better says whether a choice does less harm: fewer protected pods, a lower highest priority, a lower sum of priorities, fewer pods, and of the most important
// ones the younger.
func better(a, b *Choice) bool {
	return cmp.Or(
		cmp.Compare(a.violations, b.violations), cmp.Compare(a.highest(), b.highest()), cmp.Compare(a.sum(), b.sum()),
		cmp.Compare(len(a.live()), len(b.live())), cmp.Compare(b.earliest(), a.earliest()),
	) < 0
}

// live are the victims that do not go already.
func (c *Choice) live() []Resident {
	last := slices.IndexFunc(c.Victims, func(r Resident) bool { return r.Terminating })
	if last < 0 {
		return c.Victims
	}
	return c.Victims[:last]
}

func (c *Choice) highest() int32 {
	live := c.live()
	if len(live) == 0 {
		return math.MinInt32
	}
	return live[0].Priority
}

// sum counts each priority from the lowest possible one, so that more pods of negative priority are more harm.
func (c *Choice) sum() int64 {
	var sum int64
	for _, v := range c.live() {
		sum += int64(v.Priority) + math.MaxInt32 + 1
	}
	return sum
}

// earliest is when the first of the most important victims started.
func (c *Choice) earliest() int64 {
	earliest := int64(math.MaxInt64)
	for _, v := range c.live() {
		if v.Priority == c.highest() {
			earliest = min(earliest, v.Started)
		}
	}
	return earliest
}

// Carry makes a choice come true in the world, so that the next pod finds it so: the victims are gone, and the pod holds its place.
func (w *World) Carry(c *Choice, key string, class *snapshot.Class) {
	gone := map[string]bool{}
	for _, v := range c.Victims {
		w.Snapshot.RemovePod(c.Slot, v.Class, v.Key)
		if v.Counted {
			w.Snapshot.Count(c.Slot, v.Class, -1)
		}
		if !v.Terminating {
			for _, budget := range v.Budgets {
				w.Allowed[budget]--
			}
		}
		gone[v.Key] = true
	}
	w.Residents[c.Slot] = slices.DeleteFunc(slices.Clone(w.Residents[c.Slot]), func(r Resident) bool { return gone[r.Key] })
	w.Snapshot.AddPod(c.Slot, class, key)
	w.Snapshot.Count(c.Slot, class, 1)
}
