package volume

import (
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/services/node-agent/internal/downward"
	"dhow.dev/services/node-agent/internal/podtest"
)

func TestPodsThatStoreTooMuchAreEvicted(t *testing.T) {
	evicted := map[string]string{}
	m, err := NewNode(Config{NodeName: "n", DataDir: t.TempDir(), Evict: func(uid, message string) { evicted[uid] = message }})
	if err != nil {
		t.Fatal(err)
	}
	pod := podtest.Pod(t, `{metadata: {name: p}, spec: {volumes: [{name: small, emptyDir: {sizeLimit: 1Mi}}, {name: any, emptyDir: {}}]}}`)
	paths, err := m.Setup(t.Context(), pod, Sources{})
	if err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]int{"small": 512 << 10, "any": 4 << 20} {
		if err := os.WriteFile(filepath.Join(paths[name], "file"), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m.checkLimits()
	if len(evicted) != 0 {
		t.Fatalf("evicted below the limit: %v", evicted)
	}
	// A second name of a file takes no room.
	if err := os.Link(filepath.Join(paths["small"], "file"), filepath.Join(paths["small"], "again")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(paths["small"], "sparse"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(paths["small"], "sparse"), 1<<30); err != nil {
		t.Fatal(err)
	}
	m.checkLimits()
	if len(evicted) != 0 {
		t.Fatalf("evicted for what takes no room: %v", evicted)
	}
	if err := os.WriteFile(filepath.Join(paths["small"], "more"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	m.checkLimits()
	if got, want := evicted["uid-of-pod"], `Usage of EmptyDir volume "small" exceeds the limit "1Mi". `; got != want {
		t.Errorf("evicted: %q, want %q", got, want)
	}
}

func TestMemoryVolumesAreNoLargerThanTheirPods(t *testing.T) {
	quantity := func(text string) *metav1.Quantity {
		q := &metav1.Quantity{}
		q.SetString(text)
		return q
	}
	node := downward.Facts{Allocatable: map[string]*metav1.Quantity{"memory": quantity("1Gi")}}
	for _, c := range []struct {
		spec  string
		limit int64
		want  int64
	}{
		{`{containers: [{name: a}]}`, 0, 1 << 30},
		{`{containers: [{name: a}]}`, 5, 5},
		{`{containers: [{name: a, resources: {limits: {memory: 10Mi}}}, {name: b, resources: {limits: {memory: 20Mi}}}]}`, 0, 30 << 20},
		{`{containers: [{name: a, resources: {limits: {memory: 10Mi}}}, {name: b}]}`, 0, 1 << 30},
		{`{containers: [{name: a, resources: {limits: {memory: 10Mi}}}]}`, 100 << 20, 10 << 20},
		{`{resources: {limits: {memory: 64Mi}}, containers: [{name: a}]}`, 0, 64 << 20},
	} {
		if got := memorySize(podtest.Pod(t, `{metadata: {name: p}, spec: `+c.spec+`}`), c.limit, node); got != c.want {
			t.Errorf("%s with limit %d: %d, want %d", c.spec, c.limit, got, c.want)
		}
	}
}

func TestGroupsOwnWhatIsMountedForThem(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"a", "a/b"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "a/b/file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	look := func(path string) (uint32, os.FileMode) {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Sys().(*syscall.Stat_t).Gid, info.Mode()
	}
	gid := os.Getgid()
	pod := func(policy string) string {
		return `{metadata: {name: p}, spec: {securityContext: {fsGroup: ` + strconv.Itoa(gid) + policy + `}}}`
	}
	if err := setGroup(podtest.Pod(t, pod("")), root, false); err != nil {
		t.Fatal(err)
	}
	if got, mode := look(filepath.Join(root, "a/b/file")); int(got) != gid || mode.Perm() != 0o660 {
		t.Errorf("file: group %d, %v", got, mode)
	}
	if _, mode := look(filepath.Join(root, "a")); mode.Perm() != 0o770 || mode&os.ModeSetgid == 0 {
		t.Errorf("folder: %v", mode)
	}
	if _, mode := look(outside); mode.Perm() != 0o600 {
		t.Errorf("what a link names was changed: %v", mode)
	}
	// A root that is right is taken for all of it, if the pod says so.
	if err := os.Chmod(filepath.Join(root, "a/b/file"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := setGroup(podtest.Pod(t, pod(", fsGroupChangePolicy: OnRootMismatch")), root, false); err != nil {
		t.Fatal(err)
	}
	if _, mode := look(filepath.Join(root, "a/b/file")); mode.Perm() != 0o600 {
		t.Errorf("changed although the root matches: %v", mode)
	}
	if err := os.Chmod(root, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := setGroup(podtest.Pod(t, pod(", fsGroupChangePolicy: OnRootMismatch")), root, true); err != nil {
		t.Fatal(err)
	}
	if _, mode := look(filepath.Join(root, "a/b/file")); mode.Perm() != 0o640 {
		t.Errorf("read-only: %v", mode)
	}
}

func TestFoldersBelowAVolumeAreForWhomTheVolumeIs(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777|os.ModeSetgid); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := makeLike(root, "a/b/"); err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{"a", "a/b"} {
		info, err := os.Stat(filepath.Join(dir, sub))
		if err != nil || info.Mode().Perm() != 0o777 || info.Mode()&os.ModeSetgid == 0 {
			t.Errorf("%s: %v, %v", sub, info.Mode(), err)
		}
	}
	if err := makeLike(root, "../out"); err == nil {
		t.Error("a folder outside of the volume was made")
	}
}
