package proxy

import (
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	discoveryv1 "dhow.dev/gen/go/dhow/discovery/v1"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
)

// labelService is the label by which an EndpointSlice belongs to a Service.
const labelService = "kubernetes.io/service-name"

// labelZone is a node's zone.
const labelZone = "topology.kubernetes.io/zone"

// state is what the sources told, and whose plans have to be made anew.
type state struct {
	nodeName string
	// changed holds a token while there is something to take.
	changed chan struct{}

	mu       sync.Mutex
	services map[object.Key]*corev1.Service
	slices   map[object.Key]map[string]*discoveryv1.EndpointSlice
	pods     map[object.Key]*corev1.Pod
	zone     string
	dirty    map[owner]object.Key
	since    time.Time
	traces   []change
}

// change is the trace context of a change and the time it arrived.
type change struct {
	traceparent string
	at          time.Time
}

// maxTraces bounds the spans of one transaction: in a burst most changes share a few traces anyway.
const maxTraces = 16

// batch is what one transaction is made from.
type batch struct {
	dirty  map[owner]input
	zone   string
	since  time.Time
	traces []change
}

// input is what an owner's plan is made from.
type input struct {
	key     object.Key
	service *corev1.Service
	slices  []*discoveryv1.EndpointSlice
	pod     *corev1.Pod
}

func newState(nodeName string) *state {
	return &state{
		nodeName: nodeName, changed: make(chan struct{}, 1),
		services: map[object.Key]*corev1.Service{}, slices: map[object.Key]map[string]*discoveryv1.EndpointSlice{}, pods: map[object.Key]*corev1.Pod{},
		dirty: map[owner]object.Key{},
	}
}

const (
	ownerService = "svc/"
	ownerPod     = "pod/"
)

func (s *state) service(old, new *corev1.Service, t *informer.Trace) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if new == nil {
		key := object.KeyOf(old)
		delete(s.services, key)
		s.mark(ownerService, key, t)
		return
	}
	key := object.KeyOf(new)
	s.services[key] = new
	s.mark(ownerService, key, t)
}

func (s *state) slice(old, new *discoveryv1.EndpointSlice, t *informer.Trace) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old != nil {
		// Its label may have changed, so it leaves the Service it belonged to.
		key := serviceOf(old)
		delete(s.slices[key], old.GetMetadata().GetName())
		if len(s.slices[key]) == 0 {
			delete(s.slices, key)
		}
		s.mark(ownerService, key, t)
	}
	if new != nil {
		key := serviceOf(new)
		if s.slices[key] == nil {
			s.slices[key] = map[string]*discoveryv1.EndpointSlice{}
		}
		s.slices[key][new.GetMetadata().GetName()] = new
		s.mark(ownerService, key, t)
	}
}

func serviceOf(slice *discoveryv1.EndpointSlice) object.Key {
	return object.Key{Namespace: slice.GetMetadata().GetNamespace(), Name: slice.GetMetadata().GetLabels()[labelService]}
}

func (s *state) pod(old, new *corev1.Pod, t *informer.Trace) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if new == nil {
		key := object.KeyOf(old)
		if _, known := s.pods[key]; known {
			delete(s.pods, key)
			s.mark(ownerPod, key, t)
		}
		return
	}
	key := object.KeyOf(new)
	// Most pods have no host port and change often.
	if !hasHostPort(new) {
		return
	}
	s.pods[key] = new
	s.mark(ownerPod, key, t)
}

func hasHostPort(pod *corev1.Pod) bool {
	return slices.ContainsFunc(slices.Concat(pod.GetSpec().GetInitContainers(), pod.GetSpec().GetContainers()), func(c *corev1.Container) bool {
		return slices.ContainsFunc(c.GetPorts(), func(p *corev1.ContainerPort) bool { return p.GetHostPort() != 0 })
	})
}

func (s *state) node(old, new *corev1.Node, t *informer.Trace) {
	if new == nil || new.GetMetadata().GetName() != s.nodeName {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if zone := new.GetMetadata().GetLabels()[labelZone]; zone != s.zone {
		s.zone = zone
		for key := range s.services {
			s.mark(ownerService, key, t)
		}
	}
}

// mark is called with the lock held.
func (s *state) mark(kind string, key object.Key, t *informer.Trace) {
	now := time.Now()
	if len(s.dirty) == 0 {
		s.since = now
	}
	s.dirty[owner(kind+key.String())] = key
	if t != nil && t.Traceparent != "" && len(s.traces) < maxTraces &&
		!slices.ContainsFunc(s.traces, func(c change) bool { return c.traceparent == t.Traceparent }) {
		s.traces = append(s.traces, change{traceparent: t.Traceparent, at: now})
	}
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// take returns what changed since the last call.
func (s *state) take() batch {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.changed:
	default:
	}
	b := batch{dirty: make(map[owner]input, len(s.dirty)), zone: s.zone, since: s.since, traces: s.traces}
	for o, key := range s.dirty {
		in := input{key: key}
		if strings.HasPrefix(string(o), ownerPod) {
			in.pod = s.pods[key]
		} else {
			in.service = s.services[key]
			for _, slice := range s.slices[key] {
				in.slices = append(in.slices, slice)
			}
		}
		b.dirty[o] = in
	}
	clear(s.dirty)
	s.traces = nil
	return b
}
