package apiserver_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"dhow.dev/pkg/pki"
)

// conformance is what the tests below share: clients of one cluster, and a namespace of the test's own.
type conformance struct {
	*kubernetesCluster
	ctx       context.Context
	client    *kubernetes.Clientset
	namespace string
}

// each runs every test in a namespace of its own, with a client that speaks protobuf, as the suite's does.
func (k *kubernetesCluster) each(t *testing.T, tests map[string]func(conformance, *testing.T)) {
	quiet := encodedAs(k.root, protobufType)
	quiet.AcceptContentTypes = protobufType + "," + jsonType
	quiet.WarningHandler = rest.NoWarnings{}
	client := clientset(t, quiet)
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := conformance{kubernetesCluster: k, ctx: within(t), client: client}
			namespace, err := client.CoreV1().Namespaces().Create(c.ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-"}}, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			c.namespace = namespace.Name
			test(c, t)
		})
	}
}

// TestConformanceObjects does what the suite's tests of single kinds do beyond TestConformanceOperations.
func TestConformanceObjects(t *testing.T) {
	newKubernetesCluster(t).each(t, map[string]func(conformance, *testing.T){
		"CSR API operations":                conformance.signingRequests,
		"field validation":                  conformance.fieldValidation,
		"config maps":                       conformance.configMaps,
		"secrets":                           conformance.secrets,
		"priority classes":                  conformance.priorityClasses,
		"services change their type":        conformance.serviceTypes,
		"service status":                    conformance.serviceStatus,
		"lease API":                         conformance.leases,
		"events API":                        conformance.events,
		"endpoints":                         conformance.endpoints,
		"limit ranges":                      conformance.limitRanges,
		"namespaces":                        conformance.namespaces,
		"node lifecycle":                    conformance.nodes,
		"tables of what has none":           conformance.noTables,
		"server version":                    conformance.version,
		"every group's version is found":    conformance.preferredVersions,
		"pods' quality of service":          conformance.quality,
		"pod status":                        conformance.podStatus,
		"services of all namespaces":        conformance.allServices,
		"resource quota":                    conformance.resourceQuota,
		"pod templates":                     conformance.podTemplates,
		"scale of replication controllers":  conformance.scales,
		"selectors of the two event groups": conformance.eventSelectors,
	})
}

