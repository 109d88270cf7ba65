package horizontalpodautoscaler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	kmetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	custommetrics "k8s.io/metrics/pkg/apis/custom_metrics/v1beta2"
	externalmetrics "k8s.io/metrics/pkg/apis/external_metrics/v1beta1"

	"dhow.dev/pkg/resource"
)

const (
	customPath   = "/apis/custom.metrics.k8s.io/v1beta2"
	externalPath = "/apis/external.metrics.k8s.io/v1beta1"
	// window is how long a measurement took that does not say so; Kubernetes' number.
	window = time.Minute
	// maxAnswer bounds an answer: some thousand pods.
	maxAnswer = 16 << 20
)

// adapter asks a server of custom.metrics.k8s.io and external.metrics.k8s.io, such as those that monitoring systems have for Kubernetes.
type adapter struct {
	base   *url.URL
	client *http.Client
}

// get reads a list.
func (a *adapter) get(ctx context.Context, query url.Values, into any, path ...string) error {
	u := a.base.JoinPath(path...)
	u.RawQuery = query.Encode()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	request.Header.Set("Accept", "application/json")
	response, err := a.client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		var status kmetav1.Status
		if json.Unmarshal(body, &status) == nil && status.Message != "" {
			return errors.New(status.Message)
		}
		return fmt.Errorf("%s answers %s", u.Redacted(), response.Status)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("answer of %s: %w", u.Redacted(), err)
	}
	return nil
}

// selecting are the parameters of a query; selectors that select all are left out.
func selecting(pairs map[string]labels.Selector) url.Values {
	query := url.Values{}
	for name, selector := range pairs {
		if !selector.Empty() {
			query.Set(name, selector.String())
		}
	}
	return query
}

func (a *adapter) custom(ctx context.Context, query url.Values, path ...string) ([]custommetrics.MetricValue, error) {
	var list custommetrics.MetricValueList
	if err := a.get(ctx, query, &list, append([]string{customPath, "namespaces"}, path...)...); err != nil {
		return nil, fmt.Errorf("unable to fetch metrics from custom metrics API: %w", err)
	}
	if len(list.Items) == 0 {
		return nil, errors.New("no metrics returned from custom metrics API")
	}
	return list.Items, nil
}

func (a *adapter) pods(ctx context.Context, name, namespace string, pods, metric labels.Selector) (map[string]Sample, error) {
	items, err := a.custom(ctx, selecting(map[string]labels.Selector{"labelSelector": pods, "metricLabelSelector": metric}), namespace, "pods", custommetrics.AllObjects, name)
	if err != nil {
		return nil, err
	}
	samples := map[string]Sample{}
	for _, item := range items {
		s := Sample{Milli: item.Value.MilliValue(), At: item.Timestamp.Time, Window: window}
		if item.WindowSeconds != nil {
			s.Window = time.Duration(*item.WindowSeconds) * time.Second
		}
		samples[item.DescribedObject.Name] = s
	}
	return samples, nil
}

func (a *adapter) object(ctx context.Context, name, namespace string, of autoscalingv2.CrossVersionObjectReference, metric labels.Selector) (int64, error) {
	version, err := schema.ParseGroupVersion(of.APIVersion)
	if err != nil {
		return 0, fmt.Errorf("API version of the described object: %w", err)
	}
	kind := resource.ByKind(version.Group, of.Kind)
	if kind == nil {
		return 0, fmt.Errorf("unable to map kind %s to resource", schema.GroupKind{Group: version.Group, Kind: of.Kind})
	}
	path := []string{namespace, kind.GroupResource().String(), of.Name, name}
	if of.Kind == "Namespace" && version.Group == "" {
		path = []string{of.Name, "metrics", name}
	}
	items, err := a.custom(ctx, selecting(map[string]labels.Selector{"metricLabelSelector": metric}), path...)
	if err != nil {
		return 0, err
	}
	if len(items) != 1 {
		return 0, fmt.Errorf("the custom metrics API returned %d values when exactly one was asked for", len(items))
	}
	return items[0].Value.MilliValue(), nil
}

func (a *adapter) external(ctx context.Context, name, namespace string, metric labels.Selector) ([]int64, error) {
	var list externalmetrics.ExternalMetricValueList
	if err := a.get(ctx, selecting(map[string]labels.Selector{"labelSelector": metric}), &list, externalPath, "namespaces", namespace, name); err != nil {
		return nil, fmt.Errorf("unable to fetch metrics from external metrics API: %w", err)
	}
	if len(list.Items) == 0 {
		return nil, errors.New("no metrics returned from external metrics API")
	}
	values := make([]int64, len(list.Items))
	for i, item := range list.Items {
		values[i] = item.Value.MilliValue()
	}
	return values, nil
}
