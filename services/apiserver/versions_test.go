package apiserver_test

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	authenticationv1 "dhow.dev/gen/go/dhow/authentication/v1"
	autoscalingv1 "dhow.dev/gen/go/dhow/autoscaling/v1"
	autoscalingv2 "dhow.dev/gen/go/dhow/autoscaling/v2"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	eventsv1 "dhow.dev/gen/go/dhow/events/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/object"
)

const metricsAnnotation = "autoscaling.alpha.kubernetes.io/metrics"

func named(name string, labels map[string]string) *metav1.ObjectMeta {
	return metav1.ObjectMeta_builder{Namespace: proto.String("default"), Name: &name, Labels: labels}.Build()
}

func merge(name, patch string) *metav1.PatchRequest {
	return metav1.PatchRequest_builder{Namespace: "default", Name: name, Type: metav1.PatchType_PATCH_TYPE_MERGE, Patch: []byte(patch)}.Build()
}

// TestTwoVersionsOfOneObject writes and reads autoscalers through both of their versions.
func TestTwoVersionsOfOneObject(t *testing.T) {
	c := newCluster(t)
	conn := c.admin()
	old, current := client.For[*autoscalingv1.HorizontalPodAutoscaler](conn), client.For[*autoscalingv2.HorizontalPodAutoscaler](conn)
	watch, err := old.Watch(within(t), metav1.WatchRequest_builder{Namespace: "default"}.Build())
	if err != nil {
		t.Fatal(err)
	}
	for synced := false; !synced; {
		batch, err := watch.Next()
		if err != nil {
			t.Fatal(err)
		}
		synced = batch.Synced
	}
	next := func(want metav1.EventType) *autoscalingv1.HorizontalPodAutoscaler {
		t.Helper()
		for {
			batch, err := watch.Next()
			if err != nil {
				t.Fatal(err)
			}
			if len(batch.Changes) > 0 {
				if batch.Changes[0].Type != want || len(batch.Changes) != 1 {
					t.Fatalf("%d changes, the first %v, want one %v", len(batch.Changes), batch.Changes[0].Type, want)
				}
				return batch.Changes[0].Object
			}
		}
	}

	created, err := old.Create(within(t), autoscalingv1.HorizontalPodAutoscaler_builder{
		Metadata: named("web", nil),
		Spec: autoscalingv1.HorizontalPodAutoscalerSpec_builder{
			ScaleTargetRef: autoscalingv1.CrossVersionObjectReference_builder{Kind: proto.String("Deployment"), Name: proto.String("web"), ApiVersion: proto.String("apps/v1")}.Build(),
			MaxReplicas:    proto.Int32(5), TargetCpuUtilizationPercentage: proto.Int32(55),
		}.Build(),
	}.Build(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if created.GetSpec().GetMinReplicas() != 1 {
		t.Errorf("min replicas %d: not defaulted as what is stored", created.GetSpec().GetMinReplicas())
	}
	if o := next(metav1.EventType_EVENT_TYPE_ADDED); !proto.Equal(o, created) {
		t.Errorf("watched %v, want %v", o, created)
	}
	now, err := current.Get(within(t), "default", "web")
	if err != nil {
		t.Fatal(err)
	}
	if m := now.GetSpec().GetMetrics(); len(m) != 1 || m[0].GetResource().GetTarget().GetAverageUtilization() != 55 || object.Revision(now) != object.Revision(created) {
		t.Errorf("in v2: %v at %d, created at %d", m, object.Revision(now), object.Revision(created))
	}

	// What v1 has no field for is kept when a client of v1 changes something else.
	spec := now.GetSpec()
	spec.SetMetrics(append(spec.GetMetrics(), autoscalingv2.MetricSpec_builder{
		Type: proto.String("Resource"), Resource: autoscalingv2.ResourceMetricSource_builder{Name: proto.String("memory"), Target: autoscalingv2.MetricTarget_builder{
			Type: proto.String("Utilization"), AverageUtilization: proto.Int32(70),
		}.Build()}.Build(),
	}.Build()))
	if _, err := current.Update(within(t), now, nil); err != nil {
		t.Fatal(err)
	}
	changed := next(metav1.EventType_EVENT_TYPE_MODIFIED)
	if a := changed.GetMetadata().GetAnnotations()[metricsAnnotation]; !strings.Contains(a, `"memory"`) || changed.GetSpec().GetTargetCpuUtilizationPercentage() != 55 {
		t.Errorf("in v1: %v", changed)
	}
	patched, err := old.Patch(within(t), merge("web", `{"spec":{"maxReplicas":9}}`))
	if err != nil {
		t.Fatal(err)
	}
	next(metav1.EventType_EVENT_TYPE_MODIFIED)
	if patched.GetSpec().GetMaxReplicas() != 9 {
		t.Errorf("patched: %v", patched.GetSpec())
	}
	changed.GetSpec().SetMinReplicas(2)
	if _, err := old.Update(within(t), changed, nil); !apierrors.IsConflict(err) {
		t.Errorf("update of an old version: %v, want Conflict", err)
	}
	patched.GetSpec().SetMinReplicas(2)
	if _, err := old.Update(within(t), patched, nil); err != nil {
		t.Fatal(err)
	}
	next(metav1.EventType_EVENT_TYPE_MODIFIED)
	now, err = current.Get(within(t), "default", "web")
	if err != nil {
		t.Fatal(err)
	}
	metrics := now.GetSpec().GetMetrics()
	slices.SortFunc(metrics, func(a, b *autoscalingv2.MetricSpec) int {
		return strings.Compare(a.GetResource().GetName(), b.GetResource().GetName())
	})
	if len(metrics) != 2 || metrics[1].GetResource().GetTarget().GetAverageUtilization() != 70 || now.GetSpec().GetMinReplicas() != 2 || now.GetSpec().GetMaxReplicas() != 9 ||
		len(now.GetMetadata().GetAnnotations()) != 0 {
		t.Errorf("in v2: %v", now)
	}
	if _, err := old.Create(within(t), created, nil); err == nil {
		t.Error("a second autoscaler of one name")
	}
	deleted, err := old.Delete(within(t), "default", "web", nil)
	if err != nil || deleted.GetSpec().GetMaxReplicas() != 9 {
		t.Errorf("deleted: %v, %v", deleted, err)
	}
	if o := next(metav1.EventType_EVENT_TYPE_DELETED); o.GetSpec().GetMaxReplicas() != 9 {
		t.Errorf("DELETED: %v", o)
	}
	if _, err := current.Get(within(t), "default", "web"); !apierrors.IsNotFound(err) {
		t.Errorf("in v2 after its deletion in v1: %v, want NotFound", err)
	}
}

// TestManagersOfTwoVersions lets two managers apply one autoscaler, each in another version.
func TestManagersOfTwoVersions(t *testing.T) {
	c := newCluster(t)
	conn := c.admin()
	old, current := client.For[*autoscalingv1.HorizontalPodAutoscaler](conn), client.For[*autoscalingv2.HorizontalPodAutoscaler](conn)
	target := &autoscalingv1.CrossVersionObjectReference{}
	target.SetKind("Deployment")
	target.SetName("web")
	config := func(replicas int32) *autoscalingv1.HorizontalPodAutoscaler {
		return autoscalingv1.HorizontalPodAutoscaler_builder{
			Metadata: named("web", nil), Spec: autoscalingv1.HorizontalPodAutoscalerSpec_builder{ScaleTargetRef: target, MaxReplicas: &replicas}.Build(),
		}.Build()
	}
	by := func(manager string, force bool) *metav1.WriteOptions {
		return metav1.WriteOptions_builder{FieldManager: manager, Force: force}.Build()
	}
	if _, err := old.Apply(within(t), config(5), by("ann", false)); err != nil {
		t.Fatal(err)
	}
	bobs := autoscalingv2.HorizontalPodAutoscaler_builder{
		Metadata: named("web", map[string]string{"team": "b"}), Spec: autoscalingv2.HorizontalPodAutoscalerSpec_builder{MinReplicas: proto.Int32(2)}.Build(),
	}.Build()
	both, err := current.Apply(within(t), bobs, by("bob", false))
	if err != nil {
		t.Fatal(err)
	}
	if both.GetSpec().GetMaxReplicas() != 5 || both.GetSpec().GetMinReplicas() != 2 {
		t.Errorf("both: %v", both.GetSpec())
	}
	versions := map[string]string{}
	for _, entry := range both.GetMetadata().GetManagedFields() {
		versions[entry.GetManager()] = entry.GetApiVersion()
	}
	if versions["ann"] != "autoscaling/v1" || versions["bob"] != "autoscaling/v2" {
		t.Errorf("managers and their versions: %v", versions)
	}
	bobs.GetSpec().SetMaxReplicas(7)
	if _, err := current.Apply(within(t), bobs, by("bob", false)); !apierrors.IsConflict(err) || !strings.Contains(err.Error(), "ann") {
		t.Errorf("a field of another manager: %v, want Conflict", err)
	}
	if o, err := current.Apply(within(t), bobs, by("bob", true)); err != nil || o.GetSpec().GetMaxReplicas() != 7 {
		t.Errorf("forced: %v, %v", o.GetSpec(), err)
	}
	// What ann gave up by leaving it out would be gone; it is bob's now.
	if o, err := old.Apply(within(t), autoscalingv1.HorizontalPodAutoscaler_builder{Metadata: named("web", nil), Spec: autoscalingv1.HorizontalPodAutoscalerSpec_builder{ScaleTargetRef: target}.Build()}.Build(), by("ann", false)); err != nil || o.GetSpec().GetMaxReplicas() != 7 {
		t.Errorf("after giving up: %v, %v", o.GetSpec(), err)
	}
}

// TestEventsOfBothGroups: an event is one object, whichever group it is written and read through.
func TestEventsOfBothGroups(t *testing.T) {
	c := newCluster(t)
	conn := c.admin()
	core, group := client.For[*corev1.Event](conn), client.For[*eventsv1.Event](conn)
	about := func(name string) *corev1.ObjectReference {
		return corev1.ObjectReference_builder{Kind: proto.String("Pod"), ApiVersion: proto.String("v1"), Namespace: proto.String("default"), Name: &name}.Build()
	}
	labels := map[string]string{"test": "events"}
	for _, name := range []string{"a", "b", "c"} {
		if _, err := core.Create(within(t), corev1.Event_builder{
			Metadata: named(name, labels), InvolvedObject: about("pod-" + name), Reason: proto.String("Tested"), Message: proto.String("of " + name), Type: proto.String("Normal"), Count: proto.Int32(2),
		}.Build(), nil); err != nil {
			t.Fatal(err)
		}
	}
	list, err := group.List(within(t), metav1.ListRequest_builder{Namespace: "default", FieldSelector: "regarding.name=pod-b,type=Normal", LabelSelector: "test=events"}.Build())
	if err != nil || len(list.Items) != 1 {
		t.Fatalf("by what they regard: %d, %v", len(list.Items), err)
	}
	if e := list.Items[0]; e.GetNote() != "of b" || e.GetDeprecatedCount() != 2 || e.GetRegarding().GetName() != "pod-b" {
		t.Errorf("%v", e)
	}
	if _, err := group.List(within(t), metav1.ListRequest_builder{FieldSelector: "involvedObject.name=pod-b"}.Build()); !apierrors.IsBadRequest(err) {
		t.Errorf("a label of the core group: %v, want BadRequest", err)
	}
	var all []string
	page := metav1.ListRequest_builder{Namespace: "default", LabelSelector: "test=events", Limit: 2}.Build()
	for {
		list, err := group.List(within(t), page)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list.Items {
			all = append(all, e.GetNote())
		}
		if list.Continue == "" {
			break
		}
		page.SetContinue(list.Continue)
	}
	if strings.Join(all, ", ") != "of a, of b, of c" {
		t.Errorf("in pages: %v", all)
	}

	// The newer group asks for more than the older one.
	strict := eventsv1.Event_builder{
		Metadata: named("d", labels), Regarding: about("pod-d"), Reason: proto.String("Tested"), Action: proto.String("Test"), Type: proto.String("Normal"),
		ReportingController: proto.String("example.com/test"), ReportingInstance: proto.String("t-1"),
	}.Build()
	if _, err := group.Create(within(t), strict, nil); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "eventTime: Required value") {
		t.Errorf("without a time: %v, want Invalid", err)
	}
	strict.SetEventTime(metav1.MicroTime_builder{Seconds: proto.Int64(1)}.Build())
	if _, err := group.Create(within(t), strict, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := group.Patch(within(t), merge("d", `{"note":"other"}`)); !apierrors.IsInvalid(err) {
		t.Errorf("another note: %v, want Invalid", err)
	}
	e, err := core.Get(within(t), "default", "d")
	if err != nil || e.GetReportingComponent() != "example.com/test" || e.GetInvolvedObject().GetName() != "pod-d" {
		t.Errorf("in the core group: %v, %v", e, err)
	}
	if n, err := group.DeleteCollection(within(t), metav1.DeleteCollectionRequest_builder{Namespace: "default", LabelSelector: "test=events"}.Build()); err != nil || n != 4 {
		t.Errorf("deleted %d, %v, want 4", n, err)
	}
	if list, err := core.List(within(t), metav1.ListRequest_builder{Namespace: "default", LabelSelector: "test=events"}.Build()); err != nil || len(list.Items) != 0 {
		t.Errorf("left in the core group: %d, %v", len(list.Items), err)
	}
}

// TestQuestionsAreAuthorized: nobody asks what a virtual kind answers without the right to create it, or the subresource that it is the body of.
func TestQuestionsAreAuthorized(t *testing.T) {
	c := newCluster(t)
	stranger := c.dial("apiserver", identity.Identity{Name: "stranger"})
	review := authenticationv1.TokenReviewWriteRequest_builder{Object: &authenticationv1.TokenReview{}}.Build()
	if _, err := authenticationv1.NewTokenReviewsClient(stranger).Create(within(t), review); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a review by a stranger: %v, want PermissionDenied", err)
	}
	request := authenticationv1.TokenRequestWriteRequest_builder{Object: authenticationv1.TokenRequest_builder{Metadata: named("default", nil)}.Build()}.Build()
	_, err := authenticationv1.NewTokenRequestsClient(stranger).Create(within(t), request)
	if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "serviceaccounts/token") {
		t.Errorf("a token for a stranger: %v, want PermissionDenied to create serviceaccounts/token", err)
	}
}

