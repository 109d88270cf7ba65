package job

import (
	"slices"
	"strconv"
	"strings"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// completionIndex is the annotation and the label that bear a pod's index.
const completionIndex = "batch.kubernetes.io/job-completion-index"

// interval is a run of indexes, both ends included.
type interval struct{ first, last int }

// indexes is a set of completion indexes: disjoint runs in increasing order, never two that touch.
type indexes []interval

// parseIndexes reads the form that a job's status has, "1,3-5,7". What is not below completions is dropped: the job was made smaller. So is what cannot
// be read: nothing but a controller writes it.
func parseIndexes(text string, completions int) indexes {
	var all indexes
	for part := range strings.SplitSeq(text, ",") {
		from, to, ranged := strings.Cut(part, "-")
		first, err := strconv.Atoi(from)
		if err != nil {
			continue
		}
		last := first
		if ranged {
			if last, err = strconv.Atoi(to); err != nil {
				continue
			}
		}
		if first >= completions {
			break
		}
		last = min(last, completions-1)
		if n := len(all); n > 0 && first <= all[n-1].last+1 {
			all[n-1].last = max(all[n-1].last, last) // "1,2" are one run
			continue
		}
		all = append(all, interval{first, last})
	}
	return all
}

// String writes the set as a job's status has it: two in a row as "1,2", more as "1-3".
func (s indexes) String() string {
	var b strings.Builder
	for i, r := range s {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(r.first))
		switch {
		case r.last == r.first+1:
			b.WriteByte(',')
			b.WriteString(strconv.Itoa(r.last))
		case r.last > r.first:
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(r.last))
		}
	}
	return b.String()
}

// total is how many indexes the set has.
func (s indexes) total() int {
	n := 0
	for _, r := range s {
		n += r.last - r.first + 1
	}
	return n
}

func (s indexes) has(index int) bool {
	at, _ := slices.BinarySearchFunc(s, index, func(r interval, i int) int { return r.last - i })
	return at < len(s) && s[at].first <= index
}

// common is how many indexes both sets have.
func (s indexes) common(other indexes) int {
	n := 0
	for i, j := 0, 0; i < len(s) && j < len(other); {
		n += max(0, min(s[i].last, other[j].last)-max(s[i].first, other[j].first)+1)
		if s[i].last < other[j].last {
			i++
		} else {
			j++
		}
	}
	return n
}

// with returns the set and more indexes, which come in any order.
func (s indexes) with(more []int) indexes {
	if len(more) == 0 {
		return s
	}
	all := slices.Clone(s)
	for _, i := range more {
		all = append(all, interval{i, i})
	}
	slices.SortFunc(all, func(a, b interval) int { return a.first - b.first })
	merged := all[:1]
	for _, r := range all[1:] {
		if end := &merged[len(merged)-1]; r.first <= end.last+1 {
			end.last = max(end.last, r.last)
			continue
		}
		merged = append(merged, r)
	}
	return merged
}

// indexOf returns the completion index of a pod; ok is false for a pod that has none.
func indexOf(p *corev1.Pod) (index int, ok bool) {
	index, err := strconv.Atoi(p.GetMetadata().GetAnnotations()[completionIndex])
	return index, err == nil && index >= 0
}

// validIndex is indexOf for pods whose index the job (still) has.
func validIndex(p *corev1.Pod, completions int) (index int, ok bool) {
	index, ok = indexOf(p)
	return index, ok && index < completions
}

// firstMissing returns up to n indexes below completions that taken does not have, the smallest first.
func firstMissing(n, completions int, taken func(int) bool) []int {
	var missing []int
	for i := 0; i < completions && len(missing) < n; i++ {
		if !taken(i) {
			missing = append(missing, i)
		}
	}
	return missing
}
