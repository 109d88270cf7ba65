// Package csi has the CSI drivers of the node. A driver registers as with Kubernetes' kubelet: a socket in the folder plugins_registry speaks
// pluginregistration/v1 and names the driver and its own socket. What the driver says of the node becomes the CSINode, an annotation and labels of
// the Node.
package csi

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"google.golang.org/grpc"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	storagev1 "dhow.dev/gen/go/dhow/storage/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/telemetry/logkey"
)

// Registration that fails is tried again, as long as the socket is there, after between these two, doubling.
const (
	minRetry = 100 * time.Millisecond
	maxRetry = 10 * time.Second
	// askTimeout bounds the calls of a registration.
	askTimeout = 10 * time.Second
)

// Config configures a Registry.
type Config struct {
	NodeName string
	// Dir is the folder of the sockets that register.
	Dir string
	// Host returns where the agent finds a path that a driver names.
	Host func(path string) string
	Conn grpc.ClientConnInterface
	// Changed is called when a driver came. It must not block.
	Changed func()
	Logger  *slog.Logger
}

// Registry knows the drivers.
type Registry struct {
	Config
	nodes    *client.Client[*corev1.Node]
	csiNodes *client.Client[*storagev1.CSINode]
	// csiDrivers say how drivers are to be treated.
	csiDrivers *client.Client[*storagev1.CSIDriver]
	// writing keeps what is said of drivers on the CSINode and the Node together.
	writing sync.Mutex

	mu      sync.Mutex
	drivers map[string]*Driver
	// coming counts the registrations of a driver that are under way: what they write is not to be taken back.
	coming map[string]int
	// sockets holds what registers, by file name: its end, and the driver that it has brought.
	sockets map[string]*registration
	group   sync.WaitGroup
}

type registration struct {
	cancel context.CancelFunc
	driver string
}

// New returns a registry without drivers; Run finds them.
func New(config Config) *Registry {
	return &Registry{Config: config, nodes: client.For[*corev1.Node](config.Conn), csiNodes: client.For[*storagev1.CSINode](config.Conn), csiDrivers: client.For[*storagev1.CSIDriver](config.Conn),
		drivers: map[string]*Driver{}, coming: map[string]int{}, sockets: map[string]*registration{}}
}

// Driver returns a registered driver.
func (r *Registry) Driver(name string) (*Driver, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if d := r.drivers[name]; d != nil {
		return d, nil
	}
	return nil, fmt.Errorf("driver name %s not found in the list of registered CSI drivers", name)
}

// Run registers what is in the folder and what comes, until ctx ends.
func (r *Registry) Run(ctx context.Context) error {
	if err := os.MkdirAll(r.Dir, 0o750); err != nil {
		return fmt.Errorf("CSI drivers: %w", err)
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("CSI drivers: watch %s: %w", r.Dir, err)
	}
	defer func() { _ = watcher.Close() }()
	if err := watcher.Add(r.Dir); err != nil {
		return fmt.Errorf("CSI drivers: watch %s: %w", r.Dir, err)
	}
	defer func() {
		r.mu.Lock()
		for _, d := range r.drivers {
			_ = d.conn.Close()
		}
		r.mu.Unlock()
	}()
	defer r.group.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.group.Go(func() { r.keepNode(ctx) })
	entries, err := os.ReadDir(r.Dir)
	if err != nil {
		return fmt.Errorf("CSI drivers: %w", err)
	}
	for _, e := range entries {
		r.appeared(ctx, e.Name())
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case event := <-watcher.Events:
			name := filepath.Base(event.Name)
			switch {
			case event.Has(fsnotify.Create):
				r.appeared(ctx, name)
			case event.Has(fsnotify.Remove), event.Has(fsnotify.Rename):
				r.vanished(ctx, name)
			}
		case err := <-watcher.Errors:
			r.Logger.WarnContext(ctx, "watch of CSI registrations lost something, reading the folder again", logkey.Err(err))
			if entries, err := os.ReadDir(r.Dir); err == nil {
				for _, e := range entries {
					r.appeared(ctx, e.Name())
				}
			}
		}
	}
}

