// Package metrics answers metrics.k8s.io/v1beta1 from what the nodes' agents stream on their sessions: NodeMetrics and PodMetrics are made when they are
// asked for, and never stored.
package metrics

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	kcorev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kresource "k8s.io/apimachinery/pkg/api/resource"
	kmetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	nodev1 "dhow.dev/gen/go/dhow/node/v1"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/cache"
	"dhow.dev/services/apiserver/internal/request"
	"dhow.dev/services/apiserver/internal/respond"
)

// Resources of the group.
var (
	Nodes = schema.GroupResource{Group: metricsv1beta1.GroupName, Resource: "nodes"}
	Pods  = schema.GroupResource{Group: metricsv1beta1.GroupName, Resource: "pods"}
)

var (
	nodes = resource.For[*corev1.Node]()
	pods  = resource.For[*corev1.Pod]()
)

// Objects finds nodes and pods, for their labels; *cache.Cache implements it.
type Objects interface {
	// Peek returns an object as it is known now, or nil.
	Peek(r *resource.Resource, namespace, name string) *cache.Entry
}

// Config configures a Server.
type Config struct {
	// Used returns what the nodes of the cluster use, by name. The values are not changed.
	Used    func(context.Context) map[string]*nodev1.NodeUsage
	Objects Objects
}

// Server makes the objects.
type Server struct{ config Config }

// New returns a server.
func New(config Config) (*Server, error) {
	if config.Used == nil || config.Objects == nil {
		return nil, errors.New("metrics: Used and Objects are required")
	}
	return &Server{config: config}, nil
}

// selection is what a list selects.
type selection struct {
	labels labels.Selector
	fields fields.Selector
}

func parse(labelSelector, fieldSelector string) (selection, error) {
	byLabel, err := labels.Parse(labelSelector)
	if err != nil {
		return selection{}, apierrors.NewBadRequest("labelSelector: " + err.Error())
	}
	byField, err := fields.ParseSelector(fieldSelector)
	if err != nil {
		return selection{}, apierrors.NewBadRequest("fieldSelector: " + err.Error())
	}
	for _, r := range byField.Requirements() {
		if r.Field != "metadata.name" && r.Field != "metadata.namespace" {
			return selection{}, apierrors.NewBadRequest("field label not supported: " + r.Field)
		}
	}
	return selection{byLabel, byField}, nil
}

func (s selection) matches(m kmetav1.ObjectMeta) bool {
	return s.labels.Matches(labels.Set(m.Labels)) && s.fields.Matches(fields.Set{"metadata.name": m.Name, "metadata.namespace": m.Namespace})
}

// Node returns what a node uses. NotFound when the node is not there or has not told yet.
func (s *Server) Node(ctx context.Context, name string) (*metricsv1beta1.NodeMetrics, error) {
	if usage := s.config.Used(ctx)[name]; usage != nil {
		if m := s.node(name, usage); m != nil {
			return m, nil
		}
	}
	return nil, apierrors.NewNotFound(Nodes, name)
}

// NodeList returns what the selected nodes use, by name.
func (s *Server) NodeList(ctx context.Context, labelSelector, fieldSelector string) (*metricsv1beta1.NodeMetricsList, error) {
	wanted, err := parse(labelSelector, fieldSelector)
	if err != nil {
		return nil, err
	}
	list := &metricsv1beta1.NodeMetricsList{Items: []metricsv1beta1.NodeMetrics{}}
	for name, usage := range s.config.Used(ctx) {
		if m := s.node(name, usage); m != nil && wanted.matches(m.ObjectMeta) {
			list.Items = append(list.Items, *m)
		}
	}
	slices.SortFunc(list.Items, func(a, b metricsv1beta1.NodeMetrics) int { return compare(a.ObjectMeta, b.ObjectMeta) })
	return list, nil
}

