package volume_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/env"
	"dhow.dev/services/node-agent/internal/podtest"
	"dhow.dev/services/node-agent/internal/volume"
)

func sources(data map[string]string) volume.Sources {
	return volume.Sources{
		ConfigMap: func(name string) (*corev1.ConfigMap, error) {
			if name != "config" {
				return nil, env.ErrMissing
			}
			return corev1.ConfigMap_builder{Data: data}.Build(), nil
		},
		Secret: func(string) (*corev1.Secret, error) { return nil, env.ErrMissing },
		Token: func(audience string, seconds int64) (string, error) {
			if audience == "nobody" {
				return "", errors.New("failed to fetch token: no")
			}
			return fmt.Sprintf("%s for %d s", audience, seconds), nil
		},
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestConfigMapIsUpdatedAtomically(t *testing.T) {
	m := volume.New(t.TempDir())
	pod := podtest.Pod(t, `
metadata: {name: p, labels: {a: b, c: d}}
spec:
  volumes:
  - {name: all, configMap: {name: config}}
  - {name: some, configMap: {name: config, defaultMode: 0400, items: [{key: one, path: deep/er/file, mode: 0600}, {key: two, path: second}]}}
  - {name: absent, configMap: {name: absent, optional: true}}
  - {name: self, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  - {name: mixed, projected: {sources: [{configMap: {name: config}}, {downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}]}}
`)
	paths, err := m.Setup(t.Context(), pod, sources(map[string]string{"one": "1", "two": "2"}))
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(paths["all"], "one")); got != "1" {
		t.Errorf("one = %q", got)
	}
	if got := read(t, filepath.Join(paths["some"], "deep/er/file")); got != "1" {
		t.Errorf("deep/er/file = %q", got)
	}
	for file, want := range map[string]os.FileMode{"deep/er/file": 0o600, "second": 0o400} {
		info, err := os.Stat(filepath.Join(paths["some"], file))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v; want %v", file, info.Mode(), err, want)
		}
	}
	if got := read(t, filepath.Join(paths["self"], "labels")); got != "a=\"b\"\nc=\"d\"" {
		t.Errorf("labels = %q", got)
	}
	if read(t, filepath.Join(paths["mixed"], "name")) != "p" || read(t, filepath.Join(paths["mixed"], "two")) != "2" {
		t.Error("projected volume lacks a source")
	}
	before, err := os.Readlink(filepath.Join(paths["all"], "..data"))
	if err != nil {
		t.Fatal(err)
	}
	changed, err := m.Update(t.Context(), pod, sources(map[string]string{"one": "1", "two": "2"}))
	if err != nil || changed {
		t.Errorf("the same contents: changed %v, %v", changed, err)
	}
	// A file that a pod has open keeps its contents; the path shows the new ones.
	open, err := os.Open(filepath.Join(paths["all"], "one"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = open.Close() }()
	changed, err = m.Update(t.Context(), pod, sources(map[string]string{"one": "uno", "two": "2", "three": "3"}))
	if err != nil || !changed {
		t.Fatalf("new contents: changed %v, %v", changed, err)
	}
	after, _ := os.Readlink(filepath.Join(paths["all"], "..data"))
	if before == after {
		t.Error("..data still links to the old version")
	}
	if read(t, filepath.Join(paths["all"], "one")) != "uno" || read(t, filepath.Join(paths["all"], "three")) != "3" {
		t.Error("new contents are not visible")
	}
	if _, err := os.Stat(filepath.Join(paths["all"], before)); !os.IsNotExist(err) {
		t.Errorf("the old version is still there: %v", err)
	}
	if _, err := m.Update(t.Context(), pod, sources(map[string]string{"one": "1", "two": "2"})); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Join(paths["all"], "three")); !os.IsNotExist(err) {
		t.Errorf("a removed key is still there: %v", err)
	}
	if err := m.Remove(t.Context(), "uid-of-pod"); err != nil {
		t.Fatal(err)
	}
	if uids, _ := m.Pods(); len(uids) != 0 {
		t.Errorf("left: %v", uids)
	}
}

