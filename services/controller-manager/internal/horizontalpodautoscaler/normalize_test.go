package horizontalpodautoscaler

import (
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"pgregory.net/rapid"
)

func rules(window int32, choice autoscalingv2.ScalingPolicySelect, policies ...autoscalingv2.HPAScalingPolicy) *autoscalingv2.HPAScalingRules {
	return &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: &window, SelectPolicy: &choice, Policies: policies}
}

func pods(value, period int32) autoscalingv2.HPAScalingPolicy {
	return autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PodsScalingPolicy, Value: value, PeriodSeconds: period}
}

func percent(value, period int32) autoscalingv2.HPAScalingPolicy {
	return autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PercentScalingPolicy, Value: value, PeriodSeconds: period}
}

func TestTheHighestOfFiveMinutesHolds(t *testing.T) {
	h, l := &history{}, limits{least: 1, most: 100}
	for _, step := range []struct {
		after         time.Duration
		desired, want int32
	}{
		{0, 8, 8}, {time.Minute, 3, 8}, {4*time.Minute + 59*time.Second, 2, 8}, {5 * time.Minute, 2, 3}, {6 * time.Minute, 2, 2}, {6 * time.Minute, 9, 9},
	} {
		if got := h.stabilize(8, step.desired, l, now.Add(step.after)); got != step.want {
			t.Errorf("after %s, %d desired: %d, want %d", step.after, step.desired, got, step.want)
		}
	}
}

func TestWindowsUpAndDown(t *testing.T) {
	h := &history{}
	l := limits{least: 1, most: 100, behavior: &autoscalingv2.HorizontalPodAutoscalerBehavior{
		ScaleUp: rules(60, autoscalingv2.MaxChangePolicySelect), ScaleDown: rules(30, autoscalingv2.MaxChangePolicySelect),
	}}
	for _, step := range []struct {
		after         time.Duration
		desired, want int32
	}{
		// The lowest of the last minute holds against more, the highest of half a minute against fewer.
		{0, 5, 5}, {10 * time.Second, 9, 5}, {59 * time.Second, 9, 5}, {60 * time.Second, 9, 9}, {61 * time.Second, 2, 5}, {91 * time.Second, 2, 2},
	} {
		if got := h.stabilize(5, step.desired, l, now.Add(step.after)); got != step.want {
			t.Errorf("after %s, %d desired: %d, want %d", step.after, step.desired, got, step.want)
		}
	}
}

