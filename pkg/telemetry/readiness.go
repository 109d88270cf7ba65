package telemetry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// readyWithin bounds a question whether the process is ready: who asks gives up after a few seconds, and then learns nothing.
const readyWithin = 2 * time.Second

// Readiness is whether a service can do its work now, and else what it waits for. It is another question than whether its process works: what is missing may be
// elsewhere, and would be missing after a restart too. A nil Readiness is one that nobody asks.
type Readiness struct {
	mu    sync.Mutex
	check func(context.Context) error
}

// NewReadiness returns one that is not ready yet.
func NewReadiness() *Readiness {
	r := &Readiness{}
	r.Lacks(errors.New("it has not begun to serve"))
	return r
}

// Set has a function asked from now on, any number of times at once. It returns nil when the service is ready, and else what it lacks.
func (r *Readiness) Set(check func(context.Context) error) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.check = check
}

// Lacks has the service not ready from now on, or ready when it lacks nothing.
func (r *Readiness) Lacks(what error) { r.Set(func(context.Context) error { return what }) }

// Check asks.
func (r *Readiness) Check(ctx context.Context) error {
	r.mu.Lock()
	check := r.check
	r.mu.Unlock()
	return check(ctx)
}

// health adds what Kubernetes asks: /livez, whether the process works, and /readyz, whether requests should come to it. What Kubernetes' own components say at
// /healthz is the former.
func health(routes *http.ServeMux, ready func(context.Context) error) {
	live := func(w http.ResponseWriter, _ *http.Request) { answer(w, nil) }
	routes.HandleFunc("GET /livez", live)
	routes.HandleFunc("GET /healthz", live)
	routes.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if ready == nil {
			answer(w, nil)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), readyWithin)
		defer cancel()
		answer(w, ready(ctx))
	})
}

func answer(w http.ResponseWriter, lacks error) {
	if lacks != nil {
		http.Error(w, "not ready: "+lacks.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintln(w, "ok")
}
