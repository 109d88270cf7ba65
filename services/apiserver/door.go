package apiserver

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"

	kauthorizationv1 "k8s.io/api/authorization/v1"
	kcorev1 "k8s.io/api/core/v1"
	kpolicyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/runtime"
	kschema "k8s.io/apimachinery/pkg/runtime/schema"

	"golang.org/x/sync/errgroup"

	"dhow.dev/pkg/version"
	"dhow.dev/services/apiserver/internal/audit"
	"dhow.dev/services/apiserver/internal/authorizer"
	"dhow.dev/services/apiserver/internal/authorizer/defaults"
	"dhow.dev/services/apiserver/internal/authorizer/policy"
	"dhow.dev/services/apiserver/internal/cache"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/component"
	"dhow.dev/services/apiserver/internal/discovery"
	"dhow.dev/services/apiserver/internal/fairness"
	flows "dhow.dev/services/apiserver/internal/fairness/bootstrap"
	apihealth "dhow.dev/services/apiserver/internal/health"
	"dhow.dev/services/apiserver/internal/impersonate"
	"dhow.dev/services/apiserver/internal/metrics"
	"dhow.dev/services/apiserver/internal/openapi"
	"dhow.dev/services/apiserver/internal/profiling"
	"dhow.dev/services/apiserver/internal/registry"
	"dhow.dev/services/apiserver/internal/restapi"
	"dhow.dev/services/apiserver/internal/session"
	"dhow.dev/services/apiserver/internal/strategy"
	"dhow.dev/services/apiserver/internal/streaming"
)

// Audit says what is recorded of the Kubernetes API.
type Audit struct {
	// PolicyFile holds an audit.k8s.io/v1 Policy. Empty: nothing is recorded.
	PolicyFile string
	// Log says where to.
	Log audit.LogConfig
}

// door is the Kubernetes door: what it has beside the core are paths, subresources and kinds that are not stored.
type door struct {
	config     Config
	cache      *cache.Cache
	registry   *registry.Registry
	codec      *codec.Codec
	strategies *strategy.Set
	rights     *authorizer.Roles
	callers    authentication
	sessions   *session.Manager
	usage      *metrics.Server
	board      *component.Board
	// auditor may be nil.
	auditor   *audit.Auditor
	readiness readiness
}

// open adds the door's tasks.
func (d door) open(ctx context.Context, tasks *errgroup.Group) error {
	logger := d.config.Logger
	turns, err := fairness.New(fairness.Config{Cache: d.cache, Seats: d.config.MaxRequests, Logger: logger})
	if err != nil {
		return err
	}
	config := restapi.Config{
		Cache: d.cache, Registry: d.registry, Codec: d.codec,
		Authorizer: d.rights, Authenticator: d.callers.verifier, Fairness: turns, Impersonation: impersonate.New(impersonate.Config{Authorizer: d.rights, Logger: logger}),
		Extras: d.sessions.Extras(), Paths: d.paths(), Virtual: d.virtual(), Logger: logger, Lifetime: ctx,
	}
	if d.auditor != nil {
		config.Auditor = d.auditor
	}
	if config.Subresources, err = d.subresources(); err != nil {
		return err
	}
	handler, err := restapi.New(config)
	if err != nil {
		return err
	}
	tasks.Go(func() error { return turns.Run(ctx) })
	tasks.Go(func() error { return restapi.Serve(ctx, d.config.Kubernetes, d.config.KubernetesTLS, handler, logger) })
	return nil
}

// newAuditor returns what records requests at both doors, nil without a policy.
func newAuditor(ctx context.Context, tasks *errgroup.Group, config Config, structs *codec.Codec) (*audit.Auditor, error) {
	if config.Audit.PolicyFile == "" {
		return nil, nil
	}
	policy, err := audit.LoadPolicy(config.Audit.PolicyFile)
	if err != nil {
		return nil, err
	}
	settings := config.Audit.Log
	settings.Logger = config.Logger
	lines, err := audit.OpenLog(settings)
	if err != nil {
		return nil, err
	}
	tasks.Go(func() error { return lines.Run(ctx) })
	return audit.New(audit.Config{Policy: policy, Sink: lines, Scheme: structs.Scheme(), Logger: config.Logger})
}

