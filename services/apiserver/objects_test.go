package apiserver_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	clusterv1 "dhow.dev/gen/go/dhow/cluster/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	schedulerv1 "dhow.dev/gen/go/dhow/scheduler/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/apiserver"
)

func configMap(namespace, name string, data map[string]string) *corev1.ConfigMap {
	return corev1.ConfigMap_builder{Metadata: metav1.ObjectMeta_builder{Namespace: &namespace, Name: &name}.Build(), Data: data}.Build()
}

func encode(t *testing.T, m proto.Message) []byte {
	t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestSystemObjects(t *testing.T) {
	c := newClusterWith(t, func(c *apiserver.Config) { c.AdvertiseAddress = "192.0.2.7:6443" })
	conn := c.admin()
	for _, name := range []string{"default", "kube-system", "kube-public", "kube-node-lease"} {
		n, err := client.For[*corev1.Namespace](conn).Get(within(t), "", name)
		if err != nil || n.GetStatus().GetPhase() != "Active" {
			t.Errorf("namespace %s: %v, %v", name, n.GetStatus(), err)
		}
	}
	services := client.For[*corev1.Service](conn)
	if s, err := services.Get(within(t), "default", "kubernetes"); err != nil || s.GetSpec().GetClusterIp() != "10.96.0.1" {
		t.Errorf("service kubernetes: %v, %v", s.GetSpec(), err)
	}
	if s, err := services.Get(within(t), "kube-system", "kube-dns"); err != nil || s.GetSpec().GetClusterIp() != "10.96.0.10" {
		t.Errorf("service kube-dns: %v, %v", s.GetSpec(), err)
	}
	watch, err := client.For[*corev1.Endpoints](conn).Watch(within(t), metav1.WatchRequest_builder{Namespace: "default"}.Build())
	if err != nil {
		t.Fatal(err)
	}
	for found := false; !found; {
		batch, err := watch.Next()
		if err != nil {
			t.Fatal(err)
		}
		for _, change := range batch.Changes {
			s := change.Object.GetSubsets()
			found = len(s) == 1 && s[0].GetAddresses()[0].GetIp() == "192.0.2.7" && s[0].GetPorts()[0].GetPort() == 6443
		}
	}
}

func TestCommitWritesAllOrNothing(t *testing.T) {
	c := newCluster(t)
	conn := c.admin()
	create := func(resource string, o proto.Message) *clusterv1.Operation {
		return clusterv1.Operation_builder{Resource: resource, Create: metav1.ObjectWriteRequest_builder{Object: encode(t, o)}.Build()}.Build()
	}
	shop := corev1.Namespace_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String("shop")}.Build()}.Build()
	objects := clusterv1.NewObjectsClient(conn)
	_, err := objects.Commit(within(t), clusterv1.CommitRequest_builder{Operations: []*clusterv1.Operation{
		create("namespaces", shop), create("configmaps", configMap("shop", "Not A Name", nil)),
	}}.Build())
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "operations[1]") {
		t.Errorf("%v, want InvalidArgument about operations[1]", err)
	}
	if _, err := client.For[*corev1.Namespace](conn).Get(within(t), "", "shop"); !apierrors.IsNotFound(err) {
		t.Errorf("after a failed commit: %v, want NotFound", err)
	}
	answer, err := objects.Commit(within(t), clusterv1.CommitRequest_builder{Operations: []*clusterv1.Operation{
		create("namespaces", shop), create("configmaps", configMap("shop", "a", map[string]string{"k": "v"})),
	}}.Build())
	if err != nil {
		t.Fatal(err)
	}
	got := &corev1.ConfigMap{}
	if err := proto.Unmarshal(answer.GetResults()[1].GetObject(), got); err != nil || object.Revision(got)>>10 != answer.GetRevision()>>10 {
		t.Errorf("result at %d of commit %d, %v", object.Revision(got), answer.GetRevision(), err)
	}
}

