// Command foldersdriver is a CSI driver for tests: real in every call, with folders (and loop devices over files, for block volumes) as volumes.
//
// It registers with the node's agent by itself, or leaves that to node-driver-registrar; provisioner and attacher talk to the same socket. What it was called
// with is written, a JSON object a line, to ROOT/calls.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

func main() {
	d := &driver{}
	flag.StringVar(&d.name, "name", "folders.dhow.test", "the driver's name")
	flag.StringVar(&d.socket, "socket", "", "socket to serve")
	flag.StringVar(&d.register, "register", "", "socket to register with, in the agent's plugins_registry; empty: somebody else registers")
	flag.StringVar(&d.endpoint, "endpoint", "", "the socket as the agent is told; empty: the same")
	flag.StringVar(&d.root, "root", "", "folder of the volumes")
	flag.StringVar(&d.node, "node", "", "the node's name")
	flag.StringVar(&d.topology, "topology", topologyKey, "label of nodes that says where volumes can be used; KEY=VALUE where the value is not the node's name")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := d.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// driver is the driver's configuration and services.
type driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedNodeServer
	name, socket, register, endpoint, root, node, topology string

	mu sync.Mutex
}

func (d *driver) run(ctx context.Context) error {
	if d.socket == "" || d.root == "" || d.node == "" {
		return errors.New("-socket, -root and -node are required")
	}
	if d.endpoint == "" {
		d.endpoint = d.socket
	}
	if err := os.MkdirAll(filepath.Join(d.root, "volumes"), 0o755); err != nil {
		return err
	}
	listener, err := listen(d.socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(d.note))
	csi.RegisterIdentityServer(server, d)
	csi.RegisterControllerServer(server, d)
	csi.RegisterNodeServer(server, d)
	failed := make(chan error, 2)
	go func() { failed <- server.Serve(listener) }()
	defer server.Stop()
	if d.register != "" {
		listener, err := listen(d.register)
		if err != nil {
			return err
		}
		registration := grpc.NewServer()
		registerapi.RegisterRegistrationServer(registration, &registrar{driver: d})
		go func() { failed <- registration.Serve(listener) }()
		// The socket goes with the driver: that is how the agent learns of its end.
		defer registration.Stop()
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

// listen replaces a socket that a driver before this one has left.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	return net.Listen("unix", path)
}

// note writes a call down before it is answered.
func (d *driver) note(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	answer, err := handler(ctx, request)
	line := map[string]any{"call": filepath.Base(info.FullMethod), "request": request}
	if err != nil {
		line["error"] = err.Error()
	}
	text, jsonErr := json.Marshal(line)
	if jsonErr != nil {
		return nil, jsonErr
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	f, openErr := os.OpenFile(filepath.Join(d.root, "calls"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if openErr != nil {
		return nil, openErr
	}
	_, writeErr := f.Write(append(text, '\n'))
	return answer, errors.Join(err, writeErr, f.Close())
}

// registrar answers the agent's questions.
type registrar struct {
	registerapi.UnimplementedRegistrationServer
	driver *driver
}

func (r *registrar) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{Type: registerapi.CSIPlugin, Name: r.driver.name, Endpoint: r.driver.endpoint, SupportedVersions: []string{"1.0.0"}}, nil
}

func (r *registrar) NotifyRegistrationStatus(_ context.Context, s *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	if !s.GetPluginRegistered() {
		fmt.Fprintln(os.Stderr, "not registered:", s.GetError())
	}
	return &registerapi.RegistrationStatusResponse{}, nil
}

func (d *driver) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: d.name, VendorVersion: "1"}, nil
}

func (d *driver) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{Ready: wrapperspb.Bool(true)}, nil
}

func (d *driver) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	service := func(t csi.PluginCapability_Service_Type) *csi.PluginCapability {
		return &csi.PluginCapability{Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{Type: t}}}
	}
	return &csi.GetPluginCapabilitiesResponse{Capabilities: []*csi.PluginCapability{
		service(csi.PluginCapability_Service_CONTROLLER_SERVICE), service(csi.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS),
	}}, nil
}

// local says whether an identifier may be the name of a folder.
func local(id string) bool {
	return id != "" && filepath.IsLocal(flat(id))
}

// segments is where volumes of this node can be used.
func (d *driver) segments() map[string]string {
	key, value, other := strings.Cut(d.topology, "=")
	if !other {
		value = d.node
	}
	return map[string]string{key: value}
}

// flat is the name of a volume's folder: handles of some drivers, for which this one stands in, have slashes.
func flat(id string) string { return strings.ReplaceAll(id, "/", "~") }
