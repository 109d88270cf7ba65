package session

import (
	"testing"
	"time"

	kcorev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	kmetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func condition(kind kcorev1.NodeConditionType, status kcorev1.ConditionStatus, heartbeat int64) kcorev1.NodeCondition {
	return kcorev1.NodeCondition{Type: kind, Status: status, Reason: "R", LastHeartbeatTime: kmetav1.Unix(heartbeat, 0)}
}

func TestMergeOfStatuses(t *testing.T) {
	then, now := time.Unix(100, 0), time.Unix(200, 0)
	stored := kcorev1.NodeStatus{
		Conditions: []kcorev1.NodeCondition{
			{Type: kcorev1.NodeReady, Status: kcorev1.ConditionTrue, Reason: "R", LastHeartbeatTime: kmetav1.NewTime(then), LastTransitionTime: kmetav1.NewTime(then)},
			{Type: "Theirs", Status: kcorev1.ConditionTrue},
		},
		VolumesAttached: []kcorev1.AttachedVolume{{Name: "v"}},
		Capacity:        kcorev1.ResourceList{kcorev1.ResourceCPU: resource.MustParse("1")},
	}

	same := *stored.DeepCopy()
	merge(&same, kcorev1.NodeStatus{Conditions: []kcorev1.NodeCondition{condition(kcorev1.NodeReady, kcorev1.ConditionTrue, 150)}, Capacity: stored.Capacity}, now)
	if c := same.Conditions[0]; !c.LastHeartbeatTime.Time.Equal(then) {
		t.Errorf("a heartbeat alone changed the condition: %+v", c)
	}
	if len(same.Conditions) != 2 || len(same.VolumesAttached) != 1 {
		t.Errorf("what others wrote is gone: %+v", same)
	}

	changed := *stored.DeepCopy()
	merge(&changed, kcorev1.NodeStatus{
		Conditions: []kcorev1.NodeCondition{condition(kcorev1.NodeReady, kcorev1.ConditionFalse, 150), condition(kcorev1.NodeDiskPressure, kcorev1.ConditionFalse, 150)},
	}, now)
	if c := changed.Conditions[0]; c.Status != kcorev1.ConditionFalse || !c.LastTransitionTime.Time.Equal(now) {
		t.Errorf("a change of status has the time of its change: %+v", c)
	}
	if c := changed.Conditions[2]; c.Type != kcorev1.NodeDiskPressure || !c.LastTransitionTime.Time.Equal(now) {
		t.Errorf("a new condition: %+v", c)
	}
	if changed.Capacity != nil {
		t.Errorf("what the agent no longer reports is still there: %v", changed.Capacity)
	}

	foreign := *stored.DeepCopy()
	foreign.Capacity["example.com/things"], foreign.Allocatable = resource.MustParse("3"), kcorev1.ResourceList{"example.com/gone": resource.MustParse("1")}
	reported := kcorev1.NodeStatus{Capacity: kcorev1.ResourceList{kcorev1.ResourceCPU: resource.MustParse("2")}, Allocatable: kcorev1.ResourceList{kcorev1.ResourceCPU: resource.MustParse("1")}}
	merge(&foreign, reported, now)
	if c, a := foreign.Capacity, foreign.Allocatable; len(c) != 2 || len(a) != 2 || c["example.com/things"] != resource.MustParse("3") || a["example.com/things"] != resource.MustParse("3") || a[kcorev1.ResourceCPU] != resource.MustParse("1") {
		t.Errorf("others' resources: capacity %v, allocatable %v", c, a)
	}
	if len(reported.Capacity) != 1 || len(reported.Allocatable) != 1 {
		t.Errorf("they became the agent's: %v", reported)
	}

	message := *stored.DeepCopy()
	news := condition(kcorev1.NodeReady, kcorev1.ConditionTrue, 150)
	news.Message = "more"
	merge(&message, kcorev1.NodeStatus{Conditions: []kcorev1.NodeCondition{news}}, now)
	if c := message.Conditions[0]; c.Message != "more" || !c.LastTransitionTime.Time.Equal(then) {
		t.Errorf("a change of the message is no transition: %+v", c)
	}
}
