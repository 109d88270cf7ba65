package registry

import (
	"errors"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/services/apiserver/internal/patch"
)

func TestCommit(t *testing.T) {
	k := newCluster(t)
	k.create("cm", `metadata: {name: old}`)
	k.create("cm", `metadata: {name: changed}`)
	before := len(k.store.Commits())
	results, revision, err := k.Commit(t.Context(), []Operation{
		{Resource: res("ns"), Action: ActionApply, Input: text(`metadata: {name: new}`), Options: WriteOptions{FieldManager: "m"}},
		{Resource: res("cm"), Action: ActionApply, Input: text(`metadata: {name: a, namespace: new}`), Options: WriteOptions{FieldManager: "m"}},
		{Resource: res("cm"), Action: ActionCreate, Input: text(`metadata: {name: b, namespace: new}`)},
		{Resource: res("cm"), Action: ActionPatch, Patch: k.patchOf("cm", "changed", `data: {x: "1"}`, patch.Merge)},
		{Resource: res("cm"), Action: ActionDelete, Namespace: "shop", Name: "old"},
	}, false)
	if err != nil || len(results) != 5 || revision == 0 {
		t.Fatal(results, revision, err)
	}
	if n := len(k.store.Commits()) - before; n != 1 {
		t.Errorf("%d commits", n)
	}
	for i, r := range results {
		if r.Revision>>10 != revision>>10 {
			t.Errorf("result %d is of another revision", i)
		}
	}
	if !results[4].Deleted || k.stored("cm", "old") != nil {
		t.Error("not deleted")
	}
}

func TestCommitIsAllOrNothing(t *testing.T) {
	k := newCluster(t)
	create := func(name string) Operation {
		return Operation{Resource: res("cm"), Action: ActionCreate, Input: in(`metadata: {name: ` + name + `}`)}
	}
	for name, c := range map[string]struct {
		operations []Operation
		is         func(error) bool
		contains   string
	}{
		"invalid":   {[]Operation{create("a"), create("B")}, apierrors.IsInvalid, `operations[1]: ConfigMap "B" is invalid`},
		"missing":   {[]Operation{create("a"), {Resource: res("cm"), Action: ActionDelete, Namespace: "shop", Name: "z"}}, apierrors.IsNotFound, `operations[1]: configmaps "z" not found`},
		"twice":     {[]Operation{create("a"), create("a")}, apierrors.IsBadRequest, `operations[1]: configmaps "a" is in two operations of one commit`},
		"no action": {[]Operation{create("a"), {Resource: res("cm")}}, apierrors.IsBadRequest, `an operation needs an action`},
		"namespace": {[]Operation{create("a"), {Resource: res("cm"), Action: ActionCreate, Input: text(`metadata: {name: a, namespace: none}`)}}, apierrors.IsNotFound, `operations[1]: namespaces "none" not found`},
		"closing": {[]Operation{{Resource: res("ns"), Action: ActionDelete, Name: "shop"}, create("a")}, apierrors.IsForbidden,
			`because it is being terminated`},
		"many": {make([]Operation, 501), apierrors.IsRequestEntityTooLargeError, "a commit may have 500 operations, this one has 501"},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(k.store.Commits())
			_, _, err := k.Commit(t.Context(), c.operations, false)
			fails(t, err, c.is, c.contains)
			if len(k.store.Commits()) != before {
				t.Error("something was written")
			}
		})
	}
	_, _, err := k.Commit(t.Context(), []Operation{create("a"), create("B")}, false)
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Details.Causes[0].Field != "operations[1].metadata.name" {
		t.Errorf("the cause's field: %+v", err)
	}
	if results, revision, err := k.Commit(t.Context(), nil, false); err != nil || len(results) != 0 || revision != 0 {
		t.Error(results, revision, err)
	}
}

