package policy

import (
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dhow.dev/pkg/identity"
)

const (
	look   = "get list watch"
	change = "create delete deletecollection patch update"
	every  = "create delete deletecollection get list patch update watch"
)

// event lets components report.
func event() rbacv1.PolicyRule { return on("create patch update", "core events.k8s.io", "events") }

// review lets servers ask who somebody is and what he may do.
func review() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{on("create", "authentication.k8s.io", "tokenreviews"), on("create", "authorization.k8s.io", "subjectaccessreviews")}
}

// ClusterRoles returns the default ClusterRoles, those of controllers included.
func ClusterRoles() []*rbacv1.ClusterRole {
	all := []*rbacv1.ClusterRole{
		clusterRole("cluster-admin", on("*", "*", "*"), rbacv1.PolicyRule{Verbs: []string{"*"}, NonResourceURLs: []string{"*"}}),
		clusterRole("system:discovery", get("/api /api/* /apis /apis/* /healthz /livez /openapi /openapi/* /readyz /version /version/")),
		clusterRole("system:monitoring", get("/healthz /healthz/* /livez /livez/* /metrics /metrics/slis /readyz /readyz/*")),
		clusterRole("system:public-info-viewer", get("/healthz /livez /readyz /version /version/")),
		clusterRole("system:basic-user",
			on("create", "authorization.k8s.io", "selfsubjectaccessreviews selfsubjectrulesreviews"), on("create", "authentication.k8s.io", "selfsubjectreviews")),
		clusterRole("system:service-account-issuer-discovery", get("/.well-known/openid-configuration /.well-known/openid-configuration/ /openid/v1/jwks /openid/v1/jwks/")),
		clusterRole("system:auth-delegator", review()...),
		clusterRole("system:kube-aggregator", on(look, "core", "endpoints services")),
		clusterRole("system:heapster", on(look, "core", "events namespaces nodes pods"), on(look, "extensions", "deployments")),
		clusterRole("system:kubelet-api-admin",
			on(look, "core", "nodes"), on("proxy", "core", "nodes"),
			on("*", "core", "nodes/checkpoint nodes/configz nodes/healthz nodes/log nodes/metrics nodes/pods nodes/proxy nodes/stats")),
		clusterRole("system:node-bootstrapper", on("create get list watch", "certificates.k8s.io", "certificatesigningrequests")),
		clusterRole("system:node-problem-detector", on("get", "core", "nodes"), on("patch", "core", "nodes/status"), event()),
		clusterRole("system:node-proxier",
			on("list watch", "core", "endpoints services"), on(look, "core", "nodes"), event(), on("list watch", "discovery.k8s.io", "endpointslices"),
			on("list watch", "networking.k8s.io", "servicecidrs")),
		clusterRole("system:kube-dns", on("list watch", "core", "endpoints services")),
		clusterRole("system:persistent-volume-provisioner",
			on("create delete get list watch", "core", "persistentvolumes"), on("get list update watch", "core", "persistentvolumeclaims"),
			on(look, "storage.k8s.io", "storageclasses"), on("watch", "core", "events"), event()),
		clusterRole("system:volume-scheduler",
			on("get list patch update watch", "core", "persistentvolumes"), on(look, "storage.k8s.io", "storageclasses"),
			on("get list patch update watch", "core", "persistentvolumeclaims")),
		node(), scheduler(), controllerManager(),
	}
	for _, kind := range []string{"nodeclient", "selfnodeclient"} {
		all = append(all, clusterRole("system:certificates.k8s.io:certificatesigningrequests:"+kind, on("create", "certificates.k8s.io", "certificatesigningrequests/"+kind)))
	}
	for role, signer := range map[string]string{
		"kube-apiserver-client-approver": "kubernetes.io/kube-apiserver-client", "kube-apiserver-client-kubelet-approver": "kubernetes.io/kube-apiserver-client-kubelet",
		"kubelet-serving-approver": "kubernetes.io/kubelet-serving", "legacy-unknown-approver": "kubernetes.io/legacy-unknown",
	} {
		all = append(all, clusterRole("system:certificates.k8s.io:"+role, only(on("approve", "certificates.k8s.io", "signers"), signer)))
	}
	all = append(all, userRoles()...)
	for _, c := range controllers() {
		all = append(all, clusterRole(controllerPrefix+c.name, c.rules...))
	}
	return all
}