func TestRatesOfChange(t *testing.T) {
	most, least, off := autoscalingv2.MaxChangePolicySelect, autoscalingv2.MinChangePolicySelect, autoscalingv2.DisabledPolicySelect
	for _, test := range []struct {
		what             string
		up, down         *autoscalingv2.HPAScalingRules
		current, desired int32
		done             []change // that many were added (or taken away, when negative) so long ago
		want             int32
		reason           string
	}{
		{what: "the larger policy", up: rules(0, most, pods(4, 15), percent(100, 15)), current: 10, desired: 50, want: 20, reason: reasonUpLimit},
		{what: "the smaller policy", up: rules(0, least, pods(4, 15), percent(100, 15)), current: 10, desired: 50, want: 14, reason: reasonUpLimit},
		{what: "a percentage is rounded up", up: rules(0, most, percent(10, 15)), current: 3, desired: 50, want: 4, reason: reasonUpLimit},
		{what: "within the policy", up: rules(0, most, pods(4, 15)), current: 10, desired: 13, want: 13, reason: reasonWithin},
		{what: "over the maximum", up: rules(0, most, percent(1000, 15)), current: 90, desired: 150, want: 100, reason: reasonTooMany},
		{what: "what was added counts", up: rules(0, most, pods(4, 60)), current: 10, desired: 50, done: []change{{now.Add(-30 * time.Second), 3}}, want: 11, reason: reasonUpLimit},
		{what: "what was added long ago does not", up: rules(0, most, pods(4, 60)), current: 10, desired: 50, done: []change{{now.Add(-time.Minute), 3}}, want: 14, reason: reasonUpLimit},
		{what: "what was taken away gives room", up: rules(0, most, pods(1, 60)), current: 10, desired: 50, done: []change{{now.Add(-time.Second), -2}}, want: 13, reason: reasonUpLimit},
		{what: "not upwards", up: rules(0, off, pods(4, 15)), current: 10, desired: 50, want: 10, reason: reasonUpLimit},
		{what: "not downwards", down: rules(0, off, pods(4, 15)), current: 10, desired: 5, want: 10, reason: reasonDown},
		{what: "downwards by the larger policy", down: rules(0, most, pods(2, 60), percent(50, 60)), current: 10, desired: 1, want: 5, reason: reasonDown},
		{what: "downwards by the smaller policy", down: rules(0, least, pods(2, 60), percent(50, 60)), current: 10, desired: 1, want: 8, reason: reasonDown},
		{what: "under the minimum", down: rules(0, most, percent(100, 15)), current: 10, desired: 0, want: 1, reason: reasonTooFew},
	} {
		h := &history{}
		for _, c := range test.done {
			h.note(20, 20+c.by, c.at)
		}
		l := limits{least: 1, most: 100, behavior: &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleUp: test.up, ScaleDown: test.down}}
		if got, reason, _ := h.limit(test.current, test.desired, l, now); got != test.want || reason != test.reason {
			t.Errorf("%s: %d, %s; want %d, %s", test.what, got, reason, test.want, test.reason)
		}
	}
	// Without behaviors: twice as many, or 4.
	for _, test := range []struct {
		current, desired, want int32
		reason                 string
	}{
		{1, 50, 4, reasonUpLimit}, {10, 50, 20, reasonUpLimit}, {60, 500, 100, reasonTooMany}, {10, 0, 1, reasonTooFew}, {10, 9, 9, reasonWithin},
	} {
		if got, reason, _ := (&history{}).limit(test.current, test.desired, limits{least: 1, most: 100}, now); got != test.want || reason != test.reason {
			t.Errorf("%d to %d: %d, %s; want %d, %s", test.current, test.desired, got, reason, test.want, test.reason)
		}
	}
}

// Whatever is recommended, a size stays within the bounds, and never goes against the direction that was asked for.
func TestSizesStayWithinBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int32Range(1, 60)
		policy := rapid.Custom(func(t *rapid.T) autoscalingv2.HPAScalingPolicy {
			if rapid.Bool().Draw(t, "pods") {
				return pods(rapid.Int32Range(1, 20).Draw(t, "value"), rapid.Int32Range(1, 300).Draw(t, "period"))
			}
			return percent(rapid.Int32Range(1, 100).Draw(t, "percent"), rapid.Int32Range(1, 300).Draw(t, "period"))
		})
		ruleSet := rapid.Custom(func(t *rapid.T) *autoscalingv2.HPAScalingRules {
			choice := rapid.SampledFrom([]autoscalingv2.ScalingPolicySelect{autoscalingv2.MaxChangePolicySelect, autoscalingv2.MinChangePolicySelect, autoscalingv2.DisabledPolicySelect}).Draw(t, "choice")
			return rules(rapid.Int32Range(0, 300).Draw(t, "window"), choice, rapid.SliceOfN(policy, 1, 3).Draw(t, "policies")...)
		})
		l := limits{least: 2, most: 50}
		if rapid.Bool().Draw(t, "behaviors") {
			l.behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleUp: ruleSet.Draw(t, "up"), ScaleDown: ruleSet.Draw(t, "down")}
		}
		h, at := &history{}, now
		current := rapid.Int32Range(2, 50).Draw(t, "current")
		for range rapid.IntRange(1, 40).Draw(t, "looks") {
			desired := size.Draw(t, "desired")
			next, _, _ := h.limit(current, h.stabilize(current, desired, l, at), l, at)
			if next < l.least || next > l.most {
				t.Fatalf("%d, bounds %d to %d", next, l.least, l.most)
			}
			if l.behavior != nil && (next > current && desired <= current || next < current && desired >= current) {
				t.Fatalf("from %d to %d though %d were asked for", current, next, desired)
			}
			h.note(current, next, at)
			current, at = next, at.Add(15*time.Second)
		}
	})
}
