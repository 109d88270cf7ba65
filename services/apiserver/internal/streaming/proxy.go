package streaming

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/proxy"
	"k8s.io/streaming/pkg/httpstream"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/apistatus"
	"dhow.dev/services/apiserver/internal/grpcapi"
	"dhow.dev/services/apiserver/internal/request"
	"dhow.dev/services/apiserver/internal/respond"
)

// podProxy serves pods/proxy: [SCHEME:]NAME[:PORT].
func (s *Streams) podProxy(w http.ResponseWriter, r *http.Request, info *request.Info) error {
	scheme, name, port, ok := utilnet.SplitSchemeNamePort(info.Name)
	if !ok {
		return apierrors.NewBadRequest(fmt.Sprintf("invalid pod request %q", info.Name))
	}
	pod, err := s.pod(r.Context(), info.Namespace, name)
	if err != nil {
		return err
	}
	to := place(pod)
	if to.Node == "" {
		return noHost(pod)
	}
	number := int32(0)
	if port == "" {
		number = firstPort(pod)
	} else if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return apierrors.NewBadRequest(fmt.Sprintf("invalid port %q of pod %s: give its number", port, name))
	} else {
		number = int32(n)
	}
	s.proxy(w, r, info, scheme, pod.GetStatus().GetPodIp(), to, number)
	return nil
}

// firstPort is the first that the pod declares.
func firstPort(pod *corev1.Pod) int32 {
	for _, c := range pod.GetSpec().GetContainers() {
		for _, p := range c.GetPorts() {
			return p.GetContainerPort()
		}
	}
	return 80
}

// serviceProxy serves services/proxy: [SCHEME:]NAME[:PORT], the port by its name or number, one of the ready endpoints.
func (s *Streams) serviceProxy(w http.ResponseWriter, r *http.Request, info *request.Info) error {
	scheme, name, port, ok := utilnet.SplitSchemeNamePort(info.Name)
	if !ok {
		return apierrors.NewBadRequest(fmt.Sprintf("invalid service request %q", info.Name))
	}
	service := &corev1.Service{}
	if err := s.config.Objects.Read(r.Context(), services, info.Namespace, name, service); err != nil {
		return err
	}
	// Endpoints know ports by their names only.
	for _, p := range service.GetSpec().GetPorts() {
		if port != "" && strconv.Itoa(int(p.GetPort())) == port {
			port = p.GetName()
			break
		}
	}
	candidates, err := s.endpoints(info.Namespace, name, port)
	if err != nil {
		return err
	}
	if len(candidates) == 0 {
		return apierrors.NewServiceUnavailable(fmt.Sprintf("no endpoints available for service %q", name))
	}
	// One whose pod cannot be found any more is passed over: its slice is about to change.
	for _, i := range rand.Perm(len(candidates)) {
		c := candidates[i]
		if c.pod == "" {
			return s.outside(w, r, info, scheme, c)
		}
		pod, err := s.pod(r.Context(), info.Namespace, c.pod)
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		s.proxy(w, r, info, scheme, c.address, place(pod), c.port)
		return nil
	}
	return apierrors.NewServiceUnavailable(fmt.Sprintf("no endpoints available for service %q", name))
}

// endpoint is a port of a pod, or of an address that is none of the cluster's.
type endpoint struct {
	// pod is empty for an address alone.
	pod, address string
	port         int32
}

// endpoints returns a service's ready endpoints.
func (s *Streams) endpoints(namespace, service, port string) ([]endpoint, error) {
	slices, err := s.config.Objects.Slices(namespace, service)
	if err != nil {
		return nil, err
	}
	var found []endpoint
	for _, slice := range slices {
		for _, p := range slice.GetPorts() {
			if p.GetName() != port || p.GetPort() == 0 {
				continue
			}
			for _, one := range slice.GetEndpoints() {
				ready := !one.GetConditions().HasReady() || one.GetConditions().GetReady()
				if !ready || len(one.GetAddresses()) == 0 {
					continue
				}
				e := endpoint{address: one.GetAddresses()[0], port: p.GetPort()}
				if one.GetTargetRef().GetKind() == pods.Kind {
					e.pod = one.GetTargetRef().GetName()
				}
				found = append(found, e)
			}
		}
	}
	return found, nil
}

// secretHeaders are for the API server alone.
var secretHeaders = []string{"Authorization", "Impersonate-User", "Impersonate-Group", "Impersonate-Uid"}

// proxy passes a request on to a port of a pod, at the pod's address.
func (s *Streams) proxy(w http.ResponseWriter, r *http.Request, info *request.Info, scheme, address string, to grpcapi.Pod, port int32) {
	if address == "" {
		respond.Error(w, r, apierrors.NewServiceUnavailable(fmt.Sprintf("pod %s has no address yet", to.Name)))
		return
	}
	s.pass(w, r, info, scheme, address, port, func(context.Context, string, string) (net.Conn, error) {
		start := corev1.PodPortForwardRequest_Start_builder{Namespace: to.Namespace, Name: to.Name, Port: port, ByAddress: true}.Build()
		// The connection outlives the dialing's context, which the transport ends at will; it ends with the request.
		return s.config.Tunnels.Dial(r.Context(), to, start)
	})
}

// pass passes a request on over the connection that dial makes.
func (s *Streams) pass(w http.ResponseWriter, r *http.Request, info *request.Info, scheme, address string, port int32, dial func(ctx context.Context, network, address string) (net.Conn, error)) {
	if scheme == "" {
		scheme = "http"
	}
	location := &url.URL{Scheme: scheme, Host: net.JoinHostPort(address, strconv.Itoa(int(port))), Path: info.SubPath, RawQuery: r.URL.RawQuery}
	transport := &http.Transport{
		// The connection is for this one request.
		DisableKeepAlives: true, DisableCompression: true,
		// As in Kubernetes: pods' certificates are nobody's that the API server would know.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		DialContext:     dial,
	}
	defer transport.CloseIdleConnections()
	r = r.Clone(r.Context())
	for _, name := range secretHeaders {
		r.Header.Del(name)
	}
	for name := range r.Header {
		if strings.HasPrefix(name, "Impersonate-Extra-") {
			r.Header.Del(name)
		}
	}
	if httpstream.IsUpgradeRequest(r) {
		ww, rr, cancel, err := upgradable(w, r)
		if err != nil {
			respond.Error(w, r, err)
			return
		}
		defer cancel()
		w, r = ww, rr
	}
	handler := proxy.NewUpgradeAwareHandler(location, transport, true, false, failure{})
	handler.ServeHTTP(w, r)
}

// failure answers errors of the proxy.
type failure struct{}

// Error implements proxy.ErrorResponder.
func (failure) Error(w http.ResponseWriter, r *http.Request, err error) {
	var api apierrors.APIStatus
	if err = apistatus.FromGRPC(err); !errors.As(err, &api) {
		err = apierrors.NewServiceUnavailable(fmt.Sprintf("error trying to reach service: %s", message(err)))
	}
	respond.Error(w, r, err)
}
