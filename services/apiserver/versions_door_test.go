package apiserver_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	autoscalingv1apply "k8s.io/client-go/applyconfigurations/autoscaling/v1"
	"k8s.io/client-go/kubernetes"
)

// TestVersionsThroughTheDoor drives both versions of one object with client-go, in JSON and protobuf.
func TestVersionsThroughTheDoor(t *testing.T) {
	k := newKubernetesCluster(t)
	for _, contentType := range []string{"application/json", protobufType} {
		t.Run(contentType, func(t *testing.T) {
			clients, err := kubernetes.NewForConfig(encodedAs(k.root, contentType))
			if err != nil {
				t.Fatal(err)
			}
			name := map[bool]string{false: "json", true: "protobuf"}[contentType == protobufType]
			old, current := clients.AutoscalingV1().HorizontalPodAutoscalers("default"), clients.AutoscalingV2().HorizontalPodAutoscalers("default")
			created, err := current.Create(within(t), &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
				MaxReplicas: 4, ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{Kind: "Deployment", Name: "d", APIVersion: "apps/v1"},
				Metrics: []autoscalingv2.MetricSpec{{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
					Name: corev1.ResourceMemory, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: new(int32(60))},
				}}},
			}}, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			w, err := old.Watch(within(t), metav1.ListOptions{ResourceVersion: created.ResourceVersion, FieldSelector: "metadata.name=" + name})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Stop()
			next := func(want watch.EventType) *autoscalingv1.HorizontalPodAutoscaler {
				t.Helper()
				e := <-w.ResultChan()
				o, ok := e.Object.(*autoscalingv1.HorizontalPodAutoscaler)
				if e.Type != want || !ok {
					t.Fatalf("%s of %T, want %s of an autoscaling/v1 object", e.Type, e.Object, want)
				}
				return o
			}
			got, err := old.Get(within(t), name, metav1.GetOptions{})
			if err != nil || got.Annotations["autoscaling.alpha.kubernetes.io/metrics"] == "" || got.ResourceVersion != created.ResourceVersion || got.UID != created.UID {
				t.Fatalf("%+v, %v", got, err)
			}
			if _, err := old.Patch(within(t), name, types.StrategicMergePatchType, []byte(`{"spec":{"targetCPUUtilizationPercentage":44}}`), metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
			if o := next(watch.Modified); *o.Spec.TargetCPUUtilizationPercentage != 44 {
				t.Errorf("watched %+v", o.Spec)
			}
			if _, err := old.Apply(within(t), autoscalingv1apply.HorizontalPodAutoscaler(name, "default").WithLabels(map[string]string{"a": "b"}), metav1.ApplyOptions{FieldManager: "ann"}); err != nil {
				t.Fatal(err)
			}
			next(watch.Modified)
			now, err := current.Get(within(t), name, metav1.GetOptions{})
			if err != nil || len(now.Spec.Metrics) != 2 || now.Labels["a"] != "b" || len(now.Annotations) != 0 {
				t.Errorf("in v2: %+v, %v", now, err)
			}
			list, err := old.List(within(t), metav1.ListOptions{LabelSelector: "a=b", FieldSelector: "metadata.name=" + name})
			if err != nil || len(list.Items) != 1 || *list.Items[0].Spec.TargetCPUUtilizationPercentage != 44 {
				t.Errorf("%+v, %v", list, err)
			}
			if err := old.Delete(within(t), name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			if o := next(watch.Deleted); o.Name != name || *o.Spec.TargetCPUUtilizationPercentage != 44 {
				t.Errorf("DELETED %+v", o)
			}

			events := clients.EventsV1().Events("default")
			if _, err := clients.CoreV1().Events("default").Create(within(t), &corev1.Event{
				ObjectMeta: metav1.ObjectMeta{Name: name}, InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "p-" + name}, Message: "hello",
			}, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			found, err := events.List(within(t), metav1.ListOptions{FieldSelector: "regarding.name=p-" + name})
			if err != nil || len(found.Items) != 1 || found.Items[0].Note != "hello" {
				t.Errorf("%+v, %v", found, err)
			}
			if _, err := events.Create(within(t), &eventsv1.Event{ObjectMeta: metav1.ObjectMeta{Name: name + "-2"}}, metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
				t.Errorf("an event that says nothing: %v, want Invalid", err)
			}
		})
	}
}

// TestCertificateRequests asks for a certificate as a user does, approves it and signs it.
func TestCertificateRequests(t *testing.T) {
	k := newKubernetesCluster(t)
	clients, err := kubernetes.NewForConfig(k.root)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	requests := clients.CertificatesV1().CertificateSigningRequests()
	csr, err := requests.Create(within(t), &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: "ann"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
			SignerName: "example.com/signer", Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth}, Username: "somebody-else",
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if csr.Spec.Username != "dhow-admin" || len(csr.Spec.Groups) == 0 || len(csr.Status.Conditions) != 0 {
		t.Errorf("%+v", csr.Spec)
	}
	approval := certificatesv1.CertificateSigningRequestCondition{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Tested"}
	csr.Status.Conditions = append(csr.Status.Conditions, approval)
	if _, err := requests.UpdateStatus(within(t), csr, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "may not add a condition") {
		t.Errorf("approved through status: %v, want Invalid", err)
	}
	approved, err := requests.UpdateApproval(within(t), csr.Name, csr, metav1.UpdateOptions{})
	if err != nil || len(approved.Status.Conditions) != 1 || approved.Status.Conditions[0].LastTransitionTime.IsZero() {
		t.Fatalf("%+v, %v", approved, err)
	}
	approved.Status.Certificate = []byte("no certificate")
	if _, err := requests.UpdateStatus(within(t), approved, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("signed with text: %v, want Invalid", err)
	}
	list, err := requests.List(within(t), metav1.ListOptions{FieldSelector: "spec.signerName=example.com/signer"})
	if err != nil || len(list.Items) != 1 {
		t.Errorf("by signer: %+v, %v", list, err)
	}
	schemas, err := clients.FlowcontrolV1().FlowSchemas().Create(within(t), &flowcontrolv1.FlowSchema{
		ObjectMeta: metav1.ObjectMeta{Name: "mine"},
		Spec:       flowcontrolv1.FlowSchemaSpec{PriorityLevelConfiguration: flowcontrolv1.PriorityLevelConfigurationReference{Name: "catch-all"}},
	}, metav1.CreateOptions{})
	if err != nil || schemas.Spec.MatchingPrecedence != 1000 || schemas.Generation != 1 {
		t.Errorf("%+v, %v", schemas, err)
	}
}
