package apiserver_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	kcorev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kmetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/apistatus"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/apiserver"
)

// auditPolicy has each level once; the order of the rules decides.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: None, users: [dhow-admin], verbs: [list]}
- {level: Metadata, resources: [{group: "", resources: [secrets, serviceaccounts/token]}]}
- {level: Request, verbs: [patch], resources: [{group: "", resources: [configmaps]}]}
- {level: RequestResponse, omitManagedFields: true, resources: [{group: "", resources: [configmaps, pods]}]}
- {level: Metadata, nonResourceURLs: ["/version*"], omitStages: [ResponseStarted]}
- {level: Metadata, verbs: [get], resources: [{group: apps}]}
`

// event is a line of the log as its readers take it.
type event struct {
	Kind, APIVersion, Level, AuditID, Stage, RequestURI, Verb, UserAgent string
	User, ImpersonatedUser                                               struct{ Username string }
	ObjectRef                                                            *struct{ Resource, Namespace, Name, APIVersion, APIGroup, Subresource string }
	ResponseStatus                                                       struct {
		Code            int
		Status, Message string
		Reason          string
	}
	RequestObject, ResponseObject json.RawMessage
	Annotations                   map[string]string
	SourceIPs                     []string
}

// anonymous asks the door of gRPC for a secret with a token, or with nothing.
func (d *doors) anonymous(ctx context.Context, token string) error {
	d.t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(d.authority.CertificatePEM())
	conn, err := transport.Dial(d.grpc, credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: doorName}))
	if err != nil {
		d.t.Fatal(err)
	}
	defer conn.Close()
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	_, err = corev1.NewSecretsClient(conn).Get(ctx, metav1.GetRequest_builder{Namespace: "default", Name: "s"}.Build())
	return err
}

// TestAudit makes requests of all levels at a whole API server, and reads the log once it has ended.
func TestAudit(t *testing.T) {
	dir := t.TempDir()
	policy, log := filepath.Join(dir, "policy.yaml"), filepath.Join(dir, "audit.log")
	if err := os.WriteFile(policy, []byte(auditPolicy), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx := within(t)
	var d *doors
	if !t.Run("requests", func(t *testing.T) {
		d = newDoorsWith(t, func(c *apiserver.Config) { c.Audit.PolicyFile, c.Audit.Log.Path = policy, log })
		maps, secrets := d.admin.CoreV1().ConfigMaps("default"), d.admin.CoreV1().Secrets("default")
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		_, err := maps.Create(ctx, &kcorev1.ConfigMap{ObjectMeta: kmetav1.ObjectMeta{GenerateName: "made-"}, Data: map[string]string{"k": "visible"}}, kmetav1.CreateOptions{FieldManager: "me"})
		must(err)
		_, err = maps.Create(ctx, &kcorev1.ConfigMap{ObjectMeta: kmetav1.ObjectMeta{Name: "m"}}, kmetav1.CreateOptions{})
		must(err)
		_, err = maps.Patch(ctx, "m", types.MergePatchType, []byte(`{"data":{"k":"patched"}}`), kmetav1.PatchOptions{})
		must(err)
		_, err = maps.List(ctx, kmetav1.ListOptions{})
		must(err)
		_, err = secrets.Create(ctx, &kcorev1.Secret{ObjectMeta: kmetav1.ObjectMeta{Name: "s"}, StringData: map[string]string{"k": "hidden"}}, kmetav1.CreateOptions{})
		must(err)
		_, err = d.admin.CoreV1().Pods("default").Create(ctx, &kcorev1.Pod{ObjectMeta: kmetav1.ObjectMeta{Name: "bad"}}, kmetav1.CreateOptions{})
		if !apierrors.IsInvalid(err) {
			t.Fatal(err)
		}
		_, err = d.admin.Discovery().ServerVersion()
		must(err)
		jane := d.connect(func(c *rest.Config) {
			c.TLSClientConfig.CertFile, c.TLSClientConfig.KeyFile = d.files.Certificate, d.files.Key
			c.Impersonate.UserName = "jane"
		})
		if _, err := jane.AppsV1().Deployments("default").Get(ctx, "web", kmetav1.GetOptions{}); !apierrors.IsForbidden(err) {
			t.Fatal(err)
		}
		forger := d.connect(func(c *rest.Config) { c.BearerToken = "forged" })
		if _, err := forger.AppsV1().Deployments("default").Get(ctx, "web", kmetav1.GetOptions{}); !apierrors.IsUnauthorized(err) {
			t.Fatal(err)
		}
		for _, token := range []string{"forged", ""} {
			if err := d.anonymous(ctx, token); !apierrors.IsUnauthorized(apistatus.FromGRPC(err)) {
				t.Fatal(err)
			}
		}
		nobody := d.connect(func(*rest.Config) {})
		if _, err := nobody.CoreV1().Secrets("default").Get(ctx, "s", kmetav1.GetOptions{}); !apierrors.IsUnauthorized(err) {
			t.Fatal(err)
		}
	}) {
		return
	}
	data, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"hidden", "aGlkZGVu", "managedFields", "forged"} {
		if bytes.Contains(data, []byte(secret)) {
			t.Errorf("the log has %q", secret)
		}
	}
	found := map[string]event{}
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatal(err)
		}
		if e.Kind != "Event" || e.APIVersion != "audit.k8s.io/v1" || e.AuditID == "" || len(e.SourceIPs) == 0 || e.Stage == "RequestReceived" {
			t.Errorf("%s", lines.Text())
		}
		key := e.User.Username + " " + e.Verb + " " + strings.Split(e.RequestURI, "?")[0]
		if e.ObjectRef != nil && e.Verb == "create" {
			key += " " + e.ObjectRef.Name
		}
		if strings.Contains(key, "made-") {
			key = "made"
		}
		found[key] = e
	}
	has := func(key, level, stage string, code int) event {
		t.Helper()
		e, ok := found[key]
		if !ok || e.Level != level || e.Stage != stage || e.ResponseStatus.Code != code {
			t.Errorf("%s: %+v", key, e)
		}
		return e
	}
	const path = "/api/v1/namespaces/default/"
	made := has("made", "RequestResponse", "ResponseComplete", 201)
	if !bytes.Contains(made.RequestObject, []byte(`"generateName":"made-"`)) || !bytes.Contains(made.ResponseObject, []byte(`"name":"made-`)) || !bytes.Contains(made.ResponseObject, []byte("visible")) {
		t.Errorf("%s %s", made.RequestObject, made.ResponseObject)
	}
	if made.Annotations["authorization.k8s.io/decision"] != "allow" || made.ObjectRef.Resource != "configmaps" || made.ObjectRef.Namespace != "default" || made.ObjectRef.APIVersion != "v1" {
		t.Errorf("%+v %+v", made.Annotations, made.ObjectRef)
	}
	patched := has("dhow-admin patch "+path+"configmaps/m", "Request", "ResponseComplete", 200)
	if string(patched.RequestObject) != `{"data":{"k":"patched"}}` || patched.ResponseObject != nil {
		t.Errorf("%s %s", patched.RequestObject, patched.ResponseObject)
	}
	if e, ok := found["dhow-admin list "+path+"configmaps"]; ok {
		t.Errorf("the first rule says None: %+v", e)
	}
	if e := has("dhow-admin create "+path+"secrets s", "Metadata", "ResponseComplete", 201); e.RequestObject != nil || e.ResponseObject != nil {
		t.Errorf("%+v", e)
	}
	if e := has("dhow-admin create "+path+"pods bad", "RequestResponse", "ResponseComplete", 422); e.ResponseStatus.Reason != "Invalid" || e.ResponseStatus.Status != "Failure" {
		t.Errorf("%+v", e.ResponseStatus)
	}
	has("dhow-admin get /version", "Metadata", "ResponseComplete", 200)
	denied := has("dhow-admin get /apis/apps/v1/namespaces/default/deployments/web", "Metadata", "ResponseComplete", 403)
	if denied.ImpersonatedUser.Username != "jane" || denied.Annotations["authorization.k8s.io/decision"] != "forbid" || denied.ObjectRef.APIGroup != "apps" {
		t.Errorf("%+v", denied)
	}
	// Those who are not known: no user, and what they showed.
	if e := has(" get /apis/apps/v1/namespaces/default/deployments/web", "Metadata", "ResponseStarted", 401); e.ResponseStatus.Message != "Authentication failed, attempted: bearer" || e.UserAgent == "" {
		t.Errorf("%+v", e)
	}
	if e := has(" get "+path+"secrets/s", "Metadata", "ResponseStarted", 401); e.ResponseStatus.Message != "Authentication failed, no credentials provided" {
		t.Errorf("%+v", e)
	}
	// The same at the door of gRPC, where the method was called twice, at last without credentials.
	if e := has(" get /dhow.core.v1.Secrets/Get", "Metadata", "ResponseStarted", 401); e.ResponseStatus.Message != "Authentication failed, no credentials provided" || e.UserAgent == "" || e.ObjectRef == nil || e.ObjectRef.Resource != "secrets" {
		t.Errorf("%+v", e)
	}
	if n := bytes.Count(data, []byte("Authentication failed, attempted: bearer")); n != 2 {
		t.Errorf("%d records of forged tokens, want one for each door", n)
	}
	var ids []string
	for _, e := range found {
		if slices.Contains(ids, e.AuditID) {
			t.Errorf("an id twice: %s", e.AuditID)
		}
		ids = append(ids, e.AuditID)
	}
}
