package cgroup_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dhow.dev/services/node-agent/internal/cgroup"
	"dhow.dev/services/node-agent/internal/podtest"
)

// TestAPodsHugePagesAreBounded has a cgroup file system of plain files, since not every kernel counts huge pages.
func TestAPodsHugePagesAreBounded(t *testing.T) {
	mount := t.TempDir()
	pod := podtest.Pod(t, `{metadata: {name: p, uid: u}, spec: {containers: [{name: a, resources: {limits: {cpu: 1, memory: 1Gi, hugepages-2Mi: 4Mi}}}, {name: b, resources: {limits: {cpu: 1, memory: 1Gi, hugepages-2Mi: 2Mi}}}]}}`)
	dir := filepath.Join(mount, "root", "kubepods", "podu")
	for d := dir; d != filepath.Dir(mount); d = filepath.Dir(d) {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{mount, filepath.Join(mount, "root"), filepath.Join(mount, "root", "kubepods"), filepath.Join(mount, "root", "kubepods", "besteffort"), filepath.Join(mount, "root", "kubepods", "burstable"), dir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d, "cgroup.controllers"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"hugetlb.2MB.max", "hugetlb.1GB.max"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte("max"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m, err := cgroup.New(mount, "root")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Ensure(pod); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"hugetlb.2MB.max": "6291456", "hugetlb.1GB.max": "0", "memory.max": "2147483648"} {
		if got, err := os.ReadFile(filepath.Join(dir, file)); err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s: %q, %v; want %s", file, got, err, want)
		}
	}
}
