package cluster

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"dhow.dev/pkg/object"
	"dhow.dev/services/scheduler/internal/fixture"
)

// Between the decision and the watch's word that a victim ends, the pod that it leaves for looks for no others.
func TestPodsThatWereAskedToLeaveAreAwaited(t *testing.T) {
	c := New(noServices)
	c.SetNode(fixture.Node(`{"metadata":{"name":"n1"},"status":{"allocatable":{"cpu":"2","memory":"1Gi","pods":"10"}}}`))
	set := func(text string) *Pod {
		p, _, _, err := c.SetPod(fixture.Pod(text))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	victim := set(`{"metadata":{"namespace":"default","name":"victim","uid":"v"},"spec":{"nodeName":"n1","priority":1}}`)
	waiting := set(`{"metadata":{"namespace":"default","name":"waits","uid":"w"},"spec":{"priority":5}}`)
	if !c.Nominate(waiting.Key, "w", "n1") || c.Awaits(waiting) {
		t.Error("nobody was asked to leave, and the pod waits")
	}
	victim.Leaving = true
	if !c.Awaits(waiting) {
		t.Error("a pod was asked to leave, and nobody waits for it")
	}
	residents, _ := c.Residents(5, nil)
	if r := residents[0]; len(r) != 1 || !r[0].Terminating || !r[0].Counted {
		t.Errorf("residents %+v", residents)
	}

	// The nomination holds a place until somebody takes it back: here by a status that had it and has it no longer.
	if got := c.Reserved(nil); len(got) != 1 || got[0].Key != "default/waits" || got[0].Priority != 5 {
		t.Errorf("places %+v", got)
	}
	if got := c.Reserved(map[object.Key]bool{waiting.Key: true}); len(got) != 0 {
		t.Errorf("places beside its own decision %+v", got)
	}
	o := proto.CloneOf(waiting.Object)
	o.SetStatus(fixture.Pod(`{"status":{"nominatedNodeName":"n1"}}`).GetStatus())
	if _, _, _, err := c.SetPod(o); err != nil || waiting.Nominated != "n1" {
		t.Errorf("nominated to %q, %v", waiting.Nominated, err)
	}
	set(`{"metadata":{"namespace":"default","name":"waits","uid":"w"},"spec":{"priority":5}}`)
	if waiting.Nominated != "" || len(c.Reserved(nil)) != 0 {
		t.Errorf("still nominated to %q", waiting.Nominated)
	}
}