func merged(t *testing.T, o any) []byte {
	t.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (c conformance) signingRequests(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "e2e.example.com"}, DNSNames: []string{"e2e.example.com"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	seconds := int32(3600)
	requests, signer := c.client.CertificatesV1().CertificateSigningRequests(), "example.com/e2e-"+c.namespace
	template := &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-example-csr-"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), SignerName: signer, ExpirationSeconds: &seconds,
			Usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment, certificatesv1.UsageServerAuth},
		},
	}
	var made *certificatesv1.CertificateSigningRequest
	for range 3 {
		if made, err = requests.Create(c.ctx, template, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	chosen := metav1.ListOptions{FieldSelector: "spec.signerName=" + signer}
	if list, err := requests.List(c.ctx, chosen); err != nil || len(list.Items) != 3 {
		t.Fatalf("%v, %v", list, err)
	}
	loose, err := dynamic.NewForConfig(c.root)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"approval", "status"} {
		got, err := loose.Resource(certificatesv1.SchemeGroupVersion.WithResource("certificatesigningrequests")).Get(c.ctx, made.Name, metav1.GetOptions{}, part)
		if err != nil || got.GetUID() != made.UID || got.GetKind() != "CertificateSigningRequest" {
			t.Errorf("%s: %v, %v", part, got, err)
		}
	}
	patched, err := requests.Patch(c.ctx, made.Name, types.MergePatchType,
		[]byte(`{"metadata":{"annotations":{"patchedapproval":"true"}},"status":{"conditions":[{"type":"ApprovalPatch","status":"True","reason":"e2e"}]}}`), metav1.PatchOptions{}, "approval")
	if err != nil || len(patched.Status.Conditions) != 1 || patched.Status.Conditions[0].Type != "ApprovalPatch" || patched.Annotations["patchedapproval"] != "true" {
		t.Fatalf("patch of the approval: %+v, %v", patched, err)
	}
	patched.Status.Conditions = append(patched.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "E2E", Message: "Set from a test"})
	approved, err := requests.UpdateApproval(c.ctx, made.Name, patched, metav1.UpdateOptions{})
	if err != nil || len(approved.Status.Conditions) != 2 || approved.Status.Conditions[1].Type != certificatesv1.CertificateApproved || approved.Status.Conditions[1].LastUpdateTime.IsZero() {
		t.Fatalf("update of the approval: %+v, %v", approved, err)
	}
	authority, err := pki.LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	certificate := authority.CertificatePEM()
	patched, err = requests.Patch(c.ctx, made.Name, types.MergePatchType, merged(t, map[string]any{
		"metadata": map[string]any{"annotations": map[string]any{"patchedstatus": "true"}}, "status": map[string]any{"certificate": certificate},
	}), metav1.PatchOptions{}, "status")
	if err != nil || !bytes.Equal(patched.Status.Certificate, certificate) || patched.Annotations["patchedstatus"] != "true" {
		t.Fatalf("patch of the status: %+v, %v", patched, err)
	}
	patched.Status.Conditions = append(patched.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{Type: "StatusUpdate", Status: corev1.ConditionTrue, Reason: "E2E", Message: "Set from a test"})
	updated, err := requests.UpdateStatus(c.ctx, patched, metav1.UpdateOptions{})
	if err != nil || len(updated.Status.Conditions) != 3 || updated.Status.Conditions[2].Type != "StatusUpdate" {
		t.Fatalf("update of the status: %+v, %v", updated, err)
	}
	if err := requests.Delete(c.ctx, made.Name, metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
	if list, err := requests.List(c.ctx, chosen); err != nil || len(list.Items) != 2 {
		t.Errorf("%v, %v", list, err)
	}
	if err := requests.DeleteCollection(c.ctx, metav1.DeleteOptions{}, chosen); err != nil {
		t.Error(err)
	}
	if list, err := requests.List(c.ctx, chosen); err != nil || len(list.Items) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}

// fieldValidation: unknown and duplicate fields, also in the metadata, are refused when the request says Strict, in every form that it may come in.
func (c conformance) fieldValidation(t *testing.T) {
	const deployment = `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"validated",%s"labels":{"app":"nginx"}},
		"spec":{%s"selector":{"matchLabels":{"app":"nginx"}},"template":{"metadata":{"labels":{"app":"nginx"}},"spec":{"containers":[{"name":"nginx","image":"nginx:latest"}]}}}}`
	path := "/apis/apps/v1/namespaces/" + c.namespace + "/deployments"
	body := func(metadata, spec string) string {
		return strings.Replace(strings.Replace(deployment, "%s", metadata, 1), "%s", spec, 1)
	}
	web, err := rest.HTTPClientFor(c.root)
	if err != nil {
		t.Fatal(err)
	}
	json, apply, merge := map[string]string{"Content-Type": jsonType}, map[string]string{"Content-Type": string(types.ApplyYAMLPatchType)}, map[string]string{"Content-Type": string(types.MergePatchType)}
	const unknown, duplicate, own = `unknown field \"spec.unknownField\"`, `duplicate field \"spec.replicas\"`, `unknown field \"metadata.unknownMeta\"`
	for _, x := range []exchange{
		{method: "POST", path: path + "?fieldValidation=Strict", header: json, body: body("", `"unknownField":"x","replicas":1,"replicas":2,`), code: 400, reason: "BadRequest", contains: []string{"strict decoding error: " + unknown + ", " + duplicate}},
		{method: "POST", path: path + "?fieldValidation=Strict", header: json, body: body(`"unknownMeta":"foo",`, ""), code: 400, reason: "BadRequest", contains: []string{"strict decoding error: " + own}},
		{method: "POST", path: path + "?fieldValidation=Wrong", header: json, body: body("", ""), code: 422, reason: "Invalid"},
		{method: "PATCH", path: path + "/validated?fieldManager=test&fieldValidation=Strict", header: apply, body: body("", `"unknownField":"x","replicas":1,"replicas":2,`), code: 400, reason: "BadRequest", contains: []string{"duplicate"}},
		{method: "PATCH", path: path + "/validated?fieldManager=test&fieldValidation=Strict", header: apply, body: body(`"unknownMeta":"foo",`, ""), code: 400, reason: "BadRequest", contains: []string{"unknownMeta"}},
		{method: "POST", path: path, header: json, body: body("", ""), code: 201},
		{method: "PATCH", path: path + "/validated?fieldValidation=Strict", header: merge, body: `{"spec":{"unknownField":"x","replicas":1,"replicas":2}}`, code: 422, reason: "Invalid", contains: []string{unknown}},
		{method: "PUT", path: path + "/validated?fieldValidation=Strict", header: json, body: body(`"unknownMeta":"foo",`, ""), code: 400, reason: "BadRequest", contains: []string{own}},
		{method: "PUT", path: path + "/validated?fieldValidation=Ignore", header: json, body: body(`"unknownMeta":"foo",`, ""), code: 200},
	} {
		x.run(t, web, c.root.Host)
	}
}