func TestWarningsTravelAsHeaders(t *testing.T) {
	c := newCluster(t)
	conn := c.admin()
	maps := client.For[*corev1.ConfigMap](conn)
	if _, err := maps.Create(within(t), configMap("default", "m", nil), nil); err != nil {
		t.Fatal(err)
	}
	var header metadata.MD
	patch := metav1.PatchRequest_builder{
		Namespace: "default", Name: "m", Type: metav1.PatchType_PATCH_TYPE_MERGE, Patch: []byte(`{"colour":"red","data":{"a":"b"}}`),
		Options: metav1.WriteOptions_builder{FieldValidation: metav1.FieldValidation_FIELD_VALIDATION_WARN}.Build(),
	}.Build()
	if _, err := maps.Patch(within(t), patch, grpc.Header(&header)); err != nil {
		t.Fatal(err)
	}
	if warnings := client.Warnings(header); len(warnings) != 1 || !strings.Contains(warnings[0], "colour") {
		t.Errorf("warnings %q, want one about the unknown field", warnings)
	}
}

func TestReadsAtRevisions(t *testing.T) {
	c := newCluster(t)
	conn := c.admin()
	created, err := client.For[*corev1.ConfigMap](conn).Create(within(t), configMap("default", "m", nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	maps := corev1.NewConfigMapsClient(conn)
	revision := object.Revision(created)
	if got, err := maps.Get(within(t), metav1.GetRequest_builder{Namespace: "default", Name: "m", MinRevision: &revision}.Build()); err != nil || object.Revision(got) != revision {
		t.Errorf("at least %d: %v, %v", revision, got, err)
	}
	if _, err := maps.Get(within(t), metav1.GetRequest_builder{Namespace: "default", Name: "m", MinRevision: proto.Int64(0)}.Build()); err != nil {
		t.Errorf("as cached: %v", err)
	}
	stream, err := maps.List(within(t), metav1.ListRequest_builder{Namespace: "default", FieldSelector: "data.a=b"}.Build())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "field label not supported: data.a") {
		t.Errorf("unknown field: %v", err)
	}
}

// TestInformersFollow runs the informer, which everything else reads through, over a restart of the API server.
func TestInformersFollow(t *testing.T) {
	c := &cluster{t: t, memory: transport.NewMemory(), keys: t.TempDir() + "/keys"}
	c.startStore()
	stop := c.serve("apiserver", nil)
	ctx, cancel := context.WithCancel(context.Background())
	inf := informer.New(c.admin(), slog.New(slog.DiscardHandler))
	maps := informer.Add(inf, informer.Options[*corev1.ConfigMap]{Namespace: "default"})
	namespaces := informer.Add(inf, informer.Options[*corev1.Namespace]{})
	ended := make(chan error, 1)
	go func() { ended <- inf.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	if err := inf.WaitForSync(within(t)); err != nil {
		t.Fatal(err)
	}
	if namespaces.Len() < 4 {
		t.Errorf("%d namespaces", namespaces.Len())
	}
	for i := range 3 {
		created, err := client.For[*corev1.ConfigMap](c.admin()).Create(within(t), configMap("default", fmt.Sprintf("m%d", i), nil), nil)
		if err != nil {
			t.Fatal(err)
		}
		// Another kind's commit: the revision reaches the informer by a progress mark.
		marker, err := client.For[*corev1.ConfigMap](c.admin()).Create(within(t), configMap("kube-system", fmt.Sprintf("m%d", i), nil), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := inf.WaitForRevision(within(t), object.Revision(marker)); err != nil {
			t.Fatal(err)
		}
		if got, ok := maps.Get("default", fmt.Sprintf("m%d", i)); !ok || object.Revision(got) != object.Revision(created) {
			t.Errorf("m%d: %v", i, got)
		}
		stop()
		stop = c.serve("apiserver", nil)
	}
}

// TestANodeSeesItsOwn: what a node may read is a matter of what it selects.
func TestANodeSeesItsOwn(t *testing.T) {
	c := newCluster(t)
	node := client.For[*corev1.Pod](c.dial("apiserver", identity.Node("n1")))
	if _, err := node.List(within(t), metav1.ListRequest_builder{FieldSelector: "spec.nodeName=n1"}.Build()); err != nil {
		t.Errorf("its own pods: %v", err)
	}
	for _, selector := range []string{"", "spec.nodeName=n2", "spec.nodeName!=n1"} {
		if _, err := node.List(within(t), metav1.ListRequest_builder{FieldSelector: selector}.Build()); !apierrors.IsForbidden(err) {
			t.Errorf("%q: %v, want Forbidden", selector, err)
		}
	}
}

// explainer answers for the scheduler.
type explainer struct {
	schedulerv1.UnimplementedSchedulerServer
}

func (explainer) Explain(q *schedulerv1.ExplainRequest, stream grpc.ServerStreamingServer[schedulerv1.ExplainResponse]) error {
	for _, summary := range []string{"first", "second"} {
		if err := stream.Send(schedulerv1.ExplainResponse_builder{Summary: q.GetName() + " " + summary}.Build()); err != nil {
			return err
		}
	}
	return status.Error(codes.NotFound, "pod gone")
}

func TestStatusAndExplain(t *testing.T) {
	c := newCluster(t)
	listener := c.memory.Listen("scheduler")
	c.start("scheduler", func(ctx context.Context) error {
		server := transport.NewServer(transport.ServerConfig{Credentials: c.memory.ServerCredentials()})
		schedulerv1.RegisterSchedulerServer(server, explainer{})
		return transport.Serve(ctx, server, listener)
	})
	c.serve("apiserver-2", func(config *apiserver.Config) {
		config.Scheduler = c.dial("scheduler", identity.Identity{Name: identity.APIServer})
		config.ControllerManager = c.refusing()
	})
	conn := c.dial("apiserver-2", identity.Identity{Name: identity.Admin, Groups: []string{identity.Masters}})
	answer, err := clusterv1.NewClusterClient(conn).Status(within(t), &clusterv1.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	health := map[string]bool{}
	for _, component := range answer.GetComponents() {
		health[component.GetName()] = component.GetHealthy()
		if !component.GetHealthy() && component.GetMessage() == "" {
			t.Errorf("%s is unhealthy and does not say why", component.GetName())
		}
	}
	if want := "map[apiserver:true controller-manager:false scheduler:true store:true]"; fmt.Sprint(health) != want {
		t.Errorf("health %v, want %s", health, want)
	}
	stream, err := schedulerv1.NewSchedulerClient(conn).Explain(within(t), schedulerv1.ExplainRequest_builder{Name: "p"}.Build())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"p first", "p second"} {
		if got, err := stream.Recv(); err != nil || got.GetSummary() != want {
			t.Errorf("%v, %v, want %q", got, err, want)
		}
	}
	if _, err := stream.Recv(); status.Code(err) != codes.NotFound {
		t.Errorf("the scheduler's error: %v", err)
	}
	alone, err := schedulerv1.NewSchedulerClient(c.admin()).Explain(within(t), schedulerv1.ExplainRequest_builder{Name: "p"}.Build())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := alone.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("without a scheduler: %v, want Unavailable", err)
	}
}

// refusing is a connection to a service whose listener is closed.
func (c *cluster) refusing() *grpc.ClientConn {
	c.t.Helper()
	var listener net.Listener = c.memory.Listen("nothing")
	listener.Close()
	return c.dial("nothing", identity.Identity{Name: identity.APIServer})
}

// TestSecretsAreSealed: the store never sees a Secret's content, and every API server with the key file does.
func TestSecretsAreSealed(t *testing.T) {
	c := newCluster(t)
	secret := corev1.Secret_builder{
		Metadata: metav1.ObjectMeta_builder{Namespace: proto.String("default"), Name: proto.String("s")}.Build(), Data: map[string][]byte{"password": []byte("hunter2-hunter2")},
	}.Build()
	if _, err := client.For[*corev1.Secret](c.admin()).Create(within(t), secret, nil); err != nil {
		t.Fatal(err)
	}
	for key, entry := range c.entries("/registry/core/secrets/") {
		if strings.Contains(string(entry.GetValue()), "hunter2") {
			t.Errorf("%s is stored in the clear", key)
		}
	}
	c.serve("apiserver-2", nil)
	got, err := client.For[*corev1.Secret](c.dial("apiserver-2", identity.Identity{Name: identity.Admin, Groups: []string{identity.Masters}})).Get(within(t), "default", "s")
	if err != nil || string(got.GetData()["password"]) != "hunter2-hunter2" {
		t.Errorf("%v, %v", got, err)
	}
}
