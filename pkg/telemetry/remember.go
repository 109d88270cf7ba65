package telemetry

import (
	"strings"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"
)

// How many changes of others are recorded a second, and at once after a pause, where nobody collects traces. A person's changes are well below that; what is beyond is load,
// which must not pay for spans.
const (
	changesPerSecond = 5
	changesAtOnce    = 20
)

// changes are the first words of the names of requests of the Kubernetes door, and the methods of the gRPC door, that change something.
var changes = map[string]bool{
	"create": true, "update": true, "patch": true, "apply": true, "delete": true, "deletecollection": true,
	"Create": true, "Update": true, "Patch": true, "Apply": true, "Delete": true, "DeleteCollection": true, "Commit": true, "UpdateScale": true,
}

// remembering samples what API servers remember for a while: what follows from a command, and from changes that others ask for.
type remembering struct {
	// roots says that all that begins in this process is recorded: it is a command.
	roots  bool
	budget *rate.Limiter
}

func newRemembering(roots bool) remembering {
	return remembering{roots: roots, budget: rate.NewLimiter(changesPerSecond, changesAtOnce)}
}

// ShouldSample implements sdktrace.Sampler.
func (s remembering) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	parent := trace.SpanContextFromContext(p.ParentContext)
	result := sdktrace.SamplingResult{Decision: sdktrace.Drop, Tracestate: parent.TraceState()}
	switch {
	case parent.IsValid():
		if parent.IsSampled() {
			result.Decision = sdktrace.RecordAndSample
		}
	case s.roots, p.Kind == trace.SpanKindServer && changing(p.Name) && s.budget.Allow():
		result.Decision = sdktrace.RecordAndSample
	}
	return result
}

// Description implements sdktrace.Sampler.
func (s remembering) Description() string { return "Remembering" }

// changing says whether a request's span is one of a change: "create pods", "dhow.apps.v1.Deployments/Apply".
func changing(name string) bool {
	if verb, _, ok := strings.Cut(name, " "); ok {
		return changes[verb]
	}
	service, method, _ := strings.Cut(name, "/")
	return strings.HasPrefix(service, "dhow.") && !strings.HasPrefix(service, "dhow.store.") && changes[method]
}
