// Package traces remembers what the cluster's processes did because of the last changes: the spans that they report, in memory, bounded.
package traces

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
	"sync"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	clusterv1 "dhow.dev/gen/go/dhow/cluster/v1"
)

// KeysAttribute of a span lists the store keys of the objects that it wrote.
const KeysAttribute = "dhow.keys"

const (
	// maxSpans bounds what is remembered of all traces: some megabytes. What changed nothing is forgotten first, then what was heard of first.
	maxSpans = 8192
	// maxTrace bounds one trace; what comes later is left out.
	maxTrace = 2048
	// maxText bounds a name or a value, in bytes: spans come from other processes.
	maxText = 1024
	// maxAttributes bounds those of one span.
	maxAttributes = 32
)

// Memory remembers traces. It is safe for concurrent use.
type Memory struct {
	mu     sync.Mutex
	traces map[string]*trace
	// order holds the ids of traces, the oldest first.
	order []string
	spans int
	// byKey holds the ids of the traces that wrote an object, the oldest first.
	byKey map[string][]string
}

type trace struct {
	spans []*clusterv1.Span
	// known are the ids of the spans: services that share a process report the same.
	known map[string]bool
	keys  []string
}

// New returns an empty memory.
func New() *Memory {
	return &Memory{traces: map[string]*trace{}, byKey: map[string][]string{}}
}

// Add remembers spans. Those without valid ids are left out.
func (m *Memory) Add(resources []*tracepb.ResourceSpans) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, resource := range resources {
		var service, instance string
		for _, a := range resource.GetResource().GetAttributes() {
			switch a.GetKey() {
			case "service.name":
				service = text(a.GetValue())
			case "service.instance.id":
				instance = text(a.GetValue())
			}
		}
		for _, scope := range resource.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				if len(s.GetTraceId()) == 16 && len(s.GetSpanId()) == 8 {
					m.add(hex.EncodeToString(s.GetTraceId()), s, service, instance, cut(scope.GetScope().GetName()))
				}
			}
		}
	}
}

func (m *Memory) add(id string, s *tracepb.Span, service, instance, scope string) {
	t := m.traces[id]
	if t == nil {
		t = &trace{known: map[string]bool{}}
		m.traces[id] = t
		m.order = append(m.order, id)
	}
	own := hex.EncodeToString(s.GetSpanId())
	if len(t.spans) >= maxTrace || t.known[own] {
		return
	}
	t.known[own] = true
	span := clusterv1.Span_builder{
		Id: own, ParentId: hex.EncodeToString(s.GetParentSpanId()), Service: service, Instance: instance, Scope: scope, Name: cut(s.GetName()),
		StartUnixNanoseconds: int64(s.GetStartTimeUnixNano()), DurationNanoseconds: int64(s.GetEndTimeUnixNano() - s.GetStartTimeUnixNano()),
		Failed: s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR, Attributes: map[string]string{},
	}.Build()
	for _, a := range s.GetAttributes()[:min(len(s.GetAttributes()), maxAttributes)] {
		if a.GetKey() != KeysAttribute {
			span.GetAttributes()[cut(a.GetKey())] = text(a.GetValue())
			continue
		}
		for _, key := range a.GetValue().GetArrayValue().GetValues() {
			m.wrote(id, t, cut(key.GetStringValue()))
		}
	}
	t.spans = append(t.spans, span)
	m.spans++
	for m.spans > maxSpans && len(m.order) > 1 {
		// Where everything is recorded, most of it changed nothing and will not be asked for.
		oldest := max(slices.IndexFunc(m.order[:len(m.order)-1], func(id string) bool { return len(m.traces[id].keys) == 0 }), 0)
		m.forget(m.order[oldest])
	}
}

// wrote notes that a trace wrote an object.
func (m *Memory) wrote(id string, t *trace, key string) {
	if !slices.Contains(t.keys, key) && len(t.keys) < maxTrace {
		t.keys = append(t.keys, key)
		m.byKey[key] = append(m.byKey[key], id)
	}
}

func (m *Memory) forget(id string) {
	t := m.traces[id]
	delete(m.traces, id)
	m.order = slices.DeleteFunc(m.order, func(other string) bool { return other == id })
	m.spans -= len(t.spans)
	for _, key := range t.keys {
		if left := slices.DeleteFunc(m.byKey[key], func(other string) bool { return other == id }); len(left) > 0 {
			m.byKey[key] = left
		} else {
			delete(m.byKey, key)
		}
	}
}

// Of returns what is remembered of the traces that wrote an object, by its store key, the newest first.
func (m *Memory) Of(key string) []*clusterv1.TraceResponse_Summary {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []*clusterv1.TraceResponse_Summary
	for _, id := range m.byKey[key] {
		first := slices.MinFunc(m.traces[id].spans, byStart)
		all = append(all, clusterv1.TraceResponse_Summary_builder{TraceId: id, Name: first.GetName(), StartUnixNanoseconds: first.GetStartUnixNanoseconds()}.Build())
	}
	NewestFirst(all)
	return all
}

// Get returns the spans of a trace in the order in which they began, none when it is not remembered.
func (m *Memory) Get(id string) []*clusterv1.Span {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.traces[id]
	if t == nil {
		return nil
	}
	return slices.SortedStableFunc(slices.Values(t.spans), byStart)
}

// Merge puts spans of one trace that several servers remember together, each once.
func Merge(several ...[]*clusterv1.Span) []*clusterv1.Span {
	seen := map[string]bool{}
	var all []*clusterv1.Span
	for _, spans := range several {
		for _, s := range spans {
			if !seen[s.GetId()] {
				seen[s.GetId()] = true
				all = append(all, s)
			}
		}
	}
	slices.SortStableFunc(all, byStart)
	return all
}

// NewestFirst sorts traces.
func NewestFirst(all []*clusterv1.TraceResponse_Summary) {
	slices.SortStableFunc(all, func(a, b *clusterv1.TraceResponse_Summary) int {
		return cmp.Compare(b.GetStartUnixNanoseconds(), a.GetStartUnixNanoseconds())
	})
}

func byStart(a, b *clusterv1.Span) int {
	return cmp.Compare(a.GetStartUnixNanoseconds(), b.GetStartUnixNanoseconds())
}

// text is a value for people.
func text(v *commonpb.AnyValue) string {
	switch v.GetValue().(type) {
	case *commonpb.AnyValue_StringValue:
		return cut(v.GetStringValue())
	case *commonpb.AnyValue_BoolValue:
		return fmt.Sprint(v.GetBoolValue())
	case *commonpb.AnyValue_IntValue:
		return fmt.Sprint(v.GetIntValue())
	case *commonpb.AnyValue_DoubleValue:
		return fmt.Sprint(v.GetDoubleValue())
	default:
		return ""
	}
}

func cut(s string) string {
	if len(s) > maxText {
		return s[:maxText]
	}
	return s
}