// Pod returns what a pod uses. NotFound when the pod is not there, does not run, or its node has not told yet.
func (s *Server) Pod(ctx context.Context, namespace, name string) (*metricsv1beta1.PodMetrics, error) {
	if e := s.config.Objects.Peek(pods, namespace, name); e != nil {
		for _, usage := range s.config.Used(ctx) {
			for _, p := range usage.GetPods() {
				if p.GetUid() == e.UID {
					return s.pod(e, usage, p), nil
				}
			}
		}
	}
	return nil, apierrors.NewNotFound(Pods, name)
}

// PodList returns what the selected pods use, by namespace and name; an empty namespace means all.
func (s *Server) PodList(ctx context.Context, namespace, labelSelector, fieldSelector string) (*metricsv1beta1.PodMetricsList, error) {
	wanted, err := parse(labelSelector, fieldSelector)
	if err != nil {
		return nil, err
	}
	list := &metricsv1beta1.PodMetricsList{Items: []metricsv1beta1.PodMetrics{}}
	for _, usage := range s.config.Used(ctx) {
		for _, p := range usage.GetPods() {
			if namespace != "" && p.GetNamespace() != namespace {
				continue
			}
			e := s.config.Objects.Peek(pods, p.GetNamespace(), p.GetName())
			if e == nil || e.UID != p.GetUid() {
				continue // gone, or another of the name
			}
			if m := s.pod(e, usage, p); wanted.matches(m.ObjectMeta) {
				list.Items = append(list.Items, *m)
			}
		}
	}
	slices.SortFunc(list.Items, func(a, b metricsv1beta1.PodMetrics) int { return compare(a.ObjectMeta, b.ObjectMeta) })
	return list, nil
}

func compare(a, b kmetav1.ObjectMeta) int {
	return slices.Compare([]string{a.Namespace, a.Name}, []string{b.Namespace, b.Name})
}

// node returns nil when there is no such node any more.
func (s *Server) node(name string, usage *nodev1.NodeUsage) *metricsv1beta1.NodeMetrics {
	e := s.config.Objects.Peek(nodes, "", name)
	if e == nil {
		return nil
	}
	return &metricsv1beta1.NodeMetrics{
		ObjectMeta: meta(e, usage), Timestamp: moment(usage), Window: window(usage), Usage: amounts(usage.GetNode()),
	}
}

func (s *Server) pod(e *cache.Entry, usage *nodev1.NodeUsage, p *nodev1.PodUsage) *metricsv1beta1.PodMetrics {
	m := &metricsv1beta1.PodMetrics{ObjectMeta: meta(e, usage), Timestamp: moment(usage), Window: window(usage), Containers: []metricsv1beta1.ContainerMetrics{}}
	for _, c := range p.GetContainers() {
		m.Containers = append(m.Containers, metricsv1beta1.ContainerMetrics{Name: c.GetName(), Usage: amounts(c.GetUsage())})
	}
	return m
}

func meta(e *cache.Entry, usage *nodev1.NodeUsage) kmetav1.ObjectMeta {
	return kmetav1.ObjectMeta{Namespace: e.Namespace, Name: e.Name, Labels: labelsOf(e.Labels), CreationTimestamp: moment(usage)}
}

func labelsOf(all cache.Labels) map[string]string {
	if len(all) == 0 {
		return nil
	}
	m := make(map[string]string, len(all))
	for _, l := range all {
		m[l.Key] = l.Value
	}
	return m
}

func moment(usage *nodev1.NodeUsage) kmetav1.Time {
	at := usage.GetTimestamp()
	return kmetav1.NewTime(time.Unix(at.GetSeconds(), int64(at.GetNanos())))
}

func window(usage *nodev1.NodeUsage) kmetav1.Duration {
	return kmetav1.Duration{Duration: (time.Duration(usage.GetWindowMilliseconds()) * time.Millisecond).Round(time.Millisecond)}
}

func amounts(u *nodev1.Usage) kcorev1.ResourceList {
	cpu := kresource.NewScaledQuantity(int64(u.GetCpuNanocores()), kresource.Nano)
	memory := kresource.NewQuantity(int64(u.GetMemoryBytes()), kresource.BinarySI)
	return kcorev1.ResourceList{kcorev1.ResourceCPU: *cpu, kcorev1.ResourceMemory: *memory}
}

