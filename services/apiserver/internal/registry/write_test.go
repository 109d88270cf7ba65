package registry

import (
	"bytes"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/encryption"
	"dhow.dev/services/apiserver/internal/patch"
)

const deployment = `
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: "web:1"}]}
`

func TestCreate(t *testing.T) {
	k := newCluster(t)
	obj, r := k.create("deploy", deployment+"status: {replicas: 7}\n")
	d := obj.(*appsv1.Deployment)
	if d.Namespace != "shop" || d.UID == "" || d.Generation != 1 || !d.CreationTimestamp.Equal(&metav1.Time{Time: k.clock.Truncate(1e9)}) {
		t.Errorf("metadata: %+v", d.ObjectMeta)
	}
	if d.Status.Replicas != 0 {
		t.Error("the status of a new object is not the user's to set")
	}
	if d.ResourceVersion != "" || r.Revision == 0 || !r.Created {
		t.Errorf("the revision belongs beside the object: %q, %+v", d.ResourceVersion, r)
	}
	if len(d.ManagedFields) != 0 {
		t.Error("an object that was never applied carries no managedFields")
	}
	if e := k.store.Entry("/registry/apps/deployments/shop/web"); e == nil || !bytes.Equal(e.GetValue(), r.Object) || e.GetRevision() != r.Revision {
		t.Error("what is stored is not what was answered")
	}
	_, err := k.Create(t.Context(), res("deploy"), place("deploy", deployment), WriteOptions{})
	fails(t, err, apierrors.IsAlreadyExists, `deployments.apps "web" already exists`)
}

func TestCreateRefuses(t *testing.T) {
	k := newCluster(t)
	for name, c := range map[string]struct {
		word     string
		input    Input
		is       func(error) bool
		contains string
	}{
		"no name":          {"cm", in(`data: {a: b}`), apierrors.IsInvalid, `ConfigMap "" is invalid: metadata.name: Required value: name or generateName is required`},
		"bad name":         {"cm", in(`metadata: {name: A_b}`), apierrors.IsInvalid, `metadata.name: Invalid value: "A_b": a lowercase RFC 1123 subdomain`},
		"label as name":    {"ns", text(`metadata: {name: a.b}`), apierrors.IsInvalid, `metadata.name: Invalid value: "a.b": must not contain dots`},
		"bad label":        {"cm", in(`metadata: {name: a, labels: {"x y": z}}`), apierrors.IsInvalid, `metadata.labels: Invalid value: "x y"`},
		"slash":            {"role", in(`metadata: {name: a/b}`), apierrors.IsInvalid, `may not contain '/'`},
		"dots":             {"role", in(`metadata: {name: ..}`), apierrors.IsInvalid, `may not be '..'`},
		"owner":            {"cm", in(`metadata: {name: a, ownerReferences: [{apiVersion: v1, kind: Pod, name: p}]}`), apierrors.IsInvalid, `metadata.ownerReferences.uid: Invalid value: "": must not be empty`},
		"finalizer":        {"cm", in(`metadata: {name: a, finalizers: ["x y"]}`), apierrors.IsInvalid, `metadata.finalizers: Invalid value: "x y"`},
		"version":          {"cm", in(`metadata: {name: a, resourceVersion: "5"}`), apierrors.IsBadRequest, `resourceVersion should not be set on objects to be created`},
		"unknown field":    {"cm", in(`{metadata: {name: a}, dat: {}}`), apierrors.IsBadRequest, `ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: unknown field "dat"`},
		"duplicate field":  {"cm", in(`{"metadata": {"name": "a", "name": "b"}}`), apierrors.IsBadRequest, `strict decoding error: duplicate field "metadata.name"`},
		"wrong type":       {"deploy", in(`{metadata: {name: a}, spec: {replicas: many}}`), apierrors.IsBadRequest, `cannot be handled as a Deployment`},
		"other kind":       {"cm", in(`{apiVersion: v1, kind: Secret, metadata: {name: a}}`), apierrors.IsBadRequest, `does not match the expected`},
		"other namespace":  {"cm", in(`metadata: {name: a, namespace: other}`), apierrors.IsBadRequest, `the namespace of the provided object does not match the namespace sent on the request`},
		"no namespace":     {"cm", text(`metadata: {name: a}`), apierrors.IsInvalid, `metadata.namespace: Required value`},
		"namespace is not": {"cm", text(`metadata: {name: a, namespace: nowhere}`), apierrors.IsNotFound, `namespaces "nowhere" not found`},
		"cluster scoped":   {"node", text(`metadata: {name: a, namespace: shop}`), apierrors.IsInvalid, `metadata.namespace: Forbidden: not allowed on this type`},
		"broken protobuf":  {"cm", Input{Data: []byte{0x0a, 0xff}}, apierrors.IsBadRequest, `cannot be decoded as protobuf`},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(k.store.Commits())
			_, err := k.Create(t.Context(), res(c.word), c.input, WriteOptions{})
			fails(t, err, c.is, c.contains)
			if len(k.store.Commits()) != before {
				t.Error("a refused object was written")
			}
		})
	}
}

