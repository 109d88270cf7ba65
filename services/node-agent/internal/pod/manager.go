// Package pod runs pods. Each pod has a worker with a goroutine of its own: it takes what changes (the pod, the runtime's state, probes, the ends
// of steps), decides by a pure function what to do (Decide), and runs these steps beside itself, so that nothing ever waits behind a pull or a
// graceful stop.
package pod

import (
	"context"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/node-agent/internal/cri"
	"dhow.dev/services/node-agent/internal/image"
	"dhow.dev/services/node-agent/internal/status"
	"dhow.dev/services/node-agent/internal/volume"
)

// Cgroups keeps the cgroups of pods.
type Cgroups interface {
	Ensure(pod *corev1.Pod) (string, error)
	// Memory returns how many bytes a pod's cgroup uses that cannot be given back at once.
	Memory(pod *corev1.Pod) (uint64, error)
	Remove(uid string) error
	Pods() ([]string, error)
}

// References has the ConfigMaps and Secrets that pods name. A missing object is env.ErrMissing.
type References interface {
	Hold(pod *corev1.Pod)
	Release(uid string)
	ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error)
	Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error)
}

// Tokens has the tokens of pods' service accounts.
type Tokens interface {
	Get(ctx context.Context, pod *corev1.Pod, audience string, seconds int64) (string, error)
	Forget(uid string)
}

// Reporter carries statuses to the API server. It must not block.
type Reporter interface {
	// Publish says what a pod's status is; only the latest counts.
	Publish(ctx context.Context, pod *corev1.Pod, status *corev1.PodStatus)
	// Finish publishes the last status and then confirms the pod's deletion.
	Finish(ctx context.Context, pod *corev1.Pod, status *corev1.PodStatus)
	// Forget drops what is not sent yet.
	Forget(uid string)
}

// Events tells users what happens to a pod. Container may be empty. It must not block.
type Events interface {
	Event(pod *corev1.Pod, container string, warning bool, reason, message string)
}

// State keeps accepted pods over restarts. It must not block.
type State interface {
	Save(pod *corev1.Pod)
	Delete(uid string)
}

// Config is what a Manager needs.
type Config struct {
	NodeName string
	// NodeLabels returns the node's labels as the API server has them, others' among them; nil while they are not known. May be nil.
	NodeLabels  func() map[string]string
	HostIPs     []string
	Allocatable map[string]*metav1.Quantity
	// Extended returns what the API server has of resources that others than the agent count. May be nil.
	Extended func() map[string]*metav1.Quantity
	// HugePages says that the node has huge pages, so that each container is told how many it may have.
	HugePages bool
	// MemoryBytes is the machine's memory.
	MemoryBytes int64

	Runtime cri.Runtime
	// RuntimeName prefixes container IDs; empty: what the runtime calls itself.
	RuntimeName string
	Images      *image.Puller
	Volumes     *volume.Manager
	// Cgroups may be nil: containers then lie where the runtime puts them.
	Cgroups    Cgroups
	References References
	Tokens     Tokens
	// Trust returns certificates of authorities, in PEM.
	Trust func(ctx context.Context, from *corev1.ClusterTrustBundleProjection) ([]byte, error)
	// Services returns all services, for variables.
	Services func() []*corev1.Service
	Reporter Reporter
	Events   Events
	State    State
	// Listed is told the IDs of all sandboxes once, before the first pod is started. Nil: nobody is told.
	Listed func(sandboxes map[string]bool)

	// Handlers returns the runtime's handler of a runtime class.
	Handlers func(class string) (handler string, ok bool)
	// Host is what the machine can do for pods.
	Host Host
	// Pressure says why no new pod like this is taken at the moment. Nil: there is never a reason.
	Pressure func(*corev1.Pod) *status.End

	DNS DNS
	// LogDir holds the pods' log folders, SeccompDir the profiles that pods name.
	LogDir, SeccompDir string
	// SeccompDefault gives containers without a profile the runtime's instead of none.
	SeccompDefault bool
	// ParallelStarts bounds how many sandboxes and containers are started at once.
	ParallelStarts int

	Logger *slog.Logger
	Tracer trace.Tracer
	Meter  metric.Meter
}

// Manager runs the pods of a node.
type Manager struct {
	Config
	slots slots
	meter meters
	users users

	mu      sync.Mutex
	ctx     context.Context
	workers map[string]*worker
	waiting []func() // calls before Run
	listed  map[string]cri.PodState
	// hasListed says that listed is the truth of some moment; before that nothing is started.
	hasListed bool
	synced    bool
	group     sync.WaitGroup
}

// meters are the manager's instruments.
type meters struct {
	starts, restarts metric.Int64Counter
	ready, step      metric.Float64Histogram
}

