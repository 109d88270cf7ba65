package policy_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dhow.dev/pkg/identity"
	"dhow.dev/services/apiserver/internal/authorizer"
	"dhow.dev/services/apiserver/internal/authorizer/policy"
)

// ask is a line of the tables below: `verb group/resource[/subresource][ name]`, or `verb /path`; the core group is written core.
func ask(t *testing.T, line string) authorizer.Attributes {
	t.Helper()
	words := strings.Fields(line)
	if len(words) < 2 {
		t.Fatalf("%q is no question", line)
	}
	if strings.HasPrefix(words[1], "/") {
		return authorizer.Attributes{Verb: words[0], Path: words[1]}
	}
	parts := strings.Split(words[1], "/")
	a := authorizer.Attributes{Verb: words[0], Group: parts[0], Resource: parts[1], Namespace: "shop"}
	if a.Group == "core" {
		a.Group = ""
	}
	if len(parts) > 2 {
		a.Subresource = parts[2]
	}
	if len(words) > 2 {
		a.Name = words[2]
	}
	return a
}

// roleTable says of each role what Kubernetes' bootstrap policy lets those do who have it, and what it does not. The facts are those of
// plugin/pkg/auth/authorizer/rbac/bootstrappolicy of Kubernetes v1.36 (as of the change that added leasecandidates to it). Roles that are filled
// from others stand for their parts. What a role may not do is what would be noticed last if it could.
var roleTable = map[string]struct{ may, mayNot []string }{
	"cluster-admin": {may: []string{"delete core/secrets", "approve certificates.k8s.io/signers", "delete /anything"}},
	"view": {
		may: []string{
			"get core/pods", "list core/pods/log", "watch core/configmaps", "get core/services/status", "list core/resourcequotas", "get core/persistentvolumeclaims/status", "list apps/controllerrevisions",
			"get apps/deployments/scale", "list batch/cronjobs", "get autoscaling/horizontalpodautoscalers/status", "list discovery.k8s.io/endpointslices", "get policy/poddisruptionbudgets/status",
			"list networking.k8s.io/networkpolicies", "get resource.k8s.io/resourceclaims/status", "list core/namespaces", "get core/bindings", "list core/serviceaccounts", "list core/endpoints",
		},
		mayNot: []string{
			"get core/secrets", "list core/secrets", "create core/pods", "get core/pods/exec", "create core/pods/exec", "get core/pods/attach", "get core/pods/portforward", "get core/pods/proxy", "get core/services/proxy",
			"create core/serviceaccounts/token", "list rbac.authorization.k8s.io/roles", "get core/nodes", "list core/persistentvolumes", "impersonate core/serviceaccounts", "list coordination.k8s.io/leases", "delete core/pods",
		},
	},
	"edit": {
		may: []string{
			"get core/pods", "get core/secrets", "create core/secrets", "create core/pods/exec", "get core/pods/portforward", "create core/pods/eviction", "create core/serviceaccounts/token", "impersonate core/serviceaccounts",
			"patch apps/statefulsets/scale", "create apps/deployments/rollback", "deletecollection batch/jobs", "update autoscaling/horizontalpodautoscalers", "delete policy/poddisruptionbudgets", "create networking.k8s.io/ingresses",
			"list coordination.k8s.io/leases", "create coordination.k8s.io/leases", "create resource.k8s.io/resourceclaimtemplates", "create core/events", "update core/replicationcontrollers/scale", "create core/services/proxy",
		},
		mayNot: []string{
			"create core/endpoints", "create discovery.k8s.io/endpointslices", "update core/pods/status", "create core/bindings", "create core/pods/binding", "create core/resourcequotas", "update core/limitranges", "create core/namespaces",
			"create rbac.authorization.k8s.io/roles", "list rbac.authorization.k8s.io/rolebindings", "create authorization.k8s.io/localsubjectaccessreviews", "update apps/deployments/status", "delete core/namespaces",
			"update core/pods/ephemeralcontainers", "patch core/pods/resize", "create core/persistentvolumes",
		},
	},
	"admin": {
		may: []string{
			"get core/secrets", "create core/pods", "create rbac.authorization.k8s.io/rolebindings", "delete rbac.authorization.k8s.io/roles", "watch rbac.authorization.k8s.io/roles", "create authorization.k8s.io/localsubjectaccessreviews",
		},
		mayNot: []string{
			"create rbac.authorization.k8s.io/clusterroles", "escalate rbac.authorization.k8s.io/roles", "bind rbac.authorization.k8s.io/roles", "update core/resourcequotas", "delete core/namespaces", "update core/namespaces",
			"create authorization.k8s.io/subjectaccessreviews", "get core/nodes", "impersonate core/users", "create core/endpoints",
		},
	},
	"system:discovery":                        {may: []string{"get /api", "get /api/v1", "get /apis/apps", "get /openapi/v3", "get /version/", "get /livez"}, mayNot: []string{"get /metrics", "get /livez/etcd", "get /logs", "post /api", "get /openid/v1/jwks"}},
	"system:public-info-viewer":               {may: []string{"get /version", "get /healthz"}, mayNot: []string{"get /api", "get /openapi/v2", "get /healthz/ping"}},
	"system:monitoring":                       {may: []string{"get /metrics", "get /metrics/slis", "get /livez/ping", "get /readyz"}, mayNot: []string{"get /metrics/cadvisor", "get /debug/pprof"}},
	"system:service-account-issuer-discovery": {may: []string{"get /.well-known/openid-configuration", "get /openid/v1/jwks"}, mayNot: []string{"get /.well-known/x"}},
	"system:basic-user": {
		may:    []string{"create authorization.k8s.io/selfsubjectaccessreviews", "create authorization.k8s.io/selfsubjectrulesreviews", "create authentication.k8s.io/selfsubjectreviews"},
		mayNot: []string{"create authorization.k8s.io/subjectaccessreviews", "create authentication.k8s.io/tokenreviews"},
	},
	"system:auth-delegator":  {may: []string{"create authentication.k8s.io/tokenreviews", "create authorization.k8s.io/subjectaccessreviews"}, mayNot: []string{"create authorization.k8s.io/localsubjectaccessreviews", "get core/configmaps"}},
	"system:kube-aggregator": {may: []string{"watch core/services", "list core/endpoints"}, mayNot: []string{"update core/services"}},
	"system:kubelet-api-admin": {
		may:    []string{"get core/nodes", "proxy core/nodes", "create core/nodes/proxy", "get core/nodes/metrics", "get core/nodes/stats", "get core/nodes/log"},
		mayNot: []string{"update core/nodes", "delete core/nodes", "update core/nodes/status"},
	},
	"system:node-bootstrapper":             {may: []string{"create certificates.k8s.io/certificatesigningrequests", "watch certificates.k8s.io/certificatesigningrequests"}, mayNot: []string{"delete certificates.k8s.io/certificatesigningrequests", "create certificates.k8s.io/certificatesigningrequests/nodeclient", "get core/nodes"}},
	"system:node-problem-detector":         {may: []string{"get core/nodes", "patch core/nodes/status", "create core/events"}, mayNot: []string{"update core/nodes/status", "list core/nodes"}},
	"system:node-proxier":                  {may: []string{"watch core/services", "watch discovery.k8s.io/endpointslices", "get core/nodes", "list networking.k8s.io/servicecidrs"}, mayNot: []string{"get core/services", "update core/services"}},
	"system:kube-dns":                      {may: []string{"list core/services", "watch core/endpoints"}, mayNot: []string{"get core/services"}},
	"system:persistent-volume-provisioner": {may: []string{"create core/persistentvolumes", "update core/persistentvolumeclaims", "watch core/events", "create core/events"}, mayNot: []string{"update core/persistentvolumes", "get core/secrets"}},
	"system:volume-scheduler":              {may: []string{"update core/persistentvolumes", "patch core/persistentvolumeclaims", "list storage.k8s.io/storageclasses"}, mayNot: []string{"create core/persistentvolumes", "delete core/persistentvolumeclaims"}},
	"system:node": {
		may: []string{
			"create core/nodes", "patch core/nodes/status", "create core/pods", "update core/pods/status", "create core/pods/eviction", "watch core/secrets", "create core/serviceaccounts/token", "update core/persistentvolumeclaims/status",
			"delete storage.k8s.io/csinodes", "get storage.k8s.io/volumeattachments", "watch node.k8s.io/runtimeclasses", "get resource.k8s.io/resourceclaims", "deletecollection resource.k8s.io/resourceslices", "create certificates.k8s.io/certificatesigningrequests",
		},
		mayNot: []string{"delete core/nodes", "update core/pods", "update core/secrets", "list core/persistentvolumes", "list resource.k8s.io/resourceclaims", "update core/persistentvolumeclaims"},
	},
	"system:kube-scheduler": {
		may: []string{
			"create core/pods/binding", "create core/bindings", "patch core/pods/status", "delete core/pods", "watch storage.k8s.io/csistoragecapacities", "create coordination.k8s.io/leases", "update coordination.k8s.io/leases kube-scheduler",
			"patch resource.k8s.io/resourceclaims/status", "list policy/poddisruptionbudgets", "create authentication.k8s.io/tokenreviews",
		},
		mayNot: []string{"create core/pods", "update coordination.k8s.io/leases kube-controller-manager", "get core/secrets", "update core/nodes"},
	},
	"system:kube-controller-manager": {
		may:    []string{"list example.com/widgets", "update core/secrets", "create core/serviceaccounts", "create core/serviceaccounts/token", "update coordination.k8s.io/leases kube-controller-manager", "get core/configmaps"},
		mayNot: []string{"create core/pods", "delete core/pods", "get core/pods", "update coordination.k8s.io/leases kube-scheduler", "delete core/serviceaccounts"},
	},
	"system:certificates.k8s.io:certificatesigningrequests:nodeclient":     {may: []string{"create certificates.k8s.io/certificatesigningrequests/nodeclient"}, mayNot: []string{"create certificates.k8s.io/certificatesigningrequests/selfnodeclient", "create certificates.k8s.io/certificatesigningrequests"}},
	"system:certificates.k8s.io:certificatesigningrequests:selfnodeclient": {may: []string{"create certificates.k8s.io/certificatesigningrequests/selfnodeclient"}, mayNot: []string{"create certificates.k8s.io/certificatesigningrequests/nodeclient"}},
	"system:certificates.k8s.io:kubelet-serving-approver":                  {may: []string{"approve certificates.k8s.io/signers kubernetes.io/kubelet-serving"}, mayNot: []string{"approve certificates.k8s.io/signers kubernetes.io/kube-apiserver-client", "sign certificates.k8s.io/signers kubernetes.io/kubelet-serving"}},
	"system:controller:attachdetach-controller":                            {may: []string{"list core/persistentvolumes", "update core/nodes/status", "create storage.k8s.io/volumeattachments", "get storage.k8s.io/csidrivers"}, mayNot: []string{"get core/persistentvolumes", "update core/pods", "update storage.k8s.io/volumeattachments"}},
	"system:controller:certificate-controller":                             {may: []string{"approve certificates.k8s.io/signers kubernetes.io/kube-apiserver-client-kubelet", "sign certificates.k8s.io/signers kubernetes.io/kubelet-serving", "update certificates.k8s.io/certificatesigningrequests/approval", "create authorization.k8s.io/subjectaccessreviews"}, mayNot: []string{"approve certificates.k8s.io/signers kubernetes.io/kubelet-serving", "create certificates.k8s.io/certificatesigningrequests"}},
	"system:controller:cronjob-controller":                                 {may: []string{"update batch/cronjobs/status", "create batch/jobs", "watch core/pods", "delete core/pods"}, mayNot: []string{"create core/pods", "delete batch/cronjobs"}},
	"system:controller:daemon-set-controller":                              {may: []string{"create core/pods", "create apps/controllerrevisions", "update apps/daemonsets/status", "watch core/nodes"}, mayNot: []string{"update apps/daemonsets", "update core/nodes"}},
	"system:controller:endpoint-controller":                                {may: []string{"watch core/endpoints", "create core/endpoints/restricted"}, mayNot: []string{"update core/services"}},
	"system:controller:ephemeral-volume-controller":                        {may: []string{"create core/persistentvolumeclaims", "update core/pods/finalizers"}, mayNot: []string{"delete core/persistentvolumeclaims"}},
	"system:controller:expand-controller":                                  {may: []string{"patch core/persistentvolumes", "update core/persistentvolumeclaims/status"}, mayNot: []string{"get core/secrets", "update core/persistentvolumeclaims"}},
	"system:controller:horizontal-pod-autoscaler":                          {may: []string{"update apps/deployments/scale", "list metrics.k8s.io/pods", "get custom.metrics.k8s.io/anything", "update autoscaling/horizontalpodautoscalers/status"}, mayNot: []string{"update apps/deployments", "update autoscaling/horizontalpodautoscalers"}},
	"system:controller:job-controller":                                     {may: []string{"patch batch/jobs", "update batch/jobs/status", "create core/pods", "patch core/pods"}, mayNot: []string{"create batch/jobs", "update core/pods"}},
	"system:controller:persistent-volume-binder":                           {may: []string{"create core/persistentvolumes", "update core/persistentvolumeclaims/status", "watch core/nodes", "watch core/events"}, mayNot: []string{"get core/secrets", "create core/endpoints", "get core/nodes"}},
	"system:controller:pod-garbage-collector":                              {may: []string{"delete core/pods", "watch core/nodes", "patch core/pods/status"}, mayNot: []string{"delete core/nodes"}},
	"system:controller:selinux-warning-controller":                         {may: []string{"list core/pods", "get storage.k8s.io/csidrivers"}, mayNot: []string{"update core/pods"}},
	"system:controller:statefulset-controller":                             {may: []string{"create core/pods", "update core/pods/finalizers", "create core/persistentvolumeclaims", "delete core/persistentvolumeclaims", "update apps/statefulsets/status"}, mayNot: []string{"update apps/statefulsets", "patch core/persistentvolumeclaims"}},
	"system:controller:ttl-after-finished-controller":                      {may: []string{"delete batch/jobs", "watch batch/jobs"}, mayNot: []string{"create batch/jobs", "update batch/jobs", "delete core/pods"}},
	"system:controller:replicaset-controller":                              {may: []string{"create core/pods", "update apps/replicasets/status"}, mayNot: []string{"create core/secrets", "update core/pods"}},
	"system:controller:service-account-controller":                         {may: []string{"create core/serviceaccounts"}, mayNot: []string{"delete core/serviceaccounts", "create core/secrets"}},
	"system:controller:root-ca-cert-publisher":                             {may: []string{"create core/configmaps", "update core/configmaps"}, mayNot: []string{"delete core/configmaps"}},
	"system:controller:namespace-controller":                               {may: []string{"deletecollection example.com/widgets", "update core/namespaces/finalize"}, mayNot: []string{"create core/namespaces", "update core/pods"}},
	"system:controller:generic-garbage-collector":                          {may: []string{"delete example.com/widgets", "patch core/pods"}, mayNot: []string{"create core/pods"}},
}

