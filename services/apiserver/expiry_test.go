package apiserver_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/services/apiserver"
)

func TestOldEventsAreDeleted(t *testing.T) {
	c := newClusterWith(t, func(c *apiserver.Config) { c.EventTTL = time.Second })
	events := client.For[*corev1.Event](c.admin())
	watch, err := events.Watch(within(t), metav1.WatchRequest_builder{Namespace: "default"}.Build())
	if err != nil {
		t.Fatal(err)
	}
	event := func(name string, last time.Time) {
		at := metav1.Time_builder{Seconds: proto.Int64(last.Unix())}.Build()
		e := corev1.Event_builder{
			Metadata:       metav1.ObjectMeta_builder{Namespace: proto.String("default"), Name: &name}.Build(),
			InvolvedObject: corev1.ObjectReference_builder{Kind: proto.String("Pod"), Namespace: proto.String("default"), Name: proto.String("p")}.Build(),
			Reason:         proto.String("Tested"), Type: proto.String("Normal"), LastTimestamp: at,
		}.Build()
		if _, err := events.Create(within(t), e, nil); err != nil {
			t.Fatal(err)
		}
	}
	event("fresh", time.Now().Add(time.Hour))
	event("old", time.Now())
	for {
		batch, err := watch.Next()
		if err != nil {
			t.Fatal(err)
		}
		for _, change := range batch.Changes {
			if change.Type != metav1.EventType_EVENT_TYPE_DELETED {
				continue
			}
			if name := change.Object.GetMetadata().GetName(); name != "old" {
				t.Errorf("%s was deleted", name)
			}
			return
		}
	}
}
