package dockerfile

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"dhow.dev/pkg/image"
)

func write(t *testing.T, file, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
}

func TestReadTellsWhatTheImageIs(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "bin/program"), "x", 0o755)
	write(t, filepath.Join(dir, "tree/etc/conf"), "y", 0o644)
	if err := os.Symlink("conf", filepath.Join(dir, "tree/etc/link")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "Dockerfile")
	write(t, file, `# What it is.
FROM scratch
ARG VERSION
ARG FLAVOUR=plain
COPY bin/program /usr/bin/
COPY --chown=7:8 tree /
LABEL version="$VERSION" \
      flavour="very ${FLAVOUR}"
ENV MODE=fast
EXPOSE 80/tcp 81/tcp
WORKDIR /data
STOPSIGNAL SIGINT
USER 7:8
ENTRYPOINT ["/usr/bin/program", "$VERSION"]
CMD ["run"]
`, 0o644)
	got, err := Read(file, Build{Context: dir, Args: map[string]string{"VERSION": "v1"}})
	if err != nil {
		t.Fatal(err)
	}
	want := image.Spec{
		Files: []image.File{
			{Path: "/usr/bin/program", Source: filepath.Join(dir, "bin/program"), Mode: 0o755},
			{Path: "/etc", Dir: true, Mode: 0o755, UID: 7, GID: 8},
			{Path: "/etc/conf", Source: filepath.Join(dir, "tree/etc/conf"), Mode: 0o644, UID: 7, GID: 8},
			{Path: "/etc/link", Link: "conf", UID: 7, GID: 8},
		},
		Labels: map[string]string{"version": "v1", "flavour": "very plain"}, Env: []string{"MODE=fast"}, ExposedPorts: []string{"80/tcp", "81/tcp"},
		WorkingDir: "/data", StopSignal: "SIGINT", User: "7:8", Entrypoint: []string{"/usr/bin/program", "$VERSION"}, Cmd: []string{"run"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestReadRefusesWhatItCannotMake(t *testing.T) {
	for text, want := range map[string]string{
		"FROM debian:12":                               "Dockerfile:1: FROM: debian:12: images begin with scratch",
		"FROM --platform=linux/arm64 scratch":          "flags are not read",
		"FROM scratch\nRUN make":                       "Dockerfile:2: RUN: not read here",
		"FROM scratch\nARG VERSION":                    "ARG: VERSION has no value",
		"FROM scratch\nENTRYPOINT /usr/bin/program":    "there is no shell in the image",
		"FROM scratch\nCOPY missing /missing":          "missing: no such file",
		"FROM scratch\nCOPY a b /c":                    "expected one source and one target, got 3 words",
		"FROM scratch\nCOPY --chown=nobody:nobody . /": "expected numbers, UID:GID",
		"FROM scratch\nCOPY --chmod=755 . /":           "only --chown=UID:GID is read",
	} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "Dockerfile"), text, 0o644)
		if _, err := Read(filepath.Join(dir, "Dockerfile"), Build{Context: dir}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one that says %q", text, err, want)
		}
	}
}