// New returns a manager that does nothing until Run.
func New(config Config) (*Manager, error) {
	m := &Manager{Config: config, slots: slots{free: max(config.ParallelStarts, 1)}, workers: map[string]*worker{}, listed: map[string]cri.PodState{}}
	folders, err := config.Volumes.Pods()
	if err != nil {
		return nil, err
	}
	dirs := map[string]string{}
	for _, uid := range folders {
		dirs[uid] = config.Volumes.PodDir(uid)
	}
	if err := m.users.restore(dirs); err != nil {
		return nil, err
	}
	if m.meter.starts, err = config.Meter.Int64Counter("dhow.node.container.starts", metric.WithDescription("Containers started")); err != nil {
		return nil, err
	}
	if m.meter.restarts, err = config.Meter.Int64Counter("dhow.node.container.restarts", metric.WithDescription("Containers started again")); err != nil {
		return nil, err
	}
	if m.meter.ready, err = config.Meter.Float64Histogram("dhow.node.pod.ready.duration", metric.WithUnit("s"),
		metric.WithDescription("From a pod's arrival on the node to its first readiness")); err != nil {
		return nil, err
	}
	if m.meter.step, err = config.Meter.Float64Histogram("dhow.node.pod.step.duration", metric.WithUnit("s"), metric.WithDescription("Steps of a pod's way")); err != nil {
		return nil, err
	}
	if _, err = config.Meter.Int64ObservableGauge("dhow.node.pods", metric.WithDescription("Pods that the node has"),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			m.mu.Lock()
			defer m.mu.Unlock()
			o.Observe(int64(len(m.workers)))
			return nil
		})); err != nil {
		return nil, err
	}
	return m, nil
}

// Run watches the runtime and runs the workers until ctx ends. Containers go on running afterwards.
func (m *Manager) Run(ctx context.Context) error {
	m.mu.Lock()
	m.ctx = ctx
	m.mu.Unlock()
	watcher := &cri.Watcher{Runtime: m.Runtime, Logger: m.Logger, OnEvent: m.onEvent, OnList: m.onList}
	err := watcher.Run(ctx)
	m.group.Wait()
	return err
}

// Set says that a pod is to run here, in this form. Restored pods come from the agent's own memory on disk. ctx carries the trace of the change.
func (m *Manager) Set(ctx context.Context, p *corev1.Pod, restored bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.hasListed {
		m.waiting = append(m.waiting, func() { m.set(ctx, p, restored) })
		return
	}
	m.set(ctx, p, restored)
}

func (m *Manager) set(ctx context.Context, p *corev1.Pod, restored bool) {
	uid := p.GetMetadata().GetUid()
	if w := m.workers[uid]; w != nil {
		w.post(func() { w.update(ctx, p) })
		return
	}
	var end *status.End
	if _, runs := m.listed[uid]; !restored && !runs && !status.IsTerminal(p.GetStatus().GetPhase()) && !p.GetMetadata().HasDeletionTimestamp() {
		end = m.admit(p)
	}
	w := m.start(uid, p)
	w.post(func() {
		w.end = end
		w.update(ctx, p)
	})
	if end != nil {
		m.Events.Event(p, "", true, end.Reason, end.Message)
	}
}

// Remove says that the API server does not have a pod any more.
func (m *Manager) Remove(uid string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.hasListed {
		m.waiting = append(m.waiting, func() { m.remove(uid) })
		return
	}
	m.remove(uid)
}

func (m *Manager) remove(uid string) {
	if w := m.workers[uid]; w != nil {
		w.post(func() { w.gone = true })
	}
}

// Synced says that Set was called for every pod that the API server has: what else runs here belongs to nobody and is removed. uids are all pods
// of the API server.
func (m *Manager) Synced(uids map[string]bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.hasListed {
		m.waiting = append(m.waiting, func() { m.sync(uids) })
		return
	}
	m.sync(uids)
}

func (m *Manager) sync(uids map[string]bool) {
	m.synced = true
	for uid := range m.workers {
		if !uids[uid] {
			m.remove(uid)
		}
	}
	m.adoptOrphans()
}

// adoptOrphans starts workers for what nobody wants, which remove it: pods in the runtime, folders, cgroups.
func (m *Manager) adoptOrphans() {
	if !m.synced {
		return
	}
	orphans := slices.Collect(maps.Keys(m.listed))
	folders, err := m.Volumes.Pods()
	if err != nil {
		m.Logger.Warn("pod folders not listed", logkey.Err(err))
	}
	orphans = append(orphans, folders...)
	if m.Cgroups != nil {
		cgroups, err := m.Cgroups.Pods()
		if err != nil {
			m.Logger.Warn("pod cgroups not listed", logkey.Err(err))
		}
		orphans = append(orphans, cgroups...)
	}
	for _, uid := range orphans {
		if m.workers[uid] == nil {
			w := m.start(uid, nil)
			w.post(func() { w.gone = true })
		}
	}
}