func TestFieldValidation(t *testing.T) {
	k := newCluster(t)
	r, err := k.Create(t.Context(), res("cm"), in(`{metadata: {name: a}, dat: {}}`), WriteOptions{FieldValidation: codec.Warn})
	if err != nil || len(r.Warnings) != 1 || r.Warnings[0] != `unknown field "dat"` {
		t.Errorf("warn: %v, %q", err, r.Warnings)
	}
	r, err = k.Create(t.Context(), res("cm"), in(`{metadata: {name: b}, dat: {}}`), WriteOptions{FieldValidation: codec.Ignore})
	if err != nil || len(r.Warnings) != 0 {
		t.Errorf("ignore: %v, %q", err, r.Warnings)
	}
}

func TestGenerateName(t *testing.T) {
	k := newCluster(t)
	long := strings.Repeat("x", 70)
	a, _ := k.create("cm", `metadata: {generateName: web-}`)
	b, _ := k.create("cm", `metadata: {generateName: web-}`)
	c, _ := k.create("cm", `metadata: {generateName: `+long+`}`)
	if !strings.HasPrefix(a.GetName(), "web-") || len(a.GetName()) != len("web-")+5 || a.GetName() == b.GetName() {
		t.Errorf("names %q and %q", a.GetName(), b.GetName())
	}
	if len(c.GetName()) != 63 {
		t.Errorf("a generated name has %d characters", len(c.GetName()))
	}
	// The name that the plan chose is taken by another before the commit: another one is generated.
	stolen := false
	k.store.Between(func(in *storev1.CommitRequest) {
		if stolen {
			return
		}
		stolen = true
		steal := &storev1.CommitRequest{}
		steal.SetOperations(in.GetOperations())
		if _, err := k.store.Commit(t.Context(), steal); err != nil {
			t.Error(err)
		}
	})
	d, _ := k.create("cm", `metadata: {generateName: web-}`)
	if got := k.store.Keys("/registry/core/configmaps/shop/web-"); len(got) != 4 || !strings.Contains(strings.Join(got, " "), d.GetName()) {
		t.Errorf("keys %q", got)
	}
}

