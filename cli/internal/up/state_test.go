package up

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOneClusterPerDirectory(t *testing.T) {
	d := directory(t.TempDir())
	release, err := d.lock()
	if err != nil {
		t.Fatal(err)
	}
	if held, err := d.locked(); err != nil || !held || d.holder() != os.Getpid() {
		t.Errorf("locked %v by %d, %v", held, d.holder(), err)
	}
	if _, err := d.lock(); err == nil || !strings.Contains(err.Error(), "runs on "+string(d)+" already") || !strings.Contains(err.Error(), "dhow down") {
		t.Errorf("second lock: %v", err)
	}
	if err := d.save(machine{ID: "abc"}); err != nil {
		t.Fatal(err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(d.path(lockFile)); err != nil {
		t.Errorf("a cluster's lock file: %v", err)
	}
	if held, err := d.locked(); err != nil || held {
		t.Errorf("after the release: %v, %v", held, err)
	}
}

// A cluster that was never made leaves nothing: not when its start fails, and not when it is killed and purged.
func TestNothingIsLeftOfAStartThatFailed(t *testing.T) {
	d := directory(filepath.Join(t.TempDir(), "data"))
	lock := func() func() error {
		if err := os.MkdirAll(d.path(), 0o755); err != nil {
			t.Fatal(err)
		}
		release, err := d.lock()
		if err != nil {
			t.Fatal(err)
		}
		return release
	}
	missing := func(when string) {
		if _, err := os.Stat(d.path()); !os.IsNotExist(err) {
			t.Errorf("the directory %s: %v", when, err)
		}
	}
	release := lock()
	if err := d.unlock(true); err != nil {
		t.Fatal(err)
	}
	if held, err := d.locked(); err != nil || !held {
		t.Errorf("a purge took the lock of a start away: %v, %v", held, err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	missing("after the start failed")

	if err := os.MkdirAll(d.path(), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.path(lockFile), []byte("1234567\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := d.unlock(false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(d.path(lockFile)); err != nil {
		t.Errorf("without --purge: %v", err)
	}
	if err := d.unlock(true); err != nil {
		t.Fatal(err)
	}
	missing("after the purge")
	if err := d.unlock(true); err != nil {
		t.Error(err)
	}
}

// What `dhow up` has not made is not deleted, and not mixed with a cluster's data.
func TestOthersThingsAreLeftAlone(t *testing.T) {
	d := directory(t.TempDir())
	precious := d.path("precious")
	if err := os.WriteFile(precious, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := d.ours(); err == nil || !strings.Contains(err.Error(), "precious") {
		t.Errorf("a directory with other things: %v", err)
	}
	var out bytes.Buffer
	if err := Down(t.Context(), DownConfig{DataDir: string(d), Purge: true, Out: &out, Err: &out}); err != nil && os.Geteuid() == 0 {
		t.Error(err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
	for _, made := range []string{"pki/ca.crt", "store/db", "nodes/n1/agent.log"} {
		if err := os.MkdirAll(filepath.Dir(d.path(made)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(d.path(made), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.save(machine{ID: "abc"}); err != nil {
		t.Fatal(err)
	}
	if err := d.ours(); err != nil {
		t.Errorf("a cluster's directory: %v", err)
	}
	if err := d.purge(); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(d.path())
	if err != nil || len(left) != 1 || left[0].Name() != "precious" {
		t.Errorf("left: %v, %v", left, err)
	}
	if err := os.Remove(precious); err != nil {
		t.Fatal(err)
	}
	if err := d.purge(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(d.path()); !os.IsNotExist(err) {
		t.Errorf("the empty directory: %v", err)
	}
}

func TestAddressesOfTheAPI(t *testing.T) {
	m := machine{}
	if err := m.Gateway.UnmarshalText([]byte("10.89.0.1")); err != nil {
		t.Fatal(err)
	}
	for listen, want := range map[string]string{"127.0.0.1:7443": "127.0.0.1:7443 10.89.0.1:7443", "0.0.0.0:7443": "0.0.0.0:7443"} {
		all, inside, err := door{listen: listen}.addresses(m.Gateway)
		if err != nil || strings.Join(all, " ") != want || inside != "10.89.0.1:7443" {
			t.Errorf("%s: %v, %s, %v", listen, all, inside, err)
		}
	}
	if _, _, err := (door{"--listen", "7443", DefaultListen}).addresses(m.Gateway); err == nil || !strings.Contains(err.Error(), "--listen") || !strings.Contains(err.Error(), "127.0.0.1:7443") {
		t.Errorf("%v", err)
	}
}

func TestTheRuntimeOfTheStartIsThatOfTheStop(t *testing.T) {
	used, other := t.TempDir(), t.TempDir()
	t.Setenv("DHOW_RUNTIME_DIR", "/nosuch")
	for _, c := range []struct {
		saved, given, want string
	}{
		{used, "", used},
		{used, other, other},
		{"", other, other},
		{"/gone", other, other},
		{"/gone", "", ""},
	} {
		dir, err := machine{Runtime: c.saved}.findRuntime(c.given)
		if dir != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%+v: %q, %v", c, dir, err)
		}
	}
}
