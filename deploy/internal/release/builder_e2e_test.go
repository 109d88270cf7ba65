//go:build e2e

package release

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// The Dockerfiles are ordinary ones: a builder that people use makes of them what Make makes.
func TestBuildahMakesTheSameImages(t *testing.T) {
	c := world(t, "linux/amd64")
	storage := t.TempDir()
	buildah := func(arguments ...string) {
		t.Helper()
		arguments = append([]string{"--storage-driver=vfs", "--root=" + storage + "/root", "--runroot=" + storage + "/run"}, arguments...)
		if output, err := exec.Command("buildah", arguments...).CombinedOutput(); err != nil {
			t.Fatalf("buildah %s: %v (`make setup` installs it)\n%s", strings.Join(arguments, " "), err, output)
		}
	}
	for _, img := range made(t, c) {
		archive := filepath.Join(t.TempDir(), "image.tar")
		buildah("build", "--quiet", "--file", filepath.Join(c.Dockerfiles, img.Name, "Dockerfile"), "--tag", img.reference(),
			"--build-arg=VERSION="+c.Version, "--build-arg=REVISION="+c.Revision, "--build-arg=CREATED="+c.Created, filepath.Join(c.Dist, "linux_amd64"))
		buildah("push", "--quiet", img.reference(), "docker-archive:"+archive)
		theirs, err := tarball.ImageFromPath(archive, nil)
		if err != nil {
			t.Fatal(err)
		}
		ours := img.Platforms[0]
		if diff := differences(contentsOf(t, ours), contentsOf(t, theirs)); len(diff) > 0 {
			t.Errorf("%s: files differ:\n%s", img.Name, strings.Join(diff, "\n"))
		}
		if diff := differences(settings(t, ours), settings(t, theirs)); len(diff) > 0 {
			t.Errorf("%s: settings differ:\n%s", img.Name, strings.Join(diff, "\n"))
		}
	}
}

// contentsOf tells of each file in the image what a container would see.
func contentsOf(t *testing.T, img v1.Image) map[string]string {
	t.Helper()
	r := mutate.Extract(img)
	defer r.Close()
	all := map[string]string{}
	for reader := tar.NewReader(r); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		digest := sha256.New()
		if _, err := io.Copy(digest, reader); err != nil {
			t.Fatal(err)
		}
		all["/"+strings.Trim(strings.TrimPrefix(header.Name, "./"), "/")] = fmt.Sprintf("%c %o %d:%d %s %x", header.Typeflag, header.Mode&0o7777, header.Uid, header.Gid, header.Linkname, digest.Sum(nil)[:8])
	}
}

func settings(t *testing.T, img v1.Image) map[string]string {
	t.Helper()
	file := config(t, img)
	all := map[string]string{
		"entrypoint": fmt.Sprint(file.Config.Entrypoint), "cmd": fmt.Sprint(file.Config.Cmd), "user": file.Config.User, "workdir": file.Config.WorkingDir,
		"ports": fmt.Sprint(slices.Sorted(maps.Keys(file.Config.ExposedPorts))), "env": fmt.Sprint(file.Config.Env), "platform": file.OS + "/" + file.Architecture,
	}
	for key, value := range file.Config.Labels {
		if key != "io.buildah.version" { // what the builder says of itself
			all["label "+key] = value
		}
	}
	return all
}

func differences(ours, theirs map[string]string) []string {
	var diff []string
	for _, key := range slices.Sorted(maps.Keys(ours)) {
		if theirs[key] != ours[key] {
			diff = append(diff, fmt.Sprintf("%s: made here %q, by buildah %q", key, ours[key], theirs[key]))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(theirs)) {
		if _, ok := ours[key]; !ok {
			diff = append(diff, fmt.Sprintf("%s: by buildah alone: %q", key, theirs[key]))
		}
	}
	return diff
}