// appeared begins to register a socket.
func (r *Registry) appeared(ctx context.Context, name string) {
	info, err := os.Stat(filepath.Join(r.Dir, name))
	if err != nil || info.Mode()&fs.ModeSocket == 0 || strings.HasPrefix(name, ".") {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	if before := r.sockets[name]; before != nil {
		before.cancel() // the same name, another process
	}
	one := &registration{cancel: cancel}
	r.sockets[name] = one
	r.group.Go(func() {
		wait := minRetry
		for ctx.Err() == nil {
			err := r.register(ctx, one, filepath.Join(r.Dir, name))
			if err == nil || ctx.Err() != nil {
				return
			}
			r.Logger.WarnContext(ctx, "CSI driver not registered, trying again", logkey.Err(err), logkey.Delay(wait))
			select {
			case <-ctx.Done():
			case <-time.After(wait):
			}
			wait = min(2*wait, maxRetry)
		}
	})
}

// vanished forgets what a socket has registered.
func (r *Registry) vanished(ctx context.Context, name string) {
	r.mu.Lock()
	one := r.sockets[name]
	delete(r.sockets, name)
	if one == nil {
		r.mu.Unlock()
		return
	}
	one.cancel()
	driver := one.driver
	if d := r.drivers[driver]; d != nil {
		delete(r.drivers, driver)
		// Calls that are under way end with an error and are tried again.
		defer func() { _ = d.conn.Close() }()
	}
	r.mu.Unlock()
	if driver == "" {
		return
	}
	r.group.Go(func() {
		r.withRetries(ctx, func() error { return r.forget(ctx, driver) })
	})
}

// withRetries repeats f until it succeeds or ctx ends.
func (r *Registry) withRetries(ctx context.Context, f func() error) {
	wait := minRetry
	for ctx.Err() == nil {
		err := f()
		if err == nil || ctx.Err() != nil {
			return
		}
		r.Logger.DebugContext(ctx, "CSINode not written, trying again", logkey.Err(err), logkey.Delay(wait))
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, maxRetry)
	}
}

// register asks a socket what it is, and takes the driver up.
func (r *Registry) register(ctx context.Context, one *registration, socket string) error {
	conn, err := dial(socket)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	plugin := registerapi.NewRegistrationClient(conn)
	ask, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	info, err := plugin.GetInfo(ask, &registerapi.InfoRequest{})
	if err != nil {
		return fmt.Errorf("%s: GetInfo: %w", socket, err)
	}
	err = r.takeUp(ctx, one, info, socket)
	answer := &registerapi.RegistrationStatus{PluginRegistered: err == nil}
	if err != nil {
		answer.Error = err.Error()
	}
	tell, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if _, told := plugin.NotifyRegistrationStatus(tell, answer); told != nil && err == nil {
		r.Logger.WarnContext(ctx, "CSI driver did not take its registration", logkey.Err(told))
	}
	return err
}

func (r *Registry) takeUp(ctx context.Context, one *registration, info *registerapi.PluginInfo, socket string) error {
	name := info.GetName()
	switch {
	case info.GetType() != registerapi.CSIPlugin:
		return fmt.Errorf("%s: plugins of type %q are not supported by the node; CSIPlugin is", socket, info.GetType())
	case name == "":
		return fmt.Errorf("%s: the driver has no name", socket)
	case !slices.ContainsFunc(info.GetSupportedVersions(), func(v string) bool { return strings.HasPrefix(strings.TrimPrefix(v, "v"), "1.") }):
		return fmt.Errorf("driver %s: none of the CSI versions %v is supported by the node; 1.x is", name, info.GetSupportedVersions())
	}
	endpoint := socket
	if info.GetEndpoint() != "" {
		endpoint = r.Host(info.GetEndpoint())
	}
	d, err := connect(ctx, name, endpoint)
	if err != nil {
		return err
	}
	ask, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	self, err := d.node.NodeGetInfo(ask, &csispec.NodeGetInfoRequest{})
	if err != nil {
		_ = d.conn.Close()
		return fmt.Errorf("driver %s: NodeGetInfo: %w", name, err)
	}
	r.mu.Lock()
	r.coming[name]++
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		r.coming[name]--
		r.mu.Unlock()
	}()
	if err := r.announce(ctx, name, self); err != nil {
		_ = d.conn.Close()
		return fmt.Errorf("driver %s: %w", name, err)
	}
	r.mu.Lock()
	if ctx.Err() != nil {
		r.mu.Unlock()
		_ = d.conn.Close()
		return ctx.Err()
	}
	before := r.drivers[name]
	r.drivers[name], one.driver = d, name
	r.mu.Unlock()
	if before != nil {
		_ = before.conn.Close()
	}
	r.Logger.InfoContext(ctx, "CSI driver registered", "driver", name)
	r.group.Go(func() { r.keepAllocatable(ctx, d) })
	r.Changed()
	return nil
}
