package registry

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	dhowappsv1 "dhow.dev/gen/go/dhow/apps/v1"
	dhowcorev1 "dhow.dev/gen/go/dhow/core/v1"
	dhowmetav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/patch"
)

func TestPatches(t *testing.T) {
	k := newCluster(t)
	k.create("deploy", deployment)
	o, _ := k.patch("deploy", "web", `spec: {template: {spec: {containers: [{name: c, image: "web:2"}, {name: side, image: s}]}}}`, patch.StrategicMerge)
	d := o.(*appsv1.Deployment)
	if c := d.Spec.Template.Spec.Containers; len(c) != 2 || c[0].Image != "s" && c[1].Image != "s" || d.Generation != 2 {
		t.Errorf("strategic: %+v", c)
	}
	o, _ = k.patch("deploy", "web", `[{op: test, path: /spec/replicas, value: 2}, {op: replace, path: /spec/replicas, value: 5}]`, patch.JSON)
	if d = o.(*appsv1.Deployment); *d.Spec.Replicas != 5 {
		t.Errorf("json: %d", *d.Spec.Replicas)
	}
	o, r := k.patch("deploy", "web", `metadata: {labels: {app: null, x: "1"}}`, patch.Merge)
	if l := o.GetLabels(); len(l) != 1 || l["x"] != "1" {
		t.Errorf("merge: %v", l)
	}
	if _, same := k.patch("deploy", "web", `metadata: {labels: {x: "1"}}`, patch.Merge); same.Revision != r.Revision {
		t.Error("a patch that changes nothing was written")
	}
}

func TestPatchRefuses(t *testing.T) {
	k := newCluster(t)
	o, _ := k.create("cm", `{metadata: {name: a}, data: {x: "1"}}`)
	for name, c := range map[string]struct {
		t        patch.Type
		document string
		is       func(error) bool
		contains string
	}{
		"stale":         {patch.Merge, `metadata: {resourceVersion: "5"}`, apierrors.IsConflict, "the object has been modified"},
		"uid":           {patch.Merge, `metadata: {uid: x}`, apierrors.IsConflict, "UID in precondition: x, UID in object meta: " + string(o.GetUID())},
		"name":          {patch.Merge, `metadata: {name: b}`, apierrors.IsBadRequest, "the name of the object (b) does not match the name on the URL (a)"},
		"unknown":       {patch.Merge, `dat: {}`, apierrors.IsInvalid, `unknown field "dat"`},
		"test":          {patch.JSON, `[{op: test, path: /data/x, value: "2"}]`, apierrors.IsInvalid, "the patch cannot be applied to the object: testing value /data/x failed"},
		"no list":       {patch.JSON, `{op: test}`, apierrors.IsBadRequest, "cannot unmarshal"},
		"no object":     {patch.StrategicMerge, `[]`, apierrors.IsBadRequest, "error decoding patch"},
		"no type":       {0, `{}`, apierrors.IsBadRequest, "patch type"},
		"bad directive": {patch.StrategicMerge, `{$patch: what}`, apierrors.IsBadRequest, "what"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := k.Patch(t.Context(), res("cm"), k.patchOf("cm", "a", c.document, c.t), WriteOptions{})
			fails(t, err, c.is, c.contains)
		})
	}
	_, err := k.Patch(t.Context(), res("cm"), k.patchOf("cm", "none", `{}`, patch.Merge), WriteOptions{})
	fails(t, err, apierrors.IsNotFound, `configmaps "none" not found`)
	_, err = k.Patch(t.Context(), res("cm"), k.patchOf("cm", "a", `{}`, patch.Merge), WriteOptions{Force: true})
	fails(t, err, apierrors.IsInvalid, `PatchOptions.meta.k8s.io "" is invalid: force: Forbidden: may not be specified for non-apply patch`)
	r, err := k.Patch(t.Context(), res("cm"), k.patchOf("cm", "a", `dat: {}`, patch.Merge), WriteOptions{FieldValidation: codec.Warn})
	if err != nil || !slices.Equal(r.Warnings, []string{`unknown field "dat"`}) {
		t.Error(r.Warnings, err)
	}
}

