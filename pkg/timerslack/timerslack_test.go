package timerslack

import (
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTheMonitorIsTheFirstThread(t *testing.T) {
	for name, c := range map[string]struct {
		threads []int
		want    int
	}{
		"usual":           {[]int{70, 73, 71, 72}, 71},
		"not numbered on": {[]int{70, 90, 75}, 75},
		"alone":           {[]int{70}, 0},
		"began anew":      {[]int{70, 3, 71}, 0},
	} {
		if id, err := monitorOf(70, c.threads); id != c.want || (err == nil) != (c.want != 0) {
			t.Errorf("%s: %d, %v, want %d", name, id, err, c.want)
		}
	}
}

func TestProgramsHaveTheUsualSlack(t *testing.T) {
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	slack := func() string {
		t.Helper()
		out, err := exec.Command("cat", "/proc/self/timerslack_ns").Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(monitor), 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	if inherited := slack(); inherited != "1000000" {
		t.Fatalf("a program started by a thread with %v has %s ns: programs inherit none here, and this test shows nothing", monitor, inherited)
	}
	var usually string
	if err := Usual(func() error { usually = slack(); return nil }); err != nil || usually != "50000" {
		t.Errorf("%s ns, %v, want 50000", usually, err)
	}
}