// immutability is what config maps and secrets share: once immutable, only the metadata changes.
func immutability[T metav1.Object](t *testing.T, made T, update func(T) (T, error), data func(T, string), immutable func(T, *bool)) {
	t.Helper()
	yes, no := true, false
	data(made, "value-1")
	made, err := update(made)
	if err != nil {
		t.Fatalf("update: %v", err)
	}
	immutable(made, &yes)
	if made, err = update(made); err != nil {
		t.Fatalf("made immutable: %v", err)
	}
	data(made, "value-2")
	if _, err := update(made); !apierrors.IsInvalid(err) {
		t.Errorf("other data: %v, want Invalid", err)
	}
	data(made, "value-1")
	immutable(made, &no)
	if _, err := update(made); !apierrors.IsInvalid(err) {
		t.Errorf("not immutable any more: %v, want Invalid", err)
	}
	immutable(made, &yes)
	made.SetLabels(map[string]string{"label1": "value1"})
	if _, err := update(made); err != nil {
		t.Errorf("a label: %v", err)
	}
}

func (c conformance) configMaps(t *testing.T) {
	maps := c.client.CoreV1().ConfigMaps(c.namespace)
	if _, err := maps.Create(c.ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "empty-key"}, Data: map[string]string{"": "value-1"}}, metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("an empty key: %v, want Invalid", err)
	}
	made, err := maps.Create(c.ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "im", Labels: map[string]string{"test-configmap-static": "true"}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := maps.Patch(c.ctx, "im", types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"test-configmap":"patched"}},"data":{"valueName":"value1"}}`), metav1.PatchOptions{}); err != nil {
		t.Error(err)
	}
	all, err := c.client.CoreV1().ConfigMaps("").List(c.ctx, metav1.ListOptions{LabelSelector: "test-configmap-static=true"})
	if err != nil || len(all.Items) != 1 || all.Items[0].Data["valueName"] != "value1" || all.Items[0].Labels["test-configmap"] != "patched" {
		t.Errorf("%+v, %v", all, err)
	}
	if made, err = maps.Get(c.ctx, "im", metav1.GetOptions{}); err != nil {
		t.Fatal(err)
	}
	immutability(t, made, func(m *corev1.ConfigMap) (*corev1.ConfigMap, error) {
		return maps.Update(c.ctx, m, metav1.UpdateOptions{})
	},
		func(m *corev1.ConfigMap, value string) { m.Data = map[string]string{"data-1": value} }, func(m *corev1.ConfigMap, is *bool) { m.Immutable = is })
	if err := maps.DeleteCollection(c.ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "label1=value1"}); err != nil {
		t.Error(err)
	}
	if _, err := maps.Get(c.ctx, "im", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("after the deletion: %v, want NotFound", err)
	}
}

func (c conformance) secrets(t *testing.T) {
	secrets := c.client.CoreV1().Secrets(c.namespace)
	if _, err := secrets.Create(c.ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "empty-key"}, Data: map[string][]byte{"": []byte("value-1")}}, metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("an empty key: %v, want Invalid", err)
	}
	made, err := secrets.Create(c.ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "im", Labels: map[string]string{"testsecret-constant": "true"}}, Type: "Opaque", Data: map[string][]byte{"key": []byte("value")}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	patched, err := secrets.Patch(c.ctx, "im", types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"testsecret":"true"}},"data":{"key":"dmFsdWUx"}}`), metav1.PatchOptions{})
	if err != nil || string(patched.Data["key"]) != "value1" || patched.Labels["testsecret"] != "true" || patched.UID != made.UID {
		t.Fatalf("%+v, %v", patched, err)
	}
	immutability(t, patched, func(s *corev1.Secret) (*corev1.Secret, error) {
		return secrets.Update(c.ctx, s, metav1.UpdateOptions{})
	},
		func(s *corev1.Secret, value string) { s.Data = map[string][]byte{"data-1": []byte(value)} }, func(s *corev1.Secret, is *bool) { s.Immutable = is })
	if err := secrets.Delete(c.ctx, "im", metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
}

