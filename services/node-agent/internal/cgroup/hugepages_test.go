package cgroup_test

import (
	"os"
	"path/filepath"
	"slices"
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

// TestHugePagesBesideVersionOne has controllers of version 1, and huge pages in the hierarchy of version 2 beside them, where runtimes put containers too.
func TestHugePagesBesideVersionOne(t *testing.T) {
	mount := t.TempDir()
	pod := podtest.Pod(t, `{metadata: {name: p, uid: u}, spec: {containers: [{name: a, resources: {limits: {hugepages-2Mi: 4Mi}}}]}}`)
	dir := filepath.Join(mount, "unified", "root", "kubepods", "besteffort", "podu")
	for _, d := range []string{filepath.Join(mount, "cpu"), filepath.Join(mount, "memory"), dir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for d := filepath.Dir(dir); d != mount; d = filepath.Dir(d) {
		if err := os.WriteFile(filepath.Join(d, "cgroup.controllers"), []byte("hugetlb"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "hugetlb.2MB.max"), []byte("max"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(mount, "unified", "root", "kubepods", "burstable"), 0o755); err != nil {
		t.Fatal(err)
	}
	m, err := cgroup.New(mount, "root")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Ensure(pod); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{filepath.Join(dir, "hugetlb.2MB.max"): "4194304", filepath.Join(mount, "unified", "root", "cgroup.subtree_control"): "+hugetlb"} {
		if got, err := os.ReadFile(name); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %s", name, got, err, want)
		}
	}
	uids, err := m.Pods()
	if err != nil || !slices.Equal(uids, []string{"u"}) {
		t.Errorf("%q, %v", uids, err)
	}
	// What a runtime has left there goes with the pod.
	if err := os.Remove(filepath.Join(dir, "hugetlb.2MB.max")); err != nil {
		t.Fatal(err)
	}
	if err := m.Remove("u"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is left (%v)", dir, err)
	}
}