// Patches of one object by many at once: none is lost, none fails.
func TestPatchesAreRetried(t *testing.T) {
	k := newCluster(t)
	k.create("cm", `metadata: {name: a}`)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			input := PatchInput{Namespace: "shop", Name: "a", Type: patch.Merge, Data: fmt.Appendf(nil, `{"data": {"k%d": "v"}}`, i)}
			if _, err := k.Patch(t.Context(), res("cm"), input, WriteOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(k.stored("cm", "a").(*corev1.ConfigMap).Data); n != 20 {
		t.Errorf("%d of 20 patches are there", n)
	}
}

// managers lists who owns something, as manager/operation/subresource.
func managers(o codec.Object) []string {
	var all []string
	for _, f := range o.GetManagedFields() {
		all = append(all, fmt.Sprintf("%s/%s/%s", f.Manager, f.Operation, f.Subresource))
	}
	return all
}

func TestApply(t *testing.T) {
	k := newCluster(t)
	o, first := k.apply("deploy", deployment, "me")
	if !first.Created || o.GetUID() == "" || o.GetGeneration() != 1 || !slices.Equal(managers(o), []string{"me/Apply/"}) {
		t.Fatalf("created: %+v, %v", o, managers(o))
	}
	if _, same := k.apply("deploy", deployment, "me"); same.Revision != first.Revision {
		t.Error("an apply that changes nothing was written")
	}
	// Another manager by update, then a conflict, then force.
	k.patch("deploy", "web", `spec: {replicas: 9}`, patch.Merge)
	o = k.stored("deploy", "web")
	if !slices.Equal(managers(o), []string{"me/Apply/", "unknown/Update/"}) {
		t.Errorf("after an update: %v", managers(o))
	}
	_, err := k.Apply(t.Context(), res("deploy"), place("deploy", deployment), WriteOptions{FieldManager: "me"})
	fails(t, err, apierrors.IsConflict, `Apply failed with 1 conflict: conflict with "unknown" using apps/v1`)
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		if c := status.Status().Details.Causes[0]; c.Type != metav1.CauseTypeFieldManagerConflict || c.Field != ".spec.replicas" {
			t.Errorf("cause: %+v", c)
		}
	}
	forced := k.must("deploy")
	o, _ = forced(k.Apply(t.Context(), res("deploy"), place("deploy", deployment), WriteOptions{FieldManager: "me", Force: true}))
	if *o.(*appsv1.Deployment).Spec.Replicas != 2 || !slices.Equal(managers(o), []string{"me/Apply/"}) {
		t.Errorf("forced: %d, %v", *o.(*appsv1.Deployment).Spec.Replicas, managers(o))
	}
	// What is no longer applied goes.
	o, _ = k.apply("deploy", `{metadata: {name: web}, spec: {selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: "web:1"}]}}}}`, "me")
	if len(o.GetLabels()) != 0 {
		t.Errorf("labels that were given up: %v", o.GetLabels())
	}
	// The status has its own owner.
	k.apply("deploy", `{metadata: {name: web}, status: {replicas: 1}}`, "ignored-status")
	o, _ = k.must("deploy")(k.Apply(t.Context(), res("deploy"), place("deploy", `{metadata: {name: web}, status: {replicas: 2}}`), WriteOptions{FieldManager: "ctl", Subresource: "status"}))
	if d := o.(*appsv1.Deployment); d.Status.Replicas != 2 || !slices.Contains(managers(o), "ctl/Apply/status") || slices.Contains(managers(o), "ignored-status/Apply/") {
		t.Errorf("status: %+v, %v", d.Status, managers(o))
	}
}

// Fields that were there before the first apply belong to `before-first-apply`.
func TestFirstApplyOfAnOldObject(t *testing.T) {
	k := newCluster(t)
	k.create("cm", `{metadata: {name: a}, data: {x: "1", z: "1"}}`)
	_, err := k.Apply(t.Context(), res("cm"), in(`{metadata: {name: a}, data: {x: "2"}}`), WriteOptions{FieldManager: "me"})
	fails(t, err, apierrors.IsConflict, `conflict with "before-first-apply" using v1: .data.x`)
	o, _ := k.apply("cm", `{metadata: {name: a}, data: {x: "1", w: "3"}}`, "me")
	if cm := o.(*corev1.ConfigMap); len(cm.Data) != 3 || !slices.Equal(managers(o), []string{"me/Apply/", "before-first-apply/Update/"}) {
		t.Errorf("%v, %v", cm.Data, managers(o))
	}
}

// Who creates and says who they are owns what they created.
func TestApplyAfterANamedCreate(t *testing.T) {
	k := newCluster(t)
	o, _ := k.must("deploy")(k.Create(t.Context(), res("deploy"), place("deploy", deployment), WriteOptions{FieldManager: "maker"}))
	if !slices.Equal(managers(o), []string{"maker/Update/"}) {
		t.Errorf("created: %v", managers(o))
	}
	_, err := k.Apply(t.Context(), res("deploy"), place("deploy", strings.Replace(deployment, "web:1", "web:2", 1)), WriteOptions{FieldManager: "me"})
	fails(t, err, apierrors.IsConflict, `conflict with "maker" using apps/v1: .spec.template.spec.containers[name="c"].image`)
	// A default that the creator got is the creator's.
	_, err = k.Apply(t.Context(), res("deploy"), place("deploy", `{metadata: {name: web}, spec: {progressDeadlineSeconds: 7}}`), WriteOptions{FieldManager: "me"})
	fails(t, err, apierrors.IsConflict, `conflict with "maker"`)
	o, _ = k.apply("deploy", deployment, "me")
	if !slices.Equal(managers(o), []string{"me/Apply/", "maker/Update/"}) {
		t.Errorf("applied: %v", managers(o))
	}
	o, _ = k.must("secret")(k.Create(t.Context(), res("secret"), place("secret", `{metadata: {name: db}, stringData: {password: x}}`), WriteOptions{FieldManager: "maker"}))
	if raw := string(o.GetManagedFields()[0].FieldsV1.Raw); !strings.Contains(raw, "f:password") || strings.Contains(raw, "stringData") {
		t.Errorf("a secret: %s", raw)
	}
}