func TestUpdate(t *testing.T) {
	k := newCluster(t)
	created, first := k.create("deploy", deployment)
	at := "metadata: {name: web, labels: {app: web}, resourceVersion: \"" + version(first.Revision) + "\"}\n"
	spec := deployment[strings.Index(deployment, "spec:"):]

	_, same := k.update("deploy", at+spec, WriteOptions{})
	if same.Revision != first.Revision {
		t.Error("an update that changes nothing was written")
	}
	obj, second := k.update("deploy", at+strings.Replace(spec, "replicas: 2", "replicas: 3", 1)+"status: {replicas: 9}\n", WriteOptions{})
	d := obj.(*appsv1.Deployment)
	if d.Generation != 2 || *d.Spec.Replicas != 3 || d.Status.Replicas != 0 || d.UID != created.GetUID() || !d.CreationTimestamp.Equal(ptr(created.GetCreationTimestamp())) {
		t.Errorf("updated: %+v %+v", d.ObjectMeta, d.Status)
	}
	_, err := k.Update(t.Context(), res("deploy"), place("deploy", at+spec), WriteOptions{})
	fails(t, err, apierrors.IsConflict, `Operation cannot be fulfilled on deployments.apps "web": the object has been modified; please apply your changes to the latest version and try again`)

	obj, third := k.update("deploy", "metadata: {name: web}\nstatus: {replicas: 3}\n", WriteOptions{Subresource: "status"})
	d = obj.(*appsv1.Deployment)
	if d.Status.Replicas != 3 || *d.Spec.Replicas != 3 || d.Generation != 2 || d.Labels["app"] != "web" {
		t.Errorf("status update: %+v", d)
	}
	if !(first.Revision < second.Revision && second.Revision < third.Revision) {
		t.Error("revisions do not grow")
	}
	// Unconditional: labels alone are no new generation.
	obj, _ = k.update("deploy", "metadata: {name: web, labels: {app: web, tier: front}}\n"+strings.Replace(spec, "replicas: 2", "replicas: 3", 1), WriteOptions{})
	if d = obj.(*appsv1.Deployment); d.Generation != 2 || d.Labels["tier"] != "front" || d.Status.Replicas != 3 {
		t.Errorf("unconditional: %+v", d)
	}
}

func ptr[T any](v T) *T { return &v }

func TestUpdateRefuses(t *testing.T) {
	k := newCluster(t)
	k.create("cm", `metadata: {name: a}`)
	for name, c := range map[string]struct {
		document string
		options  WriteOptions
		is       func(error) bool
		contains string
	}{
		"not there":     {`metadata: {name: b}`, WriteOptions{}, apierrors.IsNotFound, `configmaps "b" not found`},
		"uid":           {`metadata: {name: a, uid: other}`, WriteOptions{}, apierrors.IsConflict, `Precondition failed: UID in precondition: other, UID in object meta: `},
		"future":        {`metadata: {name: a, resourceVersion: "99999999"}`, WriteOptions{}, apierrors.IsConflict, "the object has been modified"},
		"no status":     {`metadata: {name: a}`, WriteOptions{Subresource: "status"}, apierrors.IsNotFound, `no subresource "status"`},
		"manager":       {`metadata: {name: a}`, WriteOptions{FieldManager: strings.Repeat("m", 129)}, apierrors.IsInvalid, `fieldManager: Too long`},
		"manager print": {`metadata: {name: a}`, WriteOptions{FieldManager: "a\nb"}, apierrors.IsInvalid, `should only contain printable characters`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := k.Update(t.Context(), res("cm"), in(c.document), c.options)
			fails(t, err, c.is, c.contains)
		})
	}
}

// A cache that is behind must not make a fresh caller wrong.
func TestStaleCache(t *testing.T) {
	k := newCluster(t)
	k.create("cm", `{metadata: {name: a}, data: {num: "1"}}`)
	k.cache.catchUp()
	k.cache.follows = false
	_, second := k.update("cm", `{metadata: {name: a}, data: {num: "2"}}`, WriteOptions{})
	// The cache still has n=1: an update from the newest revision is no conflict, one that equals the stale state is a change.
	_, third := k.update("cm", `{metadata: {name: a, resourceVersion: "`+version(second.Revision)+`"}, data: {num: "3"}}`, WriteOptions{})
	_, fourth := k.update("cm", `{metadata: {name: a}, data: {num: "1"}}`, WriteOptions{})
	if fourth.Revision <= third.Revision || k.stored("cm", "a").(*corev1.ConfigMap).Data["num"] != "1" {
		t.Errorf("an update was compared with a stale object: %d after %d, %v", fourth.Revision, third.Revision, k.stored("cm", "a"))
	}
	// Not in the cache at all.
	k.create("cm", `metadata: {name: b}`)
	k.patch("cm", "b", `data: {x: "1"}`, patch.Merge)
	k.delete("cm", "b", DeleteOptions{})
	if _, err := k.Delete(t.Context(), res("cm"), "shop", "b", DeleteOptions{}); !apierrors.IsNotFound(err) {
		t.Error(err)
	}
	// In the cache, but gone.
	k.delete("cm", "a", DeleteOptions{})
	_, err := k.Update(t.Context(), res("cm"), in(`metadata: {name: a}`), WriteOptions{})
	fails(t, err, apierrors.IsNotFound, `configmaps "a" not found`)
	k.create("cm", `metadata: {name: a}`)
}