// parts are the roles that fill a role: those with the label of its aggregation, and theirs.
func parts(role string) []string {
	all := []string{role}
	for _, r := range policy.ClusterRoles() {
		if r.Labels["rbac.authorization.k8s.io/aggregate-to-"+role] == "true" {
			all = append(all, parts(r.Name)...)
		}
	}
	return all
}

// TestRolesAllowWhatKubernetesAllows asks the authorizer as somebody who has one default role.
func TestRolesAllowWhatKubernetesAllows(t *testing.T) {
	c := newCluster(t)
	c.reconcile()
	var bound []string
	for role := range roleTable {
		for _, part := range parts(role) {
			name := fmt.Sprintf("%s--%s", role, part)
			bound = append(bound, name)
			c.create(bindings, &rbacv1.ClusterRoleBinding{
				ObjectMeta: metav1.ObjectMeta{Name: name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: part},
				Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: "who-has-" + role}},
			})
		}
	}
	roles := authorizer.New(authorizer.Config{Policies: authorizer.NewPolicies(c.cache, nil)})
	check := func(ctx context.Context, role, line string, want bool) {
		t.Helper()
		a := ask(t, line)
		a.User = identity.Identity{Name: "who-has-" + role}
		if decision, err := roles.Decide(ctx, a); err != nil || decision.Allowed != want {
			t.Errorf("%s: %s: %+v, %v, want allowed=%v", role, line, decision, err, want)
		}
	}
	for role, table := range roleTable {
		for _, line := range table.may {
			check(t.Context(), role, line, true)
		}
		for _, line := range table.mayNot {
			check(t.Context(), role, line, false)
		}
	}
	if len(bound) < len(roleTable) || !slices.Contains(bound, "admin--system:aggregate-to-view") {
		t.Errorf("not all roles were bound: %v", bound)
	}
}

