package strategy_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	certificatesv1 "k8s.io/api/certificates/v1"
	"sigs.k8s.io/yaml"

	"dhow.dev/pkg/identity"
	"dhow.dev/services/apiserver/internal/strategy"
	"dhow.dev/services/apiserver/internal/strategy/validation"
)

// request returns a key and a signing request of it, in PEM and base64.
func request(t testing.TB) (*ecdsa.PrivateKey, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "x"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return key, base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func TestMessagesOfPolicyKinds(t *testing.T) {
	s := newServer(t)
	_, csr := request(t)
	const reject = `limited: {limitResponse: {type: Reject}}`
	claim := func(devices string) string { return `spec: {devices: {` + devices + `}}` }
	slice := func(spec string) string {
		return `spec: {driver: d.example.com, pool: {name: p, generation: 1, resourceSliceCount: 1}, ` + spec + `}`
	}
	for name, c := range map[string]struct{ kind, document, want string }{
		"request":          {"csr", `spec: {request: ` + csr + `, signerName: example.com/s, usages: [client auth]}`, ``},
		"request's name":   {"csr", `{metadata: {name: "Any_Name:1"}, spec: {request: ` + csr + `, signerName: example.com/s, usages: [client auth]}}`, ``},
		"no request":       {"csr", `spec: {request: eA==, signerName: example.com/s, usages: [client auth]}`, `spec.request: Invalid value: "eA==": PEM block type must be CERTIFICATE REQUEST`},
		"no usages":        {"csr", `spec: {request: ` + csr + `, signerName: example.com/s}`, `spec.usages: Required value`},
		"usage twice":      {"csr", `spec: {request: ` + csr + `, signerName: example.com/s, usages: [any, any]}`, `spec.usages[1]: Duplicate value: "any"`},
		"odd usage":        {"csr", `spec: {request: ` + csr + `, signerName: example.com/s, usages: [fun]}`, `spec.usages[0]: Unsupported value: "fun": supported values: "any"…`},
		"signer":           {"csr", `spec: {request: ` + csr + `, signerName: signer, usages: [any]}`, `spec.signerName: Invalid value: "signer": must be a fully qualified domain and path of the form 'example.com/signer-name'`},
		"legacy signer":    {"csr", `spec: {request: ` + csr + `, signerName: kubernetes.io/legacy-unknown, usages: [any]}`, `spec.signerName: Invalid value: "kubernetes.io/legacy-unknown": the legacy signerName is not allowed via this API version`},
		"short life":       {"csr", `spec: {request: ` + csr + `, signerName: example.com/s, usages: [any], expirationSeconds: 5}`, `spec.expirationSeconds: Invalid value: 5: may not specify a duration less than 600 seconds (10 minutes)`},
		"runtime class":    {"runtimeclass", `{handler: "", overhead: {podFixed: {cpu: -1}}, scheduling: {tolerations: [{operator: Equal}]}}`, "handler: Invalid value: \"\": a lowercase RFC 1123 label…\noverhead.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0\nscheduling.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which means \"match all values and all keys\""},
		"no level":         {"flowschema", `spec: {matchingPrecedence: 1}`, "spec.matchingPrecedence: Invalid value: 1: only the schema named 'exempt' may have matchingPrecedence 1\nspec.priorityLevelConfiguration.name: Required value: must reference a priority level"},
		"precedence":       {"flowschema", `spec: {matchingPrecedence: 10001, priorityLevelConfiguration: {name: l}}`, `spec.matchingPrecedence: Invalid value: 10001: must not be greater than 10000`},
		"rule of nobody":   {"flowschema", `spec: {priorityLevelConfiguration: {name: l}, rules: [{}]}`, "spec.rules[0].subjects: Required value: subjects must contain at least one value\nspec.rules[0]: Required value: at least one of resourceRules and nonResourceRules has to be non-empty"},
		"subject":          {"flowschema", `spec: {priorityLevelConfiguration: {name: l}, rules: [{subjects: [{kind: User, group: {name: g}}], nonResourceRules: [{verbs: ["*"], nonResourceURLs: [x]}]}]}`, "spec.rules[0].subjects[0].user: Required value: user is required when subject kind is 'User'\nspec.rules[0].subjects[0].group: Forbidden: group is forbidden when subject kind is not 'Group'\nspec.rules[0].nonResourceRules[0].nonResourceURLs[0]: Invalid value: \"x\": must start with slash"},
		"resource rule":    {"flowschema", `spec: {priorityLevelConfiguration: {name: l}, rules: [{subjects: [{kind: User, user: {name: u}}], resourceRules: [{verbs: [get, "*"], apiGroups: [""], resources: [pods]}]}]}`, "spec.rules[0].resourceRules[0].verbs: Invalid value: [\"get\",\"*\"]: if '*' is present, must not specify other verbs\nspec.rules[0].resourceRules[0].namespaces: Required value: resource rules that are not cluster scoped must supply at least one namespace"},
		"fixed schema":     {"flowschema", `{metadata: {name: exempt}, spec: {matchingPrecedence: 1, priorityLevelConfiguration: {name: exempt}}}`, `spec: Invalid value: …`},
		"exempt":           {"prioritylevelconfiguration", `spec: {type: Exempt}`, `spec.type: Invalid value: "Exempt": type must be 'Exempt' if and only if name is 'exempt'`},
		"level":            {"prioritylevelconfiguration", `spec: {type: Limited, ` + reject + `}`, ``},
		"limits missing":   {"prioritylevelconfiguration", `spec: {type: Limited}`, `spec.limited: Required value: must not be empty when type is Limited`},
		"queues missing":   {"prioritylevelconfiguration", `spec: {type: Limited, limited: {limitResponse: {type: Queue}}}`, `spec.limited.limitResponse.queuing: Required value: must not be empty if limited.limitResponse.type is Limited`},
		"hand":             {"prioritylevelconfiguration", `spec: {type: Limited, limited: {limitResponse: {type: Queue, queuing: {queues: 4}}}}`, `spec.limited.limitResponse.queuing.handSize: Invalid value: 8: should not be greater than queues (4)`},
		"too much entropy": {"prioritylevelconfiguration", `spec: {type: Limited, limited: {limitResponse: {type: Queue, queuing: {queues: 512, handSize: 8}}}}`, `spec.limited.limitResponse.queuing.handSize: Invalid value: 8: required entropy bits of deckSize 512 and handSize 8 should not be greater than 60`},
		"lendable":         {"prioritylevelconfiguration", `spec: {type: Limited, limited: {lendablePercent: 101, limitResponse: {type: Reject}}}`, `spec.limited.lendablePercent: Invalid value: 101: must be between 0 and 100, inclusive`},
		"fixed level":      {"prioritylevelconfiguration", `{metadata: {name: catch-all}, spec: {type: Limited, ` + reject + `}}`, `spec: Invalid value: …`},

		"claim of nothing":  {"resourceclaim", claim(`requests: [{name: r}]`), "spec.devices.requests[0]: Required value: exactly one of `exactly` or `firstAvailable` is required"},
		"claim's class":     {"resourceclaim", claim(`requests: [{name: r, exactly: {selectors: [{}]}}]`), "spec.devices.requests[0].exactly.deviceClassName: Required value\nspec.devices.requests[0].exactly.selectors[0].cel: Required value"},
		"all, counted":      {"resourceclaim", claim(`requests: [{name: r, exactly: {deviceClassName: c, allocationMode: All, count: 2}}]`), `spec.devices.requests[0].exactly.count: Invalid value: 2: must not be specified when allocationMode is 'All'`},
		"mode":              {"resourceclaim", claim(`requests: [{name: r, exactly: {deviceClassName: c, allocationMode: Some}}]`), `spec.devices.requests[0].exactly.allocationMode: Unsupported value: "Some": supported values: "All", "ExactCount"`},
		"constraint":        {"resourceclaim", claim(`requests: [{name: r, exactly: {deviceClassName: c}}], constraints: [{requests: [s], matchAttribute: model}]`), "spec.devices.constraints[0].requests[0]: Invalid value: \"s\": must be the name of a request in the claim or the name of a request and a subrequest separated by '/'\nspec.devices.constraints[0].matchAttribute: Invalid value: \"model\": must include a domain"},
		"subrequest":        {"resourceclaim", claim(`requests: [{name: r, firstAvailable: [{name: a, deviceClassName: c}]}], constraints: [{requests: [r/a], matchAttribute: example.com/model}]`), ``},
		"parameters":        {"resourceclaim", claim(`config: [{opaque: {driver: d.example.com, parameters: [1]}}]`), `spec.devices.config[0].opaque.parameters: Invalid value: "<value omitted>": must be a valid JSON object`},
		"template":          {"resourceclaimtemplate", `spec: {metadata: {name: x}, spec: {devices: {requests: [{name: r, exactly: {deviceClassName: c}}]}}}`, `spec.metadata.name: Forbidden: not allowed`},
		"class":             {"deviceclass", `spec: {config: [{}]}`, `spec.config[0].opaque: Required value`},
		"slice of nowhere":  {"resourceslice", slice(`devices: []`), "spec: Required value: exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required"},
		"slice everywhere":  {"resourceslice", slice(`nodeName: node, allNodes: true`), "spec: Invalid value: null: exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required, but multiple fields are set"},
		"device twice":      {"resourceslice", slice(`nodeName: node, devices: [{name: a}, {name: a}]`), `spec.devices[1].name: Duplicate value: "a"`},
		"device attributes": {"resourceslice", slice(`nodeName: node, devices: [{name: a, attributes: {a: {}, b: {version: "1"}, c: {int: 1}}}]`), "spec.devices[0].attributes[a]: Required value: exactly one value must be specified\nspec.devices[0].attributes[b].version: Invalid value: \"1\": must be a string compatible with semver.org spec 2.0.0"},
		"device taint":      {"resourceslice", slice(`nodeName: node, devices: [{name: a, taints: [{key: k, effect: Maybe}]}]`), `spec.devices[0].taints[0].effect: Unsupported value: "Maybe": supported values: "NoExecute", "NoSchedule", "None"`},
	} {
		t.Run(name, func(t *testing.T) {
			_, errs, err := s.in(t).create(c.kind, c.document)
			if err != nil {
				t.Fatal(err)
			}
			want(t, errs, c.want)
		})
	}
}

func TestChangesOfPolicyKinds(t *testing.T) {
	s := newServer(t)
	_, csr := request(t)
	const claim = `spec: {devices: {requests: [{name: r, exactly: {deviceClassName: `
	for name, c := range map[string]struct{ kind, from, to, want string }{
		"request stays":  {"csr", `spec: {request: ` + csr + `, signerName: example.com/s, usages: [any]}`, `spec: {request: eA==, signerName: example.com/t}`, ``},
		"handler":        {"runtimeclass", `handler: a`, `handler: b`, `handler: Invalid value: "b": field is immutable`},
		"claim":          {"resourceclaim", claim + `c}}]}}`, claim + `d}}]}}`, `spec: Invalid value: …`},
		"claim labelled": {"resourceclaim", claim + `c}}]}}`, `{metadata: {labels: {a: b}}, ` + claim + `c}}]}}}`, ``},
		"driver":         {"resourceslice", `spec: {driver: d, nodeName: node, pool: {name: p, resourceSliceCount: 1}}`, `spec: {driver: e, nodeName: node, pool: {name: p, resourceSliceCount: 1}}`, `spec.driver: Invalid value: "e": field is immutable`},
	} {
		t.Run(name, func(t *testing.T) {
			_, errs := s.in(t).update(c.kind, c.from, c.to)
			want(t, errs, c.want)
		})
	}
}

func TestDefaultsOfPolicyKinds(t *testing.T) {
	s := newServer(t)
	for name, c := range map[string]struct{ kind, document, want string }{
		"schema": {"flowschema", `spec: {priorityLevelConfiguration: {name: l}}`, `spec: {matchingPrecedence: 1000, priorityLevelConfiguration: {name: l}}`},
		"level": {"prioritylevelconfiguration", `spec: {type: Limited, limited: {limitResponse: {type: Queue, queuing: {}}}}`,
			`spec: {type: Limited, limited: {nominalConcurrencyShares: 30, lendablePercent: 0, limitResponse: {type: Queue, queuing: {queues: 64, handSize: 8, queueLengthLimit: 50}}}}`},
		"no share": {"prioritylevelconfiguration", `spec: {type: Limited, limited: {nominalConcurrencyShares: 0, limitResponse: {type: Reject}}}`,
			`spec: {type: Limited, limited: {nominalConcurrencyShares: 0, lendablePercent: 0, limitResponse: {type: Reject}}}`},
		"exempt": {"prioritylevelconfiguration", `{metadata: {name: exempt}, spec: {type: Exempt}}`, `spec: {type: Exempt, exempt: {nominalConcurrencyShares: 0, lendablePercent: 0}}`},
		"claim": {"resourceclaim", `spec: {devices: {requests: [{name: r, exactly: {deviceClassName: c, tolerations: [{key: k}]}}, {name: s, firstAvailable: [{name: a, deviceClassName: c, allocationMode: All}]}]}}`,
			`spec: {devices: {requests: [{name: r, exactly: {deviceClassName: c, allocationMode: ExactCount, count: 1, tolerations: [{key: k, operator: Equal}]}}, {name: s, firstAvailable: [{name: a, deviceClassName: c, allocationMode: All}]}]}}`},
	} {
		t.Run(name, func(t *testing.T) {
			s := s.in(t)
			obj, errs, err := s.create(c.kind, c.document)
			if err != nil || len(errs) > 0 {
				t.Fatal(err, errs)
			}
			var expected map[string]any
			if err := yaml.Unmarshal([]byte(c.want), &expected); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(expected, s.shown(obj)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestWhoAsks: a request is in the caller's name, whatever it says.
func TestWhoAsks(t *testing.T) {
	s := newServer(t)
	_, csr := request(t)
	res, obj := s.decode("csr", `spec: {request: `+csr+`, signerName: example.com/s, usages: [any], username: root, groups: [system:masters], extra: {a: [b]}}`)
	ctx := identity.NewContext(t.Context(), identity.Identity{Name: "ann", UID: "7", Groups: []string{"dev"}, Extra: map[string][]string{"k": {"v"}}})
	if err := s.set.For(res).(strategy.Admitter).Admit(ctx, obj, nil); err != nil {
		t.Fatal(err)
	}
	spec := obj.(*certificatesv1.CertificateSigningRequest).Spec
	if spec.Username != "ann" || spec.UID != "7" || len(spec.Groups) != 1 || spec.Groups[0] != "dev" || len(spec.Extra) != 1 || spec.Extra["k"][0] != "v" {
		t.Errorf("%+v", spec)
	}
}

// TestSigning: signers write certificates and failures, decisions come by approval, and both stay.
func TestSigning(t *testing.T) {
	key, text := request(t)
	data, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Unix(4e9, 0)},
		&x509.Certificate{SerialNumber: big.NewInt(1)}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	issued := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	type condition = certificatesv1.CertificateSigningRequestCondition
	approved, denied := condition{Type: certificatesv1.CertificateApproved, Status: "True"}, condition{Type: certificatesv1.CertificateDenied, Status: "True"}
	failed := condition{Type: certificatesv1.CertificateFailed, Status: "True"}
	csr := func(certificate []byte, conditions ...condition) *certificatesv1.CertificateSigningRequest {
		return &certificatesv1.CertificateSigningRequest{
			Spec:   certificatesv1.CertificateSigningRequestSpec{Request: data},
			Status: certificatesv1.CertificateSigningRequestStatus{Certificate: certificate, Conditions: conditions},
		}
	}
	for name, c := range map[string]struct {
		is, was        *certificatesv1.CertificateSigningRequest
		sign, decision string
	}{
		"signed":           {csr(issued, approved), csr(nil, approved), ``, `status.certificate: Forbidden: updates may not set certificate content`},
		"signed with text": {csr([]byte("x"), approved), csr(nil, approved), `status.certificate: Invalid value: "<certificate data>": must contain one or more PEM blocks`, `status.certificate: Forbidden: updates may not set certificate content`},
		"signed again":     {csr(append(issued, issued...), approved), csr(issued, approved), `status.certificate: Forbidden: updates may not modify existing certificate content`, `status.certificate: Forbidden: updates may not set certificate content`},
		"approved":         {csr(nil, approved), csr(nil), `status.conditions: Forbidden: updates may not add a condition of type "Approved"`, ``},
		"both":             {csr(nil, approved, denied), csr(nil, approved), "status.conditions[1].type: Invalid value: \"Denied\": Approved and Denied conditions are mutually exclusive\nstatus.conditions: Forbidden: updates may not add a condition of type \"Denied\"", `status.conditions[1].type: Invalid value: "Denied": Approved and Denied conditions are mutually exclusive`},
		"taken back":       {csr(nil), csr(nil, denied), `status.conditions: Forbidden: updates may not remove a condition of type "Denied"`, `status.conditions: Forbidden: updates may not remove a condition of type "Denied"`},
		"failed":           {csr(nil, approved, failed), csr(nil, approved), ``, ``},
		"not really":       {csr(nil, condition{Type: certificatesv1.CertificateFailed, Status: "False"}), csr(nil), `status.conditions[0].status: Unsupported value: "False": supported values: "True"`, `status.conditions[0].status: Unsupported value: "False": supported values: "True"`},
	} {
		t.Run(name, func(t *testing.T) {
			want(t, validation.CertificateSigningRequestStatusUpdate(c.is, c.was), c.sign)
			want(t, validation.CertificateSigningRequestApprovalUpdate(c.is, c.was), c.decision)
		})
	}
}
