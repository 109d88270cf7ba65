package horizontalpodautoscaler

import (
	"math"
	"slices"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
)

// downWindow is for how long the highest recommendation holds when nothing else is said. Kubernetes': five minutes.
const downWindow = 5 * time.Minute

// history is what an autoscaler recommended and did lately. It is kept in memory, as Kubernetes keeps it; a new process begins with the size that it
// finds, and so scales nothing down before a window has passed.
type history struct {
	recommended []recommendation
	ups, downs  []change
}

type recommendation struct {
	at       time.Time
	replicas int32
}

// change is a change of size, by so many.
type change struct {
	at time.Time
	by int32
}

// note remembers a change of size.
func (h *history) note(from, to int32, now time.Time) {
	switch {
	case to > from:
		h.ups = append(h.ups, change{now, to - from})
	case to < from:
		h.downs = append(h.downs, change{now, from - to})
	}
}

// within is by how much all changes of a period changed the size.
func within(changes []change, period int32, now time.Time) int32 {
	var sum int32
	for _, c := range changes {
		if c.at.After(now.Add(-time.Duration(period) * time.Second)) {
			sum += c.by
		}
	}
	return sum
}

// limits are what bounds a size.
type limits struct {
	least, most int32
	behavior    *autoscalingv2.HorizontalPodAutoscalerBehavior
}

// windows are for how long the lowest and the highest recommendation hold.
func (l limits) windows() (up, down time.Duration) {
	down = downWindow
	if l.behavior == nil {
		return 0, down
	}
	if r := l.behavior.ScaleUp; r != nil && r.StabilizationWindowSeconds != nil {
		up = time.Duration(*r.StabilizationWindowSeconds) * time.Second
	}
	if r := l.behavior.ScaleDown; r != nil && r.StabilizationWindowSeconds != nil {
		down = time.Duration(*r.StabilizationWindowSeconds) * time.Second
	}
	return up, down
}

// stabilize returns the size nearest to the current one between the lowest and the highest recommendation of the windows, and notes the new one. Without
// behaviors it is the highest.
func (h *history) stabilize(current, desired int32, l limits, now time.Time) int32 {
	up, down := l.windows()
	lowest, highest := desired, desired
	for _, r := range h.recommended {
		if r.at.After(now.Add(-up)) {
			lowest = min(lowest, r.replicas)
		}
		if r.at.After(now.Add(-down)) {
			highest = max(highest, r.replicas)
		}
	}
	old := now.Add(-max(up, down))
	h.recommended = slices.DeleteFunc(h.recommended, func(r recommendation) bool { return !r.at.After(old) })
	h.recommended = append(h.recommended, recommendation{now, desired})
	h.forget(l, now)
	if l.behavior == nil {
		return highest
	}
	return min(max(current, lowest), highest)
}

// forget drops the changes that no policy looks at any more.
func (h *history) forget(l limits, now time.Time) {
	var longest int32
	if l.behavior != nil {
		for _, r := range []*autoscalingv2.HPAScalingRules{l.behavior.ScaleUp, l.behavior.ScaleDown} {
			if r == nil {
				continue
			}
			for _, p := range r.Policies {
				longest = max(longest, p.PeriodSeconds)
			}
		}
	}
	old := func(c change) bool { return !c.at.After(now.Add(-time.Duration(longest) * time.Second)) }
	h.ups, h.downs = slices.DeleteFunc(h.ups, old), slices.DeleteFunc(h.downs, old)
}

// Reasons and messages of the condition ScalingLimited.
const (
	reasonWithin   = "DesiredWithinRange"
	messageWithin  = "the desired count is within the acceptable range"
	reasonTooFew   = "TooFewReplicas"
	messageTooFew  = "the desired replica count is less than the minimum replica count"
	reasonTooMany  = "TooManyReplicas"
	messageTooMany = "the desired replica count is more than the maximum replica count"
	reasonUpLimit  = "ScaleUpLimit"
	messageUpLimit = "the desired replica count is increasing faster than the maximum scale rate"
	reasonDown     = "ScaleDownLimit"
	messageDown    = "the desired replica count is decreasing faster than the maximum scale rate"
)