// TestBindings: everybody gets what Kubernetes gives to all, and nothing more; the controllers' accounts have their roles.
func TestBindings(t *testing.T) {
	subjects := map[string]string{}
	for _, b := range policy.ClusterRoleBindings() {
		var all []string
		for _, s := range b.Subjects {
			all = append(all, strings.TrimPrefix(s.Namespace+"/"+s.Name, "/"))
		}
		subjects[b.Name] = strings.Join(all, " ")
		if b.Name != b.RoleRef.Name {
			t.Errorf("%s binds %s", b.Name, b.RoleRef.Name)
		}
	}
	for name, want := range map[string]string{
		"cluster-admin": "system:masters", "system:basic-user": "system:authenticated", "system:discovery": "system:authenticated", "system:monitoring": "system:monitoring",
		"system:public-info-viewer": "system:authenticated system:unauthenticated", "system:node": "", "system:node-proxier": "system:kube-proxy", "system:kube-dns": "kube-system/kube-dns",
		"system:kube-scheduler": "system:kube-scheduler", "system:volume-scheduler": "system:kube-scheduler", "system:kube-controller-manager": "system:kube-controller-manager",
		"system:service-account-issuer-discovery": "system:serviceaccounts",
	} {
		if got, ok := subjects[name]; !ok || got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
		delete(subjects, name)
	}
	for name, got := range subjects {
		if account, ok := strings.CutPrefix(name, "system:controller:"); !ok || got != "kube-system/"+account {
			t.Errorf("%s: %q", name, got)
		}
	}
}