func TestDryRun(t *testing.T) {
	k := newCluster(t)
	k.create("cm", `metadata: {name: a}`)
	k.create("pod", `{metadata: {name: p}, spec: {containers: [{name: c, image: i}]}}`)
	before := len(k.store.Commits())
	dry := WriteOptions{DryRun: true, FieldManager: "m"}
	ctx := t.Context()
	r, err := k.Create(ctx, res("cm"), in(`metadata: {name: b}`), dry)
	if err != nil || r.Revision != 0 || len(r.Object) == 0 {
		t.Error(r, err)
	}
	_, err = k.Create(ctx, res("cm"), in(`metadata: {name: a}`), dry)
	fails(t, err, apierrors.IsAlreadyExists, "already exists")
	_, err = k.Create(ctx, res("cm"), text(`metadata: {name: a, namespace: nowhere}`), dry)
	fails(t, err, apierrors.IsNotFound, `namespaces "nowhere" not found`)
	if _, err = k.Update(ctx, res("cm"), in(`{metadata: {name: a}, data: {x: z}}`), dry); err != nil {
		t.Error(err)
	}
	if _, err = k.Patch(ctx, res("cm"), k.patchOf("cm", "a", `data: {x: z}`, patch.Merge), dry); err != nil {
		t.Error(err)
	}
	if _, err = k.Apply(ctx, res("cm"), in(`{metadata: {name: c}, data: {x: z}}`), dry); err != nil {
		t.Error(err)
	}
	for _, word := range []string{"cm/a", "pod/p"} {
		kind, name, _ := strings.Cut(word, "/")
		if r, err := k.Delete(ctx, res(kind), "shop", name, DeleteOptions{DryRun: true}); err != nil || !r.Deleted {
			t.Error(r, err)
		}
	}
	if n, err := k.DeleteCollection(ctx, res("cm"), "shop", "", "", DeleteOptions{DryRun: true}); err != nil || n != 1 {
		t.Error(n, err)
	}
	if _, _, err := k.Commit(ctx, []Operation{{Resource: res("cm"), Action: ActionCreate, Input: in(`metadata: {name: z}`)}}, true); err != nil {
		t.Error(err)
	}
	if len(k.store.Commits()) != before {
		t.Error("a dry run wrote")
	}
}

func TestSecretsAreSealed(t *testing.T) {
	k := newCluster(t)
	_, r := k.create("secret", `{metadata: {name: db}, stringData: {password: hunter2}, data: {password: b3RoZXI=}}`)
	if s := k.stored("secret", "db").(*corev1.Secret); string(s.Data["password"]) != "hunter2" || s.StringData != nil {
		t.Errorf("stringData was not kept as data: %+v", s)
	}
	e := k.store.Entry("/registry/core/secrets/shop/db")
	if e.GetEncryptionKeyId() == 0 || bytes.Contains(e.GetValue(), []byte("hunter2")) {
		t.Error("the store can read the secret")
	}
	if !bytes.Contains(r.Object, []byte("hunter2")) {
		t.Error("the answer is sealed")
	}
	_, same := k.update("secret", `{metadata: {name: db}, data: {password: aHVudGVyMg==}}`, WriteOptions{})
	if same.Revision != r.Revision {
		t.Error("sealing again counts as a change")
	}
	for _, commit := range k.store.Commits() {
		if bytes.Contains([]byte(commit.String()), []byte("hunter2")) {
			t.Error("the store has seen the secret")
		}
	}
}

