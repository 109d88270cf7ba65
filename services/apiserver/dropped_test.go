package apiserver_test

import (
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	k8scorev1 "k8s.io/api/core/v1"
	k8smetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
)

const groupDropped = "spec.schedulingGroup: dropped: off by default in Kubernetes v1.36 (gate GenericWorkload)"

// What is off by default in Kubernetes is dropped with a warning by both doors.
func TestDroppedByBothDoors(t *testing.T) {
	k := newKubernetesCluster(t)
	var warned []string
	config := rest.CopyConfig(k.root)
	config.WarningHandler = warningHandler(func(text string) { warned = append(warned, text) })
	group := "g"
	made, err := clientset(t, config).CoreV1().Pods("default").Create(within(t), &k8scorev1.Pod{ObjectMeta: k8smetav1.ObjectMeta{Name: "rest"},
		Spec: k8scorev1.PodSpec{SchedulingGroup: &k8scorev1.PodSchedulingGroup{PodGroupName: &group}, Containers: []k8scorev1.Container{{Name: "c", Image: "i"}}}}, k8smetav1.CreateOptions{})
	if err != nil || made.Spec.SchedulingGroup != nil || strings.Join(warned, "\n") != groupDropped {
		t.Errorf("REST: %+v, %v, %q", made.Spec, err, warned)
	}

	name, namespace, image := "grpc", "default", "i"
	var header metadata.MD
	pod, err := client.For[*corev1.Pod](k.admin()).Create(within(t), corev1.Pod_builder{
		Metadata: metav1.ObjectMeta_builder{Name: &name, Namespace: &namespace}.Build(),
		Spec: corev1.PodSpec_builder{SchedulingGroup: corev1.PodSchedulingGroup_builder{PodGroupName: &group}.Build(),
			Containers: []*corev1.Container{corev1.Container_builder{Name: &name, Image: &image}.Build()}}.Build(),
	}.Build(), nil, grpc.Header(&header))
	if err != nil || pod.GetSpec().HasSchedulingGroup() || strings.Join(client.Warnings(header), "\n") != groupDropped {
		t.Errorf("gRPC: %v, %v, %q", pod.GetSpec(), err, client.Warnings(header))
	}
}

type warningHandler func(text string)

func (h warningHandler) HandleWarningHeader(_ int, _, text string) { h(text) }
