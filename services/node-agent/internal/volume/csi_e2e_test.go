//go:build e2e

package volume_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	k8scorev1 "k8s.io/api/core/v1"
	k8sstoragev1 "k8s.io/api/storage/v1"
	"sigs.k8s.io/yaml"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	storagev1 "dhow.dev/gen/go/dhow/storage/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/node-agent/internal/apitest"
	"dhow.dev/services/node-agent/internal/csi"
	"dhow.dev/services/node-agent/internal/env"
	"dhow.dev/services/node-agent/internal/podtest"
	"dhow.dev/services/node-agent/internal/volume"
)

// patience bounds waits for conditions; nothing measures it.
const patience = 2 * time.Minute

const driverName = "folders.dhow.test"

// programVariable names the driver's program, which is built once for all tests.
const programVariable = "DHOW_TEST_CSI_DRIVER"

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "dhow-volume-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		program := filepath.Join(dir, "driver")
		if out, err := exec.Command("go", "build", "-o", program, "../csi/foldersdriver").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build the driver: %v\n%s", err, out)
			return 1
		}
		os.Setenv(programVariable, program)
		return m.Run()
	}())
}

// node is a node's volumes with an API server in memory, and CSI drivers in processes of their own.
type node struct {
	t       *testing.T
	ctx     context.Context
	api     *apitest.Server
	memory  *transport.Memory
	program string
	// data is the agent's folder, root the driver's.
	data, root string

	// flex has the FlexVolume drivers, machine what the machine says that it has.
	flex    string
	machine volume.Machine
	// held says that disks are not attached when the node says that it uses them.
	held atomic.Bool

	registry *csi.Registry
	volumes  *volume.Manager
	stop     func()

	mu      sync.Mutex
	changed []string
	evicted map[string]string
	signal  chan struct{}
}

func newNode(t *testing.T, change ...func(*node)) *node {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	dir := t.TempDir()
	n := &node{t: t, ctx: ctx, api: apitest.New(), memory: transport.NewMemory(), program: os.Getenv(programVariable),
		data: filepath.Join(dir, "data"), root: filepath.Join(dir, "root"), evicted: map[string]string{}, signal: make(chan struct{}, 1)}
	server := transport.NewServer(transport.ServerConfig{Credentials: n.memory.ServerCredentials(), Logger: slog.New(slog.DiscardHandler), Lifetime: ctx, Options: n.api.Options()})
	n.api.Register(server)
	served := make(chan error, 1)
	serving, end := context.WithCancel(context.Background())
	go func() { served <- transport.Serve(serving, server, n.memory.Listen("apiserver")) }()
	t.Cleanup(func() { end(); <-served })
	put[*corev1.Node](n, &k8scorev1.Node{}, `{metadata: {name: n1}}`)
	for _, c := range change {
		c(n)
	}
	n.start()
	t.Cleanup(func() {
		n.stop()
		// What a failed test leaves mounted would keep its folder from being removed.
		if err := volume.UnmountBelow(dir); err != nil {
			t.Error(err)
		}
	})
	return n
}

// start starts the agent's part, as a new process would.
func (n *node) start() {
	n.t.Helper()
	conn, err := n.memory.Dial("apiserver", identity.Node("n1"))
	if err != nil {
		n.t.Fatal(err)
	}
	logger := slog.New(slog.NewTextHandler(n.t.Output(), nil))
	var registry *csi.Registry
	inUse := make(chan struct{}, 1)
	inUse <- struct{}{} // of what is on the disk nothing is said
	n.volumes, err = volume.NewNode(volume.Config{
		NodeName: "n1", DataDir: n.data, KubeletDir: n.data, Conn: conn, Logger: logger, FlexVolumeDir: n.flex, Machine: n.machine,
		Driver: func(name string) (*csi.Driver, error) { return registry.Driver(name) },
		Changed: func(uids []string) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.changed = append(n.changed, uids...)
			select {
			case n.signal <- struct{}{}:
			default:
			}
		},
		Evict: func(uid, message string) { n.evicted[uid] = message },
		InUse: func() {
			select {
			case inUse <- struct{}{}:
			default:
			}
		},
	})
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(n.ctx)
	registered := make(chan struct{}, 8)
	registry = csi.New(csi.Config{NodeName: "n1", Dir: filepath.Join(n.data, "plugins_registry"), Host: n.volumes.Host, Conn: conn, Logger: logger,
		Changed: func() { registered <- struct{}{} }})
	n.registry = registry
	var group sync.WaitGroup
	for _, run := range []func(context.Context) error{n.volumes.Run, registry.Run, n.attaching(n.volumes, inUse)} {
		group.Go(func() {
			if err := run(ctx); err != nil {
				n.t.Error(err)
			}
		})
	}
	n.stop = func() {
		cancel()
		group.Wait()
		_ = conn.Close()
	}
}

