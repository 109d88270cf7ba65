package traces

import (
	"encoding/binary"
	"fmt"
	"testing"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
)

func stringValue(s string) *commonpb.AnyValue {
	return &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: s}}
}

// span makes a span of a trace; keys are what it wrote.
func span(trace, id uint64, name string, keys ...string) *tracepb.Span {
	s := &tracepb.Span{
		TraceId: binary.BigEndian.AppendUint64(make([]byte, 8), trace), SpanId: binary.BigEndian.AppendUint64(nil, id), Name: name,
		StartTimeUnixNano: trace*1000 + id, EndTimeUnixNano: trace*1000 + id + 7,
		Attributes: []*commonpb.KeyValue{{Key: "n", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: 3}}}},
	}
	if len(keys) > 0 {
		values := &commonpb.ArrayValue{}
		for _, k := range keys {
			values.Values = append(values.Values, stringValue(k))
		}
		s.Attributes = append(s.Attributes, &commonpb.KeyValue{Key: KeysAttribute, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_ArrayValue{ArrayValue: values}}})
	}
	return s
}

func from(service string, spans ...*tracepb.Span) []*tracepb.ResourceSpans {
	return []*tracepb.ResourceSpans{{
		Resource:   &resourcepb.Resource{Attributes: []*commonpb.KeyValue{{Key: "service.name", Value: stringValue(service)}}},
		ScopeSpans: []*tracepb.ScopeSpans{{Spans: spans}},
	}}
}

func id(trace uint64) string { return fmt.Sprintf("%032x", trace) }

func TestTracesOfAnObject(t *testing.T) {
	m := New()
	m.Add(from("a", span(1, 2, "write", "/web", "/other")))
	m.Add(from("b", span(1, 1, "command"), span(2, 1, "later", "/web"), &tracepb.Span{Name: "without ids"}))
	m.Add(from("c", span(1, 3, "write again", "/web")))
	traces := m.Of("/web")
	if len(traces) != 2 || traces[0].GetTraceId() != id(2) || traces[1].GetTraceId() != id(1) || traces[1].GetName() != "command" {
		t.Errorf("%v", traces)
	}
	if len(m.Of("/other")) != 1 || len(m.Of("/none")) != 0 {
		t.Error("of others")
	}
	m.Add(from("c", span(1, 3, "write again", "/web"))) // a process that reports in two ways
	spans := m.Get(id(1))
	if len(spans) != 3 || spans[0].GetName() != "command" || spans[0].GetService() != "b" || spans[1].GetAttributes()["n"] != "3" || spans[2].GetDurationNanoseconds() != 7 {
		t.Errorf("%v", spans)
	}
	if _, ok := spans[1].GetAttributes()[KeysAttribute]; ok || m.Get(id(3)) != nil {
		t.Error("more than was asked for")
	}
	if merged := Merge(spans[:2], spans[1:], nil); len(merged) != 3 || merged[2].GetName() != "write again" {
		t.Errorf("merged %v", merged)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	m := New()
	const traces, each = 100, 200
	for i := range uint64(traces) {
		for j := range uint64(each) {
			m.Add(from("a", span(i+1, j+1, "s", fmt.Sprintf("/%d", i), "/all")))
		}
	}
	if m.spans > maxSpans || len(m.traces) != len(m.order) || len(m.byKey["/all"]) != len(m.traces) || len(m.Of("/0")) != 0 || len(m.Of(fmt.Sprintf("/%d", traces-1))) != 1 {
		t.Errorf("%d spans of %d traces, %d in order, %d of one object", m.spans, len(m.traces), len(m.order), len(m.byKey["/all"]))
	}
	// What changed something outlives what did not.
	before := len(m.byKey["/all"])
	for i := range uint64(50) {
		m.Add(from("a", span(2000+i, 1, "read"), span(2000+i, 2, "read")))
	}
	if after := len(m.byKey["/all"]); after < before-1 {
		t.Errorf("%d traces of changes were kept of %d", after, before)
	}
	for j := range uint64(2 * maxSpans) {
		m.Add(from("a", span(1000, j+1, "s")))
	}
	if n := len(m.Get(id(1000))); n != maxTrace || m.spans > maxSpans {
		t.Errorf("one trace has %d spans of %d", n, m.spans)
	}
}
