package admission

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilrand "k8s.io/apimachinery/pkg/util/rand"

	"dhow.dev/pkg/resource"
)

var serviceAccounts = resource.Lookup("", "serviceaccounts")

const (
	defaultAccount = "default"
	// tokenVolume begins the name of the volume that pods find their credentials in, at tokenPath, as Kubernetes names it.
	tokenVolume = "kube-api-access-"
	tokenPath   = "/var/run/secrets/kubernetes.io/serviceaccount"
	rootCAMap   = "kube-root-ca.crt"
	// tokenSeconds is Kubernetes' number: an hour, and seven seconds by which such tokens are recognized.
	tokenSeconds = 3607
	// enforceMountable is the annotation by which an account's pods use no secrets but those that the account names.
	enforceMountable = "kubernetes.io/enforce-mountable-secrets"
)

// defaultAccounts makes the account `default` together with its namespace, so that no pod loses the race against the controller, which brings back
// one that was deleted. (In Kubernetes the controller makes it, and pods wait for it.)
type defaultAccounts struct{}

func (defaultAccounts) validate(_ context.Context, q *Request) error {
	ns, ok := q.Object.(*corev1.Namespace)
	if !ok || q.Operation != Create || q.Subresource != "" {
		return nil
	}
	return q.View.Make(serviceAccounts, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: ns.Name, Name: defaultAccount}})
}

// serviceAccount holds pods to service accounts that exist, and mounts their tokens.
type serviceAccount struct{ automount bool }

func (s serviceAccount) mutate(ctx context.Context, q *Request) error {
	pod, ok := q.Object.(*corev1.Pod)
	if !ok || !q.is("", "pods") || q.Operation != Create {
		return nil
	}
	if isMirror(pod) {
		// Defaulting names an account for every pod; a node's own pod has none.
		if pod.Spec.ServiceAccountName == defaultAccount {
			pod.Spec.ServiceAccountName, pod.Spec.DeprecatedServiceAccount = "", ""
		}
		return nil
	}
	if pod.Spec.ServiceAccountName == "" {
		pod.Spec.ServiceAccountName, pod.Spec.DeprecatedServiceAccount = defaultAccount, defaultAccount
	}
	name := pod.Spec.ServiceAccountName
	account, found, err := get[*corev1.ServiceAccount](ctx, q.View, serviceAccounts, q.Namespace, name)
	switch {
	case err != nil:
		return err
	case !found:
		return q.forbidden("error looking up service account %s/%s: serviceaccount %q not found", q.Namespace, name, name)
	}
	if s.automount && mounts(pod, account) {
		mountToken(pod)
	}
	if len(pod.Spec.ImagePullSecrets) == 0 {
		pod.Spec.ImagePullSecrets = append(pod.Spec.ImagePullSecrets, account.ImagePullSecrets...)
	}
	return nil
}

func (s serviceAccount) validate(ctx context.Context, q *Request) error {
	pod, ok := q.Object.(*corev1.Pod)
	switch {
	case !ok:
		return nil
	case q.is("", "pods") && q.Operation == Create:
		if isMirror(pod) {
			return mirror(q, pod)
		}
	case q.on("", "pods", "ephemeralcontainers") && q.Operation == Update:
	default:
		return nil
	}
	account, found, err := get[*corev1.ServiceAccount](ctx, q.View, serviceAccounts, q.Namespace, pod.Spec.ServiceAccountName)
	if err != nil || !found {
		return err // of a pod that exists, the account may be gone
	}
	if enforce, err := strconv.ParseBool(account.Annotations[enforceMountable]); err != nil || !enforce {
		return nil // anything but a boolean counts as none
	}
	if bad := notMountable(pod, account, q.Subresource != ""); bad != "" {
		return q.forbidden("%s", bad)
	}
	return nil
}