// restart ends the agent's part and starts another, which knows nothing but what is on the disk.
func (n *node) restart() {
	n.t.Helper()
	n.stop()
	n.start()
	n.registered()
}

// registered waits until the driver is known.
func (n *node) registered() {
	n.t.Helper()
	n.await("the driver is registered", func() bool {
		_, err := n.registry.Driver(driverName)
		c, ok := apitest.Get[*storagev1.CSINode](n.api, "", "n1")
		return err == nil && ok && len(c.GetSpec().GetDrivers()) == 1
	})
}

func (n *node) await(what string, ok func() bool) {
	n.t.Helper()
	// Registration ends a moment after its last write: what a condition asks beside the API is asked again with each tick.
	for !ok() {
		ctx, cancel := context.WithTimeout(n.ctx, 20*time.Millisecond)
		err := n.api.Await(ctx, ok)
		cancel()
		if err != nil && n.ctx.Err() != nil {
			n.t.Fatalf("%s: not in time: %v", what, err)
		}
	}
}

// drive starts a driver process.
func (n *node) drive() (stop func()) {
	n.t.Helper()
	command := exec.Command(n.program, "-name="+driverName, "-socket="+filepath.Join(n.data, "plugins", driverName, "csi.sock"),
		"-register="+filepath.Join(n.data, "plugins_registry", driverName+"-reg.sock"), "-root="+n.root, "-node=n1")
	command.Stdout, command.Stderr = n.t.Output(), n.t.Output()
	if err := command.Start(); err != nil {
		n.t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		if err := command.Process.Signal(syscall.SIGTERM); err != nil {
			n.t.Error(err)
		}
		if err := command.Wait(); err != nil {
			n.t.Error(err)
		}
	})
	n.t.Cleanup(stop)
	n.registered()
	return stop
}

// put stores an object that is written as users write it.
func put[T object.Object](n *node, from interface {
	Marshal() ([]byte, error)
}, text string) T {
	n.t.Helper()
	if err := yaml.UnmarshalStrict([]byte(text), from); err != nil {
		n.t.Fatalf("%v:\n%s", err, text)
	}
	encoded, err := from.Marshal()
	if err != nil {
		n.t.Fatal(err)
	}
	var zero T
	to := zero.ProtoReflect().New().Interface().(T)
	if err := proto.Unmarshal(encoded, to); err != nil {
		n.t.Fatal(err)
	}
	return n.api.Put(to).(T)
}

// persistent makes a bound claim of a name, and the driver's volume behind it. More is added to the volume's spec, as YAML in flow style.
func (n *node) persistent(name, mode, more string) {
	n.t.Helper()
	put[*corev1.PersistentVolumeClaim](n, &k8scorev1.PersistentVolumeClaim{}, `{metadata: {name: `+name+`, namespace: default, uid: uid-of-`+name+`},
  spec: {volumeName: pv-`+name+`}, status: {phase: Bound, capacity: {storage: 1Gi}}}`)
	put[*corev1.PersistentVolume](n, &k8scorev1.PersistentVolume{}, `{metadata: {name: pv-`+name+`}, spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], volumeMode: `+mode+`,
  claimRef: {namespace: default, name: `+name+`, uid: uid-of-`+name+`}`+more+`}}`)
}

// call is what the driver noted.
type call struct {
	Call    string
	Request struct {
		VolumeID       string            `json:"volume_id"`
		TargetPath     string            `json:"target_path"`
		Staging        string            `json:"staging_target_path"`
		Secrets        map[string]string `json:"secrets"`
		VolumeContext  map[string]string `json:"volume_context"`
		PublishContext map[string]string `json:"publish_context"`
		Readonly       bool
	}
}