// userRoles are what people bind: each of view, edit and admin is filled from its parts, to which others may add theirs by a label.
func userRoles() []*rbacv1.ClusterRole {
	return []*rbacv1.ClusterRole{
		whole("admin", ""), whole("edit", "admin"), whole("view", "edit"),
		part("admin", "system:aggregate-to-admin",
			on("create", "authorization.k8s.io", "localsubjectaccessreviews"), on(every, "rbac.authorization.k8s.io", "rolebindings roles")),
		part("edit", "system:aggregate-to-edit",
			on(look, "core", "pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy"),
			on("impersonate", "core", "serviceaccounts"),
			on(change, "core", "pods pods/attach pods/exec pods/portforward pods/proxy"),
			on("create", "core", "pods/eviction"),
			on(change, "core", "configmaps events persistentvolumeclaims replicationcontrollers replicationcontrollers/scale secrets serviceaccounts services services/proxy"),
			on("create", "core", "serviceaccounts/token"),
			on(change, "apps", "daemonsets deployments deployments/rollback deployments/scale replicasets replicasets/scale statefulsets statefulsets/scale"),
			on(change, "autoscaling", "horizontalpodautoscalers"),
			on(change, "batch", "cronjobs jobs"),
			on(change, "extensions", "daemonsets deployments deployments/rollback deployments/scale ingresses networkpolicies replicasets replicasets/scale replicationcontrollers/scale"),
			on(change, "policy", "poddisruptionbudgets"),
			on(change, "networking.k8s.io", "ingresses networkpolicies"),
			on(every, "coordination.k8s.io", "leases"),
			on(change, "resource.k8s.io", "resourceclaims resourceclaimtemplates")),
		part("view", "system:aggregate-to-view",
			on(look, "core", "configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods replicationcontrollers replicationcontrollers/scale serviceaccounts services services/status"),
			on(look, "core", "bindings events limitranges namespaces/status pods/log pods/status replicationcontrollers/status resourcequotas resourcequotas/status"),
			on(look, "core", "namespaces"),
			on(look, "discovery.k8s.io", "endpointslices"),
			on(look, "apps", "controllerrevisions daemonsets daemonsets/status deployments deployments/scale deployments/status replicasets replicasets/scale replicasets/status statefulsets statefulsets/scale statefulsets/status"),
			on(look, "autoscaling", "horizontalpodautoscalers horizontalpodautoscalers/status"),
			on(look, "batch", "cronjobs cronjobs/status jobs jobs/status"),
			on(look, "extensions", "daemonsets daemonsets/status deployments deployments/scale deployments/status ingresses ingresses/status networkpolicies replicasets replicasets/scale replicasets/status replicationcontrollers/scale"),
			on(look, "policy", "poddisruptionbudgets poddisruptionbudgets/status"),
			on(look, "networking.k8s.io", "ingresses ingresses/status networkpolicies"),
			on(look, "resource.k8s.io", "resourceclaims resourceclaims/status resourceclaimtemplates")),
	}
}

func node() *rbacv1.ClusterRole {
	return clusterRole("system:node", append(review(),
		on("create", "authorization.k8s.io", "localsubjectaccessreviews"),
		on(look, "core", "services"), on("create get list watch", "core", "nodes"), on("patch update", "core", "nodes/status"), on("patch update", "core", "nodes"),
		event(), on(look, "core", "pods"), on("create delete", "core", "pods"), on("patch update", "core", "pods/status"), on("create", "core", "pods/eviction"),
		on(look, "core", "configmaps secrets"), on("get", "core", "persistentvolumeclaims persistentvolumes"), on("get", "core", "endpoints"),
		on("create get list watch", "certificates.k8s.io", "certificatesigningrequests"), on(look, "certificates.k8s.io", "clustertrustbundles"),
		on("create delete get patch update", "coordination.k8s.io", "leases"), on("get", "storage.k8s.io", "volumeattachments"),
		on("create", "core", "serviceaccounts/token"), on("get patch update", "core", "persistentvolumeclaims/status"),
		on(look, "storage.k8s.io", "csidrivers"), on("create delete get patch update", "storage.k8s.io", "csinodes"), on(look, "node.k8s.io", "runtimeclasses"),
		on("get", "resource.k8s.io", "resourceclaims"), on("create delete deletecollection get list patch update watch", "resource.k8s.io", "resourceslices"))...)
}

func scheduler() *rbacv1.ClusterRole {
	return clusterRole("system:kube-scheduler", append(review(),
		event(), on("create", "coordination.k8s.io", "leases"), only(on("get list update watch", "coordination.k8s.io", "leases"), identity.Scheduler[len("system:"):]),
		on(look, "core", "nodes"), on("delete get list watch", "core", "pods"), on("create", "core", "bindings pods/binding"), on("patch update", "core", "pods/status"),
		on(look, "core", "replicationcontrollers services"), on(look, "apps extensions", "replicasets"), on(look, "apps", "statefulsets"),
		on(look, "policy", "poddisruptionbudgets"), on(look, "core", "persistentvolumeclaims persistentvolumes"), on(look, "core", "namespaces"),
		on(look, "storage.k8s.io", "csinodes"), on(look, "storage.k8s.io", "csidrivers"), on(look, "storage.k8s.io", "csistoragecapacities"),
		on(look, "resource.k8s.io", "deviceclasses resourceclaims resourceslices"), on("patch update", "resource.k8s.io", "resourceclaims resourceclaims/status"))...)
}

