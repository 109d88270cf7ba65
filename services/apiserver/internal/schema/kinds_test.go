package schema

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"k8s.io/apimachinery/pkg/runtime"
	kschema "k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"dhow.dev/pkg/resource"
)

// groupVersions are the API groups of this schema with their package here.
var groupVersions = map[kschema.GroupVersion]protoreflect.FullName{
	{Group: "resource.k8s.io", Version: "v1"}:              "dhow.resource.v1",
	{Group: "node.k8s.io", Version: "v1"}:                  "dhow.runtime.v1",
	{Group: "metrics.k8s.io", Version: "v1beta1"}:          "dhow.metrics.v1beta1",
	{Group: "flowcontrol.apiserver.k8s.io", Version: "v1"}: "dhow.flowcontrol.v1",
	{Group: "certificates.k8s.io", Version: "v1"}:          "dhow.certificates.v1",
	{Group: "certificates.k8s.io", Version: "v1beta1"}:     "dhow.certificates.v1beta1",
	{Group: "autoscaling", Version: "v1"}:                  "dhow.autoscaling.v1",
	{Group: "authorization.k8s.io", Version: "v1"}:         "dhow.authorization.v1",
	{Group: "authentication.k8s.io", Version: "v1"}:        "dhow.authentication.v1",
	{Group: "", Version: "v1"}:                             "dhow.core.v1",
	{Group: "apps", Version: "v1"}:                         "dhow.apps.v1",
	{Group: "autoscaling", Version: "v2"}:                  "dhow.autoscaling.v2",
	{Group: "batch", Version: "v1"}:                        "dhow.batch.v1",
	{Group: "coordination.k8s.io", Version: "v1"}:          "dhow.coordination.v1",
	{Group: "discovery.k8s.io", Version: "v1"}:             "dhow.discovery.v1",
	{Group: "events.k8s.io", Version: "v1"}:                "dhow.events.v1",
	{Group: "networking.k8s.io", Version: "v1"}:            "dhow.networking.v1",
	{Group: "policy", Version: "v1"}:                       "dhow.policy.v1",
	{Group: "rbac.authorization.k8s.io", Version: "v1"}:    "dhow.rbac.v1",
	{Group: "scheduling.k8s.io", Version: "v1"}:            "dhow.scheduling.v1",
	{Group: "storage.k8s.io", Version: "v1"}:               "dhow.storage.v1",
}

// elsewhere are kinds of these groups that are not served in this version: those of v1, and what Kubernetes v1.36 has off by default.
var elsewhere = map[kschema.GroupVersionKind]bool{
	{Group: "certificates.k8s.io", Version: "v1beta1", Kind: "CertificateSigningRequest"}:     true,
	{Group: "certificates.k8s.io", Version: "v1beta1", Kind: "CertificateSigningRequestList"}: true,
	{Group: "certificates.k8s.io", Version: "v1beta1", Kind: "PodCertificateRequest"}:         true,
	{Group: "certificates.k8s.io", Version: "v1beta1", Kind: "PodCertificateRequestList"}:     true,
}

// structs knows the structs of k8s.io/api and k8s.io/metrics.
var structs = func() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, metricsv1beta1.AddToScheme} {
		if err := add(s); err != nil {
			panic(err)
		}
	}
	return s
}()

// goldenMagic begins every object that Kubernetes encodes as protobuf; a runtime.Unknown with the object inside follows.
const goldenMagic = "k8s\x00"

// kind is one type that both sides have: a served kind, a list of one, or what a subresource takes.
type kind struct {
	gvk     kschema.GroupVersionKind
	message protoreflect.MessageType
	// golden is the object of k8s.io/api's testdata, or nil: lists and a few options have none.
	golden []byte
}

// encoder is what every struct of k8s.io/api has.
type encoder interface {
	Marshal() ([]byte, error)
	Unmarshal([]byte) error
}

