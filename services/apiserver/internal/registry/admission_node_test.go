package registry

import (
	"context"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"dhow.dev/pkg/identity"
	"dhow.dev/services/apiserver/internal/admission"
	"dhow.dev/services/apiserver/internal/authorizer"
	"dhow.dev/services/apiserver/internal/patch"
)

// only allows one thing.
type only struct{ what authorizer.Attributes }

func (o only) Authorize(_ context.Context, a authorizer.Attributes) error {
	if a.Verb == o.what.Verb && a.Version == o.what.Version && a.Resource == o.what.Resource && a.Namespace == o.what.Namespace && a.Name == o.what.Name && a.Group == o.what.Group {
		return nil
	}
	return authorizer.Forbidden(a, "")
}

// TestTokensOfNodes asks as a node for the tokens that the volumes of its pod are to hold, and for others.
func TestTokensOfNodes(t *testing.T) {
	k := guarded(t, admission.Config{Authorizer: only{authorizer.Attributes{
		Verb: "request-serviceaccounts-token-audience", Version: "v1", Resource: "granted", Namespace: "shop", Name: "default",
	}}})
	k.create("pv", `{metadata: {name: data}, spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], csi: {driver: data.csi, volumeHandle: d}}}`)
	k.create("pv", `{metadata: {name: scratch}, spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], csi: {driver: scratch.csi, volumeHandle: s}}}`)
	for name, volume := range map[string]string{"data": ", volumeName: data", "p-scratch": ", volumeName: scratch", "unbound": ""} {
		k.create("pvc", `{metadata: {name: `+name+`}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}`+volume+`}}`)
	}
	for _, driver := range []string{"inline", "data", "scratch", "other"} {
		k.create("csidriver", `{metadata: {name: `+driver+`.csi}, spec: {volumeLifecycleModes: [Ephemeral, Persistent], tokenRequests: [{audience: `+driver+`}]}}`)
	}
	created, _ := k.create("pod", `{metadata: {name: p}, spec: {nodeName: n1, containers: [{name: c, image: i}], volumes: [
		{name: own, projected: {sources: [{serviceAccountToken: {path: t}}]}}, {name: vault, projected: {sources: [{serviceAccountToken: {path: t, audience: vault}}]}},
		{name: inline, csi: {driver: inline.csi}}, {name: unknown, csi: {driver: unknown.csi}},
		{name: data, persistentVolumeClaim: {claimName: data}}, {name: unbound, persistentVolumeClaim: {claimName: unbound}}, {name: missing, persistentVolumeClaim: {claimName: missing}},
		{name: scratch, ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}}}]}}`)
	uid := created.GetUID()
	k.create("pod", `{metadata: {name: far}, spec: {nodeName: n2, containers: [{name: c, image: i}]}}`)
	ask := func(as identity.Identity, ref *authenticationv1.BoundObjectReference, audiences ...string) error {
		q := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: audiences, BoundObjectRef: ref}}
		_, err := k.Admit(identity.NewContext(t.Context(), as), admission.Create, res("sa"), "token", "shop", "default", q)
		return err
	}
	node := identity.Node("n1")
	bound := func(name string, uid types.UID) *authenticationv1.BoundObjectReference {
		return &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: name, UID: uid}
	}
	for audience, want := range map[string]bool{"": true, "vault": true, "inline": true, "data": true, "scratch": true, "granted": true, "other": false, "x": false} {
		var audiences []string
		if audience != "" {
			audiences = []string{audience}
		}
		if err := ask(node, bound("p", uid), audiences...); (err == nil) != want {
			t.Errorf("%q: %v", audience, err)
		}
	}
	fails(t, ask(node, bound("p", uid), "x"), apierrors.IsForbidden,
		`serviceaccounts "default" is forbidden: audience "x" not found in pod spec volume, system:node:n1 is not authorized to request tokens for this audience`)
	fails(t, ask(node, bound("p", uid), "vault", "data"), apierrors.IsForbidden, "node may only request 0 or 1 audiences")
	fails(t, ask(node, nil), apierrors.IsForbidden, "node requested token not bound to a pod")
	fails(t, ask(node, &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Secret", Name: "s", UID: "u"}), apierrors.IsForbidden, "node requested token not bound to a pod")
	fails(t, ask(node, bound("p", "")), apierrors.IsForbidden, "node requested token with a pod binding without a uid")
	fails(t, ask(node, bound("p", "other")), apierrors.IsForbidden, "the UID in the bound object reference (other) does not match the UID in record")
	fails(t, ask(node, bound("none", "u")), apierrors.IsNotFound, `pods "none" not found`)
	fails(t, ask(node, bound("far", k.stored("pod", "far").GetUID())), apierrors.IsForbidden, "node requested token bound to a pod scheduled on a different node")
	if err := ask(identity.Identity{Name: "jane"}, nil, "x", "y"); err != nil {
		t.Errorf("of one who is no node: %v", err)
	}
}

// TestPodsHaveTheirTopology: pods get zone and region of their node when they are created on it, and when they are bound to it.
func TestPodsHaveTheirTopology(t *testing.T) {
	k := guarded(t, admission.Config{})
	k.create("node", `{metadata: {name: n1, labels: {topology.kubernetes.io/zone: z1, topology.kubernetes.io/region: r1, kubernetes.io/os: linux}}}`)
	k.create("node", `{metadata: {name: plain}}`)
	const spec = ` containers: [{name: c, image: i}]}}`
	k.create("pod", `{metadata: {name: placed, labels: {topology.kubernetes.io/zone: mine}}, spec: {nodeName: n1,`+spec)
	k.create("pod", `{metadata: {name: nowhere}, spec: {nodeName: none,`+spec)
	for _, name := range []string{"many", "one", "own", "bare"} {
		k.create("pod", `{metadata: {name: `+name+`, labels: {a: b, topology.kubernetes.io/zone: mine}}, spec: {`+spec)
	}
	bound, _ := k.Bind(t.Context(), []Binding{{Namespace: "shop", Name: "many", NodeName: "n1"}, {Namespace: "shop", Name: "bare", NodeName: "plain"}}, nil)
	binding := &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: "n1"}}
	own := binding.DeepCopy()
	own.Labels = map[string]string{"topology.kubernetes.io/zone": "chosen", "x": "y"}
	for _, err := range append(bound, k.BindOne(t.Context(), "shop", "one", binding, false), k.BindOne(t.Context(), "shop", "own", own, false)) {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"placed": "mine r1", "nowhere": " ", "many": "z1 r1", "one": "z1 r1", "own": "chosen r1", "bare": "mine ",
	} {
		labels := k.stored("pod", name).GetLabels()
		if got := labels["topology.kubernetes.io/zone"] + " " + labels["topology.kubernetes.io/region"]; got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
		if _, has := labels["kubernetes.io/os"]; has || name == "own" && labels["x"] != "y" {
			t.Errorf("%s: %v", name, labels)
		}
	}
}