// limit returns the size within the bounds and the rates of change, and why it is not the desired one.
func (h *history) limit(current, desired int32, l limits, now time.Time) (replicas int32, reason, message string) {
	if l.behavior == nil {
		// Without behaviors the size may double at once, or become 4.
		rate := max(2*current, 4)
		switch {
		case desired < l.least:
			return l.least, reasonTooFew, messageTooFew
		case desired > min(l.most, rate) && rate < l.most:
			return rate, reasonUpLimit, messageUpLimit
		case desired > l.most:
			return l.most, reasonTooMany, messageTooMany
		}
		return desired, reasonWithin, messageWithin
	}
	switch {
	case desired > current:
		rate := max(current, h.upLimit(current, l.behavior.ScaleUp, now))
		if most := min(l.most, rate); desired > most {
			if l.most > rate {
				return most, reasonUpLimit, messageUpLimit
			}
			return most, reasonTooMany, messageTooMany
		}
	case desired < current:
		rate := min(current, h.downLimit(current, l.behavior.ScaleDown, now))
		if least := max(l.least, rate); desired < least {
			if l.least < rate {
				return least, reasonDown, messageDown
			}
			return least, reasonTooFew, messageTooFew
		}
	}
	return desired, reasonWithin, messageWithin
}

// upLimit is the largest size that the policies allow now.
func (h *history) upLimit(current int32, rules *autoscalingv2.HPAScalingRules, now time.Time) int32 {
	if rules == nil {
		return math.MaxInt32
	}
	least := false
	if rules.SelectPolicy != nil {
		switch *rules.SelectPolicy {
		case autoscalingv2.DisabledPolicySelect:
			return current
		case autoscalingv2.MinChangePolicySelect:
			least = true
		}
	}
	var allowed []float64
	for _, p := range rules.Policies {
		start := float64(current - within(h.ups, p.PeriodSeconds, now) + within(h.downs, p.PeriodSeconds, now))
		if p.Type == autoscalingv2.PodsScalingPolicy {
			allowed = append(allowed, start+float64(p.Value))
		} else {
			// Rounded up: a small percentage of a few pods is one more.
			allowed = append(allowed, math.Ceil(start*(1+float64(p.Value)/100)))
		}
	}
	return choose(allowed, least, current)
}

// downLimit is the smallest size that the policies allow now.
func (h *history) downLimit(current int32, rules *autoscalingv2.HPAScalingRules, now time.Time) int32 {
	if rules == nil {
		return math.MinInt32
	}
	least := false
	if rules.SelectPolicy != nil {
		switch *rules.SelectPolicy {
		case autoscalingv2.DisabledPolicySelect:
			return current
		case autoscalingv2.MinChangePolicySelect:
			least = true
		}
	}
	var allowed []float64
	for _, p := range rules.Policies {
		start := float64(current - within(h.ups, p.PeriodSeconds, now) + within(h.downs, p.PeriodSeconds, now))
		if p.Type == autoscalingv2.PodsScalingPolicy {
			allowed = append(allowed, start-float64(p.Value))
		} else {
			allowed = append(allowed, math.Trunc(start*(1-float64(p.Value)/100)))
		}
	}
	// The least change downwards is the largest size.
	return choose(allowed, !least, current)
}

// choose returns the lowest or the highest of sizes; without any, the current one.
func choose(sizes []float64, lowest bool, current int32) int32 {
	if len(sizes) == 0 {
		return current
	}
	if lowest {
		return int32(slices.Min(sizes))
	}
	return int32(min(slices.Max(sizes), math.MaxInt32))
}

// tolerances are those of the behaviors, or the usual ones.
func (l limits) tolerances() tolerance {
	t := tolerance{down: aboutRight, up: aboutRight}
	if l.behavior == nil {
		return t
	}
	if r := l.behavior.ScaleUp; r != nil && r.Tolerance != nil {
		t.up = r.Tolerance.AsApproximateFloat64()
	}
	if r := l.behavior.ScaleDown; r != nil && r.Tolerance != nil {
		t.down = r.Tolerance.AsApproximateFloat64()
	}
	return t
}
