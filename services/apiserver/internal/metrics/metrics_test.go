package metrics_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kmetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
	"k8s.io/metrics/pkg/client/clientset/versioned"

	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	nodev1 "dhow.dev/gen/go/dhow/node/v1"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/cache"
	"dhow.dev/services/apiserver/internal/metrics"
	"dhow.dev/services/apiserver/internal/request"
)

// objects are those that exist: their UIDs are "uid-of-NAME".
type objects map[string]cache.Labels

func (o objects) Peek(_ *resource.Resource, namespace, name string) *cache.Entry {
	labels, ok := o[namespace+"/"+name]
	if !ok {
		return nil
	}
	return &cache.Entry{Namespace: namespace, Name: name, UID: "uid-of-" + namespace + "-" + name, Labels: labels}
}

func pod(namespace, name, uid string, cpu uint64) *nodev1.PodUsage {
	return nodev1.PodUsage_builder{Namespace: namespace, Name: name, Uid: uid, Containers: []*nodev1.PodUsage_Container{
		nodev1.PodUsage_Container_builder{Name: "c", Usage: nodev1.Usage_builder{CpuNanocores: cpu, MemoryBytes: 3 << 20}.Build()}.Build(),
	}}.Build()
}

// world is a server that Kubernetes' own client of the group asks.
func world(t *testing.T) (*metrics.Server, versioned.Interface) {
	t.Helper()
	s, err := metrics.New(metrics.Config{
		Objects: objects{"/n1": {{Key: "zone", Value: "a"}}, "/n2": nil, "default/web": {{Key: "app", Value: "web"}}, "default/db": nil, "other/web": nil},
		Used: func(context.Context) map[string]*nodev1.NodeUsage {
			at := metav1.Time_builder{Seconds: proto.Int64(1000)}.Build()
			node := nodev1.Usage_builder{CpuNanocores: 1_500_000_000, MemoryBytes: 2 << 30}.Build()
			return map[string]*nodev1.NodeUsage{
				"n2":   nodev1.NodeUsage_builder{Timestamp: at, WindowMilliseconds: 15000, Node: node, Pods: []*nodev1.PodUsage{pod("other", "web", "uid-of-other-web", 7)}}.Build(),
				"gone": nodev1.NodeUsage_builder{Timestamp: at, Node: node}.Build(),
				"n1": nodev1.NodeUsage_builder{Timestamp: at, WindowMilliseconds: 15000, Node: node, Pods: []*nodev1.PodUsage{
					pod("default", "web", "uid-of-default-web", 250_000_000), pod("default", "db", "uid of one before it", 9), pod("default", "gone", "uid-of-default-gone", 9),
				}}.Build(),
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	handlers := s.Handlers()
	door := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, err := request.Parse(r)
		if err != nil {
			t.Error(err)
			return
		}
		handlers[schema.GroupResource{Group: info.Group, Resource: info.Resource}].ServeHTTP(w, r.WithContext(request.NewContext(r.Context(), info)))
	}))
	t.Cleanup(door.Close)
	client, err := versioned.NewForConfig(&rest.Config{Host: door.URL})
	if err != nil {
		t.Fatal(err)
	}
	return s, client
}

func TestNodes(t *testing.T) {
	_, client := world(t)
	list, err := client.MetricsV1beta1().NodeMetricses().List(t.Context(), kmetav1.ListOptions{})
	if err != nil || len(list.Items) != 2 || list.Items[0].Name != "n1" || list.Items[1].Name != "n2" {
		t.Fatalf("%v %v", list, err)
	}
	n := list.Items[0]
	if n.Usage.Cpu().MilliValue() != 1500 || n.Usage.Memory().Value() != 2<<30 || n.Window.Seconds() != 15 || n.Timestamp.Unix() != 1000 || n.Labels["zone"] != "a" {
		t.Errorf("%+v", n)
	}
	if list, err = client.MetricsV1beta1().NodeMetricses().List(t.Context(), kmetav1.ListOptions{LabelSelector: "zone=a"}); err != nil || len(list.Items) != 1 {
		t.Errorf("%v %v", list, err)
	}
	if _, err := client.MetricsV1beta1().NodeMetricses().Get(t.Context(), "gone", kmetav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("%v", err)
	}
	if _, err := client.MetricsV1beta1().NodeMetricses().List(t.Context(), kmetav1.ListOptions{LabelSelector: "in in"}); !apierrors.IsBadRequest(err) {
		t.Errorf("%v", err)
	}
}

func TestPods(t *testing.T) {
	s, client := world(t)
	for namespace, want := range map[string]int{"": 2, "default": 1, "other": 1, "empty": 0} {
		list, err := client.MetricsV1beta1().PodMetricses(namespace).List(t.Context(), kmetav1.ListOptions{})
		if err != nil || len(list.Items) != want {
			t.Errorf("%q: %v %v", namespace, list, err)
		}
	}
	m, err := client.MetricsV1beta1().PodMetricses("default").Get(t.Context(), "web", kmetav1.GetOptions{})
	if err != nil || len(m.Containers) != 1 || m.Containers[0].Usage.Cpu().MilliValue() != 250 || m.Containers[0].Usage.Memory().Value() != 3<<20 {
		t.Errorf("%+v %v", m, err)
	}
	// What was measured of a pod's namesake before it is not the pod's.
	if _, err := client.MetricsV1beta1().PodMetricses("default").Get(t.Context(), "db", kmetav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("%v", err)
	}
	if list, err := client.MetricsV1beta1().PodMetricses("").List(t.Context(), kmetav1.ListOptions{FieldSelector: "metadata.namespace=other"}); err != nil || len(list.Items) != 1 {
		t.Errorf("%v %v", list, err)
	}
	// The gRPC door gets the same, encoded.
	encoded, err := s.PodView().List(t.Context(), "default", "app=web", "")
	if err != nil || len(encoded) != 1 {
		t.Fatalf("%v %v", encoded, err)
	}
	var again metricsv1beta1.PodMetrics
	if err := again.Unmarshal(encoded[0]); err != nil || again.Name != "web" || len(again.Containers) != 1 {
		t.Errorf("%+v %v", again, err)
	}
	if _, err := s.NodeView().Get(t.Context(), "", "n3"); !apierrors.IsNotFound(err) {
		t.Errorf("%v", err)
	}
}
