package apiserver_test

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/rest"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/services/apiserver"
)

// cuttable is a connection whose questions for the revision fail once it is cut.
type cuttable struct {
	grpc.ClientConnInterface
	cut chan struct{}
}

func (c cuttable) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	select {
	case <-c.cut:
		if method == storev1.Store_Revision_FullMethodName {
			return status.Error(codes.Unavailable, "cut off")
		}
	default:
	}
	return c.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
}

// TestReadiness: /readyz says what is missing, such as a store that does not answer; /livez is well all the time.
func TestReadiness(t *testing.T) {
	k := newKubernetesCluster(t)
	store := cuttable{cut: make(chan struct{})}
	root, ready := k.root, telemetry.NewReadiness()
	k.serve("apiserver-2", func(c *apiserver.Config) {
		c.Ready = ready
		root = k.door(t, c)
		store.ClientConnInterface = c.Store
		c.Store = store
	})
	client, err := rest.HTTPClientFor(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []exchange{
		{method: "GET", path: "/readyz?verbose", code: 200, contains: []string{"[+]store ok", "[+]cache ok", "[+]bootstrap ok", "[+]shutdown ok", "readyz check passed"}},
		{method: "GET", path: "/readyz/store", code: 200, contains: []string{"ok"}},
		{method: "GET", path: "/healthz", code: 200, contains: []string{"ok"}},
		{method: "GET", path: "/metrics", code: 200, contains: []string{"go_goroutines"}},
	} {
		x.run(t, client, root.Host)
	}
	if err := ready.Check(t.Context()); err != nil {
		t.Errorf("beside the door: %v", err)
	}
	close(store.cut)
	if err := ready.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "store: ") || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("beside the door: %v", err)
	}
	for _, x := range []exchange{
		{method: "GET", path: "/readyz", code: 500, contains: []string{"[-]store failed: reason withheld", "[+]cache ok"}},
		{method: "GET", path: "/readyz/store", code: 500, contains: []string{"cut off"}},
		{method: "GET", path: "/readyz?exclude=store", code: 200},
		{method: "GET", path: "/livez", code: 200},
	} {
		x.run(t, client, root.Host)
	}
}
