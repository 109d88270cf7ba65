package controllermanager_test

import (
	"context"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	autoscalingv2 "dhow.dev/gen/go/dhow/autoscaling/v2"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	metricsv1beta1 "dhow.dev/gen/go/dhow/metrics/v1beta1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/resource"
	controllermanager "dhow.dev/services/controller-manager"
)

// measured is a connection on which pods use what a test says; no node measures here.
type measured struct {
	grpc.ClientConnInterface
	c  *cluster
	mu sync.Mutex
	// milli is what every pod uses of a CPU.
	milli string
}

func (m *measured) use(milli string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.milli = milli
}

func (m *measured) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if method != resource.For[*metricsv1beta1.PodMetrics]().Method("List") {
		return m.ClientConnInterface.NewStream(ctx, desc, method, opts...)
	}
	return &measurement{ctx: ctx, of: m}, nil
}

// measurement is the answer to one list of PodMetrics.
type measurement struct {
	ctx  context.Context
	of   *measured
	done bool
}

func (s *measurement) Header() (metadata.MD, error) { return nil, nil }
func (s *measurement) Trailer() metadata.MD         { return nil }
func (s *measurement) CloseSend() error             { return nil }
func (s *measurement) Context() context.Context     { return s.ctx }
func (s *measurement) SendMsg(any) error            { return nil }

func (s *measurement) RecvMsg(m any) error {
	if s.done {
		return io.EOF
	}
	s.done = true
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	all := m.(*metricsv1beta1.PodMetricsList)
	for _, p := range list[*corev1.Pod](s.of.c, "default", "app=web") {
		window := &metav1.Duration{}
		all.SetItems(append(all.GetItems(), metricsv1beta1.PodMetrics_builder{
			Metadata: meta(p.GetMetadata().GetName()), Window: window,
			Timestamp: p.GetMetadata().GetCreationTimestamp(),
			Containers: []*metricsv1beta1.ContainerMetrics{metricsv1beta1.ContainerMetrics_builder{
				Name: proto.String("main"), Usage: map[string]*metav1.Quantity{"memory": metav1.Quantity_builder{String: proto.String(s.of.milli)}.Build()},
			}.Build()},
		}.Build()))
	}
	return nil
}

func autoscaler(kind string, change func(*autoscalingv2.HorizontalPodAutoscalerSpec)) *autoscalingv2.HorizontalPodAutoscaler {
	apiVersion := "apps/v1"
	if kind == "ReplicationController" {
		apiVersion = "v1"
	}
	hpa := autoscalingv2.HorizontalPodAutoscaler_builder{
		Metadata: meta("web"),
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec_builder{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference_builder{ApiVersion: proto.String(apiVersion), Kind: proto.String(kind), Name: proto.String("web")}.Build(),
			MinReplicas:    proto.Int32(1), MaxReplicas: proto.Int32(5),
			Metrics: []*autoscalingv2.MetricSpec{autoscalingv2.MetricSpec_builder{
				Type: proto.String("Resource"),
				Resource: autoscalingv2.ResourceMetricSource_builder{
					Name: proto.String("memory"),
					Target: autoscalingv2.MetricTarget_builder{
						Type: proto.String("AverageValue"), AverageValue: metav1.Quantity_builder{String: proto.String("100")}.Build(),
					}.Build(),
				}.Build(),
			}.Build()},
		}.Build(),
	}.Build()
	if change != nil {
		change(hpa.GetSpec())
	}
	return hpa
}

func hpaCondition(hpa *autoscalingv2.HorizontalPodAutoscaler, kind string) string {
	for _, condition := range hpa.GetStatus().GetConditions() {
		if condition.GetType() == kind {
			return condition.GetStatus() + " " + condition.GetReason()
		}
	}
	return ""
}

// startMeasured starts a cluster in which every pod uses so much memory.
func startMeasured(t *testing.T, use string) (*cluster, *measured) {
	c := newControlPlane(t)
	c.startKubelet(nil, "n1")
	m := &measured{ClientConnInterface: c.dial("apiserver", identity.Identity{Name: identity.ControllerManager}), c: c, milli: use}
	c.startControllers(func(config *controllermanager.Config) { config.APIServer = m })
	return c, m
}

