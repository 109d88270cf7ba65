package event

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

func TestCorrelate(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	r := New(nil, slog.New(slog.DiscardHandler), func() time.Time { return now })
	about := corev1.ObjectReference_builder{Namespace: proto.String("a"), Name: proto.String("web"), Uid: proto.String("u")}.Build()
	say := func(reason, message string) (*corev1.Event, bool) {
		now = now.Add(time.Second)
		return r.correlate(report{component: "c", kind: Normal, reason: reason, message: message, regarding: about, at: now})
	}
	first, fresh := say("Scaled", "to 1")
	if !fresh || first.GetCount() != 1 || first.GetMetadata().GetNamespace() != "a" || !strings.HasPrefix(first.GetMetadata().GetName(), "web.") {
		t.Fatalf("first report: %v, fresh %v", first, fresh)
	}
	again, fresh := say("Scaled", "to 1")
	if fresh || again.GetCount() != 2 || again.GetMetadata().GetName() != first.GetMetadata().GetName() ||
		again.GetLastTimestamp().GetSeconds() <= again.GetFirstTimestamp().GetSeconds() {
		t.Errorf("repeated report: %v, fresh %v", again, fresh)
	}
	made, updated, dropped := 0, 0, 0
	for i := range 40 {
		switch e, fresh := say("Created", fmt.Sprint("pod ", i)); {
		case e == nil:
			dropped++
		case fresh:
			made++
		default:
			updated++
			if !strings.HasPrefix(e.GetMessage(), combined) {
				t.Errorf("message %q", e.GetMessage())
			}
		}
	}
	if made != combineAfter+1 || updated != burst-made || dropped != 40-burst {
		t.Errorf("%d made, %d updated, %d dropped", made, updated, dropped)
	}
	if e, _ := say("Failed", "no quota"); e == nil {
		t.Error("another reason was silenced")
	}
	now = now.Add(refill)
	if e, _ := say("Created", "pod 99"); e == nil {
		t.Error("the budget is never refilled")
	}
}