// calls returns what the driver was asked to do with a volume.
func (n *node) calls(id string) []call {
	n.t.Helper()
	text, err := os.ReadFile(filepath.Join(n.root, "calls"))
	if err != nil {
		n.t.Fatal(err)
	}
	var all []call
	for line := range strings.Lines(string(text)) {
		var c call
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			n.t.Fatalf("%v: %s", err, line)
		}
		if c.Request.VolumeID == id {
			all = append(all, c)
		}
	}
	return all
}

func (n *node) callNames(id string) []string {
	var names []string
	for _, c := range n.calls(id) {
		names = append(names, c.Call)
	}
	return names
}

// nothingMounted checks that nothing is left of volumes below the agent's folder.
func (n *node) nothingMounted() {
	n.t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		n.t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		if strings.Contains(line, n.data) {
			n.t.Errorf("still mounted: %s", line)
		}
	}
	for _, dir := range []string{"plugins/kubernetes.io/csi/" + driverName} {
		if entries, err := os.ReadDir(filepath.Join(n.data, dir)); err == nil && len(entries) > 0 {
			n.t.Errorf("left in %s: %v", dir, entries)
		}
	}
}

func (n *node) sources() volume.Sources {
	return volume.Sources{
		Token:     func(audience string, seconds int64) (string, error) { return "token for " + audience, nil },
		ConfigMap: func(string) (*corev1.ConfigMap, error) { return nil, env.ErrMissing },
	}
}

func TestDriversRegisterAsWithAKubelet(t *testing.T) {
	n := newNode(t)
	n.await("an empty CSINode", func() bool { _, ok := apitest.Get[*storagev1.CSINode](n.api, "", "n1"); return ok })
	stop := n.drive()
	c, _ := apitest.Get[*storagev1.CSINode](n.api, "", "n1")
	d := c.GetSpec().GetDrivers()[0]
	if d.GetName() != driverName || d.GetNodeId() != "n1" || !slices.Equal(d.GetTopologyKeys(), []string{"topology.folders.dhow.test/node"}) || d.GetAllocatable().GetCount() != 8 {
		t.Errorf("CSINode %v", c)
	}
	if refs := c.GetMetadata().GetOwnerReferences(); len(refs) != 1 || refs[0].GetKind() != "Node" {
		t.Errorf("owners %v", refs)
	}
	self, _ := apitest.Get[*corev1.Node](n.api, "", "n1")
	if self.GetMetadata().GetAnnotations()["csi.volume.kubernetes.io/nodeid"] != `{"folders.dhow.test":"n1"}` || self.GetMetadata().GetLabels()["topology.folders.dhow.test/node"] != "n1" {
		t.Errorf("node %v", self.GetMetadata())
	}
	stop()
	n.await("the driver is forgotten", func() bool {
		c, _ := apitest.Get[*storagev1.CSINode](n.api, "", "n1")
		self, _ := apitest.Get[*corev1.Node](n.api, "", "n1")
		return len(c.GetSpec().GetDrivers()) == 0 && self.GetMetadata().GetAnnotations()["csi.volume.kubernetes.io/nodeid"] == ""
	})
	n.drive()
}