func (k kind) newStruct(t *testing.T) encoder {
	t.Helper()
	o, err := structs.New(k.gvk)
	if err != nil {
		t.Fatal(err)
	}
	return o.(encoder)
}

// kinds returns every type of the groups that has a struct in k8s.io/api, and checks that no served kind is left out.
func kinds(t testing.TB) []kind {
	t.Helper()
	dir, err := moduleDir("k8s.io/api")
	if err != nil {
		t.Fatal(err)
	}
	var all []kind
	for gv, pkg := range groupVersions {
		for name := range structs.KnownTypes(gv) {
			if elsewhere[gv.WithKind(name)] {
				continue
			}
			// Every group registers the options and WatchEvent of meta/v1; one copy is enough.
			message, err := protoregistry.GlobalTypes.FindMessageByName(pkg.Append(protoreflect.Name(name)))
			if err != nil && gv.Group == "" {
				message, err = protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName("dhow.meta.v1").Append(protoreflect.Name(name)))
			}
			if err != nil {
				if meta, metaErr := protoregistry.GlobalTypes.FindMessageByName("dhow.meta.v1." + protoreflect.FullName(name)); metaErr != nil || meta == nil {
					t.Errorf("%s: no message: %v", gv.WithKind(name), err)
				}
				continue
			}
			all = append(all, kind{gvk: gv.WithKind(name), message: message, golden: golden(t, dir, gv.WithKind(name))})
		}
	}
	slices.SortFunc(all, func(a, b kind) int { return strings.Compare(a.gvk.String(), b.gvk.String()) })
	for _, r := range resource.Kinds() {
		i := slices.IndexFunc(all, func(k kind) bool { return k.gvk == r.GroupVersionKind() })
		switch {
		case i < 0:
			t.Errorf("%s: served, but not compared with Kubernetes", r)
		case all[i].golden == nil && r.Group != metricsv1beta1.GroupName: // k8s.io/metrics has no test objects
			t.Errorf("%s: served, but without a golden object", r)
		case all[i].message.Descriptor() != r.Descriptor():
			t.Errorf("%s: served as %s, compared as %s", r, r.Descriptor().FullName(), all[i].message.Descriptor().FullName())
		}
	}
	return all
}

// golden reads an object from k8s.io/api's testdata and takes it out of its envelope.
func golden(t testing.TB, dir string, gvk kschema.GroupVersionKind) []byte {
	t.Helper()
	group := gvk.Group
	if group == "" {
		group = "core"
	}
	name := filepath.Join(dir, "testdata", "HEAD", fmt.Sprintf("%s.%s.%s.pb", group, gvk.Version, gvk.Kind))
	data, err := os.ReadFile(name)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	enveloped, ok := bytes.CutPrefix(data, []byte(goldenMagic))
	if !ok {
		t.Fatalf("%s: does not begin with Kubernetes' magic", name)
	}
	var unknown runtime.Unknown
	if err := unknown.Unmarshal(enveloped); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return unknown.Raw
}

// decode reads bytes into Dhow's type, and fails when a field was not known: bytes kept as unknown would come back the same and prove nothing.
func decode(t *testing.T, mt protoreflect.MessageType, b []byte) proto.Message {
	t.Helper()
	m := mt.New().Interface()
	if err := proto.Unmarshal(b, m); err != nil {
		t.Fatalf("%s: %v", mt.Descriptor().FullName(), err)
	}
	eachMessage(m.ProtoReflect(), func(m protoreflect.Message) {
		if len(m.GetUnknown()) > 0 {
			t.Errorf("%s: unknown fields %x", m.Descriptor().FullName(), m.GetUnknown())
		}
	})
	return m
}

// encode writes Dhow's type with sorted maps, as Kubernetes does.
func encode(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// eachMessage calls f for a message and all messages in it; it decodes what was left for later.
func eachMessage(m protoreflect.Message, f func(protoreflect.Message)) {
	f(m)
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap():
			if fd.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
					eachMessage(v.Message(), f)
					return true
				})
			}
		case fd.Message() == nil:
		case fd.IsList():
			for i := range v.List().Len() {
				eachMessage(v.List().Get(i).Message(), f)
			}
		default:
			eachMessage(v.Message(), f)
		}
		return true
	})
}