func TestAutoscalerScalesThroughTheScaleOfAnyKind(t *testing.T) {
	c, _ := startMeasured(t, "150")
	create(c, corev1.ReplicationController_builder{
		Metadata: meta("web"), Spec: corev1.ReplicationControllerSpec_builder{Replicas: proto.Int32(2), Template: template("web", "image:1")}.Build(),
	}.Build())
	eventuallyOne(c, "default", "web", "two run", func(rc *corev1.ReplicationController) bool { return rc.GetStatus().GetReadyReplicas() == 2 })
	create(c, autoscaler("ReplicationController", nil))
	hpa := eventuallyOne(c, "default", "web", "scaled up", func(hpa *autoscalingv2.HorizontalPodAutoscaler) bool {
		return hpa.GetStatus().GetDesiredReplicas() == 3
	})
	if s := hpa.GetStatus(); !s.HasLastScaleTime() || s.GetCurrentReplicas() != 2 || s.GetObservedGeneration() != hpa.GetMetadata().GetGeneration() ||
		len(s.GetCurrentMetrics()) != 1 || s.GetCurrentMetrics()[0].GetResource().GetCurrent().GetAverageValue().GetString() != "150" {
		t.Errorf("status %v", s)
	}
	if got := []string{hpaCondition(hpa, "AbleToScale"), hpaCondition(hpa, "ScalingActive"), hpaCondition(hpa, "ScalingLimited")}; !slices.Equal(got,
		[]string{"True SucceededRescale", "True ValidMetricFound", "False DesiredWithinRange"}) {
		t.Errorf("conditions %v", got)
	}
	eventuallyOne(c, "default", "web", "the replication controller follows", func(rc *corev1.ReplicationController) bool { return rc.GetSpec().GetReplicas() == 3 })
	eventually(c, "default", "an event tells of it", func(events []*corev1.Event) bool {
		return slices.ContainsFunc(events, func(e *corev1.Event) bool {
			return e.GetReason() == "SuccessfulRescale" && e.GetMessage() == "New size: 3; reason: memory resource above target"
		})
	})
}

func TestAutoscalerFollowsItsSpec(t *testing.T) {
	c, m := startMeasured(t, "100")
	create(c, deployment("web", 2))
	eventuallyOne(c, "default", "web", "two run", complete)
	create(c, autoscaler("Deployment", func(spec *autoscalingv2.HorizontalPodAutoscalerSpec) {
		spec.SetBehavior(autoscalingv2.HorizontalPodAutoscalerBehavior_builder{
			ScaleDown: autoscalingv2.HPAScalingRules_builder{StabilizationWindowSeconds: proto.Int32(0)}.Build(),
		}.Build())
	}))
	eventuallyOne(c, "default", "web", "as it should be", func(hpa *autoscalingv2.HorizontalPodAutoscaler) bool {
		return hpaCondition(hpa, "ScalingActive") == "True ValidMetricFound" && hpa.GetStatus().GetDesiredReplicas() == 2
	})
	m.use("50")
	// A change of the spec is looked at, at once.
	edit(c, "default", "web", func(hpa *autoscalingv2.HorizontalPodAutoscaler) { hpa.GetSpec().SetMaxReplicas(4) })
	eventuallyOne(c, "default", "web", "scaled down", func(d *appsv1.Deployment) bool { return d.GetSpec().GetReplicas() == 1 })
	edit(c, "default", "web", func(hpa *autoscalingv2.HorizontalPodAutoscaler) {
		hpa.GetSpec().GetScaleTargetRef().SetName("missing")
	})
	eventuallyOne(c, "default", "web", "it tells of a target that is not there", func(hpa *autoscalingv2.HorizontalPodAutoscaler) bool {
		return hpaCondition(hpa, "AbleToScale") == "False FailedGetScale"
	})
	edit(c, "default", "web", func(hpa *autoscalingv2.HorizontalPodAutoscaler) {
		hpa.GetSpec().GetScaleTargetRef().SetName("web")
		hpa.GetSpec().SetMetrics([]*autoscalingv2.MetricSpec{autoscalingv2.MetricSpec_builder{
			Type: proto.String("External"),
			External: autoscalingv2.ExternalMetricSource_builder{
				Metric: autoscalingv2.MetricIdentifier_builder{Name: proto.String("queue")}.Build(),
				Target: autoscalingv2.MetricTarget_builder{Type: proto.String("Value"), Value: metav1.Quantity_builder{String: proto.String("1")}.Build()}.Build(),
			}.Build(),
		}.Build()})
	})
	hpa := eventuallyOne(c, "default", "web", "it tells of metrics that are not there", func(hpa *autoscalingv2.HorizontalPodAutoscaler) bool {
		return hpaCondition(hpa, "ScalingActive") == "False FailedGetExternalMetric"
	})
	for _, condition := range hpa.GetStatus().GetConditions() {
		if condition.GetType() == "ScalingActive" && !strings.Contains(condition.GetMessage(), "no external metrics API") {
			t.Errorf("message %q", condition.GetMessage())
		}
	}
}

func TestAutoscalerConvergesWhereverItsControllerDies(t *testing.T) {
	killBetweenWrites(t, func(c *cluster) {
		create(c, replicaSet("web", 1))
		create(c, autoscaler("ReplicaSet", func(spec *autoscalingv2.HorizontalPodAutoscalerSpec) { spec.SetMinReplicas(2) }))
		eventuallyOne(c, "default", "web", "two pods", func(rs *appsv1.ReplicaSet) bool {
			return rs.GetSpec().GetReplicas() == 2 && rs.GetStatus().GetReplicas() == 2
		})
		eventuallyOne(c, "default", "web", "it says what it could do", func(hpa *autoscalingv2.HorizontalPodAutoscaler) bool {
			return strings.HasPrefix(hpaCondition(hpa, "AbleToScale"), "True ") && hpa.GetStatus().GetObservedGeneration() == hpa.GetMetadata().GetGeneration()
		})
	})
}
