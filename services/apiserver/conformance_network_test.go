package apiserver_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func (c conformance) serviceTypes(t *testing.T) {
	services := c.client.CoreV1().Services(c.namespace)
	made, err := services.Create(c.ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, Ports: []corev1.ServicePort{{Port: 80}}}}, metav1.CreateOptions{})
	if err != nil || made.Spec.ClusterIP == "" {
		t.Fatalf("%+v, %v", made, err)
	}
	change := func(f func(*corev1.Service)) *corev1.Service {
		t.Helper()
		f(made)
		next, err := services.Update(c.ctx, made, metav1.UpdateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		made = next
		return next
	}
	external := func(s *corev1.Service) {
		s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, "example.com"
	}
	if s := change(external); s.Spec.ClusterIP != "" || len(s.Spec.ClusterIPs) != 0 {
		t.Errorf("from ClusterIP to ExternalName: %+v", s.Spec)
	}
	s := change(func(s *corev1.Service) {
		s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeClusterIP, ""
		s.Spec.Ports = []corev1.ServicePort{{Port: 80, Name: "http", Protocol: corev1.ProtocolTCP}}
	})
	if s.Spec.ClusterIP == "" {
		t.Errorf("from ExternalName to ClusterIP: %+v", s.Spec)
	}
	change(external)
	s = change(func(s *corev1.Service) { s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeNodePort, "" })
	if s.Spec.ClusterIP == "" || s.Spec.Ports[0].NodePort == 0 {
		t.Errorf("from ExternalName to NodePort: %+v", s.Spec)
	}
	port := s.Spec.Ports[0].NodePort
	if s := change(external); s.Spec.ClusterIP != "" || slices.ContainsFunc(s.Spec.Ports, func(p corev1.ServicePort) bool { return p.NodePort != 0 }) {
		t.Errorf("from NodePort to ExternalName: %+v", s.Spec)
	}
	other := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "o"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 80, NodePort: port}}}}
	if _, err := services.Create(c.ctx, other, metav1.CreateOptions{}); err != nil {
		t.Errorf("the node port was not released: %v", err)
	}
}

func (c conformance) serviceStatus(t *testing.T) {
	services := c.client.CoreV1().Services(c.namespace)
	labels := map[string]string{"test-service-static": "true"}
	for _, name := range []string{"a", "b", "c"} {
		service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}}
		if _, err := services.Create(c.ctx, service, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	patched, err := services.Patch(c.ctx, "a", types.MergePatchType, []byte(`{"metadata":{"annotations":{"patchedstatus":"true"}},"status":{"loadBalancer":{"ingress":[{"ip":"203.0.113.1"}]}}}`), metav1.PatchOptions{}, "status")
	if err != nil || len(patched.Status.LoadBalancer.Ingress) != 1 || patched.Annotations["patchedstatus"] != "true" {
		t.Fatalf("%+v, %v", patched, err)
	}
	patched.Status.Conditions = append(patched.Status.Conditions, metav1.Condition{Type: "StatusUpdate", Status: metav1.ConditionTrue, Reason: "E2E", Message: "Set from a test", LastTransitionTime: metav1.Now()})
	if s, err := services.UpdateStatus(c.ctx, patched, metav1.UpdateOptions{}); err != nil || len(s.Status.Conditions) != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := services.Patch(c.ctx, "a", types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"test-service":"patched"}}}`), metav1.PatchOptions{}); err != nil || s.Labels["test-service"] != "patched" || len(s.Status.Conditions) != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	if err := c.client.CoreV1().RESTClient().Delete().Namespace(c.namespace).Resource("services").Param("labelSelector", "test-service-static=true").Do(c.ctx).Error(); err != nil {
		t.Error(err)
	}
	if list, err := services.List(c.ctx, metav1.ListOptions{}); err != nil || len(list.Items) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}

func (c conformance) leases(t *testing.T) {
	leases := c.client.CoordinationV1().Leases(c.namespace)
	holder, seconds, transitions := "holder", int32(30), int32(0)
	at := metav1.NewMicroTime(time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC))
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "lease"}, Spec: coordinationv1.LeaseSpec{
		HolderIdentity: &holder, LeaseDurationSeconds: &seconds, AcquireTime: &at, RenewTime: &at, LeaseTransitions: &transitions,
	}}
	if _, err := leases.Create(c.ctx, lease, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	same := func(want coordinationv1.LeaseSpec) *coordinationv1.Lease {
		t.Helper()
		got, err := leases.Get(c.ctx, "lease", metav1.GetOptions{})
		if err != nil || !apiequality.Semantic.DeepEqual(got.Spec, want) {
			t.Fatalf("%+v, %v, want %+v", got, err, want)
		}
		return got
	}
	got := same(lease.Spec)
	other := "other"
	got.Spec.HolderIdentity = &other
	if _, err := leases.Update(c.ctx, got, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	same(got.Spec)
	if _, err := leases.Patch(c.ctx, "lease", types.StrategicMergePatchType, []byte(`{"spec":{"leaseDurationSeconds":60}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	minute := int32(60)
	got.Spec.LeaseDurationSeconds = &minute
	same(got.Spec)
	if _, err := leases.Create(c.ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "lease2", Labels: map[string]string{"deletecollection": "true"}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := leases.DeleteCollection(c.ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "deletecollection=true"}); err != nil {
		t.Fatal(err)
	}
	if list, err := leases.List(c.ctx, metav1.ListOptions{}); err != nil || len(list.Items) != 1 {
		t.Errorf("%v, %v", list, err)
	}
}

