// Package profiling serves the process's profiles at /debug/pprof, where kube-apiserver has its own: to callers who may get that path, by default administrators alone.
package profiling

import (
	"net/http"
	"net/http/pprof"
)

// Paths are the handlers by their paths.
func Paths() map[string]http.Handler {
	return map[string]http.Handler{
		"/debug/pprof/":        http.HandlerFunc(pprof.Index),
		"/debug/pprof/cmdline": http.HandlerFunc(pprof.Cmdline),
		"/debug/pprof/profile": http.HandlerFunc(pprof.Profile),
		"/debug/pprof/symbol":  http.HandlerFunc(pprof.Symbol),
		"/debug/pprof/trace":   http.HandlerFunc(pprof.Trace),
	}
}
