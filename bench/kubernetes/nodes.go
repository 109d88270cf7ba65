package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// NodeName is the name of the nth node.
func NodeName(run string, n int) string { return fmt.Sprintf("%s-node-%04d", run, n) }

// Nodes makes nodes as kubelets register them, with their leases, and returns what removes them. Nobody is behind them.
func (d *Door) Nodes(ctx context.Context, run string, count int) (remove func() error, err error) {
	nodes, leases := d.client.CoreV1().Nodes(), d.client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	remove = func() error {
		removing, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeWithin)
		defer cancel()
		selected := metav1.ListOptions{LabelSelector: runLabel + "=" + run}
		return errors.Join(nodes.DeleteCollection(removing, metav1.DeleteOptions{}, selected), leases.DeleteCollection(removing, metav1.DeleteOptions{}, selected))
	}
	for i := range count {
		name := NodeName(run, i)
		made, err := nodes.Create(ctx, node(run, name, i), metav1.CreateOptions{})
		if err == nil {
			made.Status = status(name, i)
			_, err = nodes.UpdateStatus(ctx, made, metav1.UpdateOptions{})
		}
		if err == nil {
			_, err = leases.Create(ctx, lease(run, name, made), metav1.CreateOptions{})
		}
		if err != nil {
			return remove, fmt.Errorf("make the node %s: %w", name, err)
		}
	}
	return remove, nil
}

// runLabel tells what a run has made.
const runLabel = "bench.dhow.dev/run"

func node(run, name string, n int) *corev1.Node {
	// The range is the node's own, from addresses that no cluster gives out.
	cidr := fmt.Sprintf("100.%d.%d.0/24", 64+n/256, n%256)
	return &corev1.Node{Spec: corev1.NodeSpec{PodCIDR: cidr, PodCIDRs: []string{cidr}}, ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
		runLabel: run, corev1.LabelHostname: name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64",
		corev1.LabelTopologyZone: "zone-a", corev1.LabelTopologyRegion: "region-a", corev1.LabelInstanceTypeStable: "standard-8",
	}}}
}

func lease(run, name string, owner *corev1.Node) *coordinationv1.Lease {
	seconds, now := int32(40), metav1.NowMicro()
	return &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{runLabel: run}, OwnerReferences: []metav1.OwnerReference{{
			APIVersion: "v1", Kind: "Node", Name: name, UID: owner.UID,
		}}},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: &name, LeaseDurationSeconds: &seconds, RenewTime: &now},
	}
}

func status(name string, n int) corev1.NodeStatus {
	resources := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("8"), corev1.ResourceMemory: resource.MustParse("32Gi"), corev1.ResourcePods: resource.MustParse("110"),
		corev1.ResourceEphemeralStorage: resource.MustParse("100Gi"), "hugepages-1Gi": resource.MustParse("0"), "hugepages-2Mi": resource.MustParse("0"),
	}
	now := metav1.NewTime(time.Now())
	s := corev1.NodeStatus{
		Capacity: resources, Allocatable: resources,
		Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("10.250.%d.%d", n/250, n%250+1)}, {Type: corev1.NodeHostName, Address: name}},
		NodeInfo: corev1.NodeSystemInfo{
			MachineID: name, SystemUUID: name, BootID: name, KernelVersion: "6.12.0", OSImage: "Linux", ContainerRuntimeVersion: "containerd://2.2.0",
			KubeletVersion: "v1.36.3", OperatingSystem: "linux", Architecture: "amd64",
		},
	}
	for _, c := range []struct {
		kind   corev1.NodeConditionType
		status corev1.ConditionStatus
		reason string
	}{
		{corev1.NodeMemoryPressure, corev1.ConditionFalse, "KubeletHasSufficientMemory"}, {corev1.NodeDiskPressure, corev1.ConditionFalse, "KubeletHasNoDiskPressure"},
		{corev1.NodePIDPressure, corev1.ConditionFalse, "KubeletHasSufficientPID"}, {corev1.NodeReady, corev1.ConditionTrue, "KubeletReady"},
	} {
		s.Conditions = append(s.Conditions, corev1.NodeCondition{
			Type: c.kind, Status: c.status, Reason: c.reason, Message: "kubelet reports so", LastHeartbeatTime: now, LastTransitionTime: now,
		})
	}
	for i := range 10 {
		s.Images = append(s.Images, corev1.ContainerImage{
			Names: []string{fmt.Sprintf("registry.example/image-%d@sha256:%064d", i, i), fmt.Sprintf("registry.example/image-%d:v1", i)}, SizeBytes: 50 << 20,
		})
	}
	return s
}