// Has says whether anything of a pod is left here.
func (m *Manager) Has(uid string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.workers[uid] != nil || !m.hasListed
}

// Changed says that ConfigMaps or Secrets of pods have changed.
func (m *Manager) Changed(uids []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, uid := range uids {
		if w := m.workers[uid]; w != nil {
			w.post(w.referencesChanged)
		}
	}
}

// Pod returns the pod of a name with what the runtime last said of it.
func (m *Manager) Pod(namespace, name string) (*corev1.Pod, cri.PodState, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.workers {
		p, state := w.view()
		if md := p.GetMetadata(); p != nil && md.GetName() == name && md.GetNamespace() == namespace {
			return p, state, true
		}
	}
	return nil, cri.PodState{}, false
}

// Ended returns a channel that is closed when a container of a pod does not run any more, or ctx ends.
func (m *Manager) Ended(ctx context.Context, uid, containerID string) <-chan struct{} {
	ended := make(chan struct{})
	m.mu.Lock()
	w := m.workers[uid]
	m.mu.Unlock()
	go func() {
		defer close(ended)
		if w != nil {
			w.awaitEnd(ctx, containerID)
		}
	}()
	return ended
}

// Running returns the IDs and log paths of running containers.
func (m *Manager) Running() map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	running := map[string]string{}
	for _, w := range m.workers {
		_, state := w.view()
		for _, c := range state.Containers {
			if c.State == cri.StateRunning {
				running[c.ID] = c.LogPath
			}
		}
	}
	return running
}

// Running is a container that runs.
type Running struct {
	Pod      *corev1.Pod
	Name, ID string
}

// RunningContainers returns all containers that run, of pods that are known.
func (m *Manager) RunningContainers() []Running {
	m.mu.Lock()
	defer m.mu.Unlock()
	var running []Running
	for _, w := range m.workers {
		p, state := w.view()
		if p == nil {
			continue
		}
		for _, c := range state.Containers {
			if c.State == cri.StateRunning {
				running = append(running, Running{Pod: p, Name: c.Name, ID: c.ID})
			}
		}
	}
	return running
}

// start starts a worker. m.mu is held.
func (m *Manager) start(uid string, p *corev1.Pod) *worker {
	w := newWorker(m, uid, p, m.listed[uid])
	m.workers[uid] = w
	m.group.Go(func() {
		w.loop(m.ctx)
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.workers[uid] == w {
			delete(m.workers, uid)
		}
		delete(m.listed, uid)
	})
	return w
}

// onEvent wakes a pod's worker. What the agent itself created and started it has seen already.
func (m *Manager) onEvent(e cri.Event) {
	if e.Type == cri.EventCreated || e.Type == cri.EventStarted {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if w := m.workers[e.PodUID]; w != nil {
		w.post(func() { w.lookAt(e.ContainerID) })
		return
	}
	if e.PodUID == "" {
		// The runtime did not say whose it was.
		for _, w := range m.workers {
			w.post(func() {
				if w.runtime.ByID(e.ContainerID) != nil {
					w.lookAt(e.ContainerID)
				}
			})
		}
	}
}

// onList compares the runtime's pods with what the last list said, and lets the workers of those that differ look for themselves.
func (m *Manager) onList(pods []cri.PodState) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.listed
	m.listed = make(map[string]cri.PodState, len(pods))
	for _, p := range pods {
		m.listed[p.UID] = p
	}
	if !m.hasListed {
		m.hasListed = true
		if m.RuntimeName == "" {
			if s, err := m.Runtime.Status(m.ctx); err == nil {
				m.RuntimeName = s.Name
			} else {
				m.Logger.Warn("name of the runtime not known, container IDs lack it", logkey.Err(err))
			}
		}
		if m.Listed != nil {
			sandboxes := map[string]bool{}
			for _, p := range pods {
				for _, s := range p.Sandboxes {
					sandboxes[s.ID] = true
				}
			}
			m.Listed(sandboxes)
		}
		for _, f := range m.waiting {
			f()
		}
		m.waiting = nil
		return
	}
	for uid, w := range m.workers {
		if !reflect.DeepEqual(before[uid], m.listed[uid]) {
			w.post(w.markStale)
		}
	}
	m.adoptOrphans()
}

// measure records how long a step took.
func (m *Manager) measure(ctx context.Context, action Action, began time.Time) {
	m.meter.step.Record(ctx, time.Since(began).Seconds(), metric.WithAttributes(stepKey.String(string(action))))
}