// paths are what is served beside resources.
func (d door) paths() map[string]http.Handler {
	all := map[string]http.Handler{}
	for _, paths := range []map[string]http.Handler{
		discovery.New(discovery.Config{Address: d.config.KubernetesAddress}),
		openapi.New(openapi.Config{Version: version.Kubernetes}),
		apihealth.New(apihealth.Config{Version: version.Kubernetes, Build: version.Version, Logger: d.config.Logger, Checks: d.readiness.checks()}),
		d.callers.paths(), profiling.Paths(),
	} {
		maps.Copy(all, paths)
	}
	all["/"] = discovery.Index(slices.Collect(maps.Keys(all)))
	return all
}

// virtual answer for kinds that are not stored.
func (d door) virtual() map[kschema.GroupResource]http.Handler {
	all, reviews := d.callers.virtual(), authorizer.NewReviews(d.rights)
	maps.Copy(all, d.usage.Handlers())
	all[kschema.GroupResource{Resource: "componentstatuses"}] = apihealth.Components(d.board.Status)
	kind := func(plural string) kschema.GroupResource {
		return kschema.GroupResource{Group: kauthorizationv1.GroupName, Resource: plural}
	}
	all[kind("subjectaccessreviews")] = restapi.Question(func(ctx context.Context, q restapi.Asked[kauthorizationv1.SubjectAccessReview]) (runtime.Object, error) {
		return answered(reviews.SubjectAccess(ctx, q.Object))
	})
	all[kind("localsubjectaccessreviews")] = restapi.Question(func(ctx context.Context, q restapi.Asked[kauthorizationv1.LocalSubjectAccessReview]) (runtime.Object, error) {
		return answered(reviews.LocalSubjectAccess(ctx, q.Namespace, q.Object))
	})
	all[kind("selfsubjectaccessreviews")] = restapi.Question(func(ctx context.Context, q restapi.Asked[kauthorizationv1.SelfSubjectAccessReview]) (runtime.Object, error) {
		return answered(reviews.SelfSubjectAccess(ctx, q.Object))
	})
	all[kind("selfsubjectrulesreviews")] = restapi.Question(func(ctx context.Context, q restapi.Asked[kauthorizationv1.SelfSubjectRulesReview]) (runtime.Object, error) {
		return answered(reviews.SelfSubjectRules(ctx, q.Object))
	})
	all[kschema.GroupResource{Resource: "bindings"}] = restapi.Question(func(ctx context.Context, q restapi.Asked[kcorev1.Binding]) (runtime.Object, error) {
		return nil, d.registry.BindOne(ctx, q.Namespace, q.Object.Name, q.Object, q.Options.DryRun)
	})
	return all
}

// answered keeps a nil pointer from becoming an object.
func answered[T runtime.Object](o T, err error) (runtime.Object, error) {
	if err != nil {
		return nil, err
	}
	return o, nil
}

// subresources answer for parts of objects that have a kind of their own.
func (d door) subresources() (map[restapi.Subresource]http.Handler, error) {
	streams, err := streaming.New(streaming.Config{
		Objects: streaming.FromCache(d.cache), Tunnels: d.sessions, Usage: d.sessions.Used, Authorizer: d.rights, Logger: d.config.Logger,
	})
	if err != nil {
		return nil, err
	}
	all := d.callers.subresources()
	for part, handler := range streams.Handlers() {
		all[restapi.Subresource{Resource: part.Resource, Name: part.Name}] = handler
	}
	all[restapi.Subresource{Resource: "pods", Name: "binding"}] = restapi.Question(func(ctx context.Context, q restapi.Asked[kcorev1.Binding]) (runtime.Object, error) {
		return nil, d.registry.BindOne(ctx, q.Namespace, q.Name, q.Object, q.Options.DryRun)
	})
	all[restapi.Subresource{Resource: "pods", Name: "eviction"}] = restapi.Question(func(ctx context.Context, q restapi.Asked[kpolicyv1.Eviction]) (runtime.Object, error) {
		warnings, err := d.registry.Evict(ctx, q.Namespace, q.Name, q.Object, q.Options.DryRun)
		for _, text := range warnings {
			q.Warn(text)
		}
		return nil, err
	})
	return all, nil
}

var errNoDoorTLS = errors.New("Kubernetes needs KubernetesTLS: the door has no mode without")

// reconcile makes and repairs the default roles of RBAC and the default flows and levels of the fair queues.
func (b bootstrap) reconcile(ctx context.Context, keeper defaults.Keeper) error {
	return b.retry(ctx, func() error {
		if err := policy.Reconcile(ctx, keeper); err != nil {
			return err
		}
		return flows.Reconcile(ctx, keeper)
	})
}