func TestBind(t *testing.T) {
	k := newCluster(t)
	uid := map[string]string{}
	for _, name := range []string{"a", "b", "bound", "going", "gated", "why"} {
		gates := ""
		if name == "gated" {
			gates = `, schedulingGates: [{name: x.dev/wait}]`
		}
		o, _ := k.create("pod", fmt.Sprintf(`{metadata: {name: %s}, spec: {terminationGracePeriodSeconds: 9, containers: [{name: c, image: i}]%s}}`, name, gates))
		uid[name] = string(o.GetUID())
	}
	bind := func(name, node string) Binding {
		return Binding{Namespace: "shop", Name: name, UID: uid[name], NodeName: node}
	}
	if errs, _ := k.Bind(t.Context(), []Binding{bind("bound", "n1"), bind("going", "n1")}, nil); errs[0] != nil || errs[1] != nil {
		t.Fatal(errs)
	}
	k.delete("pod", "going", DeleteOptions{})
	before := len(k.store.Commits())
	other := bind("b", "n1")
	other.UID = "other"
	bound, marked := k.Bind(t.Context(),
		[]Binding{bind("a", "n1"), bind("b", "n2"), bind("bound", "n2"), bind("going", "n2"), bind("gated", "n1"), other, {Namespace: "shop", Name: "none", NodeName: "n1"}, bind("bound", "n1")},
		[]Unschedulable{{Namespace: "shop", Name: "why", UID: uid["why"], Reason: "Unschedulable", Message: "0/1 nodes are available"}, {Namespace: "shop", Name: "bound", Reason: "Unschedulable"}})
	for i, want := range []string{"", "", `pod bound is already assigned to node "n1"`, `pod going is being deleted, cannot be assigned to a host`, `pod gated has non-empty .spec.schedulingGates`,
		"Precondition failed: UID in precondition: other, UID in object meta: " + uid["b"], `pods "none" not found`, ""} {
		if want == "" && bound[i] != nil {
			t.Errorf("binding %d: %v", i, bound[i])
		}
		if want != "" {
			fails(t, bound[i], func(err error) bool { return apierrors.IsConflict(err) || apierrors.IsNotFound(err) }, want)
		}
	}
	if marked[0] != nil {
		t.Error(marked[0])
	}
	fails(t, marked[1], apierrors.IsConflict, `already assigned to node "n1"`)
	if n := len(k.store.Commits()) - before; n != 1 {
		t.Errorf("%d commits for 3 writes", n)
	}
	a := k.stored("pod", "a").(*corev1.Pod)
	if a.Spec.NodeName != "n1" || len(a.Status.Conditions) != 1 || a.Status.Conditions[0].Type != corev1.PodScheduled || a.Status.Conditions[0].Status != corev1.ConditionTrue {
		t.Errorf("bound: %+v", a.Status)
	}
	why := k.stored("pod", "why").(*corev1.Pod)
	if c := why.Status.Conditions[0]; c.Status != corev1.ConditionFalse || c.Reason != "Unschedulable" || c.Message != "0/1 nodes are available" {
		t.Errorf("unschedulable: %+v", c)
	}
	before = len(k.store.Commits())
	_, marked = k.Bind(t.Context(), nil, []Unschedulable{{Namespace: "shop", Name: "why", Reason: "Unschedulable", Message: "0/1 nodes are available"}})
	if marked[0] != nil || len(k.store.Commits()) != before {
		t.Error("a condition that did not change was written")
	}
}

// Many pods in few commits; some change underneath, answers get lost: each pod is bound all the same.
func TestBindMany(t *testing.T) {
	k := newCluster(t)
	var bindings []Binding
	for i := range 300 {
		o, _ := k.create("pod", fmt.Sprintf(`{metadata: {name: p%d}, spec: {containers: [{name: c, image: i}]}}`, i))
		bindings = append(bindings, Binding{Namespace: "shop", Name: o.GetName(), UID: string(o.GetUID()), NodeName: "n1"})
	}
	k.cache.catchUp()
	k.cache.follows = false
	k.patch("pod", "p7", `metadata: {labels: {a: b}}`, patch.Merge)
	k.delete("pod", "p8", DeleteOptions{})
	k.store.LoseAnswers(1)
	interfere := true
	k.store.Between(func(in *storev1.CommitRequest) {
		if interfere && len(in.GetOperations()) > 1 {
			interfere = false
			k.patch("pod", "p9", `metadata: {labels: {a: b}}`, patch.Merge)
		}
	})
	before := len(k.store.Commits())
	errs, _ := k.Bind(t.Context(), bindings, nil)
	for i, err := range errs {
		if i == 8 {
			fails(t, err, apierrors.IsNotFound, `pods "p8" not found`)
			continue
		}
		if p := k.stored("pod", bindings[i].Name).(*corev1.Pod); err != nil || p.Spec.NodeName != "n1" {
			t.Errorf("%s: %v, on %q", p.Name, err, p.Spec.NodeName)
		}
	}
	if p := k.stored("pod", "p9"); p.GetLabels()["a"] != "b" {
		t.Error("a change was overwritten")
	}
	if n := len(k.store.Commits()) - before; n > 5 {
		t.Errorf("%d commits for 300 pods", n)
	}
}
