// Package state keeps the node's accepted pods on disk, so that a restarted agent knows them before it has heard from an API server, and runs them
// again after a reboot while it is cut off.
package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/telemetry/logkey"
)

const suffix = ".pod"

// Store is one folder with a file per pod. Writing happens behind the caller's back, the newest state of each pod only.
type Store struct {
	dir    string
	logger *slog.Logger

	mu      sync.Mutex
	pending map[string]*corev1.Pod // nil: delete
	wake    chan struct{}
}

// Open returns the store in dir, which it makes.
func Open(dir string, logger *slog.Logger) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("pod state: %w", err)
	}
	return &Store{dir: dir, logger: logger, pending: map[string]*corev1.Pod{}, wake: make(chan struct{}, 1)}, nil
}

// Load returns the pods. A file that cannot be read, as a power failure may leave one, is reported and skipped: the API server still has the pod.
func (s *Store) Load() ([]*corev1.Pod, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("pod state: %w", err)
	}
	var pods []*corev1.Pod
	for _, e := range entries {
		uid, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok {
			continue
		}
		data, err := os.ReadFile(filepath.Join(s.dir, e.Name()))
		p := &corev1.Pod{}
		if err == nil {
			err = proto.Unmarshal(data, p)
		}
		if err == nil && p.GetMetadata().GetUid() != uid {
			err = errors.New("it does not hold the pod that it is named after")
		}
		if err != nil {
			s.logger.Warn("saved pod not read", logkey.UID(uid), logkey.Err(err))
			continue
		}
		pods = append(pods, p)
	}
	return pods, nil
}

// Save keeps a pod.
func (s *Store) Save(p *corev1.Pod) { s.put(p.GetMetadata().GetUid(), p) }

// Delete forgets a pod.
func (s *Store) Delete(uid string) { s.put(uid, nil) }

func (s *Store) put(uid string, p *corev1.Pod) {
	s.mu.Lock()
	s.pending[uid] = p
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run writes until ctx ends, and then what is still to be written.
func (s *Store) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			s.flush()
			return nil
		case <-s.wake:
			s.flush()
		}
	}
}

func (s *Store) flush() {
	s.mu.Lock()
	pending := s.pending
	s.pending = map[string]*corev1.Pod{}
	s.mu.Unlock()
	for uid, p := range pending {
		if err := s.write(uid, p); err != nil {
			s.logger.Warn("pod not saved", logkey.UID(uid), logkey.Err(err))
		}
	}
}

func (s *Store) write(uid string, p *corev1.Pod) error {
	if uid == "" || uid != filepath.Base(uid) {
		return fmt.Errorf("uid %q cannot be a file name", uid)
	}
	name := filepath.Join(s.dir, uid+suffix)
	if p == nil {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	data, err := proto.Marshal(p)
	if err != nil {
		return err
	}
	// Not synced to the disk: that would hold up the runtime, which syncs for each container. What a power failure takes of the last seconds is only
	// missed if the node is cut off as well, and a torn file is skipped by Load.
	temporary := filepath.Join(s.dir, "tmp-"+uid)
	if err := os.WriteFile(temporary, data, 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, name)
}
