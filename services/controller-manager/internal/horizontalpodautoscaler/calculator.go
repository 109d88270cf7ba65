package horizontalpodautoscaler

import (
	"errors"
	"fmt"
	"math"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/apitime"
	"dhow.dev/services/controller-manager/internal/podstate"
)

// What Kubernetes' controller manager has by default.
const (
	// startPeriod is how long after its start a pod's CPU is not believed while it is not ready: it is still loading.
	startPeriod = 5 * time.Minute
	// neverReady is how soon after its start a pod that is unready became so if it never was ready.
	neverReady = 30 * time.Second
	// aboutRight is how far from the target the use may be without a change.
	aboutRight = 0.1
)

// tolerance is how far below and above 1 a ratio of use may be.
type tolerance struct{ down, up float64 }

func (t tolerance) covers(ratio float64) bool { return 1-t.down <= ratio && ratio <= 1+t.up }

// groups are the pods of a target as far as a metric is concerned. Pods that are in none of them are ignored.
type groups struct {
	// ready are measured, unready are not yet to be believed, missing are not measured.
	ready            int
	unready, missing []string
}

// group sorts pods by what their samples are worth, and takes the samples that are worth nothing away.
func group(pods []*corev1.Pod, samples map[string]Sample, ofCPU bool, now time.Time) groups {
	var g groups
	for _, p := range pods {
		name := p.GetMetadata().GetName()
		sample, measured := samples[name]
		switch {
		case object.IsDeleted(p), p.GetStatus().GetPhase() == podstate.Failed:
			delete(samples, name)
		case p.GetStatus().GetPhase() == podstate.Pending:
			g.unready = append(g.unready, name)
			delete(samples, name)
		case !measured:
			g.missing = append(g.missing, name)
		case ofCPU && isStarting(p, sample, now):
			g.unready = append(g.unready, name)
			delete(samples, name)
		default:
			g.ready++
		}
	}
	return g
}

// isStarting says that the CPU of a pod was measured while it did what it does only once.
func isStarting(p *corev1.Pod, sample Sample, now time.Time) bool {
	ready := podstate.Condition(p, podstate.ConditionReady)
	if ready == nil || !p.GetStatus().HasStartTime() {
		return true
	}
	started, changed := apitime.Go(p.GetStatus().GetStartTime()), apitime.Go(ready.GetLastTransitionTime())
	isUnready := ready.GetStatus() == podstate.False
	if started.Add(startPeriod).After(now) {
		return isUnready || sample.At.Before(changed.Add(sample.Window))
	}
	return isUnready && started.Add(neverReady).After(changed)
}

var (
	errNoPods    = errors.New("no pods returned by selector while calculating replica count")
	errUnready   = errors.New("did not receive metrics for targeted pods (pods might be unready)")
	errNoKnown   = errors.New("no metrics returned matched known pods")
	errNoRequest = errors.New("missing request")
)

// proposal is what one metric says.
type proposal struct {
	replicas int32
	// percent is the use in percent of the request, average what one pod uses, value what all do, in thousandths.
	percent        int32
	average, value int64
}

// ratioOf returns how much is used of what is to be: of samples, by pod.
type ratioOf func(samples map[string]Sample) (ratio float64, p proposal, err error)

// ofRequests compares with a share in percent of what the pods request.
func ofRequests(requests map[string]int64, target int32) ratioOf {
	return func(samples map[string]Sample) (float64, proposal, error) {
		var used, requested int64
		known := 0
		for name, s := range samples {
			request, ok := requests[name]
			if !ok {
				continue
			}
			used, requested, known = used+s.Milli, requested+request, known+1
		}
		if requested == 0 {
			return 0, proposal{}, errNoKnown
		}
		percent := int32(used * 100 / requested)
		return float64(percent) / float64(target), proposal{percent: percent, average: used / int64(known)}, nil
	}
}

// ofAverage compares with what a pod should use on average.
func ofAverage(target int64) ratioOf {
	return func(samples map[string]Sample) (float64, proposal, error) {
		var used int64
		for _, s := range samples {
			used += s.Milli
		}
		average := used / int64(len(samples))
		return float64(average) / float64(target), proposal{average: average}, nil
	}
}

