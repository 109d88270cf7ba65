package pods

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"dhow.dev/bench/meter"
)

// reading is what the processes of the cluster that live on had used at some time, by what they are.
type reading struct {
	pids   map[string][]int
	before map[string]meter.Reading
}

// read reads now.
func (r *run) read() (reading, error) {
	pids, err := processes(r.Folders...)
	if err != nil {
		return reading{}, err
	}
	if len(pids) == 0 {
		return reading{}, fmt.Errorf("no process of the cluster found: none names one of %s in its command line", strings.Join(r.Folders, ", "))
	}
	now := reading{pids: pids, before: map[string]meter.Reading{}}
	for kind := range pids {
		if now.before[kind], err = (meter.Meter{Server: pids[kind]}).Read(); err != nil {
			return reading{}, err
		}
	}
	return now, nil
}

// use is what kinds of processes have used of the processor.
type use struct {
	kinds     []string
	processes map[string]int
	costs     map[string]meter.Cost
}

// since returns what was used since a reading, by the processes that there were then.
func (r reading) since() (use, error) {
	used := use{kinds: slices.Sorted(maps.Keys(r.pids)), processes: map[string]int{}, costs: map[string]meter.Cost{}}
	for _, kind := range used.kinds {
		cost, err := (meter.Meter{Server: r.pids[kind]}).Since(r.before[kind], 1)
		if err != nil {
			return use{}, err
		}
		used.processes[kind], used.costs[kind] = len(r.pids[kind]), cost
	}
	return used, nil
}

// percent returns the percentage of a core that all used, and in words, of which programs.
func (u use) percent() (all float64, by string) {
	for _, kind := range u.kinds {
		share := 100 * u.costs[kind].Server.Seconds() / u.costs[kind].Elapsed.Seconds()
		all += share
		by += fmt.Sprintf(", %d %s %.2f %%", u.processes[kind], kind, share)
	}
	return all, by
}

// seconds says in words how much processor time programs used, if it was any to speak of.
func (u use) seconds() string {
	var by []string
	for _, kind := range u.kinds {
		if seconds := u.costs[kind].Server.Seconds(); seconds >= 0.05 {
			by = append(by, fmt.Sprintf("%s %.2f s", kind, seconds))
		}
	}
	return strings.Join(by, ", ")
}
