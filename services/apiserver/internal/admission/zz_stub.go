package admission

import "dhow.dev/services/apiserver/internal/authorizer"

// The plugins follow one by one.
type limitRanger struct{}
type serviceAccount struct{ automount bool }
type nodeRestriction struct{}
type nodeTaints struct{}
type podSecurity struct{}
type defaultStorageClass struct{}
type storageProtection struct{ enabled bool }
type claimResize struct{}
type runtimeClass struct{}
type certificateApproval struct{ authorizer authorizer.Authorizer }
type certificateSigning struct{ authorizer authorizer.Authorizer }
type certificateSubject struct{}
type defaultIngressClass struct{}
type resourceQuota struct{}