func TestKeyRotation(t *testing.T) {
	k := newCluster(t)
	k.create("secret", `{metadata: {name: a}, data: {x: aHVudGVyMg==}}`)
	k.create("secret", `{metadata: {name: b}}`)
	rotated, err := encryption.NewRing([]encryption.Key{{ID: 2, Secret: [encryption.KeySize]byte{1}}, {ID: 1}})
	if err != nil {
		t.Fatal(err)
	}
	k.encryption, k.cache.ring = rotated, rotated
	for _, want := range []int{2, 0} {
		if n, err := k.Reseal(t.Context()); err != nil || n != want {
			t.Errorf("sealed %d anew, %v; want %d", n, err, want)
		}
	}
	if e := k.store.Entry("/registry/core/secrets/shop/a"); e.GetEncryptionKeyId() != 2 {
		t.Errorf("sealed with key %d", e.GetEncryptionKeyId())
	}
	if s := k.stored("secret", "a").(*corev1.Secret); string(s.Data["x"]) != "hunter2" {
		t.Errorf("got %q", s.Data)
	}
}

// The store did not answer; the write happened, or it did not. Either way the caller gets the right answer, and it is written once.
func TestUnansweredCommits(t *testing.T) {
	for name, fault := range map[string]func(*cluster){
		"answer lost": func(k *cluster) { k.store.LoseAnswers(1) },
		"not done":    func(k *cluster) { k.store.RefuseCommits(1) },
		"both":        func(k *cluster) { k.store.RefuseCommits(2); k.store.LoseAnswers(1) },
	} {
		t.Run(name, func(t *testing.T) {
			k := newCluster(t)
			fault(k)
			_, r := k.create("cm", `metadata: {name: a}`)
			if !r.Created || r.Revision != k.store.Entry("/registry/core/configmaps/shop/a").GetRevision() {
				t.Errorf("create: %+v", r)
			}
			fault(k)
			k.create("cm", `metadata: {generateName: g-}`)
			if n := len(k.store.Keys("/registry/core/configmaps/shop/g-")); n != 1 {
				t.Errorf("%d objects of one create", n)
			}
			fault(k)
			_, r = k.update("cm", `{metadata: {name: a}, data: {x: "1"}}`, WriteOptions{})
			if r.Revision != k.store.Entry("/registry/core/configmaps/shop/a").GetRevision() {
				t.Errorf("update: %+v", r)
			}
			fault(k)
			k.patch("cm", "a", `[{op: add, path: /metadata/finalizers, value: [x.dev/a]}]`, patch.JSON)
			fault(k)
			k.patch("cm", "a", `[{op: add, path: /metadata/finalizers/-, value: x.dev/b}]`, patch.JSON)
			if f := k.stored("cm", "a").GetFinalizers(); len(f) != 2 {
				t.Errorf("a patch that appends was made twice: %q", f)
			}
			fault(k)
			at := version(k.store.Entry("/registry/core/configmaps/shop/a").GetRevision())
			k.update("cm", `{metadata: {name: a, resourceVersion: "`+at+`"}, data: {x: "2"}}`, WriteOptions{})
			fault(k)
			if r, err := k.Delete(t.Context(), res("cm"), "shop", "a", DeleteOptions{}); err != nil || len(r.Object) == 0 || !r.Deleted && k.stored("cm", "a").GetDeletionTimestamp() == nil {
				t.Errorf("delete: %+v, %v", r, err)
			}
			k.store.RefuseCommits(100)
			_, err := k.Create(t.Context(), res("cm"), in(`metadata: {name: b}`), WriteOptions{})
			fails(t, err, apierrors.IsServiceUnavailable, "the store does not answer")
		})
	}
}

func TestEveryKind(t *testing.T) {
	k := newCluster(t)
	for _, r := range resource.Stored() {
		t.Run(r.String(), func(t *testing.T) {
			name := "x"
			if r.Kind == "IPAddress" {
				name = "10.0.0.1"
			}
			o := k.codec.New(r)
			o.SetName(name)
			if r.Namespaced {
				o.SetNamespace("shop")
			}
			data, err := o.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := k.Create(t.Context(), r, Input{Data: data}, WriteOptions{}); err != nil && !apierrors.IsInvalid(err) {
				t.Error(err)
			}
			config := `metadata: {name: ` + name + `, annotations: {a: b}}`
			input := Input{Data: []byte(config), Text: true, Namespace: o.GetNamespace()}
			if _, err := k.Apply(t.Context(), r, input, WriteOptions{FieldManager: "m"}); err != nil && !apierrors.IsInvalid(err) {
				t.Error(err)
			}
		})
	}
}
