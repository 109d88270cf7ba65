package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	authenticationv1 "dhow.dev/gen/go/dhow/authentication/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	metricsv1beta1 "dhow.dev/gen/go/dhow/metrics/v1beta1"
	policyv1 "dhow.dev/gen/go/dhow/policy/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/apiserver/internal/authorizer"
	"dhow.dev/services/apiserver/internal/registry"
)

// notes is an authorizer that allows everything and notes what it was asked.
type notes struct {
	mu    sync.Mutex
	asked []string
}

func (n *notes) Authorize(_ context.Context, a authorizer.Attributes) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked = append(n.asked, fmt.Sprintf("%s %s/%s/%s %s/%s", a.Verb, a.Group, a.Resource, a.Subresource, a.Namespace, a.Name))
	return nil
}

// last returns what was asked last.
func (n *notes) last() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.asked[len(n.asked)-1]
}

// views answers with pods of these names.
type views []string

func (v views) object(name string) []byte {
	data, err := proto.Marshal(metricsv1beta1.PodMetrics_builder{Metadata: metav1.ObjectMeta_builder{Name: &name}.Build()}.Build())
	if err != nil {
		panic(err)
	}
	return data
}

func (v views) Get(_ context.Context, namespace, name string) ([]byte, error) {
	if namespace != "shop" {
		return nil, apierrors.NewNotFound(pods.GroupResource(), name)
	}
	return v.object(name), nil
}

func (v views) List(context.Context, string, string, string) ([][]byte, error) {
	var all [][]byte
	for _, name := range v {
		all = append(all, v.object(name))
	}
	return all, nil
}

// dial serves an API in memory and connects to it.
func dial(t *testing.T, config Config) *grpc.ClientConn {
	t.Helper()
	memory := transport.NewMemory()
	listener := memory.Listen("api")
	api := New(config)
	server := transport.NewServer(transport.ServerConfig{Credentials: memory.ServerCredentials(), Logger: slog.New(slog.DiscardHandler), Interceptors: []transport.Interceptor{api.Interceptor()}})
	api.Register(server)
	ctx, stop := context.WithCancel(context.Background())
	var served sync.WaitGroup
	served.Go(func() {
		if err := transport.Serve(ctx, server, listener); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	conn, err := memory.Dial("api", identity.Identity{Name: "ann"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		stop()
		served.Wait()
	})
	return conn
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// TestVirtualKinds drives the services of kinds that are not stored: who is asked for the right, who answers, and what is said where nobody does.
func TestVirtualKinds(t *testing.T) {
	asked := &notes{}
	reviews := resource.For[*authenticationv1.TokenReview]()
	evictions := resource.For[*policyv1.Eviction]()
	conn := dial(t, Config{
		Authorizer: asked,
		Virtual: map[*resource.Resource]Answer{
			reviews: func(ctx context.Context, object []byte, _ registry.WriteOptions) ([]byte, error) {
				var review authenticationv1.TokenReview
				if err := proto.Unmarshal(object, &review); err != nil {
					return nil, err
				}
				caller, _ := identity.FromContext(ctx)
				review.SetStatus(authenticationv1.TokenReviewStatus_builder{
					Authenticated: proto.Bool(true), User: authenticationv1.UserInfo_builder{Username: proto.String(caller.Name + ":" + review.GetSpec().GetToken())}.Build(),
				}.Build())
				return proto.Marshal(&review)
			},
			evictions: func(_ context.Context, object []byte, options registry.WriteOptions) ([]byte, error) {
				if !options.DryRun {
					return nil, apierrors.NewTooManyRequests("the budget forbids it", 10)
				}
				return object, nil
			},
		},
		Views: map[*resource.Resource]View{resource.For[*metricsv1beta1.PodMetrics](): views{"a", "b", "c"}},
	})

	review := authenticationv1.TokenReview_builder{Spec: authenticationv1.TokenReviewSpec_builder{Token: proto.String("x")}.Build()}.Build()
	answer, err := client.For[*authenticationv1.TokenReview](conn).Create(within(t), review, nil)
	if err != nil || answer.GetStatus().GetUser().GetUsername() != "ann:x" || asked.last() != "create authentication.k8s.io/tokenreviews/ /" {
		t.Errorf("%v, %v, asked %q", answer, err, asked.last())
	}
	web := metav1.ObjectMeta_builder{Namespace: proto.String("shop"), Name: proto.String("web")}.Build()
	eviction := policyv1.EvictionWriteRequest_builder{Object: policyv1.Eviction_builder{Metadata: web}.Build()}.Build()
	if _, err := policyv1.NewEvictionsClient(conn).Create(within(t), eviction); status.Code(err) != codes.ResourceExhausted || asked.last() != "create /pods/eviction shop/web" {
		t.Errorf("%v, asked %q", err, asked.last())
	}
	eviction.SetOptions(metav1.WriteOptions_builder{DryRun: true}.Build())
	if o, err := policyv1.NewEvictionsClient(conn).Create(within(t), eviction); err != nil || o.GetMetadata().GetName() != "web" {
		t.Errorf("%v, %v", o, err)
	}
	binding := corev1.BindingWriteRequest_builder{Object: corev1.Binding_builder{Metadata: web}.Build()}.Build()
	if _, err := corev1.NewBindingsClient(conn).Create(within(t), binding); err == nil || asked.last() != "create /pods/binding shop/web" {
		t.Errorf("nobody answers: %v, asked %q", err, asked.last())
	}

	usage := client.For[*metricsv1beta1.PodMetrics](conn)
	if list, err := usage.List(within(t), metav1.ListRequest_builder{Namespace: "shop"}.Build()); err != nil || len(list.Items) != 3 || list.Items[2].GetMetadata().GetName() != "c" {
		t.Errorf("%v, %v", list, err)
	}
	if asked.last() != "list metrics.k8s.io/pods/ shop/" {
		t.Errorf("asked %q", asked.last())
	}
	if o, err := usage.Get(within(t), "shop", "a"); err != nil || o.GetMetadata().GetName() != "a" {
		t.Errorf("%v, %v", o, err)
	}
	if _, err := usage.Get(within(t), "other", "a"); !apierrors.IsNotFound(err) {
		t.Errorf("%v, want NotFound", err)
	}
	if _, err := client.For[*metricsv1beta1.NodeMetrics](conn).Get(within(t), "", "n"); !apierrors.IsMethodNotSupported(err) {
		t.Errorf("nobody answers: %v, want MethodNotAllowed", err)
	}
}
