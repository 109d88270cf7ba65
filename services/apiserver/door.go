package apiserver

import (
	"context"
	"errors"
	"maps"
	"net/http"

	kauthorizationv1 "k8s.io/api/authorization/v1"
	kcorev1 "k8s.io/api/core/v1"
	kpolicyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/runtime"
	kschema "k8s.io/apimachinery/pkg/runtime/schema"

	"dhow.dev/pkg/version"
	"dhow.dev/services/apiserver/internal/authorizer"
	"dhow.dev/services/apiserver/internal/authorizer/defaults"
	"dhow.dev/services/apiserver/internal/authorizer/policy"
	"dhow.dev/services/apiserver/internal/cache"
	"dhow.dev/services/apiserver/internal/discovery"
	apihealth "dhow.dev/services/apiserver/internal/health"
	"dhow.dev/services/apiserver/internal/openapi"
	"dhow.dev/services/apiserver/internal/registry"
	"dhow.dev/services/apiserver/internal/restapi"
)

// door is what the Kubernetes door has beside the core: paths, subresources and kinds that are not stored.
type door struct {
	callers  authentication
	reviews  *authorizer.Reviews
	registry *registry.Registry
	// ready says why requests should go elsewhere, nil when they need not.
	ready   func() error
	address string
}

// paths are what is served beside resources.
func (d door) paths() map[string]http.Handler {
	all := map[string]http.Handler{}
	for _, paths := range []map[string]http.Handler{
		discovery.New(discovery.Config{Address: d.address}),
		openapi.New(openapi.Config{Version: version.Kubernetes}),
		apihealth.New(apihealth.Config{Version: version.Kubernetes, Build: version.Version, Checks: []apihealth.Check{
			{Name: "cache", Ready: true, Run: func(context.Context) error { return d.ready() }},
		}}),
		d.callers.paths(),
	} {
		maps.Copy(all, paths)
	}
	return all
}

// virtual answer for kinds that are not stored.
func (d door) virtual() map[kschema.GroupResource]http.Handler {
	all := d.callers.virtual()
	kind := func(plural string) kschema.GroupResource {
		return kschema.GroupResource{Group: kauthorizationv1.GroupName, Resource: plural}
	}
	all[kind("subjectaccessreviews")] = restapi.Question(func(ctx context.Context, q restapi.Asked[kauthorizationv1.SubjectAccessReview]) (runtime.Object, error) {
		return answered(d.reviews.SubjectAccess(ctx, q.Object))
	})
	all[kind("localsubjectaccessreviews")] = restapi.Question(func(ctx context.Context, q restapi.Asked[kauthorizationv1.LocalSubjectAccessReview]) (runtime.Object, error) {
		return answered(d.reviews.LocalSubjectAccess(ctx, q.Namespace, q.Object))
	})
	all[kind("selfsubjectaccessreviews")] = restapi.Question(func(ctx context.Context, q restapi.Asked[kauthorizationv1.SelfSubjectAccessReview]) (runtime.Object, error) {
		return answered(d.reviews.SelfSubjectAccess(ctx, q.Object))
	})
	all[kind("selfsubjectrulesreviews")] = restapi.Question(func(ctx context.Context, q restapi.Asked[kauthorizationv1.SelfSubjectRulesReview]) (runtime.Object, error) {
		return answered(d.reviews.SelfSubjectRules(ctx, q.Object))
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
func (d door) subresources() map[restapi.Subresource]http.Handler {
	all := d.callers.subresources()
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
	return all
}

var errNoDoorTLS = errors.New("Kubernetes needs KubernetesTLS: the door has no mode without")

// reconcile makes and repairs the default roles of RBAC.
func (b bootstrap) reconcile(ctx context.Context, objects *cache.Cache) error {
	return b.retry(ctx, func() error {
		return policy.Reconcile(ctx, defaults.Keeper{Cache: objects, Registry: b.registry, Codec: b.codec})
	})
}
