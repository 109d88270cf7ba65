// Package health answers what load balancers, operators and clients ask about the process itself: /version, /healthz, /livez, /readyz with single checks
// below them, and /metrics (https://kubernetes.io/docs/reference/using-api/health-checks/).
package health

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/telemetry/logkey"
)

// Check is one thing that must be well. Which paths ask it is said by Live and Ready; /healthz asks all.
type Check struct {
	// Name is the last part of the check's path, for example store.
	Name string
	// Live: when it fails, only a restart of the process helps. Ready: when it fails, requests should go elsewhere.
	Live, Ready bool
	// Run returns nil when all is well. It must end when its context does.
	Run func(context.Context) error
}

// Config says what is asked.
type Config struct {
	// Version is the version of Kubernetes' API, Build that of this build.
	Version, Build string
	// Checks are asked in this order, behind ping, which answers while the process does.
	Checks []Check
	// Metrics serves /metrics; nil means those of the process (telemetry.Handler).
	Metrics http.Handler
	// Logger gets the reasons of failed checks, which the answer of several checks withholds.
	Logger *slog.Logger
}

// checkTimeout bounds each check, so that one that hangs is one that fails.
const checkTimeout = 5 * time.Second

// New returns a handler for each path: those that end in a slash are prefixes.
func New(config Config) map[string]http.Handler {
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	if config.Metrics == nil {
		config.Metrics = telemetry.Handler()
	}
	checks := slices.Concat([]Check{{Name: "ping", Live: true, Ready: true, Run: func(context.Context) error { return nil }}}, config.Checks)
	live := slices.DeleteFunc(slices.Clone(checks), func(c Check) bool { return !c.Live })
	ready := slices.DeleteFunc(slices.Clone(checks), func(c Check) bool { return !c.Ready })
	paths := map[string]http.Handler{"/version": readOnly(newVersion(config)), "/metrics": readOnly(config.Metrics)}
	for name, group := range map[string][]Check{"healthz": checks, "livez": live, "readyz": ready} {
		handler := readOnly(&probe{name: name, checks: group, logger: config.Logger})
		paths["/"+name], paths["/"+name+"/"] = handler, handler
	}
	return paths
}

func readOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, fmt.Sprintf("method %s is not allowed: use GET", r.Method), http.StatusMethodNotAllowed)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// probe asks a group of checks.
type probe struct {
	name   string
	checks []Check
	logger *slog.Logger
}

func (p *probe) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-cache, no-store, must-revalidate")
	single := strings.Trim(strings.TrimPrefix(r.URL.Path, "/"+p.name), "/")
	if single != "" {
		p.single(w, r, single)
		return
	}
	_, verbose := r.URL.Query()["verbose"]
	excluded := map[string]bool{}
	for _, name := range r.URL.Query()["exclude"] {
		excluded[name] = true
	}
	var report strings.Builder
	failed := false
	for _, c := range p.checks {
		if excluded[c.Name] {
			delete(excluded, c.Name)
			fmt.Fprintf(&report, "[+]%s excluded: ok\n", c.Name)
			continue
		}
		if err := ask(r.Context(), c); err != nil {
			failed = true
			p.logger.WarnContext(r.Context(), "health check failed", slog.String("check", c.Name), logkey.Err(err))
			// Anyone may ask here; who may see more asks for the check itself.
			fmt.Fprintf(&report, "[-]%s failed: reason withheld\n", c.Name)
			continue
		}
		fmt.Fprintf(&report, "[+]%s ok\n", c.Name)
	}
	if len(excluded) > 0 {
		var names []string
		for name := range excluded {
			names = append(names, fmt.Sprintf("%q", name))
		}
		slices.Sort(names)
		fmt.Fprintf(&report, "warn: some health checks cannot be excluded: no matches for %s\n", strings.Join(names, ", "))
	}
	switch {
	case failed:
		fmt.Fprintf(&report, "%s check failed", p.name)
		http.Error(w, report.String(), http.StatusInternalServerError)
	case verbose:
		plain(w, fmt.Sprintf("%s%s check passed\n", report.String(), p.name))
	default:
		plain(w, "ok")
	}
}

// single asks one check and says why it fails.
func (p *probe) single(w http.ResponseWriter, r *http.Request, name string) {
	at := slices.IndexFunc(p.checks, func(c Check) bool { return c.Name == name })
	if at < 0 {
		http.Error(w, "404 page not found", http.StatusNotFound)
		return
	}
	if err := ask(r.Context(), p.checks[at]); err != nil {
		http.Error(w, fmt.Sprintf("internal server error: %v", err), http.StatusInternalServerError)
		return
	}
	plain(w, "ok")
}

func ask(ctx context.Context, c Check) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	return c.Run(ctx)
}

func plain(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write([]byte(text)) // a client that is gone needs no answer
}