// notMountable says which secret a pod uses that its account does not name, empty for none. Of a pod that exists only its ephemeral containers are looked at.
func notMountable(pod *corev1.Pod, account *corev1.ServiceAccount, exists bool) string {
	named := map[string]bool{}
	for _, s := range account.Secrets {
		named[s.Name] = true
	}
	refused := func(format string, args ...any) string {
		return fmt.Sprintf(format+" is not allowed because service account "+account.Name+" does not reference that secret", args...)
	}
	env := func(kind string, c *corev1.Container) string {
		for _, e := range c.Env {
			if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil && !named[e.ValueFrom.SecretKeyRef.Name] {
				return refused("%s %s with envVar %s referencing secret.secretName=%q", kind, c.Name, e.Name, e.ValueFrom.SecretKeyRef.Name)
			}
		}
		for _, e := range c.EnvFrom {
			if e.SecretRef != nil && !named[e.SecretRef.Name] {
				return refused("%s %s with envFrom referencing secret.secretName=%q", kind, c.Name, e.SecretRef.Name)
			}
		}
		return ""
	}
	if exists {
		for i := range pod.Spec.EphemeralContainers {
			c := corev1.Container(pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
			if bad := env("ephemeral container", &c); bad != "" {
				return bad
			}
		}
		return ""
	}
	for i := range pod.Spec.Volumes {
		if s := pod.Spec.Volumes[i].Secret; s != nil && !named[s.SecretName] {
			return refused("volume with secret.secretName=%q", s.SecretName)
		}
	}
	for _, list := range []struct {
		kind       string
		containers []corev1.Container
	}{{"init container", pod.Spec.InitContainers}, {"container", pod.Spec.Containers}} {
		for i := range list.containers {
			if bad := env(list.kind, &list.containers[i]); bad != "" {
				return bad
			}
		}
	}
	for i, s := range pod.Spec.ImagePullSecrets {
		if !slices.ContainsFunc(account.ImagePullSecrets, func(o corev1.LocalObjectReference) bool { return o.Name == s.Name }) {
			return fmt.Sprintf("imagePullSecrets[%d].name=%q is not allowed because service account %s does not reference that imagePullSecret", i, s.Name, account.Name)
		}
	}
	return ""
}

// mirror holds the API's image of a pod that its node runs on its own account to what needs nothing of the API.
func mirror(q *Request, pod *corev1.Pod) error {
	if pod.Spec.ServiceAccountName != "" {
		return q.forbidden("a mirror pod may not reference service accounts")
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.Secret != nil {
			return q.forbidden("a mirror pod may not reference secrets")
		}
		if v.Projected == nil {
			continue
		}
		for _, source := range v.Projected.Sources {
			if source.Secret != nil {
				return q.forbidden("a mirror pod may not reference secrets")
			}
			if source.ServiceAccountToken != nil {
				return q.forbidden("a mirror pod may not use ServiceAccountToken volume projections")
			}
		}
	}
	return nil
}

// isMirror says whether a pod is the API's image of one that its node runs on its own account.
func isMirror(pod *corev1.Pod) bool {
	_, ok := pod.Annotations[corev1.MirrorPodAnnotationKey]
	return ok
}

// mounts says whether the pod wants its token: the pod's own wish comes before its account's.
func mounts(pod *corev1.Pod, account *corev1.ServiceAccount) bool {
	for _, wish := range []*bool{pod.Spec.AutomountServiceAccountToken, account.AutomountServiceAccountToken} {
		if wish != nil {
			return *wish
		}
	}
	return true
}

// mountToken mounts the token into every container that has nothing else in its place.
func mountToken(pod *corev1.Pod) {
	name := ""
	for _, v := range pod.Spec.Volumes {
		if strings.HasPrefix(v.Name, tokenVolume) {
			name = v.Name
			break
		}
	}
	exists := name != ""
	if !exists {
		name = tokenVolume + utilrand.String(5)
	}
	mounted := false
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			c := &list[i]
			if slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == tokenPath }) {
				continue
			}
			c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: name, ReadOnly: true, MountPath: tokenPath})
			mounted = true
		}
	}
	if mounted && !exists {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{Projected: tokenSources()}})
	}
}

// tokenSources are the token, the certificate to know the API server by, and the pod's namespace.
func tokenSources() *corev1.ProjectedVolumeSource {
	seconds, mode := int64(tokenSeconds), corev1.ProjectedVolumeSourceDefaultMode
	return &corev1.ProjectedVolumeSource{
		DefaultMode: &mode,
		Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: &seconds}},
			{ConfigMap: &corev1.ConfigMapProjection{
				LocalObjectReference: corev1.LocalObjectReference{Name: rootCAMap}, Items: []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}},
			}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{
				Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.namespace"},
			}}}},
		},
	}
}