func TestApplyOfStringData(t *testing.T) {
	k := newCluster(t)
	document := `{metadata: {name: db}, stringData: {password: hunter2}}`
	_, first := k.apply("secret", document, "me")
	_, again := k.apply("secret", document, "me")
	if s := k.stored("secret", "db").(*corev1.Secret); string(s.Data["password"]) != "hunter2" || again.Revision != first.Revision {
		t.Errorf("%+v, revisions %d and %d", s.Data, first.Revision, again.Revision)
	}
}

func TestApplyRefuses(t *testing.T) {
	k := newCluster(t)
	k.create("cm", `metadata: {name: a}`)
	for name, c := range map[string]struct {
		document string
		options  WriteOptions
		is       func(error) bool
		contains string
	}{
		"manager":  {`metadata: {name: a}`, WriteOptions{}, apierrors.IsInvalid, `fieldManager: Required value: is required for apply patch`},
		"name":     {`data: {x: "1"}`, WriteOptions{FieldManager: "m"}, apierrors.IsInvalid, `metadata.name: Required value`},
		"version":  {`metadata: {name: a, resourceVersion: "5"}`, WriteOptions{FieldManager: "m"}, apierrors.IsConflict, `the object has been modified`},
		"uid":      {`metadata: {name: new, uid: u}`, WriteOptions{FieldManager: "m"}, apierrors.IsConflict, `uid mismatch: the provided object specified uid u, and no existing object was found`},
		"unknown":  {`{metadata: {name: a}, dat: {}}`, WriteOptions{FieldManager: "m"}, apierrors.IsBadRequest, `unknown field "dat"`},
		"managed":  {`metadata: {name: a, managedFields: [{manager: x}]}`, WriteOptions{FieldManager: "m"}, apierrors.IsBadRequest, `metadata.managedFields must be nil`},
		"status":   {`metadata: {name: a}`, WriteOptions{FieldManager: "m", Subresource: "status"}, apierrors.IsNotFound, `no subresource "status"`},
		"no YAML":  {`{{`, WriteOptions{FieldManager: "m"}, apierrors.IsBadRequest, ``},
		"a list":   {`[]`, WriteOptions{FieldManager: "m"}, apierrors.IsBadRequest, ``},
		"a number": {`{metadata: {name: a}, data: {x: 1}}`, WriteOptions{FieldManager: "m"}, apierrors.IsBadRequest, `data`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := k.Apply(t.Context(), res("cm"), in(c.document), c.options)
			fails(t, err, c.is, c.contains)
		})
	}
}

// A typed client's zero values are part of what it applies; JSON made from a struct would lose them.
func TestApplyOfProtobufKeepsPresence(t *testing.T) {
	k := newCluster(t)
	config := dhowappsv1.Deployment_builder{
		Metadata: dhowmetav1.ObjectMeta_builder{Name: proto.String("web"), Namespace: proto.String("shop")}.Build(),
		Spec: dhowappsv1.DeploymentSpec_builder{
			Replicas: proto.Int32(0),
			Paused:   proto.Bool(false),
			Selector: dhowmetav1.LabelSelector_builder{MatchLabels: map[string]string{"app": "web"}}.Build(),
			Template: dhowcorev1.PodTemplateSpec_builder{
				Metadata: dhowmetav1.ObjectMeta_builder{Labels: map[string]string{"app": "web"}}.Build(),
				Spec: dhowcorev1.PodSpec_builder{
					Containers: []*dhowcorev1.Container{dhowcorev1.Container_builder{
						Name: proto.String("c"), Image: proto.String("web:1"),
						Ports: []*dhowcorev1.ContainerPort{dhowcorev1.ContainerPort_builder{ContainerPort: proto.Int32(80), Protocol: proto.String("TCP")}.Build()},
					}.Build()},
				}.Build(),
			}.Build(),
		}.Build(),
	}.Build()
	data, err := proto.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	o, _ := k.must("deploy")(k.Apply(t.Context(), res("deploy"), Input{Data: data}, WriteOptions{FieldManager: "typed"}))
	d := o.(*appsv1.Deployment)
	if d.Spec.Replicas == nil || *d.Spec.Replicas != 0 {
		t.Errorf("replicas: %v", d.Spec.Replicas)
	}
	// It owns the zero: another manager conflicts.
	_, err = k.Apply(t.Context(), res("deploy"), place("deploy", `{metadata: {name: web}, spec: {replicas: 1}}`), WriteOptions{FieldManager: "other"})
	fails(t, err, apierrors.IsConflict, `conflict with "typed": .spec.replicas`)
}