// Handlers answer the Kubernetes door, which has put a request.Info into the request's context.
func (s *Server) Handlers() map[schema.GroupResource]http.Handler {
	return map[schema.GroupResource]http.Handler{
		Nodes: handler(func(ctx context.Context, info *request.Info) (answer, error) {
			if info.Name != "" && info.Verb == "get" {
				m, err := s.Node(ctx, info.Name)
				return m, err
			}
			list, err := s.NodeList(ctx, info.Query.Get("labelSelector"), info.Query.Get("fieldSelector"))
			return list, err
		}),
		Pods: handler(func(ctx context.Context, info *request.Info) (answer, error) {
			if info.Name != "" && info.Verb == "get" {
				m, err := s.Pod(ctx, info.Namespace, info.Name)
				return m, err
			}
			list, err := s.PodList(ctx, info.Namespace, info.Query.Get("labelSelector"), info.Query.Get("fieldSelector"))
			return list, err
		}),
	}
}

func handler(f func(context.Context, *request.Info) (answer, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, ok := request.FromContext(r.Context())
		if !ok {
			respond.Error(w, r, apierrors.NewInternalError(errors.New("the request was not parsed")))
			return
		}
		if info.Verb != "get" && info.Verb != "list" {
			respond.Error(w, r, apierrors.NewMethodNotSupported(schema.GroupResource{Group: info.Group, Resource: info.Resource}, info.Verb))
			return
		}
		o, err := f(r.Context(), info)
		if err != nil {
			respond.Error(w, r, err)
			return
		}
		respond.Object(w, r, http.StatusOK, o)
	})
}

// View answers the gRPC door for one of the kinds, with encoded objects.
type View struct {
	get  func(ctx context.Context, namespace, name string) (answer, error)
	list func(ctx context.Context, namespace, labelSelector, fieldSelector string) ([]answer, error)
}

// answer is an object that can be encoded and answered.
type answer interface {
	Marshal() ([]byte, error)
	runtime.Object
}

// NodeView answers for NodeMetrics.
func (s *Server) NodeView() View {
	return View{
		get: func(ctx context.Context, _, name string) (answer, error) {
			m, err := s.Node(ctx, name)
			return m, err
		},
		list: func(ctx context.Context, _, labelSelector, fieldSelector string) ([]answer, error) {
			list, err := s.NodeList(ctx, labelSelector, fieldSelector)
			if err != nil {
				return nil, err
			}
			items := make([]answer, len(list.Items))
			for i := range list.Items {
				items[i] = &list.Items[i]
			}
			return items, nil
		},
	}
}

// PodView answers for PodMetrics.
func (s *Server) PodView() View {
	return View{
		get: func(ctx context.Context, namespace, name string) (answer, error) {
			m, err := s.Pod(ctx, namespace, name)
			return m, err
		},
		list: func(ctx context.Context, namespace, labelSelector, fieldSelector string) ([]answer, error) {
			list, err := s.PodList(ctx, namespace, labelSelector, fieldSelector)
			if err != nil {
				return nil, err
			}
			items := make([]answer, len(list.Items))
			for i := range list.Items {
				items[i] = &list.Items[i]
			}
			return items, nil
		},
	}
}

// Get returns one encoded object.
func (v View) Get(ctx context.Context, namespace, name string) ([]byte, error) {
	m, err := v.get(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	return m.Marshal()
}

// List returns encoded objects.
func (v View) List(ctx context.Context, namespace, labelSelector, fieldSelector string) ([][]byte, error) {
	items, err := v.list(ctx, namespace, labelSelector, fieldSelector)
	if err != nil {
		return nil, err
	}
	encoded := make([][]byte, len(items))
	for i, m := range items {
		if encoded[i], err = m.Marshal(); err != nil {
			return nil, err
		}
	}
	return encoded, nil
}
