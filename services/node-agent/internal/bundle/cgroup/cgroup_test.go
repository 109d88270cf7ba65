package cgroup

import (
	"reflect"
	"testing"
)

func TestParseMounts(t *testing.T) {
	const hybrid = `24 1 0:21 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
25 24 0:22 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
26 24 0:23 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
26 24 0:23 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
27 24 0:24 / /mnt/cgroup rw,relatime - cgroup cgroup rw,memory
`
	want := []mount{
		{dir: "/sys/fs/cgroup/cpu,cpuacct", version: V1, controllers: []string{"rw", "cpu", "cpuacct"}},
		{dir: "/sys/fs/cgroup/unified", version: V2},
	}
	if got := parseMounts(hybrid); !reflect.DeepEqual(got, want) {
		t.Errorf("hybrid: got %+v, want %+v", got, want)
	}
	const unified = "30 1 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
	if got := parseMounts(unified); !reflect.DeepEqual(got, []mount{{dir: root, version: V2}}) {
		t.Errorf("unified: got %+v", got)
	}
}

func TestPathsThatReachTooFarAreRefused(t *testing.T) {
	h, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"", "/", "dhow", "/dhow/../", "/dhow/", "/../etc"} {
		if err := h.Kill(t.Context(), path); err == nil {
			t.Errorf("Kill(%q) was accepted", path)
		}
		if err := h.Remove(path); err == nil {
			t.Errorf("Remove(%q) was accepted", path)
		}
	}
}
