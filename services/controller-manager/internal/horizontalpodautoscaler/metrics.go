package horizontalpodautoscaler

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"google.golang.org/grpc"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/labels"

	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	metricsv1beta1 "dhow.dev/gen/go/dhow/metrics/v1beta1"
	"dhow.dev/pkg/client"
	"dhow.dev/services/controller-manager/internal/apitime"
)

// Sample is what was measured of one pod.
type Sample struct {
	// Milli is the value in thousandths.
	Milli int64
	// At is when the measurement ended, Window how long it took.
	At     time.Time
	Window time.Duration
}

// Metrics is where an autoscaler's numbers come from. Values are in thousandths.
type Metrics interface {
	// Resource returns what the selected pods use of a resource, by name; with a container, what that container of each does.
	Resource(ctx context.Context, name, namespace string, pods labels.Selector, container string) (map[string]Sample, error)
	// Pods returns a metric of the selected pods, by name.
	Pods(ctx context.Context, name, namespace string, pods, metric labels.Selector) (map[string]Sample, error)
	// Object returns a metric of one object.
	Object(ctx context.Context, name, namespace string, of autoscalingv2.CrossVersionObjectReference, metric labels.Selector) (int64, error)
	// External returns the values of a metric that is of nothing in the cluster.
	External(ctx context.Context, name, namespace string, metric labels.Selector) ([]int64, error)
}

// served are the metrics that the API server has, which nodes measure, and those of an adapter.
type served struct {
	resources *client.Client[*metricsv1beta1.PodMetrics]
	// others is nil without an adapter.
	others *adapter
}

// NewMetrics returns the metrics of an API server, and those of a server of custom.metrics.k8s.io and external.metrics.k8s.io; nil: there is none.
func NewMetrics(conn grpc.ClientConnInterface, others *url.URL, caller *http.Client) Metrics {
	s := &served{resources: client.For[*metricsv1beta1.PodMetrics](conn)}
	if others != nil {
		s.others = &adapter{others, caller}
	}
	return s
}

// Resource reads metrics.k8s.io. A pod of which a container is not measured is left out: a part of its use would look like all of it.
func (s *served) Resource(ctx context.Context, name, namespace string, pods labels.Selector, container string) (map[string]Sample, error) {
	all, err := s.resources.List(ctx, metav1.ListRequest_builder{Namespace: namespace, LabelSelector: pods.String()}.Build())
	if err != nil {
		return nil, fmt.Errorf("unable to fetch metrics from resource metrics API: %w", err)
	}
	if len(all.Items) == 0 {
		return nil, errors.New("no metrics returned from resource metrics API")
	}
	samples := map[string]Sample{}
	for _, p := range all.Items {
		var sum int64
		complete, found := true, container == ""
		for _, c := range p.GetContainers() {
			if container != "" && c.GetName() != container {
				continue
			}
			found = true
			quantity, ok := c.GetUsage()[name]
			if !ok {
				complete = false
				break
			}
			used, err := resource.ParseQuantity(quantity.GetString())
			if err != nil {
				return nil, fmt.Errorf("use of %s by container %s of pod %s/%s: %w", name, c.GetName(), namespace, p.GetMetadata().GetName(), err)
			}
			sum += used.MilliValue()
		}
		if !found {
			return nil, fmt.Errorf("container %s not present in metrics for pod %s/%s", container, namespace, p.GetMetadata().GetName())
		}
		if complete && len(p.GetContainers()) > 0 {
			samples[p.GetMetadata().GetName()] = Sample{Milli: sum, At: apitime.Go(p.GetTimestamp()), Window: time.Duration(p.GetWindow().GetDuration())}
		}
	}
	return samples, nil
}

var (
	errNoCustom   = errors.New("unable to fetch metrics from custom metrics API: no custom metrics API (custom.metrics.k8s.io) registered")
	errNoExternal = errors.New("unable to fetch metrics from external metrics API: no external metrics API (external.metrics.k8s.io) registered")
)

// Pods reads custom.metrics.k8s.io.
func (s *served) Pods(ctx context.Context, name, namespace string, pods, metric labels.Selector) (map[string]Sample, error) {
	if s.others == nil {
		return nil, errNoCustom
	}
	return s.others.pods(ctx, name, namespace, pods, metric)
}

// Object reads custom.metrics.k8s.io.
func (s *served) Object(ctx context.Context, name, namespace string, of autoscalingv2.CrossVersionObjectReference, metric labels.Selector) (int64, error) {
	if s.others == nil {
		return 0, errNoCustom
	}
	return s.others.object(ctx, name, namespace, of, metric)
}

// External reads external.metrics.k8s.io.
func (s *served) External(ctx context.Context, name, namespace string, metric labels.Selector) ([]int64, error) {
	if s.others == nil {
		return nil, errNoExternal
	}
	return s.others.external(ctx, name, namespace, metric)
}