// TestEveryServiceHasARow looks the other way: a kind with a service in proto/ is in the resource table, and is called there as here.
func TestEveryServiceHasARow(t *testing.T) {
	rows := map[protoreflect.FullName]*resource.Resource{}
	for _, r := range resource.Kinds() {
		if r.Service() != nil {
			rows[r.Service().FullName()] = r
		}
	}
	seen := 0
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			get := s.Methods().ByName("Get")
			if get == nil {
				get = s.Methods().ByName("Create")
			}
			if get == nil || get.Output().Fields().ByName("metadata") == nil {
				continue
			}
			seen++
			row := rows[s.FullName()]
			if row == nil {
				t.Errorf("%s: no row in pkg/resource has this service", s.FullName())
				continue
			}
			if name := string(s.Name()); !strings.EqualFold(strings.TrimSuffix(name, "Service"), row.Plural) {
				t.Errorf("%s: serves %s", s.FullName(), row)
			}
			if pkg := groupVersions[row.GroupVersionKind().GroupVersion()]; pkg != f.Package() {
				t.Errorf("%s: in package %s, its group's is %s", row, f.Package(), pkg)
			}
		}
		return true
	})
	if seen != len(rows) {
		t.Errorf("%d services, %d rows", seen, len(rows))
	}
}

// TestPerKindMessagesAreTheSharedOnes holds the typed requests and watch responses to the untyped ones: generic code reads one as the other.
func TestPerKindMessagesAreTheSharedOnes(t *testing.T) {
	find := func(name protoreflect.FullName) protoreflect.MessageDescriptor {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
		if err != nil {
			t.Fatal(err)
		}
		return d.(protoreflect.MessageDescriptor)
	}
	for _, r := range resource.All() {
		name := r.Descriptor().FullName()
		if r.Allows("create") {
			sameWire(t, r.Descriptor(), find(name+"WriteRequest"), find("dhow.meta.v1.ObjectWriteRequest"))
		}
		if r.Virtual {
			continue
		}
		watch := find(name + "WatchResponse")
		sameWire(t, r.Descriptor(), watch, find("dhow.meta.v1.WatchResponse"))
		sameWire(t, r.Descriptor(), watch.Messages().ByName("Change"), find("dhow.meta.v1.ObjectChange"))
		list := find(name + "List").Fields().ByName("items")
		if list == nil || list.Number() != 2 || list.Message() != r.Descriptor() {
			t.Errorf("%s: a list without items", name)
		}
	}
}

// sameWire compares fields by name: the same numbers and types, but that bytes may stand for an object of the kind and messages for messages.
func sameWire(t *testing.T, object, typed, shared protoreflect.MessageDescriptor) {
	t.Helper()
	if typed.Fields().Len() != shared.Fields().Len() {
		t.Errorf("%s has %d fields, %s %d", typed.FullName(), typed.Fields().Len(), shared.FullName(), shared.Fields().Len())
	}
	for i := range shared.Fields().Len() {
		want := shared.Fields().Get(i)
		got := typed.Fields().ByName(want.Name())
		switch {
		case got == nil || got.Number() != want.Number() || got.Cardinality() != want.Cardinality():
			t.Errorf("%s.%s is not as in %s", typed.FullName(), want.Name(), shared.FullName())
		case want.Name() == "object":
			if got.Message() != object {
				t.Errorf("%s does not hold a %s", got.FullName(), object.FullName())
			}
		case got.Kind() != want.Kind() || got.Message() != nil && got.Message() != want.Message() && got.Message().Name() != "Change":
			t.Errorf("%s has another type than %s", got.FullName(), want.FullName())
		}
	}
}
