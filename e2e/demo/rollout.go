package demo

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"dhow.dev/e2e/evidence"
)

// scale makes many of the web tier and counts what the runtimes run.
func scale(ctx context.Context, d *Demo) (string, error) {
	began := time.Now()
	if _, err := d.dhow(ctx, "scale", "deploy/web", "-n", namespace, "--replicas", fmt.Sprint(d.Replicas)); err != nil {
		return "", err
	}
	if _, err := d.dhow(ctx, "rollout", "status", "deploy/web", "-n", namespace); err != nil {
		return "", err
	}
	took := time.Since(began)
	web, err := d.web(ctx)
	if err != nil {
		return "", err
	}
	if len(web) != d.Replicas {
		return "", fmt.Errorf("the runtimes run %d web containers, want %d", len(web), d.Replicas)
	}
	return fmt.Sprintf("%d web containers run on %s, all ready after %s", len(web), strings.Join(nodesOf(web), ", "), round(took)), nil
}

// load calls the web tier steadily through all nodes, each call on a connection of its own, and counts.
type load struct {
	stop   context.CancelFunc
	ended  chan struct{}
	calls  atomic.Int64
	failed atomic.Int64
	first  atomic.Pointer[string]
}

// loadPause is the time between two calls: 20 a second.
const loadPause = 50 * time.Millisecond

func (d *Demo) startLoad(ctx context.Context) *load {
	ctx, stop := context.WithCancel(ctx)
	l := &load{stop: stop, ended: make(chan struct{})}
	go func() {
		defer close(l.ended)
		ticker := time.NewTicker(loadPause)
		defer ticker.Stop()
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			_, err := evidence.HTTP(ctx, "GET", d.url(d.machine.Nodes[i%len(d.machine.Nodes)])+"/", "")
			if ctx.Err() != nil {
				return
			}
			l.calls.Add(1)
			if err != nil {
				l.failed.Add(1)
				message := err.Error()
				l.first.CompareAndSwap(nil, &message)
			}
		}
	}()
	return l
}

// end stops the load; a failed call is an error.
func (l *load) end() (int64, error) {
	l.stop()
	<-l.ended
	if n := l.failed.Load(); n > 0 {
		return l.calls.Load(), fmt.Errorf("%d of %d calls failed, the first: %s", n, l.calls.Load(), *l.first.Load())
	}
	if l.calls.Load() == 0 {
		return 0, fmt.Errorf("the load made no call")
	}
	return l.calls.Load(), nil
}

// rollOut applies the web tier's manifest as its author would have changed it: another image, and the replicas that it has by now.
func rollOut(ctx context.Context, d *Demo) (string, error) {
	manifest, err := os.ReadFile(filepath.Join(d.manifests(), "30-web.yaml"))
	if err != nil {
		return "", err
	}
	changed := strings.NewReplacer(imageName("v1"), imageName("v2"), "replicas: 3", fmt.Sprintf("replicas: %d", d.Replicas)).Replace(string(manifest))
	file := filepath.Join(d.images, "30-web.yaml")
	if err := os.WriteFile(file, []byte(changed), 0o644); err != nil {
		return "", err
	}
	return d.change(ctx, "v2", "apply", "-f", file)
}

func rollBack(ctx context.Context, d *Demo) (string, error) {
	return d.change(ctx, "v1", "rollout", "undo", "deploy/web", "-n", namespace)
}

// change makes the web tier another version under load and checks what runs and what answers.
func (d *Demo) change(ctx context.Context, version string, command ...string) (string, error) {
	load := d.startLoad(ctx)
	defer load.stop()
	if _, err := d.dhow(ctx, command...); err != nil {
		return "", err
	}
	if _, err := d.dhow(ctx, "rollout", "status", "deploy/web", "-n", namespace); err != nil {
		return "", err
	}
	// Old pods may still be ending when the rollout is complete.
	err := eventually(ctx, func(ctx context.Context) error {
		web, err := d.web(ctx)
		if err != nil {
			return err
		}
		for _, c := range web {
			if !strings.HasSuffix(c.Image, ":"+version) {
				return fmt.Errorf("%s on %s runs %s", c.Pod, c.Node.Name, c.Image)
			}
		}
		if len(web) != d.Replicas {
			return fmt.Errorf("the runtimes run %d web containers, want %d", len(web), d.Replicas)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	for range 30 {
		answer, err := evidence.HTTP(ctx, "GET", d.url(d.machine.Nodes[0])+"/version", "")
		if err != nil {
			return "", err
		}
		if !strings.Contains(answer, fmt.Sprintf(`"version":%q`, version)) {
			return "", fmt.Errorf("%s answers", answer)
		}
	}
	calls, err := load.end()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("all %d web containers run %s and it answers; none of %d calls failed meanwhile", d.Replicas, imageName(version), calls), nil
}