func (c conformance) events(t *testing.T) {
	api := c.client.EventsV1().Events(c.namespace)
	event := &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: "event-test", Labels: map[string]string{"testevent-constant": "true"}},
		Regarding:  corev1.ObjectReference{Namespace: c.namespace, Kind: "Pod", Name: "x"}, EventTime: metav1.NewMicroTime(time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)),
		Note: "This is event-test", Action: "Do", Reason: "Test", Type: "Normal", ReportingController: "test-controller", ReportingInstance: "test-node",
	}
	if _, err := api.Create(c.ctx, event, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if list, err := c.client.EventsV1().Events("").List(c.ctx, metav1.ListOptions{LabelSelector: "testevent-constant=true"}); err != nil || len(list.Items) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := api.Patch(c.ctx, event.Name, types.StrategicMergePatchType, []byte(`{"series":{"count":2,"lastObservedTime":"2017-09-19T13:49:11.000000Z"}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	got, err := api.Get(c.ctx, event.Name, metav1.GetOptions{})
	if err != nil || got.Series == nil || got.Series.Count != 2 {
		t.Fatalf("%+v, %v", got, err)
	}
	got.Series = &eventsv1.EventSeries{Count: 100, LastObservedTime: metav1.NewMicroTime(time.Unix(1505828956, 0))}
	if _, err := api.Update(c.ctx, got, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if now, err := api.Get(c.ctx, event.Name, metav1.GetOptions{}); err != nil || now.Series == nil || now.Series.Count != 100 || !now.Series.LastObservedTime.Equal(&got.Series.LastObservedTime) {
		t.Errorf("%+v, %v", now, err)
	}
	older := c.client.CoreV1().Events(c.namespace)
	core, err := older.Create(c.ctx, &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: "core", Labels: map[string]string{"testevent-set": "true"}}, Message: "This is a test event", Reason: "Test", Type: "Normal", Count: 1,
		InvolvedObject: corev1.ObjectReference{Namespace: c.namespace},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	core.Series = &corev1.EventSeries{Count: 100, LastObservedTime: metav1.NewMicroTime(time.Unix(1505828956, 0))}
	if core, err = older.Update(c.ctx, core, metav1.UpdateOptions{}); err != nil || core.Series.Count != 100 {
		t.Errorf("%+v, %v", core, err)
	}
	if err := api.Delete(c.ctx, event.Name, metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
	if err := older.DeleteCollection(c.ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "testevent-set=true"}); err != nil {
		t.Error(err)
	}
	if list, err := older.List(c.ctx, metav1.ListOptions{}); err != nil || len(list.Items) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}

func (c conformance) endpoints(t *testing.T) {
	api := c.client.CoreV1().Endpoints(c.namespace)
	made, err := api.Create(c.ctx, &corev1.Endpoints{ //nolint:staticcheck // what the suite asks for
		ObjectMeta: metav1.ObjectMeta{Name: "testservice", Labels: map[string]string{"test-endpoint-static": "true"}},
		Subsets:    []corev1.EndpointSubset{{Addresses: []corev1.EndpointAddress{{IP: "10.0.0.24"}}, Ports: []corev1.EndpointPort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}}}, //nolint:staticcheck // as above
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	made.Labels["test-service"] = "updated"
	if _, err := api.Update(c.ctx, made, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	patched, err := api.Patch(c.ctx, "testservice", types.StrategicMergePatchType,
		[]byte(`{"metadata":{"labels":{"test-service":"patched"}},"subsets":[{"addresses":[{"ip":"10.0.0.25"}],"ports":[{"name":"http-test","port":8080}]}]}`), metav1.PatchOptions{})
	if err != nil || patched.Labels["test-service"] != "patched" || len(patched.Subsets) != 1 || patched.Subsets[0].Addresses[0].IP != "10.0.0.25" || patched.Subsets[0].Ports[0].Port != 8080 {
		t.Errorf("%+v, %v", patched, err)
	}
	if err := api.DeleteCollection(c.ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "test-endpoint-static=true"}); err != nil {
		t.Error(err)
	}
	if _, err := api.Get(c.ctx, "testservice", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Error(err)
	}
}

// eventSelectors: each of the two groups selects by its own names for the same fields, in lists, watches and deletions.
func (c conformance) eventSelectors(t *testing.T) {
	core, grouped := c.client.CoreV1().Events(c.namespace), c.client.EventsV1().Events(c.namespace)
	for _, name := range []string{"a", "b"} {
		if _, err := core.Create(c.ctx, &corev1.Event{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Reason: "R" + name, Type: "Normal", ReportingController: "c-" + name, ReportingInstance: "i", Source: corev1.EventSource{Component: "s-" + name},
			InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: c.namespace, Name: name, UID: types.UID("u-" + name), APIVersion: "v1", ResourceVersion: "1" + name, FieldPath: "f-" + name},
		}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	only := func(what string, names []string, err error) {
		t.Helper()
		if err != nil || !slices.Equal(names, []string{"a"}) {
			t.Errorf("%s: %v, %v", what, names, err)
		}
	}
	for _, selector := range []string{"name=a", "uid=u-a", "resourceVersion=1a", "fieldPath=f-a", "kind=Pod,%sname=a", "namespace=" + c.namespace + ",%sname!=b", "apiVersion=v1,%suid=u-a"} {
		var names []string
		list, err := core.List(c.ctx, metav1.ListOptions{FieldSelector: "involvedObject." + strings.ReplaceAll(selector, "%s", "involvedObject.")})
		if err == nil {
			for _, e := range list.Items {
				names = append(names, e.Name)
			}
		}
		only("involvedObject."+selector, names, err)
		names = nil
		others, err := grouped.List(c.ctx, metav1.ListOptions{FieldSelector: "regarding." + strings.ReplaceAll(selector, "%s", "regarding.")})
		if err == nil {
			for _, e := range others.Items {
				names = append(names, e.Name)
			}
		}
		only("regarding."+selector, names, err)
	}
	for _, selector := range []string{"reason=Ra", "type=Normal,reason!=Rb", "reportingController=c-a", "metadata.name=a"} {
		events, err := grouped.Watch(c.ctx, metav1.ListOptions{FieldSelector: selector})
		if err != nil {
			t.Errorf("%s: %v", selector, err)
			continue
		}
		e := <-events.ResultChan()
		events.Stop()
		if event, ok := e.Object.(*eventsv1.Event); !ok || event.Name != "a" {
			t.Errorf("watch of %s: %+v", selector, e)
		}
	}
	for _, selector := range []string{"reason=Ra", "type=Normal,source=s-a", "reportingComponent=c-a"} {
		list, err := core.List(c.ctx, metav1.ListOptions{FieldSelector: selector})
		if err != nil || len(list.Items) != 1 || list.Items[0].Name != "a" {
			t.Errorf("%s: %v, %v", selector, list, err)
		}
	}
	for _, selector := range []string{"involvedObject.name=a", "source=s-a"} {
		if _, err := grouped.List(c.ctx, metav1.ListOptions{FieldSelector: selector}); !apierrors.IsBadRequest(err) {
			t.Errorf("%s in events.k8s.io: %v, want BadRequest", selector, err)
		}
	}
	if err := grouped.DeleteCollection(c.ctx, metav1.DeleteOptions{}, metav1.ListOptions{FieldSelector: "regarding.name=a"}); err != nil {
		t.Error(err)
	}
	if list, err := core.List(c.ctx, metav1.ListOptions{}); err != nil || len(list.Items) != 1 || list.Items[0].Name != "b" {
		t.Errorf("after the deletion: %v, %v", list, err)
	}
}