func TestVolumesOfADriverOverAnAgentsRestart(t *testing.T) {
	n := newNode(t)
	n.drive()
	if err := os.MkdirAll(filepath.Join(n.root, "volumes", "v1"), 0o755); err != nil {
		t.Fatal(err)
	}
	put[*storagev1.CSIDriver](n, &k8sstoragev1.CSIDriver{}, `{metadata: {name: folders.dhow.test}, spec: {attachRequired: true, podInfoOnMount: true, fsGroupPolicy: File}}`)
	put[*corev1.Secret](n, &k8scorev1.Secret{}, `{metadata: {name: key, namespace: default}, stringData: {}, data: {word: c2VzYW1l}}`)
	n.persistent("data", "Filesystem", `, csi: {driver: folders.dhow.test, volumeHandle: v1, volumeAttributes: {a: b}, nodePublishSecretRef: {name: key, namespace: default},
    nodeStageSecretRef: {name: key, namespace: default}}`)
	pod := func(name string) *corev1.Pod {
		return podtest.Pod(t, `{metadata: {name: `+name+`, uid: uid-of-`+name+`}, spec: {securityContext: {fsGroup: 4000}, serviceAccountName: sa,
  volumes: [{name: v, persistentVolumeClaim: {claimName: data}}]}}`)
	}
	type result struct {
		paths map[string]string
		err   error
	}
	set := make(chan result, 1)
	go func() {
		paths, err := n.volumes.Setup(n.ctx, pod("one"), n.sources())
		set <- result{paths, err}
	}()
	// The node says first that it is going to use the volume, and then waits until it is attached.
	const unique = "kubernetes.io/csi/folders.dhow.test^v1"
	n.await("the volume is said to be in use", func() bool { return slices.Equal(n.volumes.InUse(), []string{unique}) })
	attached := func() *corev1.Node {
		return put[*corev1.Node](n, &k8scorev1.Node{}, `{metadata: {name: n1}, status: {volumesAttached: [{name: "`+unique+`", devicePath: ""}]}}`)
	}
	put[*storagev1.VolumeAttachment](n, &k8sstoragev1.VolumeAttachment{}, `{metadata: {name: `+attachmentName("v1")+`}, status: {attached: true, attachmentMetadata: {attached-to: n1}}}`)
	n.volumes.Node(attached())
	r := <-set
	if r.err != nil {
		t.Fatal(r.err)
	}
	path := r.paths["v"]
	if want := filepath.Join(n.data, "pods/uid-of-one/volumes/kubernetes.io~csi/pv-data/mount"); path != want {
		t.Errorf("path %s, want %s", path, want)
	}
	if err := os.WriteFile(filepath.Join(path, "file"), []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(n.root, "volumes/v1/file")); got != "kept" {
		t.Errorf("the driver has %q", got)
	}
	info, err := os.Stat(filepath.Join(n.root, "volumes/v1"))
	if err != nil || info.Sys().(*syscall.Stat_t).Gid != 4000 || info.Mode()&os.ModeSetgid == 0 {
		t.Errorf("the volume is not the fsGroup's: %v, %v", info.Mode(), err)
	}
	calls := n.calls("v1")
	if len(calls) != 2 || calls[0].Call != "NodeStageVolume" || calls[1].Call != "NodePublishVolume" {
		t.Fatalf("calls %v", n.callNames("v1"))
	}
	publish := calls[1].Request
	if publish.PublishContext["attached-to"] != "n1" || publish.Secrets["word"] != "sesame" || calls[0].Request.Secrets["word"] != "sesame" {
		t.Errorf("published with %+v", publish)
	}
	for key, want := range map[string]string{"a": "b", "csi.storage.k8s.io/pod.name": "one", "csi.storage.k8s.io/pod.namespace": "default", "csi.storage.k8s.io/pod.uid": "uid-of-one",
		"csi.storage.k8s.io/serviceAccount.name": "sa", "csi.storage.k8s.io/ephemeral": "false"} {
		if publish.VolumeContext[key] != want {
			t.Errorf("volume context %s = %q, want %q", key, publish.VolumeContext[key], want)
		}
	}

	// Another agent takes over in the middle: it still says what is in use, sets up what is there without asking the driver again, and takes down all of it.
	n.restart()
	if got := n.volumes.InUse(); !slices.Equal(got, []string{unique}) {
		t.Errorf("after a restart in use: %v", got)
	}
	n.volumes.Node(attached())
	if _, err := n.volumes.Setup(n.ctx, pod("one"), n.sources()); err != nil {
		t.Fatal(err)
	}
	if got := n.callNames("v1"); len(got) != 2 {
		t.Errorf("calls after a restart: %v", got)
	}
	if _, err := n.volumes.Setup(n.ctx, pod("two"), n.sources()); err != nil {
		t.Fatal(err)
	}
	if err := n.volumes.Remove(n.ctx, "uid-of-one"); err != nil {
		t.Fatal(err)
	}
	if got := n.callNames("v1"); slices.Contains(got, "NodeUnstageVolume") {
		t.Errorf("unstaged while another pod has it: %v", got)
	}
	n.restart()
	if err := n.volumes.Remove(n.ctx, "uid-of-two"); err != nil {
		t.Fatal(err)
	}
	if got := n.callNames("v1"); got[len(got)-1] != "NodeUnstageVolume" {
		t.Errorf("calls %v", got)
	}
	if got := n.volumes.InUse(); len(got) != 0 {
		t.Errorf("in use: %v", got)
	}
	n.nothingMounted()
	if got := read(t, filepath.Join(n.root, "volumes/v1/file")); got != "kept" {
		t.Errorf("the data is %q", got)
	}
}