// TestMountableSecrets: pods of an account that says so use no secrets but its own.
func TestMountableSecrets(t *testing.T) {
	k := guarded(t, admission.Config{AutomountTokens: true})
	k.create("sa", `{metadata: {name: strict, annotations: {kubernetes.io/enforce-mountable-secrets: "true"}}, secrets: [{name: mine}], imagePullSecrets: [{name: pull}]}`)
	k.create("sa", `{metadata: {name: lax, annotations: {kubernetes.io/enforce-mountable-secrets: "no!"}}}`)
	of := func(account, container, more string) string {
		return `{metadata: {name: p}, spec: {serviceAccountName: ` + account + `, containers: [{name: c, image: i` + container + `}]` + more + `}}`
	}
	for _, bad := range []struct{ container, more, words string }{
		{"", ", volumes: [{name: v, secret: {secretName: other}}]", `volume with secret.secretName="other" is not allowed because service account strict does not reference that secret`},
		{", env: [{name: E, valueFrom: {secretKeyRef: {name: other, key: k}}}]", "", `container c with envVar E referencing secret.secretName="other" is not allowed because service account strict does not reference that secret`},
		{", envFrom: [{secretRef: {name: other}}]", "", `container c with envFrom referencing secret.secretName="other" is not allowed`},
		{"", ", initContainers: [{name: first, image: i, env: [{name: E, valueFrom: {secretKeyRef: {name: other, key: k}}}]}]", `init container first with envVar E referencing`},
		{"", ", imagePullSecrets: [{name: other}]", `imagePullSecrets[0].name="other" is not allowed because service account strict does not reference that imagePullSecret`},
	} {
		k.refused("pod", of("strict", bad.container, bad.more), bad.words)
	}
	k.create("pod", of("strict", ", envFrom: [{secretRef: {name: mine}}]", ", volumes: [{name: v, secret: {secretName: mine}}]"))
	_, err := k.Patch(t.Context(), res("pod"), k.patchOf("pod", "p", `{spec: {ephemeralContainers: [{name: e, image: i, envFrom: [{secretRef: {name: other}}]}]}}`, patch.StrategicMerge), WriteOptions{Subresource: "ephemeralcontainers"})
	fails(t, err, apierrors.IsForbidden, `ephemeral container e with envFrom referencing secret.secretName="other"`)
	k.create("pod", strings.Replace(of("lax", "", ", volumes: [{name: v, secret: {secretName: other}}]"), "name: p", "name: q", 1))
}