func (c conformance) priorityClasses(t *testing.T) {
	classes := c.client.SchedulingV1().PriorityClasses()
	never := corev1.PreemptNever
	for i, name := range []string{"p1", "p2"} {
		if _, err := classes.Create(c.ctx, &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: int32(i + 1)}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	one, err := classes.Get(c.ctx, "p1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*schedulingv1.PriorityClass){
		"value": func(p *schedulingv1.PriorityClass) { p.Value *= 10 }, "preemption policy": func(p *schedulingv1.PriorityClass) { p.PreemptionPolicy = &never },
	} {
		next := one.DeepCopy()
		change(next)
		if _, err := classes.Update(c.ctx, next, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) {
			t.Errorf("update of the %s: %v, want Invalid", what, err)
		}
	}
	if _, err := classes.Patch(c.ctx, "p1", types.StrategicMergePatchType, []byte(`{"value":50}`), metav1.PatchOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("patch of the value: %v, want Invalid", err)
	}
	next := one.DeepCopy()
	next.Description = "updated description"
	if p, err := classes.Update(c.ctx, next, metav1.UpdateOptions{}); err != nil || p.Description != next.Description {
		t.Errorf("update of the description: %+v, %v", p, err)
	}
}

func (c conformance) limitRanges(t *testing.T) {
	list := func(min, max, fallback string) corev1.ResourceList {
		return corev1.ResourceList{"cpu": apiresource.MustParse(min), "memory": apiresource.MustParse(max), "ephemeral-storage": apiresource.MustParse(fallback)}
	}
	limits := &corev1.LimitRange{ObjectMeta: metav1.ObjectMeta{Name: "limits", Labels: map[string]string{"e2e": c.namespace}}, Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{{
		Type: corev1.LimitTypeContainer, Min: list("50m", "100Mi", "100Gi"), Max: list("500m", "500Mi", "500Gi"), Default: list("500m", "500Mi", "500Gi"), DefaultRequest: list("100m", "200Mi", "200Gi"),
	}}}}
	api := c.client.CoreV1().LimitRanges(c.namespace)
	made, err := api.Create(c.ctx, limits, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pods := c.client.CoreV1().Pods(c.namespace)
	pod, err := pods.Create(c.ctx, podNamed("pod-no-resources", nil), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if r := pod.Spec.Containers[0].Resources; !apiequality.Semantic.DeepEqual(r.Requests, list("100m", "200Mi", "200Gi")) || !apiequality.Semantic.DeepEqual(r.Limits, list("500m", "500Mi", "500Gi")) {
		t.Errorf("%+v", r)
	}
	with := func(name, cpu string) error {
		_, err := pods.Create(c.ctx, podNamed(name, func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{"cpu": apiresource.MustParse(cpu)}
			p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{"cpu": apiresource.MustParse(cpu)}
		}), metav1.CreateOptions{})
		return err
	}
	for name, cpu := range map[string]string{"too-little": "10m", "too-much": "600m"} {
		if err := with(name, cpu); !apierrors.IsForbidden(err) {
			t.Errorf("%s: %v, want Forbidden", name, err)
		}
	}
	made.Spec.Limits[0].Min = list("9m", "49Mi", "49Gi")
	if _, err := api.Update(c.ctx, made, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := with("little", "10m"); err != nil {
		t.Errorf("after the update: %v", err)
	}
	if _, err := c.client.CoreV1().LimitRanges("default").Create(c.ctx, limits, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	chosen := metav1.ListOptions{LabelSelector: "e2e=" + c.namespace}
	if all, err := c.client.CoreV1().LimitRanges("").List(c.ctx, chosen); err != nil || len(all.Items) != 2 {
		t.Errorf("%v, %v", all, err)
	}
	if err := c.client.CoreV1().LimitRanges("default").DeleteCollection(c.ctx, metav1.DeleteOptions{}, chosen); err != nil {
		t.Error(err)
	}
	if all, err := c.client.CoreV1().LimitRanges("").List(c.ctx, chosen); err != nil || len(all.Items) != 1 {
		t.Errorf("%v, %v", all, err)
	}
}

func (c conformance) namespaces(t *testing.T) {
	api := c.client.CoreV1().Namespaces()
	got, err := api.Get(c.ctx, c.namespace, metav1.GetOptions{})
	if err != nil || got.Status.Phase != corev1.NamespaceActive || got.Labels[corev1.LabelMetadataName] != c.namespace {
		t.Fatalf("%+v, %v", got, err)
	}
	patched, err := api.Patch(c.ctx, c.namespace, types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"testLabel":"testValue"}}}`), metav1.PatchOptions{})
	if err != nil || patched.Labels["testLabel"] != "testValue" {
		t.Fatalf("%+v, %v", patched, err)
	}
	patched, err = api.Patch(c.ctx, c.namespace, types.MergePatchType,
		[]byte(`{"metadata":{"annotations":{"e2e-patched-ns-status":"yes"}},"status":{"conditions":[{"type":"StatusPatch","status":"True","reason":"E2E","message":"Set by a test"}]}}`), metav1.PatchOptions{}, "status")
	if err != nil || patched.Annotations["e2e-patched-ns-status"] != "yes" || len(patched.Status.Conditions) != 1 {
		t.Fatalf("%+v, %v", patched, err)
	}
	patched.Status.Conditions = append(patched.Status.Conditions, corev1.NamespaceCondition{Type: "StatusUpdate", Status: corev1.ConditionTrue, Reason: "E2E", Message: "Updated by a test"})
	updated, err := api.UpdateStatus(c.ctx, patched, metav1.UpdateOptions{})
	if err != nil || len(updated.Status.Conditions) != 2 {
		t.Fatalf("%+v, %v", updated, err)
	}
	updated.Spec.Finalizers = append(updated.Spec.Finalizers, "e2e.example.com/fakeFinalizer")
	finalized, err := api.Finalize(c.ctx, updated, metav1.UpdateOptions{})
	if err != nil || !slices.Contains(finalized.Spec.Finalizers, "e2e.example.com/fakeFinalizer") {
		t.Fatalf("%+v, %v", finalized, err)
	}
	finalized.Spec.Finalizers = finalized.Spec.Finalizers[:1]
	if finalized, err = api.Finalize(c.ctx, finalized, metav1.UpdateOptions{}); err != nil || !slices.Equal(finalized.Spec.Finalizers, []corev1.FinalizerName{corev1.FinalizerKubernetes}) {
		t.Errorf("%+v, %v", finalized, err)
	}
}

func (c conformance) nodes(t *testing.T) {
	api := c.client.CoreV1().Nodes()
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "e2e-fake-node-" + c.namespace},
		Status: corev1.NodeStatus{
			Phase: corev1.NodeRunning, Conditions: []corev1.NodeCondition{{Status: corev1.ConditionTrue, Message: "Set from a test", Reason: "E2E", Type: "Ready"}},
			Capacity: corev1.ResourceList{"cpu": apiresource.MustParse("1")},
		},
	}
	made, err := api.Create(c.ctx, node, metav1.CreateOptions{})
	if err != nil || made.Name != node.Name {
		t.Fatalf("%+v, %v", made, err)
	}
	patched, err := api.Patch(c.ctx, node.Name, types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"`+node.Name+`":"patched"}}}`), metav1.PatchOptions{})
	if err != nil || patched.Labels[node.Name] != "patched" {
		t.Fatalf("%+v, %v", patched, err)
	}
	if list, err := api.List(c.ctx, metav1.ListOptions{LabelSelector: node.Name + "=patched"}); err != nil || len(list.Items) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	patched.Labels[node.Name] = "updated"
	if updated, err := api.Update(c.ctx, patched, metav1.UpdateOptions{}); err != nil || updated.Labels[node.Name] != "updated" {
		t.Errorf("%+v, %v", updated, err)
	}
	if err := api.Delete(c.ctx, node.Name, metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
	if list, err := api.List(c.ctx, metav1.ListOptions{LabelSelector: node.Name + "=updated"}); err != nil || len(list.Items) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}

