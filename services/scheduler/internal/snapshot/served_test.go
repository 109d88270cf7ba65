package snapshot_test

import (
	"testing"

	"dhow.dev/services/scheduler/internal/fixture"
	"dhow.dev/services/scheduler/internal/snapshot"
)

// Pods with other volumes of their own that a driver serves are of another class.
func TestKeyNamesServedVolumes(t *testing.T) {
	key := func(volume string) string {
		return snapshot.ClassKey(fixture.Pod(`{"metadata":{"namespace":"default"},"spec":{"volumes":[{"name":"v",`+volume+`}]}}`), nil)
	}
	one, other, none := key(`"cinder":{"volumeID":"1"}`), key(`"cinder":{"volumeID":"2"}`), key(`"emptyDir":{}`)
	if one == other || one == none {
		t.Error("pods with different volumes have one key")
	}
	if one != key(`"cinder":{"volumeID":"1"}`) {
		t.Error("equal pods have different keys")
	}
}