func controllerManager() *rbacv1.ClusterRole {
	return clusterRole("system:kube-controller-manager", append(review(),
		event(), on("create", "coordination.k8s.io", "leases"), only(on("get update", "coordination.k8s.io", "leases"), identity.ControllerManager[len("system:"):]),
		on("create", "core", "secrets serviceaccounts"), on("delete", "core", "secrets"), on("get", "core", "configmaps namespaces secrets serviceaccounts"),
		on("update", "core", "secrets serviceaccounts"), on("list watch", "*", "*"), on("create", "core", "serviceaccounts/token"))...)
}

// ClusterRoleBindings returns the default ClusterRoleBindings. That of system:node binds nobody, as in Kubernetes: nodes are authorized one by one.
func ClusterRoleBindings() []*rbacv1.ClusterRoleBinding {
	everyone, nobody := group(identity.AllAuthenticated), group(identity.AllUnauthenticated)
	all := []*rbacv1.ClusterRoleBinding{
		clusterBinding("cluster-admin", "cluster-admin", group(identity.Masters)),
		clusterBinding("system:monitoring", "system:monitoring", group("system:monitoring")),
		clusterBinding("system:discovery", "system:discovery", everyone),
		clusterBinding("system:basic-user", "system:basic-user", everyone),
		clusterBinding("system:public-info-viewer", "system:public-info-viewer", everyone, nobody),
		clusterBinding("system:node-proxier", "system:node-proxier", user("system:kube-proxy")),
		clusterBinding("system:kube-controller-manager", "system:kube-controller-manager", user(identity.ControllerManager)),
		clusterBinding("system:kube-dns", "system:kube-dns", account(metav1.NamespaceSystem, "kube-dns")),
		clusterBinding("system:kube-scheduler", "system:kube-scheduler", user(identity.Scheduler)),
		clusterBinding("system:volume-scheduler", "system:volume-scheduler", user(identity.Scheduler)),
		clusterBinding("system:service-account-issuer-discovery", "system:service-account-issuer-discovery", group(identity.ServiceAccounts)),
		clusterBinding("system:node", "system:node"),
	}
	for _, c := range controllers() {
		all = append(all, clusterBinding(controllerPrefix+c.name, controllerPrefix+c.name, account(metav1.NamespaceSystem, c.name)))
	}
	return all
}

// Roles returns the default Roles.
func Roles() []*rbacv1.Role {
	return []*rbacv1.Role{
		namespaced(metav1.NamespaceSystem, "extension-apiserver-authentication-reader", only(on(look, "core", "configmaps"), "extension-apiserver-authentication")),
		namespaced(metav1.NamespaceSystem, "system:controller:bootstrap-signer", on(look, "core", "secrets")),
		namespaced(metav1.NamespaceSystem, "system:controller:cloud-provider", on("create get list watch", "core", "configmaps")),
		namespaced(metav1.NamespaceSystem, "system:controller:token-cleaner", on("delete get list watch", "core", "secrets"), event()),
		namespaced(metav1.NamespaceSystem, "system::leader-locking-kube-controller-manager",
			on("create get list update watch", "coordination.k8s.io", "leases"), on("create get list update watch", "coordination.k8s.io", "leasecandidates")),
		namespaced(metav1.NamespaceSystem, "system::leader-locking-kube-scheduler",
			on("create get list update watch", "coordination.k8s.io", "leases"), on("create get list update watch", "coordination.k8s.io", "leasecandidates")),
		namespaced(metav1.NamespacePublic, "system:controller:bootstrap-signer",
			on(look, "core", "configmaps"), only(on("update", "core", "configmaps"), "cluster-info"), event()),
	}
}

// RoleBindings returns the default RoleBindings.
func RoleBindings() []*rbacv1.RoleBinding {
	const system = metav1.NamespaceSystem
	extension := binding(system, "extension-apiserver-authentication-reader", user(identity.ControllerManager), user(identity.Scheduler))
	extension.Name = "system::extension-apiserver-authentication-reader"
	return []*rbacv1.RoleBinding{
		extension,
		binding(system, "system::leader-locking-kube-controller-manager", user(identity.ControllerManager), account(system, "kube-controller-manager")),
		binding(system, "system::leader-locking-kube-scheduler", user(identity.Scheduler), account(system, "kube-scheduler")),
		binding(system, "system:controller:bootstrap-signer", account(system, "bootstrap-signer")),
		binding(system, "system:controller:cloud-provider", account(system, "cloud-provider")),
		binding(system, "system:controller:token-cleaner", account(system, "token-cleaner")),
		binding(metav1.NamespacePublic, "system:controller:bootstrap-signer", account(system, "bootstrap-signer")),
	}
}