// noTables: what has no metadata cannot be asked for as a table.
func (c conformance) noTables(t *testing.T) {
	table := metav1.Table{}
	review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{NonResourceAttributes: &authorizationv1.NonResourceAttributes{Path: "/", Verb: "get"}}}
	err := clientset(t, c.root).AuthorizationV1().RESTClient().Post().Resource("selfsubjectaccessreviews").VersionedParams(&metav1.CreateOptions{}, metav1.ParameterCodec).
		Body(review).SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").Do(c.ctx).Into(&table)
	var status apierrors.APIStatus
	if !asStatus(err, &status) || status.Status().Code != http.StatusNotAcceptable {
		t.Errorf("%+v, %v, want 406", table, err)
	}
}

func (c conformance) version(t *testing.T) {
	v, err := c.client.Discovery().ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	for _, number := range []string{v.Major, v.Minor} {
		if _, err := strconv.Atoi(number); err != nil {
			t.Errorf("%+v: %v", v, err)
		}
	}
}

func (c conformance) preferredVersions(t *testing.T) {
	for _, accept := range []string{jsonType, "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"} {
		raw := c.client.Discovery().RESTClient().Get().AbsPath("/apis").SetHeader("Accept", accept).Do(c.ctx)
		var contentType string
		if raw.ContentType(&contentType); !strings.HasPrefix(contentType, strings.SplitN(accept, ";", 2)[0]) || strings.Contains(accept, "v2") != strings.Contains(contentType, "g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList") {
			t.Errorf("asked for %s: %s", accept, contentType)
		}
	}
	groups, err := c.client.Discovery().ServerGroups()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups.Groups {
		if g.PreferredVersion.GroupVersion == "" || !slices.Contains(g.Versions, g.PreferredVersion) {
			t.Errorf("%+v", g)
		}
		for _, v := range g.Versions {
			list, err := c.client.Discovery().ServerResourcesForGroupVersion(v.GroupVersion)
			if err != nil || list.GroupVersion != v.GroupVersion || len(list.APIResources) == 0 {
				t.Errorf("%s: %+v, %v", v.GroupVersion, list, err)
			}
		}
	}
}

