package horizontalpodautoscaler

import (
	"context"
	"errors"
	"fmt"
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

// served are the metrics that the API server has: those that nodes measure.
type served struct {
	pods *client.Client[*metricsv1beta1.PodMetrics]
}

// NewMetrics returns the metrics of an API server.
func NewMetrics(conn grpc.ClientConnInterface) Metrics {
	return &served{pods: client.For[*metricsv1beta1.PodMetrics](conn)}
}

// Resource reads metrics.k8s.io. A pod of which a container is not measured is left out: a part of its use would look like all of it.
func (s *served) Resource(ctx context.Context, name, namespace string, pods labels.Selector, container string) (map[string]Sample, error) {
	all, err := s.pods.List(ctx, metav1.ListRequest_builder{Namespace: namespace, LabelSelector: pods.String()}.Build())
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
	errNoCustom   = errors.New("no custom metrics API (custom.metrics.k8s.io) registered")
	errNoExternal = errors.New("unable to fetch metrics from external metrics API: no external metrics API (external.metrics.k8s.io) registered")
)

// Pods fails: no API server of others is joined to this one.
func (*served) Pods(context.Context, string, string, labels.Selector, labels.Selector) (map[string]Sample, error) {
	return nil, errNoCustom
}

// Object fails, as Pods does.
func (*served) Object(context.Context, string, string, autoscalingv2.CrossVersionObjectReference, labels.Selector) (int64, error) {
	return 0, errNoCustom
}

// External fails, as Pods does.
func (*served) External(context.Context, string, string, labels.Selector) ([]int64, error) {
	return nil, errNoExternal
}