func TestInlineVolumesLiveWithTheirPods(t *testing.T) {
	n := newNode(t)
	n.drive()
	p := podtest.Pod(t, `{metadata: {name: p}, spec: {serviceAccountName: sa, volumes: [{name: v, csi: {driver: folders.dhow.test, volumeAttributes: {greeting: hello}}}]}}`)
	put[*storagev1.CSIDriver](n, &k8sstoragev1.CSIDriver{}, `{metadata: {name: folders.dhow.test}, spec: {attachRequired: false, volumeLifecycleModes: [Persistent]}}`)
	if _, err := n.volumes.Setup(n.ctx, p, n.sources()); err == nil || !strings.Contains(err.Error(), "Ephemeral") {
		t.Errorf("a driver without ephemeral volumes: %v", err)
	}
	put[*storagev1.CSIDriver](n, &k8sstoragev1.CSIDriver{}, `{metadata: {name: folders.dhow.test}, spec: {attachRequired: false, podInfoOnMount: true, requiresRepublish: true,
  volumeLifecycleModes: [Ephemeral], tokenRequests: [{audience: vault, expirationSeconds: 600}]}}`)
	paths, err := n.volumes.Setup(n.ctx, p, n.sources())
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(paths["v"], "greeting")); got != "hello" {
		t.Errorf("greeting %q", got)
	}
	text := read(t, filepath.Join(n.root, "calls"))
	if !strings.Contains(text, `\"vault\":{\"token\":\"token for vault\"`) || !strings.Contains(text, `"csi.storage.k8s.io/ephemeral":"true"`) {
		t.Errorf("calls:\n%s", text)
	}
	// A driver that wants it is asked again.
	before := strings.Count(text, "NodePublishVolume")
	if _, err := n.volumes.Update(n.ctx, p, n.sources()); err != nil {
		t.Fatal(err)
	}
	if after := strings.Count(read(t, filepath.Join(n.root, "calls")), "NodePublishVolume"); after != before+1 {
		t.Errorf("published %d times, then %d", before, after)
	}
	if err := n.volumes.Remove(n.ctx, "uid-of-pod"); err != nil {
		t.Fatal(err)
	}
	n.nothingMounted()
	if left, _ := os.ReadDir(filepath.Join(n.root, "volumes")); len(left) != 0 {
		t.Errorf("left with the driver: %v", left)
	}
}