func (c conformance) quality(t *testing.T) {
	same := corev1.ResourceList{"cpu": apiresource.MustParse("100m"), "memory": apiresource.MustParse("100Mi")}
	pod, err := c.client.CoreV1().Pods(c.namespace).Create(c.ctx, podNamed("qos", func(p *corev1.Pod) {
		p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Limits: same, Requests: same}
	}), metav1.CreateOptions{})
	if err != nil || pod.Status.QOSClass != corev1.PodQOSGuaranteed {
		t.Errorf("%+v, %v", pod.Status, err)
	}
	deadline := int64(5)
	pod.Spec.ActiveDeadlineSeconds = &deadline
	if pod, err = c.client.CoreV1().Pods(c.namespace).Update(c.ctx, pod, metav1.UpdateOptions{}); err != nil || *pod.Spec.ActiveDeadlineSeconds != 5 {
		t.Errorf("%+v, %v", pod.Spec, err)
	}
}

func (c conformance) podStatus(t *testing.T) {
	pods := c.client.CoreV1().Pods(c.namespace)
	if _, err := pods.Create(c.ctx, podNamed("p", func(p *corev1.Pod) { p.Labels = map[string]string{"test-pod-static": "true"} }), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if p, err := pods.Patch(c.ctx, "p", types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"test-pod":"patched"}},"spec":{"terminationGracePeriodSeconds":1}}`), metav1.PatchOptions{}); err == nil {
		t.Errorf("the grace period of a pod was changed: %+v", p.Spec)
	}
	if p, err := pods.Patch(c.ctx, "p", types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"test-pod":"patched"}},"spec":{"containers":[{"name":"c","image":"example.com/other"}]}}`), metav1.PatchOptions{}); err != nil || p.Spec.Containers[0].Image != "example.com/other" {
		t.Errorf("%+v, %v", p, err)
	}
	patched, err := pods.Patch(c.ctx, "p", types.MergePatchType, []byte(`{"metadata":{"labels":{"podstatus":"patched"}},"status":{"message":"Patched by a test","reason":"E2E"}}`), metav1.PatchOptions{}, "status")
	if err != nil || patched.Status.Message != "Patched by a test" || patched.Status.Reason != "E2E" || patched.Labels["podstatus"] != "patched" {
		t.Fatalf("%+v, %v", patched, err)
	}
	patched.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse}}
	if updated, err := pods.UpdateStatus(c.ctx, patched, metav1.UpdateOptions{}); err != nil || len(updated.Status.Conditions) != 1 {
		t.Errorf("%+v, %v", updated, err)
	}
	zero := int64(0)
	if err := pods.DeleteCollection(c.ctx, metav1.DeleteOptions{GracePeriodSeconds: &zero}, metav1.ListOptions{LabelSelector: "test-pod-static=true"}); err != nil {
		t.Error(err)
	}
	if list, err := pods.List(c.ctx, metav1.ListOptions{}); err != nil || len(list.Items) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}

