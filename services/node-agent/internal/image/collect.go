package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/node-agent/internal/cri"
)

// Kubernetes' rules for images that nothing runs from: from 85 % of the disk on they go, the one that was used longest ago first, until it is 80 %; one that
// was seen for the first time less than two minutes ago stays.
const (
	DefaultHigh     = 85
	DefaultLow      = 80
	minAge          = 2 * time.Minute
	collectInterval = 5 * time.Minute
)

// Collector removes images that no container is made from.
type Collector struct {
	Runtime cri.Runtime
	// Space says how much of the images' disk is free, and how large it is, in bytes.
	Space func(context.Context) (free, size int64, err error)
	// High and Low are percentages of the disk that is used.
	High, Low int
	Logger    *slog.Logger

	mu sync.Mutex
	// found and used are when an image was first seen, and last seen in use.
	found, used map[string]time.Time
}

// Run collects until ctx ends.
func (c *Collector) Run(ctx context.Context) error {
	ticker := time.NewTicker(collectInterval)
	defer ticker.Stop()
	for {
		if err := c.Collect(ctx); err != nil && ctx.Err() == nil {
			c.Logger.WarnContext(ctx, "images not collected", logkey.Err(err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// Collect removes images if the disk is too full.
func (c *Collector) Collect(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	unused, err := c.look(ctx)
	if err != nil {
		return err
	}
	free, size, err := c.Space(ctx)
	if err != nil || size <= 0 {
		return err
	}
	if (size-free)*100 < size*int64(c.High) {
		return nil
	}
	want := size*int64(100-c.Low)/100 - free
	freed, err := c.remove(ctx, unused, want, time.Now().Add(-minAge))
	if err == nil && freed < want {
		return fmt.Errorf("wanted to free %d bytes of disk, but only found %d bytes eligible to free", want, freed)
	}
	return err
}

// Clear removes all images that no container is made from, to make room at once.
func (c *Collector) Clear(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	unused, err := c.look(ctx)
	if err != nil {
		return err
	}
	_, err = c.remove(ctx, unused, 1<<62, time.Now())
	return err
}

// look notes which images are there and which are in use, and returns the others, the one that was used longest ago first.
func (c *Collector) look(ctx context.Context) ([]cri.Image, error) {
	if c.found == nil {
		c.found, c.used = map[string]time.Time{}, map[string]time.Time{}
	}
	images, err := c.Runtime.Images(ctx)
	if err != nil {
		return nil, err
	}
	pods, err := c.Runtime.Pods(ctx)
	if err != nil {
		return nil, err
	}
	inUse := map[string]bool{}
	for _, p := range pods {
		for _, container := range p.Containers {
			inUse[container.ImageID], inUse[container.Image] = true, true
		}
	}
	now, there := time.Now(), map[string]bool{}
	var unused []cri.Image
	for _, i := range images {
		there[i.ID] = true
		if c.found[i.ID].IsZero() {
			c.found[i.ID] = now
		}
		switch {
		case inUse[i.ID] || slices.ContainsFunc(i.Names, func(name string) bool { return inUse[name] }):
			c.used[i.ID] = now
		case !i.Pinned:
			unused = append(unused, i)
		}
	}
	for id := range c.found {
		if !there[id] {
			delete(c.found, id)
			delete(c.used, id)
		}
	}
	slices.SortStableFunc(unused, func(a, b cri.Image) int {
		return cmp.Or(c.used[a.ID].Compare(c.used[b.ID]), c.found[a.ID].Compare(c.found[b.ID]))
	})
	return unused, nil
}

// remove removes images that are older than youngest until enough is free.
func (c *Collector) remove(ctx context.Context, unused []cri.Image, want int64, youngest time.Time) (freed int64, failed error) {
	for _, i := range unused {
		if freed >= want {
			break
		}
		if c.found[i.ID].After(youngest) {
			continue
		}
		if err := c.Runtime.RemoveImage(ctx, i.ID); err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		freed += int64(i.Size)
		c.Logger.InfoContext(ctx, "image removed to free disk", "image", slices.Concat(i.Names, []string{i.ID})[0], "bytes", i.Size)
	}
	return freed, failed
}
