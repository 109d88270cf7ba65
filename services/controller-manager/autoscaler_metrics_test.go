package controllermanager_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	autoscalingv2 "dhow.dev/gen/go/dhow/autoscaling/v2"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	metricsv1beta1 "dhow.dev/gen/go/dhow/metrics/v1beta1"
	nodev1 "dhow.dev/gen/go/dhow/node/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/identity"
	controllermanager "dhow.dev/services/controller-manager"
)

// monitor serves custom.metrics.k8s.io and external.metrics.k8s.io, as the adapters of monitoring systems do.
type monitor struct {
	mu sync.Mutex
	// values are the answers: lists of values by path and query. asked counts the questions, and more is closed at the next one.
	values map[string][]string
	asked  int
	more   chan struct{}
}

// await waits until so many questions were asked.
func (m *monitor) await(ctx context.Context, asked int) error {
	for {
		m.mu.Lock()
		n, more := m.asked, m.more
		m.mu.Unlock()
		if n >= asked {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (m *monitor) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.asked
}

// set says what a path is answered with.
func (m *monitor) set(path string, values ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.values[path] = values
}

func (m *monitor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	path := strings.TrimPrefix(r.URL.Path, "/apis/")
	if query, err := url.QueryUnescape(r.URL.RawQuery); err == nil && query != "" {
		path += "?" + query
	}
	m.asked++
	close(m.more)
	m.more = make(chan struct{})
	values, ok := m.values[path]
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprintf(w, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "message": "the server could not find the metric %s"}`, path)
		return
	}
	type object struct {
		Name string `json:"name"`
	}
	type item struct {
		DescribedObject object    `json:"describedObject"`
		Timestamp       time.Time `json:"timestamp"`
		Value           string    `json:"value"`
	}
	var items []item
	for _, v := range values {
		name, value, _ := strings.Cut(v, "=")
		items = append(items, item{object{name}, time.Now(), value})
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"items": items})
}

// refusing is a connection on which the next writes of a scale fail.
type refusing struct {
	grpc.ClientConnInterface
	mu   sync.Mutex
	next int // how many
}

func (r *refusing) refuse(next int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next = next
}

func (r *refusing) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if strings.HasSuffix(method, "/UpdateScale") {
		r.mu.Lock()
		refused := r.next > 0
		r.next--
		r.mu.Unlock()
		if refused {
			return status.Error(codes.PermissionDenied, "the test refuses it")
		}
	}
	return r.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
}

// monitored starts a cluster whose controllers have a metrics API and a clock of the test's.
func monitored(t *testing.T) (*cluster, *monitor, *clock) {
	c, m, now, _ := monitoredThrough(t)
	return c, m, now
}

// monitoredThrough is monitored, with the connection of the controllers.
func monitoredThrough(t *testing.T) (*cluster, *monitor, *clock, *refusing) {
	m, now := &monitor{values: map[string][]string{}, more: make(chan struct{})}, &clock{at: time.Now()}
	server := httptest.NewServer(m)
	t.Cleanup(server.Close)
	address, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	through := &refusing{}
	c := newCluster(t, func(config *controllermanager.Config) {
		through.ClientConnInterface = config.APIServer
		config.APIServer, config.MetricsAPI, config.MetricsClient, config.Now = through, address, server.Client(), now.now
	})
	c.startKubelet(nil, "n1")
	return c, m, now, through
}

// clock stands still until it is moved.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// measuring attaches a node, whose agent reports what the containers of all pods use: by the app of the pod and the name of the container.
func (c *cluster) measuring(node string, uses map[string]*nodev1.Usage) {
	c.t.Helper()
	stream, err := nodev1.NewSessionsClient(c.dial("apiserver", identity.Node(node))).Attach(c.ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	var mu sync.Mutex // one sender at a time
	send := func(request *nodev1.AttachRequest) error {
		mu.Lock()
		defer mu.Unlock()
		return stream.Send(request)
	}
	hello := corev1.Node_builder{Metadata: metav1.ObjectMeta_builder{Name: &node}.Build(), Status: corev1.NodeStatus_builder{Conditions: []*corev1.NodeCondition{nodeReady("True")}}.Build()}.Build()
	if err := send(nodev1.AttachRequest_builder{Hello: nodev1.Hello_builder{Node: hello, Instance: "test"}.Build()}.Build()); err != nil {
		c.t.Fatal(err)
	}
	attached, err := stream.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	c.start("heartbeats", func(ctx context.Context) error {
		beat := time.NewTicker(time.Duration(attached.GetAttached().GetHeartbeatIntervalSeconds()) * time.Second / 2)
		defer beat.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-beat.C:
				if err := send(nodev1.AttachRequest_builder{Heartbeat: &nodev1.Heartbeat{}}.Build()); err != nil {
					return nil // the cluster ends
				}
			}
		}
	})
	observe(c, "default", func(pods []*corev1.Pod) error {
		now := &metav1.Time{}
		now.SetSeconds(time.Now().Unix() + 1) // after the pods have started
		usage := nodev1.NodeUsage_builder{Timestamp: now, WindowMilliseconds: 1, Node: &nodev1.Usage{}}.Build()
		for _, p := range pods {
			if p.GetStatus().GetPhase() != "Running" {
				continue
			}
			m := p.GetMetadata()
			used := nodev1.PodUsage_builder{Namespace: m.GetNamespace(), Name: m.GetName(), Uid: m.GetUid()}.Build()
			for _, container := range p.GetSpec().GetContainers() {
				if u := uses[m.GetLabels()["app"]+"/"+container.GetName()]; u != nil {
					used.SetContainers(append(used.GetContainers(), nodev1.PodUsage_Container_builder{Name: container.GetName(), Usage: u}.Build()))
				}
			}
			usage.SetPods(append(usage.GetPods(), used))
		}
		return send(nodev1.AttachRequest_builder{Usage: usage}.Build())
	})
}

func amount(text string) *metav1.Quantity {
	return metav1.Quantity_builder{String: proto.String(text)}.Build()
}

func target(kind, text string) *autoscalingv2.MetricTarget {
	t := autoscalingv2.MetricTarget_builder{Type: proto.String(kind)}.Build()
	switch kind {
	case "Utilization":
		var percent int32
		fmt.Sscan(text, &percent)
		t.SetAverageUtilization(percent)
	case "AverageValue":
		t.SetAverageValue(amount(text))
	default:
		t.SetValue(amount(text))
	}
	return t
}

func externalMetric(of *autoscalingv2.MetricTarget) *autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec_builder{Type: proto.String("External"), External: autoscalingv2.ExternalMetricSource_builder{
		Metric: autoscalingv2.MetricIdentifier_builder{Name: proto.String("queue"), Selector: selector("mail")}.Build(), Target: of}.Build()}.Build()
}

func scaler(name string, metric *autoscalingv2.MetricSpec, change func(*autoscalingv2.HorizontalPodAutoscalerSpec)) *autoscalingv2.HorizontalPodAutoscaler {
	hpa := autoscaler("ReplicaSet", change)
	hpa.GetMetadata().SetName(name)
	hpa.GetSpec().GetScaleTargetRef().SetName(name)
	hpa.GetSpec().SetMetrics([]*autoscalingv2.MetricSpec{metric})
	return hpa
}

// mailQueue is where the metric of externalMetric is.
const mailQueue = "external.metrics.k8s.io/v1beta1/namespaces/default/queue?labelSelector=app=mail"

// TestAutoscalersOnEveryTypeOfMetric has an autoscaler for each type of metric and of target: those of pods and containers from what a node's agent reports, the others from a metrics API.
// Each makes three of two.
func TestAutoscalersOnEveryTypeOfMetric(t *testing.T) {
	c, m, _ := monitored(t)
	of := func(milli, mebibytes uint64) *nodev1.Usage {
		return nodev1.Usage_builder{CpuNanocores: milli * 1e6, MemoryBytes: mebibytes << 20}.Build()
	}
	queue := autoscalingv2.MetricIdentifier_builder{Name: proto.String("queue"), Selector: selector("mail")}.Build()
	resourceOf := func(name string, of *autoscalingv2.MetricTarget) *autoscalingv2.MetricSpec {
		return autoscalingv2.MetricSpec_builder{Type: proto.String("Resource"), Resource: autoscalingv2.ResourceMetricSource_builder{Name: &name, Target: of}.Build()}.Build()
	}
	containerOf := func(name string, of *autoscalingv2.MetricTarget) *autoscalingv2.MetricSpec {
		return autoscalingv2.MetricSpec_builder{Type: proto.String("ContainerResource"), ContainerResource: autoscalingv2.ContainerResourceMetricSource_builder{
			Name: &name, Container: proto.String("main"), Target: of}.Build()}.Build()
	}
	objectOf := func(of *autoscalingv2.MetricTarget) *autoscalingv2.MetricSpec {
		return autoscalingv2.MetricSpec_builder{Type: proto.String("Object"), Object: autoscalingv2.ObjectMetricSource_builder{
			DescribedObject: autoscalingv2.CrossVersionObjectReference_builder{ApiVersion: proto.String("networking.k8s.io/v1"), Kind: proto.String("Ingress"), Name: proto.String("front")}.Build(),
			Metric:          queue, Target: of}.Build()}.Build()
	}
	m.set("custom.metrics.k8s.io/v1beta2/namespaces/default/ingresses.networking.k8s.io/front/queue?metricLabelSelector=app=mail", "front=1500m")
	m.set(mailQueue, "=1", "=500m")
	type row struct {
		name, why string
		metric    *autoscalingv2.MetricSpec
		main, two *nodev1.Usage
	}
	tests := []row{
		// Of 2 times 200m that are requested 300m are used.
		{"cpu-share", "cpu resource utilization (percentage of request)", resourceOf("cpu", target("Utilization", "100")), of(100, 1), of(200, 1)},
		{"memory-average", "memory resource", resourceOf("memory", target("AverageValue", "100Mi")), of(1, 50), of(1, 100)},
		// Of the other container much more is used than should be.
		{"main-share", "cpu container resource utilization (percentage of request)", containerOf("cpu", target("Utilization", "100")), of(150, 1), of(5000, 1)},
		{"main-average", "memory container resource", containerOf("memory", target("AverageValue", "100Mi")), of(1, 150), of(1, 5000)},
		{"pods", "pods metric queue", autoscalingv2.MetricSpec_builder{Type: proto.String("Pods"), Pods: autoscalingv2.PodsMetricSource_builder{Metric: queue, Target: target("AverageValue", "10")}.Build()}.Build(), nil, nil},
		{"object-value", "Ingress metric queue", objectOf(target("Value", "1")), nil, nil},
		{"object-average", "Ingress metric queue", objectOf(target("AverageValue", "500m")), nil, nil},
		{"external-value", "external metric queue(app=mail)", externalMetric(target("Value", "1")), nil, nil},
		{"external-average", "external metric queue(app=mail)", externalMetric(target("AverageValue", "500m")), nil, nil},
	}
	uses := map[string]*nodev1.Usage{}
	for _, test := range tests {
		if test.main != nil {
			uses[test.name+"/main"], uses[test.name+"/two"] = test.main, test.two
		}
		rs := replicaSet(test.name, 2)
		main := rs.GetSpec().GetTemplate().GetSpec().GetContainers()[0]
		main.SetResources(corev1.ResourceRequirements_builder{Requests: map[string]*metav1.Quantity{"cpu": amount("100m"), "memory": amount("1Mi")}}.Build())
		two := proto.CloneOf(main)
		two.SetName("two")
		two.SetPorts(nil)
		rs.GetSpec().GetTemplate().GetSpec().SetContainers([]*corev1.Container{main, two})
		create(c, rs)
	}
	c.measuring("n1", uses)
	for _, test := range tests {
		eventuallyOne(c, "default", test.name, "two run", func(rs *appsv1.ReplicaSet) bool { return rs.GetStatus().GetReadyReplicas() == 2 })
	}
	// Metrics have no watch; a look that comes too early would be repeated after 15 seconds only.
	for {
		all, err := client.For[*metricsv1beta1.PodMetrics](c.conn).List(c.ctx, metav1.ListRequest_builder{Namespace: "default"}.Build())
		if err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		measured := 0
		for _, p := range all.Items {
			if len(p.GetContainers()) == 2 {
				measured++
			}
		}
		if measured == 8 {
			break
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-c.ctx.Done():
			t.Fatal("the pods' use is not served")
		}
	}
	var answers []string
	for i, p := range list[*corev1.Pod](c, "default", "app=pods") {
		answers = append(answers, fmt.Sprintf("%s=%d", p.GetMetadata().GetName(), 10*(i+1)))
	}
	m.set("custom.metrics.k8s.io/v1beta2/namespaces/default/pods/*/queue?labelSelector=app=pods&metricLabelSelector=app=mail", answers...)
	for _, test := range tests {
		create(c, scaler(test.name, test.metric, nil))
	}
	eventually(c, "default", "each makes three of two", func(events []*corev1.Event) bool {
		return !slices.ContainsFunc(tests, func(test row) bool {
			return !slices.ContainsFunc(events, func(e *corev1.Event) bool {
				return e.GetInvolvedObject().GetName() == test.name && e.GetReason() == "SuccessfulRescale" && e.GetMessage() == "New size: 3; reason: "+test.why+" above target"
			})
		})
	})
	for _, test := range tests {
		hpa := get[*autoscalingv2.HorizontalPodAutoscaler](c, "default", test.name)
		if got := hpaCondition(hpa, "ScalingActive"); got != "True ValidMetricFound" || len(hpa.GetStatus().GetCurrentMetrics()) != 1 {
			t.Errorf("%s: %s, %v", test.name, got, hpa.GetStatus())
		}
	}
	// What the metrics API does not have is told in its words.
	edit(c, "default", "external-value", func(hpa *autoscalingv2.HorizontalPodAutoscaler) {
		hpa.GetSpec().GetMetrics()[0].GetExternal().GetMetric().SetName("unknown")
	})
	hpa := eventuallyOne(c, "default", "external-value", "it tells", func(hpa *autoscalingv2.HorizontalPodAutoscaler) bool {
		return hpaCondition(hpa, "ScalingActive") == "False FailedGetExternalMetric"
	})
	for _, condition := range hpa.GetStatus().GetConditions() {
		if condition.GetType() == "ScalingActive" && !strings.Contains(condition.GetMessage(), "the server could not find the metric external.metrics.k8s.io/v1beta1/namespaces/default/unknown") {
			t.Errorf("message %q", condition.GetMessage())
		}
	}
}

// scaled is a ReplicaSet with an autoscaler, on the length of a queue: as many pods as there is mail.
type scaled struct {
	*cluster
	t       *testing.T
	name    string
	monitor *monitor
	clock   *clock
}

// behaving makes a ReplicaSet of so many pods with an autoscaler, from minimum to 100.
func behaving(t *testing.T, c *cluster, m *monitor, now *clock, name string, pods, minimum int32, behavior *autoscalingv2.HorizontalPodAutoscalerBehavior) *scaled {
	t.Helper()
	s := &scaled{c, t, name, m, now}
	create(c, replicaSet(name, pods))
	t.Cleanup(func() {
		remove[*autoscalingv2.HorizontalPodAutoscaler](c, "default", name, nil)
		remove[*appsv1.ReplicaSet](c, "default", name, nil)
	})
	eventuallyOne(c, "default", name, "the pods run", func(rs *appsv1.ReplicaSet) bool { return rs.GetStatus().GetReadyReplicas() == pods })
	m.set(mailQueue, fmt.Sprintf("=%d", pods)) // the first look changes nothing
	create(c, scaler(name, externalMetric(target("AverageValue", "1")), func(spec *autoscalingv2.HorizontalPodAutoscalerSpec) {
		spec.SetMinReplicas(minimum)
		spec.SetMaxReplicas(100)
		spec.SetBehavior(behavior)
	}))
	s.looked(pods)
	return s
}

// ask has the autoscaler look, which it does when its spec changes, until it asks for its metric.
func (s *scaled) ask() {
	s.t.Helper()
	before := s.monitor.count()
	s.touch()
	if err := s.monitor.await(s.ctx, before+1); err != nil {
		s.t.Fatalf("%s: the autoscaler does not ask for its metric: %v", s.name, err)
	}
}

func (s *scaled) touch() {
	s.t.Helper()
	edit(s.cluster, "default", s.name, func(hpa *autoscalingv2.HorizontalPodAutoscaler) {
		hpa.GetSpec().SetMaxReplicas(201 - hpa.GetSpec().GetMaxReplicas())
	})
}

// looked waits until a look is over, and wants so many pods then. A look is over when the next one begins; that one finds the pods of the first.
func (s *scaled) looked(pods int32) {
	s.t.Helper()
	s.settled(pods)
	s.ask()
	s.settled(pods)
}

func (s *scaled) settled(pods int32) {
	s.t.Helper()
	eventuallyOne(s.cluster, "default", s.name, fmt.Sprintf("%s has %d pods", s.name, pods), func(rs *appsv1.ReplicaSet) bool {
		return rs.GetSpec().GetReplicas() == pods && rs.GetStatus().GetReplicas() == pods && rs.GetStatus().GetReadyReplicas() == pods &&
			rs.GetStatus().GetObservedGeneration() == rs.GetMetadata().GetGeneration()
	})
}

// look has mail in the queue, moves the clock, has the autoscaler look, and wants so many pods. The clock is moved last: a look of its own in between sees the new mail at the old time.
func (s *scaled) look(mail string, later time.Duration, pods int32, conditions ...string) {
	s.t.Helper()
	s.monitor.set(mailQueue, "="+mail)
	s.clock.forward(later)
	s.ask()
	s.looked(pods)
	s.says(conditions...)
}

// says wants conditions, written as their type, status and reason.
func (s *scaled) says(conditions ...string) {
	s.t.Helper()
	eventuallyOne(s.cluster, "default", s.name, fmt.Sprintf("%s says %q", s.name, conditions), func(hpa *autoscalingv2.HorizontalPodAutoscaler) bool {
		return !slices.ContainsFunc(conditions, func(want string) bool {
			kind, rest, _ := strings.Cut(want, " ")
			return hpaCondition(hpa, kind) != rest
		})
	})
}

func rules(selects string, window int32, policies ...string) *autoscalingv2.HPAScalingRules {
	r := autoscalingv2.HPAScalingRules_builder{SelectPolicy: &selects, StabilizationWindowSeconds: &window}.Build()
	for _, text := range policies {
		var kind string
		var value, period int32
		fmt.Sscan(text, &kind, &value, &period)
		r.SetPolicies(append(r.GetPolicies(), autoscalingv2.HPAScalingPolicy_builder{Type: &kind, Value: &value, PeriodSeconds: &period}.Build()))
	}
	return r
}

func behavior(up, down *autoscalingv2.HPAScalingRules) *autoscalingv2.HorizontalPodAutoscalerBehavior {
	return autoscalingv2.HorizontalPodAutoscalerBehavior_builder{ScaleUp: up, ScaleDown: down}.Build()
}

func withTolerance(r *autoscalingv2.HPAScalingRules, tolerance string) *autoscalingv2.HPAScalingRules {
	r.SetTolerance(amount(tolerance))
	return r
}

// TestAutoscalersKeepToTheirRates has policies of pods and of percent, of which the larger, the smaller or none counts. The numbers are those of Kubernetes.
func TestAutoscalersKeepToTheirRates(t *testing.T) {
	c, m, now := monitored(t)
	const pods, percent = "Pods 2 60", "Percent 100 60"
	for _, test := range []struct {
		name     string
		behavior *autoscalingv2.HorizontalPodAutoscalerBehavior
		from     int32
		mail     string
		// at once, 30 s later, and 31 s after that.
		sizes   [3]int32
		limited string
	}{
		{"up-max", behavior(rules("Max", 0, pods, percent), nil), 3, "50", [3]int32{6, 6, 12}, "True ScaleUpLimit"},
		{"up-min", behavior(rules("Min", 0, pods, percent), nil), 3, "50", [3]int32{5, 5, 7}, "True ScaleUpLimit"},
		{"up-disabled", behavior(rules("Disabled", 0, pods), nil), 3, "50", [3]int32{3, 3, 3}, "True ScaleUpLimit"},
		{"down-max", behavior(nil, rules("Max", 0, pods, "Percent 50 60")), 12, "1", [3]int32{6, 6, 3}, "True ScaleDownLimit"},
		{"down-min", behavior(nil, rules("Min", 0, pods, "Percent 50 60")), 12, "1", [3]int32{10, 10, 8}, "True ScaleDownLimit"},
		{"down-disabled", behavior(nil, rules("Disabled", 0, pods)), 12, "1", [3]int32{12, 12, 12}, "True ScaleDownLimit"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := behaving(t, c, m, now, test.name, test.from, 1, test.behavior)
			s.look(test.mail, 0, test.sizes[0])
			s.look(test.mail, 30*time.Second, test.sizes[1])
			s.look(test.mail, 31*time.Second, test.sizes[2], "ScalingLimited "+test.limited)
		})
	}
}

// TestAutoscalersWaitAndTolerate has windows, in which the lowest and the highest of what was recommended hold, and deviations that change nothing.
func TestAutoscalersWaitAndTolerate(t *testing.T) {
	c, m, now := monitored(t)
	t.Run("without behaviors down after five minutes", func(t *testing.T) {
		s := behaving(t, c, m, now, "plain", 8, 1, nil)
		s.look("2", time.Minute, 8, "AbleToScale True ScaleDownStabilized")
		s.look("2", 3*time.Minute, 8, "AbleToScale True ScaleDownStabilized")
		s.look("2", time.Minute+time.Second, 2)
	})
	t.Run("without behaviors up by doubling", func(t *testing.T) {
		s := behaving(t, c, m, now, "double", 3, 1, nil)
		s.monitor.set(mailQueue, "=20")
		for _, pods := range []int32{6, 12, 20} {
			s.touch()
			eventually(c, "default", "it doubles", func(events []*corev1.Event) bool {
				return slices.ContainsFunc(events, func(e *corev1.Event) bool {
					return e.GetInvolvedObject().GetName() == "double" && strings.HasPrefix(e.GetMessage(), fmt.Sprintf("New size: %d; reason: external metric", pods))
				})
			})
		}
		s.settled(20)
	})
	t.Run("down after a window of its own", func(t *testing.T) {
		s := behaving(t, c, m, now, "down", 8, 1, behavior(nil, rules("Max", 100, "Percent 100 15")))
		s.look("2", 30*time.Second, 8, "AbleToScale True ScaleDownStabilized")
		s.look("5", 60*time.Second, 8)
		// What was recommended first is forgotten, of the rest the highest counts.
		s.look("2", 11*time.Second, 5)
		s.look("2", 100*time.Second, 2)
	})
	t.Run("up after a window of its own", func(t *testing.T) {
		s := behaving(t, c, m, now, "up", 2, 1, behavior(rules("Max", 60, "Pods 100 15"), nil))
		s.look("9", 30*time.Second, 2, "AbleToScale True ScaleUpStabilized")
		s.look("7", 31*time.Second, 7)
	})
	t.Run("what is tolerated", func(t *testing.T) {
		s := behaving(t, c, m, now, "tolerant", 4, 1, behavior(withTolerance(rules("Max", 0, "Pods 100 15"), "0.5"), withTolerance(rules("Max", 0, "Pods 100 15"), "0.25")))
		s.look("6", time.Minute, 4)
		s.look("3", time.Minute, 4)
		s.look("7", time.Minute, 7)
		s.look("5", time.Minute, 5)
	})
	t.Run("what is tolerated when nothing is said", func(t *testing.T) {
		s := behaving(t, c, m, now, "usual", 10, 1, behavior(nil, rules("Max", 0, "Pods 100 15")))
		s.look("11", time.Minute, 10)
		s.look("9", time.Minute, 10)
		s.look("8", time.Minute, 8)
	})
}

// TestAutoscalersEmptyAndWakeTheirTargets: what an autoscaler has emptied it wakes, what somebody else has not.
func TestAutoscalersEmptyAndWakeTheirTargets(t *testing.T) {
	c, m, now, through := monitoredThrough(t)
	s := behaving(t, c, m, now, "nightly", 2, 0, behavior(nil, rules("Max", 0, "Percent 100 15")))
	s.look("0", time.Minute, 0, "ScaledToZero True ScaledToZero")
	eventually(c, "default", "no pods are left", func(pods []*corev1.Pod) bool { return len(pods) == 0 })
	s.look("0", time.Minute, 0, "ScaledToZero True ScaledToZero")
	// One that cannot be woken now is later.
	through.refuse(1000)
	m.set(mailQueue, "=3")
	s.ask()
	s.says("AbleToScale False FailedUpdateScale", "ScaledToZero True ScaledToZero")
	s.settled(0)
	through.refuse(0)
	s.look("3", time.Minute, 3, "ScalingActive True ValidMetricFound", "ScaledToZero False NotScaledToZero")
	edit(c, "default", "nightly", func(rs *appsv1.ReplicaSet) { rs.GetSpec().SetReplicas(0) })
	eventually(c, "default", "all pods are gone again", func(pods []*corev1.Pod) bool { return len(pods) == 0 })
	s.monitor.set(mailQueue, "=5")
	s.touch() // nothing is asked for
	s.says("ScalingActive False ScalingDisabled")
	s.settled(0)
	edit(c, "default", "nightly", func(rs *appsv1.ReplicaSet) { rs.GetSpec().SetReplicas(1) })
	eventuallyOne(c, "default", "nightly", "one runs", func(rs *appsv1.ReplicaSet) bool { return rs.GetStatus().GetReadyReplicas() == 1 })
	s.look("5", time.Minute, 5, "ScalingActive True ValidMetricFound")
}
