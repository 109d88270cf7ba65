package table

import (
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/duration"
)

// accessKinds say who may do what. Roles have no columns of their own.
func accessKinds() map[schema.GroupKind]definition {
	return map[schema.GroupKind]definition{
		{Group: rbacv1.GroupName, Kind: "RoleBinding"}:                       roleBindingTable(),
		{Group: rbacv1.GroupName, Kind: "ClusterRoleBinding"}:                clusterRoleBindingTable(),
		{Group: certificatesv1.GroupName, Kind: "CertificateSigningRequest"}: signingRequestTable(),
	}
}

func bindingColumns(of documented, kind string) []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{
		name(), text("Role", doc(of, "roleRef")), age(),
		wide(text("Users", "Users in the "+kind)), wide(text("Groups", "Groups in the "+kind)), wide(text("ServiceAccounts", "ServiceAccounts in the "+kind)),
	}
}

func bindingCells(m metav1.ObjectMeta, role rbacv1.RoleRef, subjects []rbacv1.Subject, now time.Time) []any {
	var users, groups, accounts []string
	for _, s := range subjects {
		switch s.Kind {
		case rbacv1.UserKind:
			users = append(users, s.Name)
		case rbacv1.GroupKind:
			groups = append(groups, s.Name)
		case rbacv1.ServiceAccountKind:
			accounts = append(accounts, s.Namespace+"/"+s.Name)
		}
	}
	return []any{m.Name, role.Kind + "/" + role.Name, Age(m.CreationTimestamp, now), strings.Join(users, ", "), strings.Join(groups, ", "), strings.Join(accounts, ", ")}
}

func roleBindingTable() definition {
	return define(bindingColumns(rbacv1.RoleBinding{}, "roleBinding"), func(b *rbacv1.RoleBinding, now time.Time) []any {
		return bindingCells(b.ObjectMeta, b.RoleRef, b.Subjects, now)
	})
}

func clusterRoleBindingTable() definition {
	return define(bindingColumns(rbacv1.ClusterRoleBinding{}, "clusterRoleBinding"), func(b *rbacv1.ClusterRoleBinding, now time.Time) []any {
		return bindingCells(b.ObjectMeta, b.RoleRef, b.Subjects, now)
	})
}

func signingRequestTable() definition {
	spec := certificatesv1.CertificateSigningRequestSpec{}
	columns := []metav1.TableColumnDefinition{
		name(), age(), text("SignerName", doc(spec, "signerName")), text("Requestor", doc(spec, "request")), text("RequestedDuration", doc(spec, "expirationSeconds")),
		text("Condition", doc(certificatesv1.CertificateSigningRequestStatus{}, "conditions")),
	}
	return define(columns, func(r *certificatesv1.CertificateSigningRequest, now time.Time) []any {
		requested := "<none>"
		if seconds := r.Spec.ExpirationSeconds; seconds != nil {
			requested = duration.HumanDuration(time.Duration(*seconds) * time.Second)
		}
		return []any{r.Name, Age(r.CreationTimestamp, now), orNone(r.Spec.SignerName), r.Spec.Username, requested, signingRequestStatus(r)}
	})
}

func signingRequestStatus(r *certificatesv1.CertificateSigningRequest) string {
	has := map[certificatesv1.RequestConditionType]bool{}
	for _, c := range r.Status.Conditions {
		has[c.Type] = true
	}
	status := "Pending"
	switch {
	case has[certificatesv1.CertificateDenied]:
		status = "Denied"
	case has[certificatesv1.CertificateApproved]:
		status = "Approved"
	}
	if has[certificatesv1.CertificateFailed] {
		status += ",Failed"
	}
	if len(r.Status.Certificate) > 0 {
		status += ",Issued"
	}
	return status
}
