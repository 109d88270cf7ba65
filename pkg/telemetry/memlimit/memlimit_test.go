package memlimit

import (
	"strings"
	"testing"
	"testing/fstest"
)

func files(content map[string]string) fstest.MapFS {
	system := fstest.MapFS{}
	for name, data := range content {
		system[name] = &fstest.MapFile{Data: []byte(data)}
	}
	return system
}

const (
	mountV2 = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
	mountV1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
	noneV1  = "9223372036854771712\n"
)

func TestRead(t *testing.T) {
	for name, tc := range map[string]struct {
		files map[string]string
		want  int64
	}{
		"not Linux": {map[string]string{}, 0},
		"v2": {map[string]string{
			"proc/self/cgroup": "0::/a/b\n", "proc/self/mountinfo": mountV2, "sys/fs/cgroup/a/b/memory.max": "1048576\n"}, 1 << 20},
		"v2, none": {map[string]string{
			"proc/self/cgroup": "0::/a\n", "proc/self/mountinfo": mountV2, "sys/fs/cgroup/a/memory.max": "max\n"}, 0},
		"v2, parent is smaller": {map[string]string{
			"proc/self/cgroup": "0::/a/b\n", "proc/self/mountinfo": mountV2, "sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": "4096\n"}, 4096},
		"v2, own namespace": {map[string]string{
			"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": mountV2, "sys/fs/cgroup/memory.max": "8192\n"}, 8192},
		"v1": {map[string]string{
			"proc/self/cgroup": "4:memory:/x\n1:cpu:/y\n0::/\n", "proc/self/mountinfo": mountV1, "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "65536\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": noneV1}, 65536},
		"v1, none": {map[string]string{
			"proc/self/cgroup": "4:cpuset,memory:/x\n", "proc/self/mountinfo": mountV1, "sys/fs/cgroup/memory/x/memory.limit_in_bytes": noneV1}, 0},
		"v1, container without namespace": {map[string]string{
			"proc/self/cgroup":    "4:memory:/docker/abc/inner\n",
			"proc/self/mountinfo": "35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
			"sys/fs/cgroup/memory/inner/memory.limit_in_bytes": noneV1, "sys/fs/cgroup/memory/memory.limit_in_bytes": "7000\n"}, 7000},
		"group outside of the mount": {map[string]string{
			"proc/self/cgroup":                           "4:memory:/docker/abcdef\n",
			"proc/self/mountinfo":                        "35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "9000\n"}, 9000},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Read(files(tc.files))
			if err != nil || got != tc.want {
				t.Fatalf("Read = %d, %v, want %d", got, err, tc.want)
			}
		})
	}
}

func TestReadSaysWhichGroup(t *testing.T) {
	_, err := Read(files(map[string]string{"proc/self/cgroup": "0::/a\n", "proc/self/mountinfo": mountV2, "sys/fs/cgroup/a/memory.max": "many\n"}))
	if err == nil || !strings.Contains(err.Error(), "memory.max of control group /a") {
		t.Fatalf("error = %v", err)
	}
}
