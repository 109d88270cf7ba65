// Package podtest makes pods for tests from the YAML that users write.
package podtest

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"
	k8scorev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// Pod decodes a pod strictly and gives it what an API server would: namespace, UID, restart policy, DNS policy, grace period.
func Pod(t testing.TB, text string) *corev1.Pod {
	t.Helper()
	var from k8scorev1.Pod
	if err := yaml.UnmarshalStrict([]byte(text), &from); err != nil {
		t.Fatalf("pod: %v", err)
	}
	if from.Namespace == "" {
		from.Namespace = "default"
	}
	if from.UID == "" {
		from.UID = "uid-of-" + "pod"
	}
	if from.Spec.RestartPolicy == "" {
		from.Spec.RestartPolicy = k8scorev1.RestartPolicyAlways
	}
	if from.Spec.DNSPolicy == "" {
		from.Spec.DNSPolicy = k8scorev1.DNSClusterFirst
	}
	if from.Spec.TerminationGracePeriodSeconds == nil {
		from.Spec.TerminationGracePeriodSeconds = new(int64(30))
	}
	var to corev1.Pod
	convert(t, &from, &to)
	return &to
}

// Service decodes a service.
func Service(t testing.TB, text string) *corev1.Service {
	t.Helper()
	var from k8scorev1.Service
	if err := yaml.UnmarshalStrict([]byte(text), &from); err != nil {
		t.Fatalf("service: %v", err)
	}
	var to corev1.Service
	convert(t, &from, &to)
	return &to
}

// Status returns a pod's status as Kubernetes' own type, to compare and to print.
func Status(t testing.TB, s *corev1.PodStatus) k8scorev1.PodStatus {
	t.Helper()
	encoded, err := proto.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var status k8scorev1.PodStatus
	if err := status.Unmarshal(encoded); err != nil {
		t.Fatal(fmt.Errorf("status: %w", err))
	}
	return status
}

func convert(t testing.TB, from interface{ Marshal() ([]byte, error) }, to proto.Message) {
	t.Helper()
	encoded, err := from.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(encoded, to); err != nil {
		t.Fatal(err)
	}
}
