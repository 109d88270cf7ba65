package image_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"dhow.dev/services/node-agent/internal/cri/fake"
	"dhow.dev/services/node-agent/internal/image"
)

// TestImagesThatNothingRunsFromGoWhenTheDiskIsFull keeps what runs, what is pinned and what is new.
func TestImagesThatNothingRunsFromGoWhenTheDiskIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		runtime := fake.New("app:1", "app:2", "app:3", "pause:1")
		runtime.Pin("pause:1")
		sandbox, err := runtime.RunSandbox(ctx, &runtimev1.PodSandboxConfig{Metadata: &runtimev1.PodSandboxMetadata{Name: "p", Uid: "p"}}, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := runtime.CreateContainer(ctx, sandbox, &runtimev1.ContainerConfig{Metadata: &runtimev1.ContainerMetadata{Name: "c"}, Image: &runtimev1.ImageSpec{Image: "app:1"}}, nil); err != nil {
			t.Fatal(err)
		}
		free := int64(160)
		c := &image.Collector{Runtime: runtime, High: 85, Low: 80, Logger: slog.New(slog.DiscardHandler),
			Space: func(context.Context) (int64, int64, error) { return free, 1000, nil }}
		names := func() string {
			images, err := runtime.Images(ctx)
			if err != nil {
				t.Fatal(err)
			}
			var list []string
			for _, i := range images {
				list = append(list, i.Names[0])
			}
			return strings.Join(list, " ")
		}
		collect := func(fails bool) {
			if err := c.Collect(ctx); (err != nil) != fails {
				t.Errorf("%v", err)
			}
		}
		collect(false) // not full: only notes what is there
		time.Sleep(time.Minute)
		free = 100
		collect(true) // full, but all is new
		if got := names(); got != "app:1 app:2 app:3 pause:1" {
			t.Fatal(got)
		}
		time.Sleep(2 * time.Minute)
		collect(true) // images are small here: all that may go does, and it is not enough
		if got := names(); got != "app:1 pause:1" {
			t.Fatal(got)
		}
		if _, err := runtime.PullImage(ctx, "app:9", nil, nil); err != nil {
			t.Fatal(err)
		}
		free = 900
		collect(false)
		if got := names(); got != "app:1 app:9 pause:1" {
			t.Fatal(got)
		}
		if err := c.Clear(ctx); err != nil || names() != "app:1 pause:1" {
			t.Errorf("%v, %s", err, names())
		}
	})
}