func (c conformance) allServices(t *testing.T) {
	list, err := c.client.CoreV1().Services("").List(c.ctx, metav1.ListOptions{})
	if err != nil || !slices.ContainsFunc(list.Items, func(s corev1.Service) bool { return s.Namespace == "default" && s.Name == "kubernetes" }) {
		t.Errorf("%v, %v", list, err)
	}
}

func (c conformance) resourceQuota(t *testing.T) {
	api := c.client.CoreV1().ResourceQuotas(c.namespace)
	quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "q", Labels: map[string]string{"e2e": c.namespace}}, Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{"cpu": apiresource.MustParse("1"), "memory": apiresource.MustParse("500Mi")}}}
	made, err := api.Create(c.ctx, quota, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	made.Status.Hard = made.Spec.Hard
	if made, err = api.UpdateStatus(c.ctx, made, metav1.UpdateOptions{}); err != nil || !apiequality.Semantic.DeepEqual(made.Status.Hard, made.Spec.Hard) {
		t.Fatalf("%+v, %v", made, err)
	}
	patched, err := api.Patch(c.ctx, "q", types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"q":"patched"}},"spec":{"hard":{"cpu":"2","memory":"1Gi"}}}`), metav1.PatchOptions{})
	if err != nil || patched.Labels["q"] != "patched" || patched.Spec.Hard.Memory().String() != "1Gi" {
		t.Fatalf("%+v, %v", patched, err)
	}
	state, err := api.Patch(c.ctx, "q", types.StrategicMergePatchType, []byte(`{"status":{"hard":{"cpu":"2","memory":"1Gi"}}}`), metav1.PatchOptions{}, "status")
	if err != nil || !apiequality.Semantic.DeepEqual(state.Status.Hard, patched.Spec.Hard) {
		t.Errorf("%+v, %v", state, err)
	}
	if state, err = api.Patch(c.ctx, "q", types.StrategicMergePatchType, []byte(`{"spec":{"hard":{"cpu":"5"}},"status":{"hard":{"cpu":"3"}}}`), metav1.PatchOptions{}, "status"); err != nil || state.Spec.Hard.Cpu().String() != "2" || state.Status.Hard.Cpu().String() != "3" {
		t.Errorf("%+v, %v", state, err)
	}
	if all, err := c.client.CoreV1().ResourceQuotas("").List(c.ctx, metav1.ListOptions{LabelSelector: "e2e=" + c.namespace}); err != nil || len(all.Items) != 1 {
		t.Errorf("%v, %v", all, err)
	}
	if err := api.DeleteCollection(c.ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "e2e=" + c.namespace}); err != nil {
		t.Error(err)
	}
	if _, err := api.Get(c.ctx, "q", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Error(err)
	}
}

func (c conformance) podTemplates(t *testing.T) {
	api := c.client.CoreV1().PodTemplates(c.namespace)
	template := &corev1.PodTemplate{ObjectMeta: metav1.ObjectMeta{Name: "nginx", Labels: map[string]string{"podtemplate-static": "true"}}, Template: corev1.PodTemplateSpec{Spec: podNamed("x", nil).Spec}}
	made, err := api.Create(c.ctx, template, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if p, err := api.Patch(c.ctx, "nginx", types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"podtemplate":"patched"}}}`), metav1.PatchOptions{}); err != nil || p.Labels["podtemplate"] != "patched" {
		t.Errorf("%+v, %v", p, err)
	}
	made.ResourceVersion = ""
	made.Annotations = map[string]string{"updated": "true"}
	if p, err := api.Update(c.ctx, made, metav1.UpdateOptions{}); err != nil || p.Annotations["updated"] != "true" {
		t.Errorf("replaced without a version: %+v, %v", p, err)
	}
}

