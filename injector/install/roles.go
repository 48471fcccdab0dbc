package install

import (
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// roles are what the two accounts may do, and all that they may. "create" cannot be limited to a name, so nobody has it
// but for token reviews, which leave nothing behind.
func (o Options) roles() []runtime.Object {
	objects := o.clusterRole(ControlPlane,
		rule("authentication.k8s.io", "tokenreviews", "", "create"))
	objects = append(objects, o.role(ControlPlane,
		rule("", "configmaps", TrustBundle, "get", "patch"))...)
	objects = append(objects, o.clusterRole(Injector,
		rule("admissionregistration.k8s.io", "mutatingwebhookconfigurations", Injector, "get", "patch"))...)
	return append(objects, o.role(Injector,
		rule("", "configmaps", TrustBundle, "get"),
		rule("", "secrets", Authority, "get", "update"))...)
}

func rule(group, resource, name string, verbs ...string) rbacv1.PolicyRule {
	r := rbacv1.PolicyRule{APIGroups: []string{group}, Resources: []string{resource}, Verbs: verbs}
	if name != "" {
		r.ResourceNames = []string{name}
	}
	return r
}

func (o Options) subject(account string) []rbacv1.Subject {
	return []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: o.Namespace, Name: account}}
}

// clusterRole is a cluster role of the account's name, bound to it; role the same in our namespace.
func (o Options) clusterRole(account string, rules ...rbacv1.PolicyRule) []runtime.Object {
	const version = "rbac.authorization.k8s.io/v1"
	return []runtime.Object{
		&rbacv1.ClusterRole{TypeMeta: typed(version, "ClusterRole"), ObjectMeta: o.global(account), Rules: rules},
		&rbacv1.ClusterRoleBinding{TypeMeta: typed(version, "ClusterRoleBinding"), ObjectMeta: o.global(account), Subjects: o.subject(account),
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: account}},
	}
}

func (o Options) role(account string, rules ...rbacv1.PolicyRule) []runtime.Object {
	const version = "rbac.authorization.k8s.io/v1"
	return []runtime.Object{
		&rbacv1.Role{TypeMeta: typed(version, "Role"), ObjectMeta: o.named(account), Rules: rules},
		&rbacv1.RoleBinding{TypeMeta: typed(version, "RoleBinding"), ObjectMeta: o.named(account), Subjects: o.subject(account),
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: account}},
	}
}
