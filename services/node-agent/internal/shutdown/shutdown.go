// Package shutdown gives pods time to end when the machine shuts down: logind holds a shutdown back while the agent has an inhibitor of it, and the
// agent ends ordinary pods first and critical ones last. Words and order are Kubernetes' (graceful node shutdown).
package shutdown

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/node-agent/internal/status"
)

// Kubernetes' words.
const (
	reasonRefused   = "NodeShutdown"
	reasonEnded     = "Terminated"
	refused         = "Pod was rejected: Pod was rejected as the node is shutting down."
	ended           = "Pod was terminated in response to imminent node shutdown."
	EventReason     = "NodeShutdown"
	eventBegins     = "Shutdown manager detected shutdown event"
	eventCalledOff  = "Shutdown manager detected shutdown cancellation"
	systemCritical  = 2_000_000_000
	minRetry        = time.Second
	maxRetry        = time.Minute
	statusesAllowed = 2 * time.Second
)

// Config is what a Manager works with.
type Config struct {
	// Grace is what all pods together have to end; Critical the part of it that is kept for critical pods, who end last.
	Grace, Critical time.Duration
	// ConfDir is where logind's settings are; empty: ConfDir.
	ConfDir string
	// Pods are those that have not ended. End ends one. Ended waits until these have ended and nothing of theirs is mounted, or ctx ends.
	Pods  func() []*corev1.Pod
	End   func(uid string, end *status.End) bool
	Ended func(ctx context.Context, uids []string) error
	// Told waits until what was said of pods has reached the API server, or ctx ends.
	Told func(ctx context.Context) error
	// Changed is called when Now answers otherwise; Event records what happened to the node.
	Changed func()
	Event   func(reason, message string)
	Logger  *slog.Logger
}

// Check says what is wrong with the periods.
func (c Config) Check() error {
	switch {
	case c.Grace < 0 || c.Critical < 0:
		return errors.New("the grace periods of a shutdown may not be negative")
	case c.Critical > c.Grace:
		return fmt.Errorf("the grace period of critical pods, %s, is a part of that of all pods and may not be longer than %s", c.Critical, c.Grace)
	case c.Grace > 0 && c.Grace < time.Second, c.Critical > 0 && c.Critical < time.Second:
		return errors.New("the grace periods of a shutdown are zero or at least 1s")
	}
	return nil
}

// Manager waits for shutdowns. Its zero grace means that it does nothing.
type Manager struct {
	config Config
	dial   func(confDir string) (logind, error)
	now    atomic.Bool
	// ending is of the pods that are being ended, one shutdown at a time.
	ending sync.WaitGroup
}

// New returns a manager.
func New(config Config) *Manager {
	if config.ConfDir == "" {
		config.ConfDir = ConfDir
	}
	return &Manager{config: config, dial: dial}
}

// Now says whether the machine is shutting down.
func (m *Manager) Now() bool { return m.now.Load() }

// Admit refuses pods while the machine is shutting down.
func (m *Manager) Admit() *status.End {
	if !m.Now() {
		return nil
	}
	return &status.End{Reason: reasonRefused, Message: refused}
}

// Run holds shutdowns back until pods have ended, until ctx ends. Without logind it says so, and tries again.
func (m *Manager) Run(ctx context.Context) error {
	if m.config.Grace == 0 {
		return nil
	}
	defer m.ending.Wait()
	for retry := minRetry; ; retry = min(2*retry, maxRetry) {
		watched, err := m.watch(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if watched {
			retry = minRetry
		}
		m.config.Logger.WarnContext(ctx, "a shutdown of the machine would not wait for pods, trying again", logkey.Err(err), logkey.Delay(retry))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retry):
		}
	}
}

// watch takes an inhibitor and waits for shutdowns until the bus is lost. It says whether it came so far.
func (m *Manager) watch(ctx context.Context) (watched bool, err error) {
	l, err := m.dial(m.config.ConfDir)
	if err != nil {
		return false, err
	}
	defer l.close()
	longest, err := l.delay()
	if err != nil {
		return false, err
	}
	if longest < m.config.Grace {
		if err := l.extend(ctx, m.config.Grace); err != nil {
			return false, err
		}
	}
	held := &lock{}
	defer held.release()
	if err := held.take(l); err != nil {
		return false, err
	}
	m.config.Logger.InfoContext(ctx, "a shutdown of the machine waits for pods", logkey.Delay(m.config.Grace))
	callOff := func() {}
	defer func() { callOff() }()
	for {
		select {
		case <-ctx.Done():
			return true, nil
		case begins, ok := <-l.announcements():
			if !ok {
				return true, errors.New("the system bus is lost")
			}
			callOff()
			if m.now.Swap(begins) == begins {
				continue
			}
			m.config.Changed()
			if !begins {
				m.config.Logger.InfoContext(ctx, "the shutdown of the machine was called off")
				m.config.Event(EventReason, eventCalledOff)
				if err := held.take(l); err != nil {
					return true, err
				}
				continue
			}
			m.config.Logger.InfoContext(ctx, "the machine is shutting down, pods are ended")
			m.config.Event(EventReason, eventBegins)
			work, cancel := context.WithCancel(ctx)
			callOff = cancel
			m.ending.Go(func() {
				m.end(work)
				if work.Err() == nil {
					held.release()
				}
			})
		}
	}
}

// lock is the inhibitor that the agent has.
type lock struct {
	mu   sync.Mutex
	held inhibitor
}

func (k *lock) take(l logind) error {
	next, err := l.inhibit()
	if err != nil {
		return err
	}
	k.release()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.held = next
	return nil
}

func (k *lock) release() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.held != nil {
		_ = k.held.Close() // whatever it says, it is closed
		k.held = nil
	}
}

// group are pods that end together.
type group struct {
	grace time.Duration
	pods  []*corev1.Pod
}

// groups are ordinary pods, and then critical ones.
func (m *Manager) groups() []group {
	groups := []group{{grace: m.config.Grace - m.config.Critical}, {grace: m.config.Critical}}
	for _, p := range m.config.Pods() {
		g := &groups[0]
		if p.GetSpec().GetPriority() >= systemCritical {
			g = &groups[1]
		}
		g.pods = append(g.pods, p)
	}
	return slices.DeleteFunc(groups, func(g group) bool { return len(g.pods) == 0 })
}

// end ends all pods, a group after the other; who does not end in its group's time does not keep the next from its own.
func (m *Manager) end(ctx context.Context) {
	for _, g := range m.groups() {
		var uids []string
		for _, p := range g.pods {
			uids = append(uids, p.GetMetadata().GetUid())
			m.config.End(p.GetMetadata().GetUid(), &status.End{Reason: reasonEnded, Message: ended, Disrupted: true, Grace: &g.grace})
		}
		wait, cancel := context.WithTimeout(ctx, g.grace)
		err := m.config.Ended(wait, uids)
		cancel()
		if ctx.Err() != nil {
			return // it was called off
		}
		if err != nil {
			m.config.Logger.WarnContext(ctx, "pods have not ended in the time that a shutdown gives them", logkey.Err(err), logkey.Count(len(uids)))
		}
	}
	wait, cancel := context.WithTimeout(ctx, statusesAllowed)
	defer cancel()
	if err := m.config.Told(wait); err != nil && ctx.Err() == nil {
		m.config.Logger.WarnContext(ctx, "the API server may not know of pods that ended for the shutdown", logkey.Err(err))
	}
}
