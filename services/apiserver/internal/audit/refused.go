package audit

import (
	"net/http"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"dhow.dev/pkg/identity"
	"dhow.dev/services/apiserver/internal/audit/annotation"
	"dhow.dev/services/apiserver/internal/request"
)

// Refused returns a handler that records what next answers to a request whose caller could not be known. As in Kubernetes the one event has the stage
// ResponseStarted, no user, and says which credentials were shown; rules that name users do not match it.
func (a *Auditor) Refused(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, ok := request.FromContext(r.Context())
		if !ok {
			next.ServeHTTP(w, r)
			return
		}
		judged := a.config.Policy.judge(identity.Identity{}, info)
		if judged.level == LevelNone {
			next.ServeHTTP(w, r)
			return
		}
		rec := &recording{auditor: a, verdict: judged, info: info, event: newEvent(judged.level, identity.Identity{}, info, a.config.Now())}
		rec.ctx, rec.notes = annotation.NewContext(r.Context())
		rec.event.AuditID, rec.event.RequestURI, rec.event.UserAgent = r.Header.Get(idHeader), r.URL.RequestURI(), bound(r.UserAgent())
		for _, ip := range utilnet.SourceIPs(r) {
			rec.event.SourceIPs = append(rec.event.SourceIPs, ip.String())
		}
		answer := &writer{ResponseWriter: w}
		answer.started = sync.OnceFunc(func() {
			e := rec.event
			e.ResponseStatus = &metav1.Status{Code: int32(answer.code), Message: attempted(r)}
			rec.emit(StageResponseStarted, e)
		})
		next.ServeHTTP(answer, r)
	})
}

// attempted says which credentials a request shows.
func attempted(r *http.Request) string {
	var methods []string
	authorization := r.Header.Get("Authorization")
	if kind, _, _ := strings.Cut(authorization, " "); strings.EqualFold(kind, "basic") {
		methods = append(methods, "basic")
	} else if strings.EqualFold(kind, "bearer") {
		methods = append(methods, "bearer")
	}
	if r.URL.Query().Get("access_token") != "" {
		methods = append(methods, "access_token")
	}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		methods = append(methods, "x509")
	}
	return attempts(methods)
}

// attempts says which credentials were shown, in Kubernetes' words.
func attempts(methods []string) string {
	if len(methods) == 0 {
		return "Authentication failed, no credentials provided"
	}
	return "Authentication failed, attempted: " + strings.Join(methods, ", ")
}