func TestBlockVolumes(t *testing.T) {
	n := newNode(t)
	n.drive()
	put[*storagev1.CSIDriver](n, &k8sstoragev1.CSIDriver{}, `{metadata: {name: folders.dhow.test}, spec: {attachRequired: false}}`)
	if err := os.WriteFile(filepath.Join(n.root, "volumes", "raw"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	n.persistent("raw", "Block", `, csi: {driver: folders.dhow.test, volumeHandle: raw}`)
	wrong := podtest.Pod(t, `{metadata: {name: wrong, uid: wrong}, spec: {containers: [{name: c, volumeMounts: [{name: v, mountPath: /v}]}], volumes: [{name: v, persistentVolumeClaim: {claimName: raw}}]}}`)
	if _, err := n.volumes.Setup(n.ctx, wrong, n.sources()); err == nil || !strings.Contains(err.Error(), "volumeMode Block") {
		t.Errorf("a block volume that is to be mounted: %v", err)
	}
	p := podtest.Pod(t, `{metadata: {name: p}, spec: {containers: [{name: c, volumeDevices: [{name: v, devicePath: /dev/raw}]}], volumes: [{name: v, persistentVolumeClaim: {claimName: raw}}]}}`)
	paths, err := n.volumes.Setup(n.ctx, p, n.sources())
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(paths["v"])
	if err != nil || info.Mode()&os.ModeDevice == 0 {
		t.Fatalf("%s is no device: %v, %v", paths["v"], info, err)
	}
	f, err := os.OpenFile(paths["v"], os.O_WRONLY|os.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("raw bytes"), 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	if err := n.volumes.Remove(n.ctx, "uid-of-pod"); err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(n.root, "volumes", "raw")); !strings.HasPrefix(got, "raw bytes") {
		t.Errorf("the file begins with %q", got[:9])
	}
	n.nothingMounted()
}

func TestVolumesGrowWhileTheyAreUsed(t *testing.T) {
	n := newNode(t)
	n.drive()
	put[*storagev1.CSIDriver](n, &k8sstoragev1.CSIDriver{}, `{metadata: {name: folders.dhow.test}, spec: {attachRequired: false}}`)
	if err := os.MkdirAll(filepath.Join(n.root, "volumes", "g"), 0o755); err != nil {
		t.Fatal(err)
	}
	const csiSource = `, csi: {driver: folders.dhow.test, volumeHandle: g}`
	n.persistent("grows", "Filesystem", csiSource)
	p := podtest.Pod(t, `{metadata: {name: p}, spec: {volumes: [{name: v, persistentVolumeClaim: {claimName: grows}}]}}`)
	if _, err := n.volumes.Setup(n.ctx, p, n.sources()); err != nil {
		t.Fatal(err)
	}
	// What a driver's resizer does: the volume is larger, and the claim waits for the node.
	n.api.Put(func() object.Object {
		v, _ := apitest.Get[*corev1.PersistentVolume](n.api, "", "pv-grows")
		v.GetSpec().GetCapacity()["storage"].SetString("2Gi")
		return v
	}())
	put[*corev1.PersistentVolumeClaim](n, &k8scorev1.PersistentVolumeClaim{}, `{metadata: {name: grows, namespace: default, uid: uid-of-grows}, spec: {volumeName: pv-grows},
  status: {phase: Bound, capacity: {storage: 1Gi}, allocatedResourceStatuses: {storage: NodeResizePending}, conditions: [{type: FileSystemResizePending, status: "True"}]}}`)
	// The agent sees it by itself.
	select {
	case <-n.signal:
	case <-n.ctx.Done():
		t.Fatal("the pod's volumes were not looked at again")
	}
	events := []string{}
	s := n.sources()
	s.Event = func(_ bool, reason, _ string) { events = append(events, reason) }
	if _, err := n.volumes.Update(n.ctx, p, s); err != nil {
		t.Fatal(err)
	}
	claim, _ := apitest.Get[*corev1.PersistentVolumeClaim](n.api, "default", "grows")
	if st := claim.GetStatus(); st.GetCapacity()["storage"].GetString() != "2Gi" || len(st.GetConditions()) != 0 || len(st.GetAllocatedResourceStatuses()) != 0 {
		t.Errorf("claim %v", st)
	}
	if got := n.callNames("g"); !slices.Contains(got, "NodeExpandVolume") || !slices.Equal(events, []string{"FileSystemResizeSuccessful"}) {
		t.Errorf("calls %v, events %v", got, events)
	}
	if err := n.volumes.Remove(n.ctx, "uid-of-pod"); err != nil {
		t.Fatal(err)
	}
	n.nothingMounted()
}

// TestALocalDeviceGetsAFileSystem: it is formatted once, mounted once for all pods, and what is on it stays.
func TestALocalDeviceGetsAFileSystem(t *testing.T) {
	n := newNode(t)
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 64<<20); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", file).Output()
	if err != nil {
		t.Fatal(err)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	n.persistent("disk", "Filesystem", `, mountOptions: [noatime], local: {path: `+device+`, fsType: ext3}`)
	pod := func(name string) *corev1.Pod {
		return podtest.Pod(t, `{metadata: {name: `+name+`, uid: uid-of-`+name+`}, spec: {securityContext: {fsGroup: 4000}, volumes: [{name: v, persistentVolumeClaim: {claimName: disk}}]}}`)
	}
	for _, name := range []string{"one", "two"} {
		paths, err := n.volumes.Setup(n.ctx, pod(name), n.sources())
		if err != nil {
			t.Fatal(err)
		}
		if want := filepath.Join(n.data, "plugins/kubernetes.io/local-volume/mounts/pv-disk"); paths["v"] != want {
			t.Fatalf("it is at %s, want %s", paths["v"], want)
		}
		if name == "one" {
			if err := os.WriteFile(filepath.Join(paths["v"], "file"), []byte("kept"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	table := read(t, "/proc/self/mountinfo")
	if line := regexp.MustCompile(`(?m)^.*/mounts/pv-disk .*noatime.* - ext3 `+device+` .*$`).FindAllString(table, -1); len(line) != 1 {
		t.Errorf("mounted as %q", line)
	}
	if s := n.volumes.Stats(n.ctx); len(s) != 2 || s[0].Capacity > 64<<20 || s[0].Capacity < 32<<20 {
		t.Errorf("the file system is not the device's: %+v", s)
	}
	target := filepath.Join(n.data, "plugins/kubernetes.io/local-volume/mounts/pv-disk")
	if info, err := os.Stat(target); err != nil || info.Sys().(*syscall.Stat_t).Gid != 4000 {
		t.Errorf("it is not the fsGroup's: %v, %v", info, err)
	}
	// An agent that knows nothing takes it down with the last pod.
	n.stop()
	n.start()
	if err := n.volumes.Remove(n.ctx, "uid-of-one"); err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(target, "file")); got != "kept" {
		t.Errorf("while another pod has it there is %q", got)
	}
	if err := n.volumes.Remove(n.ctx, "uid-of-two"); err != nil {
		t.Fatal(err)
	}
	n.nothingMounted()
	paths, err := n.volumes.Setup(n.ctx, pod("three"), n.sources())
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(paths["v"], "file")); got != "kept" {
		t.Errorf("the next pod finds %q", got)
	}
	if err := n.volumes.Remove(n.ctx, "uid-of-three"); err != nil {
		t.Fatal(err)
	}
	// What is on it already is not overwritten.
	n.persistent("other", "Filesystem", `, local: {path: `+device+`}`)
	wrong := podtest.Pod(t, `{metadata: {name: p}, spec: {volumes: [{name: v, persistentVolumeClaim: {claimName: other}}]}}`)
	if _, err := n.volumes.Setup(n.ctx, wrong, n.sources()); err == nil || !strings.Contains(err.Error(), "is to be mounted as ext4, but has a ext3 file system on it") {
		t.Errorf("another file system: %v", err)
	}
	if err := n.volumes.Remove(n.ctx, "uid-of-pod"); err != nil {
		t.Fatal(err)
	}
	n.nothingMounted()
}

// TestADriverThatCanHaveFewerVolumes is asked again as often as its CSIDriver says.
func TestADriverThatCanHaveFewerVolumes(t *testing.T) {
	n := newNode(t)
	put[*storagev1.CSIDriver](n, &k8sstoragev1.CSIDriver{}, `{metadata: {name: folders.dhow.test}, spec: {nodeAllocatableUpdatePeriodSeconds: 1}}`)
	n.drive()
	most := func(want int32) func() bool {
		return func() bool {
			c, _ := apitest.Get[*storagev1.CSINode](n.api, "", "n1")
			drivers := c.GetSpec().GetDrivers()
			return len(drivers) == 1 && drivers[0].GetAllocatable().GetCount() == want && drivers[0].GetNodeId() == "n1" && len(drivers[0].GetTopologyKeys()) == 1
		}
	}
	n.await("what it said at first", most(8))
	if err := os.WriteFile(filepath.Join(n.root, "most"), []byte("3"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.await("what it says now", most(3))
}

// TestVolumesAreMeasured asks drivers, and the machine about its own folders.
func TestVolumesAreMeasured(t *testing.T) {
	n := newNode(t)
	n.drive()
	put[*storagev1.CSIDriver](n, &k8sstoragev1.CSIDriver{}, `{metadata: {name: folders.dhow.test}, spec: {attachRequired: false}}`)
	for _, name := range []string{"m", "m.unwell"} {
		if err := os.MkdirAll(filepath.Join(n.root, "volumes", name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n.persistent("full", "Filesystem", `, csi: {driver: folders.dhow.test, volumeHandle: m}`)
	n.persistent("folder", "Filesystem", `, local: {path: `+n.root+`}`)
	if stats := n.volumes.Stats(n.ctx); len(stats) != 0 {
		t.Errorf("there are no volumes yet: %v", stats)
	}
	p := podtest.Pod(t, `{metadata: {name: p}, spec: {volumes: [{name: a, persistentVolumeClaim: {claimName: full}}, {name: b, persistentVolumeClaim: {claimName: folder}}]}}`)
	if _, err := n.volumes.Setup(n.ctx, p, n.sources()); err != nil {
		t.Fatal(err)
	}
	stats := n.volumes.Stats(n.ctx)
	if len(stats) != 2 {
		t.Fatalf("%+v", stats)
	}
	abnormal := true
	if got, want := stats[0], (volume.Stat{Pod: "uid-of-pod", Volume: "a", Namespace: "default", Claim: "full", Capacity: 1001, Available: 601, Used: 400,
		Inodes: 101, InodesFree: 60, InodesUsed: 41, Abnormal: &abnormal, Message: "looked at"}); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if s := stats[1]; s.Claim != "folder" || s.Capacity < 1<<20 || s.Available > s.Capacity || s.Inodes != s.InodesFree+s.InodesUsed || s.Abnormal != nil {
		t.Errorf("%+v", s)
	}
	// Drivers are not asked again at once.
	n.volumes.Stats(n.ctx)
	asked := slices.DeleteFunc(n.callNames("m"), func(name string) bool { return name != "NodeGetVolumeStats" })
	if len(asked) != 1 {
		t.Errorf("the driver was asked %d times", len(asked))
	}
	if err := n.volumes.Remove(n.ctx, "uid-of-pod"); err != nil {
		t.Fatal(err)
	}
	n.nothingMounted()
}

func TestFoldersOfTheBuiltInProvisioner(t *testing.T) {
	n := newNode(t)
	n.persistent("folder", "Filesystem", `, local: {path: `+filepath.Join(n.data, "local-path/pvc-1")+`}`)
	p := podtest.Pod(t, `{metadata: {name: p}, spec: {volumes: [{name: v, persistentVolumeClaim: {claimName: folder}}]}}`)
	if _, err := n.volumes.Setup(n.ctx, p, n.sources()); err == nil {
		t.Error("a local volume whose folder is missing was mounted")
	}
	v, _ := apitest.Get[*corev1.PersistentVolume](n.api, "", "pv-folder")
	v.GetMetadata().SetAnnotations(map[string]string{"pv.kubernetes.io/provisioned-by": "dhow.dev/local-path"})
	n.api.Put(v)
	paths, err := n.volumes.Setup(n.ctx, p, n.sources())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(paths["v"], "file"), []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.volumes.Remove(n.ctx, "uid-of-pod"); err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(n.data, "local-path/pvc-1/file")); got != "kept" {
		t.Errorf("after the pod: %q", got)
	}
	if err := os.MkdirAll(filepath.Join(n.data, "precious"), 0o755); err != nil {
		t.Fatal(err)
	}
	// Names that lead elsewhere are nobody's volumes.
	n.volumes.Node(put[*corev1.Node](n, &k8scorev1.Node{}, `{metadata: {name: n1, annotations: {local-path.dhow.dev/pvc-1: delete, local-path.dhow.dev/../precious: delete, local-path.dhow.dev/..: delete, other: stays}}}`))
	n.await("the agent says that it has deleted the data", func() bool {
		self, _ := apitest.Get[*corev1.Node](n.api, "", "n1")
		return len(self.GetMetadata().GetAnnotations()) == 1
	})
	if _, err := os.Stat(filepath.Join(n.data, "local-path/pvc-1")); !os.IsNotExist(err) {
		t.Errorf("the data is still there: %v", err)
	}
	if _, err := os.Stat(filepath.Join(n.data, "precious")); err != nil {
		t.Error(err)
	}
}

// attachmentName is how Kubernetes names the attachment of a volume to this node.
func attachmentName(handle string) string {
	return fmt.Sprintf("csi-%x", sha256.Sum256([]byte(handle+driverName+"n1")))
}
