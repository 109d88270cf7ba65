package up

import (
	"errors"
	"maps"
	"slices"
	"testing"
)

// The process is ready when all services in it are, and else names those that are not.
func TestReady(t *testing.T) {
	for _, config := range []Config{{Separate: true}, {Hosts: 3}} {
		if s := config.inThisProcess(); len(s) > 0 || s.check(t.Context()) != nil {
			t.Errorf("%+v: %v", config, s)
		}
	}
	s := (Config{Without: []string{"scheduler"}}).inThisProcess()
	if got, want := slices.Sorted(maps.Keys(s)), []string{"apiserver", "controller-manager", "store"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	s["apiserver"].Lacks(nil)
	s["controller-manager"].Lacks(errors.New("no view"))
	s["store"].Lacks(errors.New("no leader"))
	if err := s.check(t.Context()); err == nil || err.Error() != "controller-manager: no view\nstore: no leader" {
		t.Errorf("%v", err)
	}
	s["controller-manager"].Lacks(nil)
	s["store"].Lacks(nil)
	if err := s.check(t.Context()); err != nil {
		t.Error(err)
	}
}