func TestFailuresNameVolumeAndObject(t *testing.T) {
	for spec, want := range map[string]string{
		`{name: v, configMap: {name: absent}}`:                                                  `volume "v" : configmap "default/absent" not found`,
		`{name: v, secret: {secretName: absent}}`:                                               `volume "v" : secret "default/absent" not found`,
		`{name: v, configMap: {name: config, items: [{key: nope, path: x}]}}`:                   `references non-existent key: nope`,
		`{name: v, hostPath: {path: /no/such/folder, type: Directory}}`:                         `/no/such/folder does not exist`,
		`{name: v, hostPath: {path: /proc/version, type: Directory}}`:                           `is not a directory`,
		`{name: v, nfs: {server: a, path: /b}}`:                                                 `not supported`,
		`{name: v, configMap: {name: config, items: [{key: one, path: ../../escape}]}}`:         `must be relative`,
		`{name: v, projected: {sources: [{serviceAccountToken: {path: t, audience: nobody}}]}}`: `volume "v" : failed to fetch token`,
	} {
		pod := podtest.Pod(t, "{metadata: {name: p}, spec: {volumes: ["+spec+"]}}")
		_, err := volume.New(t.TempDir()).Setup(t.Context(), pod, sources(map[string]string{"one": "1"}))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q in it", spec, err, want)
		}
	}
}

func TestTokensAreFilesInMemory(t *testing.T) {
	m := volume.New(t.TempDir())
	pod := podtest.Pod(t, `
metadata: {name: p}
spec:
  securityContext: {fsGroup: 4321}
  volumes: [{name: api, projected: {sources: [{serviceAccountToken: {path: token}}, {serviceAccountToken: {path: deep/vault, audience: vault, expirationSeconds: 600}}]}}]
`)
	paths, err := m.Setup(t.Context(), pod, sources(nil))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := m.Remove(t.Context(), "uid-of-pod"); err != nil {
			t.Error(err)
		}
	}()
	for file, want := range map[string]string{"token": " for 3600 s", "deep/vault": "vault for 600 s"} {
		name := filepath.Join(paths["api"], file)
		if got := read(t, name); got != want {
			t.Errorf("%s: %q", file, got)
		}
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o640 {
			t.Errorf("%s: %v %v", file, info.Mode(), err)
		}
	}
	if table, err := os.ReadFile("/proc/self/mountinfo"); err != nil || !strings.Contains(string(table), paths["api"]) {
		t.Errorf("the tokens are on the disk (%v)", err)
	}
}

func TestHostPathCreates(t *testing.T) {
	base := t.TempDir()
	pod := podtest.Pod(t, `{metadata: {name: p}, spec: {volumes: [{name: d, hostPath: {path: `+base+`/a/b, type: DirectoryOrCreate}}, {name: f, hostPath: {path: `+base+`/file, type: FileOrCreate}}]}}`)
	paths, err := volume.New(t.TempDir()).Setup(t.Context(), pod, sources(nil))
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(paths["d"]); err != nil || !info.IsDir() {
		t.Errorf("folder: %v", err)
	}
	if info, err := os.Stat(paths["f"]); err != nil || !info.Mode().IsRegular() {
		t.Errorf("file: %v", err)
	}
}

func TestEmptyDirIsForAll(t *testing.T) {
	m := volume.New(t.TempDir())
	pod := podtest.Pod(t, `{metadata: {name: p}, spec: {volumes: [{name: e, emptyDir: {}}]}}`)
	paths, err := m.Setup(t.Context(), pod, sources(nil))
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(paths["e"]); err != nil || info.Mode().Perm() != 0o777 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if err := os.WriteFile(filepath.Join(paths["e"], "kept"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(paths["e"], 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Setup(t.Context(), pod, sources(nil)); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(paths["e"]); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("setting up again took the pod's mode away: %v %v", info.Mode(), err)
	}
	if _, err := os.Stat(filepath.Join(paths["e"], "kept")); err != nil {
		t.Errorf("setting up again lost the contents: %v", err)
	}
}