func (c conformance) scales(t *testing.T) {
	api, one := c.client.CoreV1().ReplicationControllers(c.namespace), int32(1)
	rc := &corev1.ReplicationController{ObjectMeta: metav1.ObjectMeta{Name: "rc"}, Spec: corev1.ReplicationControllerSpec{Replicas: &one, Selector: map[string]string{"app": "web"}, Template: &corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}}, Spec: podNamed("x", nil).Spec}}}
	if _, err := api.Create(c.ctx, rc, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	scale, err := api.GetScale(c.ctx, "rc", metav1.GetOptions{})
	if err != nil || scale.Spec.Replicas != 1 {
		t.Fatalf("%+v, %v", scale, err)
	}
	scale.ResourceVersion, scale.Spec.Replicas = "", 2
	if scale, err = api.UpdateScale(c.ctx, "rc", scale, metav1.UpdateOptions{}); err != nil || scale.Spec.Replicas != 2 {
		t.Errorf("%+v, %v", scale, err)
	}
	patched, err := api.Patch(c.ctx, "rc", types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"test-rc":"patched"}},"spec":{"replicas":3}}`), metav1.PatchOptions{})
	if err != nil || *patched.Spec.Replicas != 3 {
		t.Errorf("%+v, %v", patched, err)
	}
	if state, err := api.Patch(c.ctx, "rc", types.StrategicMergePatchType, []byte(`{"status":{"replicas":1,"readyReplicas":0,"availableReplicas":0}}`), metav1.PatchOptions{}, "status"); err != nil || state.Status.Replicas != 1 {
		t.Errorf("%+v, %v", state, err)
	}
}

// TestConformanceReviews: what a service account may do is what the reviews say, and what happens when it is impersonated.
func TestConformanceReviews(t *testing.T) {
	newKubernetesCluster(t).each(t, map[string]func(conformance, *testing.T){"reviews": func(c conformance, t *testing.T) {
		if _, err := c.client.CoreV1().ServiceAccounts(c.namespace).Create(c.ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "e2e"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		user := "system:serviceaccount:" + c.namespace + ":e2e"
		own := rest.CopyConfig(c.root)
		own.Impersonate = rest.ImpersonationConfig{UserName: user}
		_, err := clientset(t, own).CoreV1().ConfigMaps(c.namespace).List(c.ctx, metav1.ListOptions{})
		allowed := err == nil
		if err != nil && !apierrors.IsForbidden(err) {
			t.Fatal(err)
		}
		asked := &authorizationv1.ResourceAttributes{Verb: "list", Resource: "configmaps", Namespace: c.namespace, Version: "v1"}
		one, err := c.client.AuthorizationV1().SubjectAccessReviews().Create(c.ctx, &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{ResourceAttributes: asked, User: user}}, metav1.CreateOptions{})
		if err != nil || one.Status.Allowed != allowed {
			t.Errorf("%+v, %v, want %v", one, err, allowed)
		}
		local := &authorizationv1.LocalSubjectAccessReview{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace}, Spec: authorizationv1.SubjectAccessReviewSpec{ResourceAttributes: asked, User: user}}
		two, err := c.client.AuthorizationV1().LocalSubjectAccessReviews(c.namespace).Create(c.ctx, local, metav1.CreateOptions{})
		if err != nil || two.Status.Allowed != allowed {
			t.Errorf("%+v, %v, want %v", two, err, allowed)
		}
	}})
}
