package cri

import (
	"testing"

	"google.golang.org/protobuf/proto"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestEventsAreReadAsTheyAreWritten(t *testing.T) {
	whole := &runtimev1.ContainerEventResponse{
		ContainerId: "c", ContainerEventType: runtimev1.ContainerEventType_CONTAINER_DELETED_EVENT, CreatedAt: 7,
		PodSandboxStatus:   &runtimev1.PodSandboxStatus{Id: "s", Metadata: &runtimev1.PodSandboxMetadata{Name: "web", Uid: "u", Namespace: "n", Attempt: 1}, Labels: map[string]string{"a": "b"}},
		ContainersStatuses: []*runtimev1.ContainerStatus{{Id: "other", Metadata: &runtimev1.ContainerMetadata{Name: "x"}}},
	}
	for name, c := range map[string]struct {
		event *runtimev1.ContainerEventResponse
		want  Event
	}{
		"whole":       {whole, Event{Type: EventDeleted, PodUID: "u", ContainerID: "c"}},
		"without pod": {&runtimev1.ContainerEventResponse{ContainerId: "c", ContainerEventType: runtimev1.ContainerEventType_CONTAINER_STOPPED_EVENT}, Event{Type: EventStopped, ContainerID: "c"}},
		"empty":       {&runtimev1.ContainerEventResponse{}, Event{}},
	} {
		data, err := proto.Marshal(c.event)
		if err != nil {
			t.Fatal(err)
		}
		if e, err := eventOf(data); err != nil || e != c.want {
			t.Errorf("%s: %+v, %v, want %+v", name, e, err, c.want)
		}
	}
	data, err := proto.Marshal(whole)
	if err != nil {
		t.Fatal(err)
	}
	if e, err := eventOf(data[:len(data)-1]); err == nil {
		t.Errorf("a cut event is %+v", e)
	}
}
