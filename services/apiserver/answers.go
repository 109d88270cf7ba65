package apiserver

import (
	"context"
	"fmt"
	"maps"

	kauthorizationv1 "k8s.io/api/authorization/v1"
	kcorev1 "k8s.io/api/core/v1"
	kpolicyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	authorizationv1 "dhow.dev/gen/go/dhow/authorization/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metricsv1beta1 "dhow.dev/gen/go/dhow/metrics/v1beta1"
	policyv1 "dhow.dev/gen/go/dhow/policy/v1"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/authorizer"
	"dhow.dev/services/apiserver/internal/grpcapi"
	"dhow.dev/services/apiserver/internal/metrics"
	"dhow.dev/services/apiserver/internal/registry"
)

// answers are the kinds that are not stored, at the gRPC door.
func answers(callers authentication, writes *registry.Registry, reviews *authorizer.Reviews) map[*resource.Resource]grpcapi.Answer {
	all := callers.answers()
	maps.Copy(all, map[*resource.Resource]grpcapi.Answer{
		resource.For[*authorizationv1.SubjectAccessReview](): question(func(ctx context.Context, q *kauthorizationv1.SubjectAccessReview, _ registry.WriteOptions) (*kauthorizationv1.SubjectAccessReview, error) {
			return reviews.SubjectAccess(ctx, q)
		}),
		resource.For[*authorizationv1.LocalSubjectAccessReview](): question(func(ctx context.Context, q *kauthorizationv1.LocalSubjectAccessReview, _ registry.WriteOptions) (*kauthorizationv1.LocalSubjectAccessReview, error) {
			return reviews.LocalSubjectAccess(ctx, q.Namespace, q)
		}),
		resource.For[*authorizationv1.SelfSubjectAccessReview](): question(func(ctx context.Context, q *kauthorizationv1.SelfSubjectAccessReview, _ registry.WriteOptions) (*kauthorizationv1.SelfSubjectAccessReview, error) {
			return reviews.SelfSubjectAccess(ctx, q)
		}),
		resource.For[*authorizationv1.SelfSubjectRulesReview](): question(func(ctx context.Context, q *kauthorizationv1.SelfSubjectRulesReview, _ registry.WriteOptions) (*kauthorizationv1.SelfSubjectRulesReview, error) {
			return reviews.SelfSubjectRules(ctx, q)
		}),
		resource.For[*policyv1.Eviction](): question(func(ctx context.Context, q *kpolicyv1.Eviction, o registry.WriteOptions) (*kpolicyv1.Eviction, error) {
			_, err := writes.Evict(ctx, q.Namespace, q.Name, q, o.DryRun)
			return q, err
		}),
		resource.For[*corev1.Binding](): question(func(ctx context.Context, q *kcorev1.Binding, o registry.WriteOptions) (*kcorev1.Binding, error) {
			return q, writes.BindOne(ctx, q.Namespace, q.Name, q, o.DryRun)
		}),
	})
	return all
}

// views are the kinds that are made when they are read, at the gRPC door.
func views(usage *metrics.Server) map[*resource.Resource]grpcapi.View {
	return map[*resource.Resource]grpcapi.View{
		resource.For[*metricsv1beta1.NodeMetrics](): usage.NodeView(),
		resource.For[*metricsv1beta1.PodMetrics]():  usage.PodView(),
	}
}

// question makes an answer of a function on structs.
func question[T any, O interface {
	*T
	Marshal() ([]byte, error)
	Unmarshal([]byte) error
}](answer func(ctx context.Context, q O, options registry.WriteOptions) (O, error)) grpcapi.Answer {
	return func(ctx context.Context, object []byte, options registry.WriteOptions) ([]byte, error) {
		q := O(new(T))
		if err := q.Unmarshal(object); err != nil {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("the object cannot be decoded as protobuf: %v", err))
		}
		out, err := answer(ctx, q, options)
		if err != nil {
			return nil, err
		}
		return out.Marshal()
	}
}
