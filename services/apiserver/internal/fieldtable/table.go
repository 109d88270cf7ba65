package fieldtable

import "maps"

// fields are JSON names, divided by blanks. Behind a name may stand what has to be true for the verdict to hold:
//
//	name=value            the field has the value
//	name!=value           the field has another value
//	name;other!=value     the field is set, and its neighbour has another value
//
// A name with dots reaches into the messages below, and goes before what they say.
type fields string

// message says what becomes of the fields of one message. Every field is in exactly one of the lists.
type message struct {
	// accepted fields do what Kubernetes says. What is below them has rows of its own.
	accepted fields
	// whole fields are accepted with all that is below them.
	whole fields
	// notEnforced fields are stored and have no effect yet, with all that is below them.
	notEnforced fields
	// rejected fields may not be set here; Kubernetes' message says why.
	rejected map[string]string
	// refused fields are for nodes, which refuse them as Kubernetes' do; the warning says since when, or what happens.
	refused map[string]string
	// dropped fields are taken away when they are written; Kubernetes' gate is named.
	dropped map[string]string
	// notes are for the reader of the documentation: what is missing, or what differs.
	notes map[string]string
}

// table has the fields of the kinds that Dhow acts on. A field that is in no list fails the tests.
var table = map[string]message{
	"core.v1.Pod": {accepted: "metadata spec", whole: "status"},
	"core.v1.PodTemplateSpec": {
		accepted: "metadata spec",
		rejected: map[string]string{"spec.ephemeralContainers": "ephemeral containers not allowed in pod template"},
	},
	"core.v1.PodSpec": {
		accepted: `volumes initContainers containers restartPolicy terminationGracePeriodSeconds activeDeadlineSeconds dnsPolicy nodeName hostNetwork hostPID
			hostIPC shareProcessNamespace securityContext imagePullSecrets hostname subdomain affinity schedulerName tolerations hostAliases priorityClassName
			priority preemptionPolicy dnsConfig readinessGates runtimeClassName enableServiceLinks topologySpreadConstraints setHostnameAsFQDN schedulingGates resources
			hostnameOverride serviceAccount serviceAccountName automountServiceAccountToken nodeSelector overhead os hostUsers`,
		notEnforced: "resourceClaims",
		dropped:     map[string]string{"schedulingGroup": "gate GenericWorkload"},
		rejected: map[string]string{
			"ephemeralContainers": "cannot be set on create", "resources.claims": "claims may not be set for Resources at pod-level",
			"containers.readinessProbe.terminationGracePeriodSeconds":     "must not be set for readinessProbes",
			"initContainers.readinessProbe.terminationGracePeriodSeconds": "must not be set for readinessProbes",
		},
		notes: map[string]string{
			"serviceAccount":   "older name of serviceAccountName, kept equal to it",
			"hostUsers":        "false needs a runtime and a kernel that map users",
			"resourceClaims":   "devices are not allocated",
			"runtimeClassName": "a class that is not there, or a handler that the runtime does not have, keeps the pod from starting",
		},
	},
	"core.v1.PodOS":                     {accepted: "name", notes: map[string]string{"name": "nodes run Linux and refuse pods of other systems"}},
	"core.v1.Affinity":                  {accepted: "nodeAffinity podAffinity podAntiAffinity"},
	"core.v1.PodAffinity":               {accepted: "requiredDuringSchedulingIgnoredDuringExecution preferredDuringSchedulingIgnoredDuringExecution"},
	"core.v1.PodAntiAffinity":           {accepted: "requiredDuringSchedulingIgnoredDuringExecution preferredDuringSchedulingIgnoredDuringExecution"},
	"core.v1.WeightedPodAffinityTerm":   {accepted: "weight podAffinityTerm"},
	"core.v1.PodAffinityTerm":           {accepted: "labelSelector namespaces topologyKey namespaceSelector matchLabelKeys mismatchLabelKeys"},
	"core.v1.NodeAffinity":              {accepted: "requiredDuringSchedulingIgnoredDuringExecution preferredDuringSchedulingIgnoredDuringExecution"},
	"core.v1.NodeSelector":              {accepted: "nodeSelectorTerms"},
	"core.v1.NodeSelectorTerm":          {accepted: "matchExpressions matchFields"},
	"core.v1.NodeSelectorRequirement":   {accepted: "key operator values"},
	"core.v1.PreferredSchedulingTerm":   {accepted: "weight preference"},
	"core.v1.Toleration":                {accepted: "key operator value effect tolerationSeconds"},
	"core.v1.HostAlias":                 {accepted: "ip hostnames"},
	"core.v1.PodDNSConfig":              {accepted: "nameservers searches options"},
	"core.v1.PodDNSConfigOption":        {accepted: "name value"},
	"core.v1.PodReadinessGate":          {accepted: "conditionType"},
	"core.v1.PodSchedulingGate":         {accepted: "name"},
	"core.v1.LocalObjectReference":      {accepted: "name"},
	"core.v1.TopologySpreadConstraint":  {accepted: "maxSkew topologyKey whenUnsatisfiable labelSelector minDomains nodeAffinityPolicy nodeTaintsPolicy matchLabelKeys"},
	"meta.v1.LabelSelector":             {accepted: "matchLabels matchExpressions"},
	"meta.v1.LabelSelectorRequirement":  {accepted: "key operator values"},
	"core.v1.ResourceRequirements":      {accepted: "limits requests", notEnforced: "claims", notes: map[string]string{"claims": "devices are not allocated"}},
	"core.v1.ObjectFieldSelector":       {accepted: "apiVersion fieldPath"},
	"core.v1.ResourceFieldSelector":     {accepted: "containerName resource divisor"},
	"core.v1.ObjectReference":           {accepted: "kind namespace name uid apiVersion resourceVersion fieldPath"},
	"core.v1.TypedLocalObjectReference": {accepted: "apiGroup kind name"},

	"core.v1.Container": {
		accepted: `name image command args workingDir ports envFrom env resources volumeMounts livenessProbe readinessProbe startupProbe lifecycle
			terminationMessagePath terminationMessagePolicy imagePullPolicy securityContext stdin stdinOnce tty resizePolicy restartPolicy restartPolicyRules volumeDevices`,
		notes: map[string]string{
			"restartPolicy": "of init containers, Always makes a sidecar",
		},
	},
	"core.v1.ContainerResizePolicy": {accepted: "resourceName restartPolicy"},
	"core.v1.ContainerPort":         {accepted: "name hostPort containerPort protocol hostIP"},
	"core.v1.EnvFromSource":         {accepted: "prefix configMapRef secretRef"},
	"core.v1.ConfigMapEnvSource":    {accepted: "localObjectReference optional"},
	"core.v1.SecretEnvSource":       {accepted: "localObjectReference optional"},
	"core.v1.EnvVar":                {accepted: "name value valueFrom"},
	"core.v1.EnvVarSource":          {accepted: "fieldRef resourceFieldRef configMapKeyRef secretKeyRef fileKeyRef"},
	"core.v1.FileKeySelector":       {accepted: "volumeName path key optional"},
	"core.v1.ContainerRestartRule": {accepted: "action exitCodes", notes: map[string]string{
		"action": "RestartAllContainers restarts the pod in its sandbox, from its first init container on"}},
	"core.v1.ContainerRestartRuleOnExitCodes": {accepted: "operator values"},
	"core.v1.ConfigMapKeySelector":            {accepted: "localObjectReference key optional"},
	"core.v1.SecretKeySelector":               {accepted: "localObjectReference key optional"},
	"core.v1.Probe":                           {accepted: "handler initialDelaySeconds timeoutSeconds periodSeconds successThreshold failureThreshold terminationGracePeriodSeconds"},
	"core.v1.ProbeHandler":                    {accepted: "exec httpGet tcpSocket grpc"},
	"core.v1.ExecAction":                      {accepted: "command"},
	"core.v1.HTTPGetAction":                   {accepted: "path port host scheme httpHeaders"},
	"core.v1.HTTPHeader":                      {accepted: "name value"},
	"core.v1.TCPSocketAction":                 {accepted: "port host"},
	"core.v1.GRPCAction":                      {accepted: "port service"},
	"core.v1.SleepAction":                     {accepted: "seconds"},
	"core.v1.Lifecycle":                       {accepted: "postStart preStop stopSignal"},
	"core.v1.LifecycleHandler":                {accepted: "exec httpGet sleep", refused: map[string]string{"tcpSocket": "the hook fails when it is due, as in Kubernetes; use exec, httpGet or sleep"}},
	"core.v1.VolumeMount":                     {accepted: "name readOnly mountPath subPath mountPropagation subPathExpr recursiveReadOnly"},
	"core.v1.SELinuxOptions":                  {accepted: "user role type level"},
	"core.v1.SeccompProfile":                  {accepted: "type localhostProfile"},
	"core.v1.AppArmorProfile":                 {accepted: "type localhostProfile"},
	"core.v1.Capabilities":                    {accepted: "add drop"},
	"core.v1.Sysctl":                          {accepted: "name value"},
	"core.v1.SecurityContext": {
		accepted: `capabilities privileged seLinuxOptions runAsUser runAsGroup runAsNonRoot readOnlyRootFilesystem allowPrivilegeEscalation procMount seccompProfile
			appArmorProfile`,
		notEnforced: "windowsOptions",
		notes:       map[string]string{"windowsOptions": "nodes run Linux"},
	},
	"core.v1.PodSecurityContext": {
		accepted:    "seLinuxOptions runAsUser runAsGroup runAsNonRoot supplementalGroups supplementalGroupsPolicy fsGroup sysctls seccompProfile appArmorProfile fsGroupChangePolicy seLinuxChangePolicy",
		notEnforced: "windowsOptions",
		notes:       map[string]string{"windowsOptions": "nodes run Linux", "seLinuxChangePolicy": "decides on nodes with SELinux, for volumes whose one access mode is ReadWriteOncePod"},
	},

	"core.v1.Volume": {accepted: "name volumeSource"},
	"core.v1.VolumeSource": {
		accepted: `hostPath emptyDir secret configMap downwardAPI projected persistentVolumeClaim csi ephemeral image nfs iscsi fc flexVolume
			gcePersistentDisk awsElasticBlockStore cinder azureFile vsphereVolume azureDisk portworxVolume`,
		refused: with(removedVolumes, "gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
		notes:   volumeKinds,
	},
	"core.v1.VolumeDevice":                      {accepted: "name devicePath"},
	"core.v1.PersistentVolumeClaimVolumeSource": {accepted: "claimName readOnly"},
	"core.v1.CSIVolumeSource":                   {accepted: "driver readOnly fsType volumeAttributes nodePublishSecretRef"},
	"core.v1.EphemeralVolumeSource":             {accepted: "volumeClaimTemplate"},
	"core.v1.PersistentVolumeClaimTemplate":     {accepted: "metadata spec"},
	"core.v1.ImageVolumeSource":                 {accepted: "reference pullPolicy"},
	"core.v1.HostPathVolumeSource":              {accepted: "path type", notes: map[string]string{"path": "below /var/lib/kubelet it is the agent's own folder, so that several nodes may share a machine"}},
	"core.v1.EmptyDirVolumeSource":              {accepted: "medium sizeLimit", notes: map[string]string{"sizeLimit": "what is stored on disk is measured every 10 s"}},
	"core.v1.SecretVolumeSource":                {accepted: "secretName items defaultMode optional"},
	"core.v1.ConfigMapVolumeSource":             {accepted: "localObjectReference items defaultMode optional"},
	"core.v1.KeyToPath":                         {accepted: "key path mode"},
	"core.v1.DownwardAPIVolumeSource":           {accepted: "items defaultMode"},
	"core.v1.DownwardAPIVolumeFile":             {accepted: "path fieldRef resourceFieldRef mode"},
	"core.v1.ProjectedVolumeSource":             {accepted: "sources defaultMode"},
	"core.v1.VolumeProjection": {
		accepted: "secret configMap downwardAPI serviceAccountToken clusterTrustBundle",
		dropped:  map[string]string{"podCertificate": "gate PodCertificateRequest"},
	},
	"core.v1.ClusterTrustBundleProjection":  {accepted: "name signerName optional path", whole: "labelSelector"},
	"core.v1.ServiceAccountTokenProjection": {accepted: "audience expirationSeconds path"},
	"core.v1.SecretProjection":              {accepted: "localObjectReference items optional"},
	"core.v1.ConfigMapProjection":           {accepted: "localObjectReference items optional"},
	"core.v1.DownwardAPIProjection":         {accepted: "items"},

	"apps.v1.Deployment": {accepted: "metadata spec", whole: "status"},
	"apps.v1.DeploymentSpec": {
		accepted: "replicas selector template strategy minReadySeconds revisionHistoryLimit paused progressDeadlineSeconds",
		rejected: map[string]string{"template.spec.activeDeadlineSeconds": "activeDeadlineSeconds in ReplicaSet is not Supported"},
	},
	"apps.v1.DeploymentStrategy":      {accepted: "type rollingUpdate"},
	"apps.v1.RollingUpdateDeployment": {accepted: "maxUnavailable maxSurge"},
	"apps.v1.ReplicaSet":              {accepted: "metadata spec", whole: "status"},
	"apps.v1.ReplicaSetSpec": {
		accepted: "replicas minReadySeconds selector template",
		rejected: map[string]string{"template.spec.activeDeadlineSeconds": "activeDeadlineSeconds in ReplicaSet is not Supported"},
	},

	"apps.v1.StatefulSet": {accepted: "metadata spec", whole: "status"},
	"apps.v1.StatefulSetSpec": {
		accepted: `replicas selector template serviceName podManagementPolicy updateStrategy revisionHistoryLimit minReadySeconds persistentVolumeClaimRetentionPolicy
			ordinals`,
		whole:    "volumeClaimTemplates",
		rejected: map[string]string{"template.spec.activeDeadlineSeconds": "activeDeadlineSeconds in StatefulSet is not Supported"},
	},
	"apps.v1.StatefulSetUpdateStrategy":                       {accepted: "type rollingUpdate"},
	"apps.v1.RollingUpdateStatefulSetStrategy":                {accepted: "partition maxUnavailable"},
	"apps.v1.StatefulSetPersistentVolumeClaimRetentionPolicy": {accepted: "whenDeleted whenScaled"},
	"apps.v1.StatefulSetOrdinals":                             {accepted: "start"},
	"apps.v1.DaemonSet":                                       {accepted: "metadata spec", whole: "status"},
	"apps.v1.DaemonSetSpec": {
		accepted: "selector template updateStrategy minReadySeconds revisionHistoryLimit",
		rejected: map[string]string{"template.spec.activeDeadlineSeconds": "activeDeadlineSeconds in DaemonSet is not Supported"},
	},
	"apps.v1.DaemonSetUpdateStrategy": {accepted: "type rollingUpdate"},
	"apps.v1.RollingUpdateDaemonSet":  {accepted: "maxUnavailable maxSurge"},

	"core.v1.ReplicationController": {accepted: "metadata spec", whole: "status"},
	"core.v1.ReplicationControllerSpec": {
		accepted: "replicas minReadySeconds selector template",
		rejected: map[string]string{"template.spec.activeDeadlineSeconds": "activeDeadlineSeconds in ReplicationController is not Supported"},
	},
	"batch.v1.Job": {accepted: "metadata spec", whole: "status"},
	"batch.v1.JobSpec": {
		accepted: `parallelism completions activeDeadlineSeconds podFailurePolicy successPolicy backoffLimit backoffLimitPerIndex maxFailedIndexes selector manualSelector
			template ttlSecondsAfterFinished completionMode suspend podReplacementPolicy managedBy`,
		notes: map[string]string{"backoffLimit": "the delay is counted from the failed pods that are there"},
	},
	"batch.v1.PodFailurePolicy":                       {accepted: "rules"},
	"batch.v1.PodFailurePolicyRule":                   {accepted: "action onExitCodes onPodConditions"},
	"batch.v1.PodFailurePolicyOnExitCodesRequirement": {accepted: "containerName operator values"},
	"batch.v1.PodFailurePolicyOnPodConditionsPattern": {accepted: "type status"},
	"batch.v1.SuccessPolicy":                          {accepted: "rules"},
	"batch.v1.SuccessPolicyRule":                      {accepted: "succeededIndexes succeededCount"},
	"batch.v1.CronJob":                                {accepted: "metadata spec", whole: "status"},
	"batch.v1.CronJobSpec": {
		accepted: "schedule timeZone startingDeadlineSeconds concurrencyPolicy suspend jobTemplate successfulJobsHistoryLimit failedJobsHistoryLimit",
		rejected: map[string]string{"jobTemplate.spec.selector": "`selector` will be auto-generated"},
	},
	"batch.v1.JobTemplateSpec": {accepted: "metadata spec"},

	"autoscaling.v2.HorizontalPodAutoscaler": {accepted: "metadata spec", whole: "status"},
	"autoscaling.v2.HorizontalPodAutoscalerSpec": {
		accepted: "scaleTargetRef minReplicas maxReplicas behavior", whole: "metrics",
		notes: map[string]string{
			"minReplicas": "0 is taken with an Object or External metric; in Kubernetes v1.36 it needs the feature gate HPAScaleToZero",
			"metrics":     "those of types Pods and Object come from custom.metrics.k8s.io, those of type External from external.metrics.k8s.io, of the server that the controller-manager's --metrics-api names",
		},
	},
	"autoscaling.v2.CrossVersionObjectReference":     {accepted: "kind name apiVersion"},
	"autoscaling.v2.HorizontalPodAutoscalerBehavior": {accepted: "scaleUp scaleDown"},
	"autoscaling.v2.HPAScalingRules":                 {accepted: "stabilizationWindowSeconds selectPolicy policies tolerance"},
	"autoscaling.v2.HPAScalingPolicy":                {accepted: "type value periodSeconds"},

	"core.v1.Service": {accepted: "metadata spec", whole: "status"},
	"core.v1.ServiceSpec": {
		accepted: `ports selector clusterIP clusterIPs externalIPs sessionAffinity externalName externalTrafficPolicy publishNotReadyAddresses sessionAffinityConfig
			ipFamilies ipFamilyPolicy allocateLoadBalancerNodePorts internalTrafficPolicy trafficDistribution loadBalancerSourceRanges`,
		notEnforced: "type=LoadBalancer loadBalancerIP loadBalancerClass healthCheckNodePort",
		notes: map[string]string{
			"type": "nothing provisions load balancers yet; node ports are allocated and an address in the status is served", "ipFamilyPolicy": "clusters have one family",
			"healthCheckNodePort": "the port is allocated, nothing answers on it",
		},
	},
	"core.v1.ServicePort":           {accepted: "name protocol appProtocol port targetPort nodePort"},
	"core.v1.SessionAffinityConfig": {accepted: "clientIP"},
	"core.v1.ClientIPConfig":        {accepted: "timeoutSeconds"},

	"core.v1.Endpoints":       {accepted: "metadata subsets"},
	"core.v1.EndpointSubset":  {accepted: "addresses notReadyAddresses ports"},
	"core.v1.EndpointAddress": {accepted: "ip hostname nodeName targetRef"},
	"core.v1.EndpointPort":    {accepted: "name port protocol appProtocol"},

	"discovery.v1.EndpointSlice":      {accepted: "metadata addressType endpoints ports"},
	"discovery.v1.Endpoint":           {accepted: "addresses conditions hostname targetRef nodeName zone hints", notEnforced: "deprecatedTopology"},
	"discovery.v1.EndpointConditions": {accepted: "ready serving terminating"},
	"discovery.v1.EndpointHints":      {accepted: "forZones forNodes"},
	"discovery.v1.ForZone":            {accepted: "name"},
	"discovery.v1.ForNode":            {accepted: "name"},
	"discovery.v1.EndpointPort":       {accepted: "name protocol port appProtocol"},

	"core.v1.Namespace":     {accepted: "metadata spec", whole: "status"},
	"core.v1.NamespaceSpec": {accepted: "finalizers"},

	"core.v1.Node": {accepted: "metadata spec", whole: "status"},
	"core.v1.NodeSpec": {
		accepted: "podCIDR podCIDRs providerID unschedulable taints", notEnforced: "configSource externalID",
		notes: map[string]string{"configSource": "Kubernetes does not use it any more", "externalID": "Kubernetes does not use it any more"},
	},
	"core.v1.Taint": {accepted: "key value effect timeAdded"},

	"core.v1.ConfigMap": {accepted: "metadata immutable data binaryData"},
	"core.v1.Secret":    {accepted: "metadata immutable data stringData type"},
	"core.v1.ServiceAccount": {
		accepted: "metadata imagePullSecrets secrets automountServiceAccountToken",
		notes:    map[string]string{"secrets": "those that its pods may use, with the annotation kubernetes.io/enforce-mountable-secrets; no token is added to them"},
	},

	"core.v1.Event": {
		accepted: `metadata involvedObject reason message source firstTimestamp lastTimestamp count type eventTime series action related reportingComponent
			reportingInstance`,
	},
	"core.v1.EventSource": {accepted: "component host"},
	"core.v1.EventSeries": {accepted: "count lastObservedTime"},
	"events.v1.Event": {
		accepted: "metadata eventTime series reportingController reportingInstance action reason regarding related note type",
		rejected: map[string]string{
			"deprecatedSource": "needs to be unset", "deprecatedFirstTimestamp": "needs to be unset", "deprecatedLastTimestamp": "needs to be unset",
			"deprecatedCount": "needs to be unset",
		},
	},
	"events.v1.EventSeries": {accepted: "count lastObservedTime"},

	"coordination.v1.Lease": {accepted: "metadata spec"},
	"coordination.v1.LeaseSpec": {
		accepted: "holderIdentity leaseDurationSeconds acquireTime renewTime leaseTransitions",
		dropped:  map[string]string{"strategy": "gate CoordinatedLeaderElection", "preferredHolder": "gate CoordinatedLeaderElection"},
	},
	"scheduling.v1.PriorityClass": {
		accepted: "metadata value globalDefault description preemptionPolicy",
	},

	"flowcontrol.v1.FlowSchema":                     {accepted: "metadata", whole: "spec status"},
	"flowcontrol.v1.PriorityLevelConfiguration":     {accepted: "metadata", whole: "spec status"},
	"policy.v1.PodDisruptionBudget":                 {accepted: "metadata spec", whole: "status"},
	"policy.v1.PodDisruptionBudgetSpec":             {accepted: "minAvailable selector maxUnavailable unhealthyPodEvictionPolicy"},
	"certificates.v1.CertificateSigningRequest":     {accepted: "metadata spec", whole: "status"},
	"certificates.v1.CertificateSigningRequestSpec": {accepted: "request usages username uid groups signerName expirationSeconds", whole: "extra"},
	"certificates.v1beta1.ClusterTrustBundle":       {accepted: "metadata spec"},
	"certificates.v1beta1.ClusterTrustBundleSpec":   {accepted: "signerName trustBundle"},
	"core.v1.LimitRange":                            {accepted: "metadata spec"},
	"core.v1.LimitRangeSpec":                        {accepted: "limits"},
	"core.v1.LimitRangeItem":                        {accepted: "type max min default defaultRequest maxLimitRequestRatio"},
	"core.v1.ResourceQuota":                         {accepted: "metadata spec", whole: "status"},
	"core.v1.ResourceQuotaSpec":                     {accepted: "hard scopes scopeSelector"},
	"core.v1.ScopeSelector":                         {accepted: "matchExpressions"},
	"core.v1.ScopedResourceSelectorRequirement":     {accepted: "scopeName operator values"},
	"rbac.v1.Role":                                  {accepted: "metadata", whole: "rules"},
	"rbac.v1.ClusterRole":                           {accepted: "metadata", whole: "rules aggregationRule"},
	"rbac.v1.RoleBinding":                           {accepted: "metadata", whole: "subjects roleRef"},
	"rbac.v1.ClusterRoleBinding":                    {accepted: "metadata", whole: "subjects roleRef"},

	"core.v1.PersistentVolume": {accepted: "metadata spec", whole: "status"},
	"core.v1.PersistentVolumeSpec": {
		accepted: `capacity persistentVolumeSource accessModes claimRef persistentVolumeReclaimPolicy storageClassName mountOptions volumeMode nodeAffinity
			volumeAttributesClassName`,
		notes: map[string]string{"persistentVolumeReclaimPolicy": "Recycle, which Kubernetes has deprecated, fails with a message", "mountOptions": "are the driver's"},
	},
	"core.v1.PersistentVolumeSource": {
		accepted: "hostPath local csi nfs iscsi fc flexVolume gcePersistentDisk awsElasticBlockStore cinder azureFile vsphereVolume azureDisk portworxVolume",
		refused:  removedVolumes,
		notes:    volumeKinds,
	},
	"core.v1.GCEPersistentDiskVolumeSource":    {accepted: "pdName fsType partition readOnly"},
	"core.v1.AWSElasticBlockStoreVolumeSource": {accepted: "volumeID fsType partition readOnly"},
	"core.v1.AzureDiskVolumeSource":            {accepted: "diskName diskURI cachingMode fsType readOnly kind"},
	"core.v1.AzureFileVolumeSource":            {accepted: "secretName shareName readOnly"},
	"core.v1.AzureFilePersistentVolumeSource":  {accepted: "secretName shareName readOnly secretNamespace"},
	"core.v1.CinderVolumeSource":               {accepted: "volumeID fsType readOnly secretRef"},
	"core.v1.CinderPersistentVolumeSource":     {accepted: "volumeID fsType readOnly secretRef"},
	"core.v1.VsphereVirtualDiskVolumeSource":   {accepted: "volumePath fsType storagePolicyName storagePolicyID"},
	"core.v1.PortworxVolumeSource":             {accepted: "volumeID fsType readOnly"},
	"core.v1.NFSVolumeSource":                  {accepted: "server path readOnly"},
	"core.v1.ISCSIVolumeSource":                {accepted: iscsiFields, notes: iscsiNotes},
	"core.v1.ISCSIPersistentVolumeSource":      {accepted: iscsiFields, notes: iscsiNotes},
	"core.v1.FCVolumeSource":                   {accepted: "targetWWNs lun fsType readOnly wwids"},
	"core.v1.FlexVolumeSource":                 {accepted: "driver fsType secretRef readOnly options", notes: flexNotes},
	"core.v1.FlexPersistentVolumeSource":       {accepted: "driver fsType secretRef readOnly options", notes: flexNotes},
	"core.v1.LocalVolumeSource":                {accepted: "path fsType", notes: map[string]string{"path": "a folder, or a block device", "fsType": "an empty device is formatted with the machine's mkfs"}},
	"core.v1.CSIPersistentVolumeSource": {accepted: `driver volumeHandle readOnly fsType volumeAttributes controllerPublishSecretRef nodeStageSecretRef nodePublishSecretRef
		controllerExpandSecretRef nodeExpandSecretRef`},
	"core.v1.SecretReference":       {accepted: "name namespace"},
	"core.v1.VolumeNodeAffinity":    {accepted: "required"},
	"core.v1.PersistentVolumeClaim": {accepted: "metadata spec", whole: "status"},
	"core.v1.PersistentVolumeClaimSpec": {
		accepted: "accessModes selector resources volumeName storageClassName volumeMode dataSource dataSourceRef volumeAttributesClassName",
		notes: map[string]string{
			"dataSource": "is for the class' provisioner; the built-in one refuses it", "dataSourceRef": "is for the class' provisioner; the built-in one refuses it",
			"resources": "the built-in provisioner does not hold pods to the size",
		},
	},
	"core.v1.VolumeResourceRequirements":       {accepted: "limits requests"},
	"core.v1.TypedObjectReference":             {accepted: "apiGroup kind name namespace"},
	"core.v1.TopologySelectorTerm":             {accepted: "matchLabelExpressions"},
	"core.v1.TopologySelectorLabelRequirement": {accepted: "key values"},
	"runtime.v1.RuntimeClass":                  {accepted: "metadata handler overhead scheduling"},
	"runtime.v1.Overhead":                      {accepted: "podFixed"},
	"runtime.v1.Scheduling":                    {accepted: "nodeSelector tolerations"},
	"storage.v1.StorageClass": {
		accepted: "metadata provisioner parameters reclaimPolicy mountOptions allowVolumeExpansion volumeBindingMode allowedTopologies",
		notes:    map[string]string{"provisioner": "dhow.dev/local-path is built in; the names of plugins that Kubernetes had built in mean the CSI drivers that serve them", "parameters": "are the provisioner's; the built-in one has none"},
	},
	"storage.v1.CSIDriver": {accepted: "metadata spec"},
	"storage.v1.CSIDriverSpec": {
		accepted: "attachRequired podInfoOnMount volumeLifecycleModes storageCapacity fsGroupPolicy tokenRequests requiresRepublish serviceAccountTokenInSecrets nodeAllocatableUpdatePeriodSeconds seLinuxMount",
		dropped:  map[string]string{"preventPodSchedulingIfMissing": "gate VolumeLimitScaling"},
		notes:    map[string]string{"requiresRepublish": "once a minute", "seLinuxMount": "decides on nodes with SELinux, for volumes whose one access mode is ReadWriteOncePod, as Kubernetes v1.36 does by default"},
	},
	"storage.v1.TokenRequest":           {accepted: "audience expirationSeconds"},
	"storage.v1.CSINode":                {accepted: "metadata spec"},
	"storage.v1.CSINodeSpec":            {accepted: "drivers"},
	"storage.v1.CSINodeDriver":          {accepted: "name nodeID topologyKeys allocatable"},
	"storage.v1.VolumeNodeResources":    {accepted: "count"},
	"storage.v1.CSIStorageCapacity":     {accepted: "metadata nodeTopology storageClassName capacity maximumVolumeSize"},
	"storage.v1.VolumeAttachment":       {accepted: "metadata spec", whole: "status"},
	"storage.v1.VolumeAttachmentSpec":   {accepted: "attacher source nodeName"},
	"storage.v1.VolumeAttachmentSource": {accepted: "persistentVolumeName", whole: "inlineVolumeSpec", notes: map[string]string{"inlineVolumeSpec": "written for the volumes of pods' own specs that CSI drivers serve in place of plugins"}},
	"storage.v1.VolumeAttributesClass": {accepted: "metadata driverName parameters", notes: map[string]string{
		"parameters": "are carried out by the driver's own resizer; binding compares the class' name"}},

	// Kinds that are data in Kubernetes too.
	"core.v1.PodTemplate":        {accepted: "metadata template"},
	"apps.v1.ControllerRevision": {accepted: "metadata data revision"},
}

// iscsiFields are the same in pods and in PersistentVolumes.
const iscsiFields = `targetPortal iqn lun iscsiInterface fsType readOnly portals chapAuthDiscovery chapAuthSession secretRef initiatorName`

var iscsiNotes = map[string]string{"fsType": "an empty disk is formatted with the machine's mkfs, without fsType as ext4"}

var flexNotes = map[string]string{"driver": "the node's agent attaches and detaches by itself, in whatever way the control plane is installed"}

// volumeKinds say why there are kinds of volumes that nothing mounts.
var volumeKinds = map[string]string{
	"gcePersistentDisk": "served by the CSI driver pd.csi.storage.gke.io, as in Kubernetes v1.36", "awsElasticBlockStore": "served by the CSI driver ebs.csi.aws.com, as in Kubernetes v1.36",
	"azureDisk": "served by the CSI driver disk.csi.azure.com, as in Kubernetes v1.36", "azureFile": "served by the CSI driver file.csi.azure.com, as in Kubernetes v1.36",
	"cinder": "served by the CSI driver cinder.csi.openstack.org, as in Kubernetes v1.36", "vsphereVolume": "served by the CSI driver csi.vsphere.vmware.com, as in Kubernetes v1.36",
	"portworxVolume": "served by the CSI driver pxd.portworx.com, as in Kubernetes v1.36",
	"flexVolume":     "by drivers below the node's --volume-plugin-dir",
	"nfs":            "the node needs mount.nfs (nfs-common, nfs-utils)", "iscsi": "the node needs iscsiadm (open-iscsi, iscsi-initiator-utils)", "fc": "the node needs an adapter; with several paths, multipath-tools",
	"csi": "by drivers that register as with a kubelet",
}

// removedVolumes are of plugins that Kubernetes has removed, with its warnings: pods with them wait on their nodes, where no volume plugin matches.
var removedVolumes = map[string]string{
	"photonPersistentDisk": "deprecated in v1.11, non-functional in v1.16+", "scaleIO": "deprecated in v1.16, non-functional in v1.22+",
	"flocker": "deprecated in v1.22, non-functional in v1.25+", "storageos": "deprecated in v1.22, non-functional in v1.25+", "quobyte": "deprecated in v1.22, non-functional in v1.25+",
	"glusterfs": "deprecated in v1.25, non-functional in v1.26+", "cephfs": "deprecated in v1.28, non-functional in v1.31+", "rbd": "deprecated in v1.28, non-functional in v1.31+",
}

// with returns a list with one more field.
func with(list map[string]string, field, detail string) map[string]string {
	list = maps.Clone(list)
	list[field] = detail
	return list
}

// leaves are messages that are one value in JSON.
var leaves = map[string]bool{
	"meta.v1.Time": true, "meta.v1.MicroTime": true, "meta.v1.Quantity": true, "meta.v1.IntOrString": true, "meta.v1.RawExtension": true,
	"meta.v1.FieldsV1": true, "meta.v1.ObjectMeta": true,
}

// storedOnly are the kinds that Dhow stores and serves and does not act on yet. All of their content but metadata and status is not enforced.
var storedOnly = map[string]string{
	"IPAddress.networking.k8s.io": "addresses are claimed in another way", "ServiceCIDR.networking.k8s.io": "the range of services is configured",
	"DeviceClass.resource.k8s.io": "devices are not allocated", "ResourceClaim.resource.k8s.io": "devices are not allocated",
	"ResourceClaimTemplate.resource.k8s.io": "devices are not allocated", "ResourceSlice.resource.k8s.io": "devices are not allocated",
	"Ingress.networking.k8s.io": "there is no ingress controller", "IngressClass.networking.k8s.io": "there is no ingress controller",
	"NetworkPolicy.networking.k8s.io": "traffic is not filtered",
}