// perPod proposes replicas by what pods use. Full is what a pod uses that uses all it should, by name: pods that are not measured are taken for such
// when there would be fewer otherwise, and for idle when there would be more.
func perPod(current int32, pods []*corev1.Pod, samples map[string]Sample, ofCPU bool, ratio ratioOf, full func(pod string) int64, within tolerance, now time.Time) (proposal, error) {
	if len(pods) == 0 {
		return proposal{}, errNoPods
	}
	g := group(pods, samples, ofCPU, now)
	if len(samples) == 0 {
		return proposal{}, errUnready
	}
	use, p, err := ratio(samples)
	if err != nil {
		return proposal{}, err
	}
	p.replicas = current
	waitsForUnready := len(g.unready) > 0 && use > 1
	if !waitsForUnready && len(g.missing) == 0 {
		if !within.covers(use) {
			p.replicas = int32(math.Ceil(use * float64(g.ready)))
		}
		return p, nil
	}
	for _, name := range g.missing {
		switch {
		case use < 1:
			samples[name] = Sample{Milli: full(name)}
		case use > 1:
			samples[name] = Sample{}
		}
	}
	if waitsForUnready {
		for _, name := range g.unready {
			samples[name] = Sample{}
		}
	}
	again, _, err := ratio(samples)
	if err != nil {
		return proposal{}, err
	}
	// What is only assumed may make the change smaller, and not turn it round.
	if within.covers(again) || use < 1 && again > 1 || use > 1 && again < 1 {
		return p, nil
	}
	wanted := int32(math.Ceil(again * float64(len(samples))))
	if again < 1 && wanted > current || again > 1 && wanted < current {
		return p, nil
	}
	p.replicas = wanted
	return p, nil
}

// requestsOf returns what pods request of a resource, in thousandths: all containers together, sidecars too, or one of them.
func requestsOf(pods []*corev1.Pod, name, container string) (map[string]int64, error) {
	requests := map[string]int64{}
	for _, p := range pods {
		var sum int64
		spec := p.GetSpec()
		if q, ok := spec.GetResources().GetRequests()[name]; ok && container == "" {
			request, err := resource.ParseQuantity(q.GetString())
			if err != nil {
				return nil, fmt.Errorf("request of %s of pod %s: %w", name, object.KeyOf(p), err)
			}
			requests[p.GetMetadata().GetName()] = request.MilliValue()
			continue
		}
		var containers []*corev1.Container
		for _, c := range spec.GetInitContainers() {
			if c.GetRestartPolicy() == "Always" {
				containers = append(containers, c)
			}
		}
		for _, c := range append(containers, spec.GetContainers()...) {
			if container != "" && c.GetName() != container {
				continue
			}
			q, ok := c.GetResources().GetRequests()[name]
			if !ok {
				return nil, fmt.Errorf("%w for %s in container %s of Pod %s", errNoRequest, name, c.GetName(), p.GetMetadata().GetName())
			}
			request, err := resource.ParseQuantity(q.GetString())
			if err != nil {
				return nil, fmt.Errorf("request of %s of container %s of pod %s: %w", name, c.GetName(), object.KeyOf(p), err)
			}
			sum += request.MilliValue()
		}
		requests[p.GetMetadata().GetName()] = sum
	}
	return requests, nil
}

// total proposes replicas by a value that all pods share in: as many times the ready pods as the value is of the target.
func total(current int32, pods []*corev1.Pod, value, target int64, within tolerance) (proposal, error) {
	p := proposal{replicas: current, value: value}
	use := float64(value) / float64(target)
	if current == 0 {
		p.replicas = int32(math.Ceil(use))
		return p, nil
	}
	if within.covers(use) {
		return p, nil
	}
	if len(pods) == 0 {
		return proposal{}, errNoPods
	}
	ready := 0
	for _, pod := range pods {
		if pod.GetStatus().GetPhase() == podstate.Running && podstate.IsReady(pod) {
			ready++
		}
	}
	p.replicas = int32(math.Ceil(use * float64(ready)))
	return p, nil
}

// shared proposes replicas by a value of which each pod should have a share of the target's size. Existing is how many pods there are.
func shared(existing int32, value, target int64, within tolerance) proposal {
	p := proposal{replicas: existing}
	if existing == 0 || !within.covers(float64(value)/(float64(target)*float64(existing))) {
		p.replicas = int32(math.Ceil(float64(value) / float64(target)))
	}
	if existing > 0 {
		p.average = int64(math.Ceil(float64(value) / float64(existing)))
	}
	return p
}