// TestScales reads and writes the number of replicas of a workload apart from the rest.
func TestScales(t *testing.T) {
	c := newCluster(t)
	conn := c.admin()
	template := corev1.PodTemplateSpec_builder{
		Metadata: metav1.ObjectMeta_builder{Labels: map[string]string{"app": "web"}}.Build(),
		Spec:     corev1.PodSpec_builder{Containers: []*corev1.Container{corev1.Container_builder{Name: proto.String("c"), Image: proto.String("i")}.Build()}}.Build(),
	}.Build()
	if _, err := client.For[*appsv1.Deployment](conn).Create(within(t), appsv1.Deployment_builder{Metadata: named("web", nil), Spec: appsv1.DeploymentSpec_builder{
		Replicas: proto.Int32(3), Selector: metav1.LabelSelector_builder{MatchLabels: map[string]string{"app": "web"}}.Build(), Template: template,
	}.Build()}.Build(), nil); err != nil {
		t.Fatal(err)
	}
	deployments := appsv1.NewDeploymentsClient(conn)
	scale, err := deployments.GetScale(within(t), metav1.GetRequest_builder{Namespace: "default", Name: "web"}.Build())
	if err != nil || scale.GetSpec().GetReplicas() != 3 || scale.GetStatus().GetSelector() != "app=web" || scale.GetMetadata().GetResourceVersion() == "" {
		t.Fatalf("%v, %v", scale, err)
	}
	scale.GetSpec().SetReplicas(5)
	write := autoscalingv1.ScaleWriteRequest_builder{Object: scale, Options: metav1.WriteOptions_builder{DryRun: true}.Build()}.Build()
	if answer, err := deployments.UpdateScale(within(t), write); err != nil || answer.GetSpec().GetReplicas() != 5 {
		t.Fatalf("dry run: %v, %v", answer, err)
	}
	write.SetOptions(nil)
	answer, err := deployments.UpdateScale(within(t), write)
	if err != nil || answer.GetSpec().GetReplicas() != 5 {
		t.Fatalf("%v, %v", answer, err)
	}
	if _, err := deployments.UpdateScale(within(t), write); status.Code(err) != codes.Aborted {
		t.Errorf("an old scale: %v, want Aborted", err)
	}
	now, err := client.For[*appsv1.Deployment](conn).Get(within(t), "default", "web")
	if err != nil || now.GetSpec().GetReplicas() != 5 || now.GetMetadata().GetResourceVersion() != answer.GetMetadata().GetResourceVersion() {
		t.Errorf("%v, %v", now.GetSpec().GetReplicas(), err)
	}
	if _, err := deployments.GetScale(within(t), metav1.GetRequest_builder{Namespace: "default", Name: "none"}.Build()); status.Code(err) != codes.NotFound {
		t.Errorf("%v, want NotFound", err)
	}
}
