{{/* Several stores are named one by one, so that a client goes on to the next when one is lost. */}}
{{- define "apiserver.stores" -}}
{{- $n := include "dhow.setting" (list . "store.replicas" "stores" "") | default 1 | int -}}
{{- $name := include "dhow.secret" (list . "store") -}}
{{- if .Values.store.addresses -}}
{{- join "," .Values.store.addresses -}}
{{- else if eq $n 1 -}}
{{- include "dhow.peer" (list . "store") }}:6440
{{- else -}}
{{- $all := list -}}
{{- range until $n }}{{ $all = append $all (printf "%s-%d.%s-members.%s.svc:6440" $name . $name $.Release.Namespace) }}{{ end -}}
{{- join "," $all -}}
{{- end -}}
{{- end -}}

{{- define "apiserver.args" -}}
- --listen=:7443
- --advertise-address=$(POD_IP):7443
- --kubernetes-listen=:6443
- --kubernetes-advertise-address={{ .Values.kubernetesAdvertiseAddress | default "$(POD_IP):6443" }}
- --store={{ include "apiserver.stores" . }}
- --scheduler={{ .Values.scheduler.address | default (printf "%s:6441" (include "dhow.peer" (list . "scheduler"))) }}
- --controller-manager={{ .Values.controllerManager.address | default (printf "%s:6442" (include "dhow.peer" (list . "controller-manager"))) }}
- --encryption-key-file=/var/lib/dhow/keys/encryption.key
- --service-account-signing-key-file=/var/lib/dhow/keys/token-keys.pem
- --service-cidr={{ .Values.network.serviceCIDR }}
- --pod-cidr={{ .Values.network.podCIDR }}
- --node-cidr-bits={{ .Values.network.nodeCIDRBits }}
{{- with .Values.network.dnsAddress }}
- --dns-address={{ . }}
{{- end }}
- --node-ports={{ .Values.network.nodePorts }}
- --session-grace={{ .Values.sessionGrace }}
- --server-ttl={{ .Values.serverTTL }}
- --toleration-seconds={{ int64 .Values.tolerationSeconds }}
- --event-ttl={{ .Values.eventTTL }}
- --shutdown-delay={{ .Values.shutdownDelay }}
{{- with int64 .Values.maxRequestsInflight }}
- --max-requests-inflight={{ . }}
{{- end }}
{{- range .Values.authentication.issuers }}
- --service-account-issuer={{ . }}
{{- end }}
{{- with .Values.authentication.audiences }}
- --api-audiences={{ join "," . }}
{{- end }}
{{- if .Values.authentication.configuration }}
- --authentication-config=/etc/dhow/configuration/authentication.yaml
{{- end }}
{{- if .Values.audit.policy }}
- --audit-policy-file=/etc/dhow/configuration/audit.yaml
{{- end }}
{{ include "dhow.args" . }}
{{- end -}}

{{/* Files that are not secret: empty when there are none. */}}
{{- define "apiserver.configuration" -}}
{{- with .Values.authentication.configuration }}
authentication.yaml: {{ . | quote }}
{{- end }}
{{- with .Values.audit.policy }}
audit.yaml: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "apiserver.volumes" -}}
- name: keys-secret
  secret:
    secretName: {{ .Values.keysSecret | default (include "dhow.secret" (list . "keys")) }}
    defaultMode: 0440
- name: keys
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
{{- if include "apiserver.configuration" . }}
- name: configuration
  configMap:
    name: {{ include "dhow.fullname" . }}
{{- end }}
{{- end -}}

{{- define "apiserver.mounts" -}}
- name: keys
  mountPath: /var/lib/dhow/keys
{{- if include "apiserver.configuration" . }}
- name: configuration
  mountPath: /etc/dhow/configuration
  readOnly: true
{{- end }}
{{- end -}}

{{/* The API server refuses keys that others than their owner may read; files of a Secret's volume are root's, for the pod's group. */}}
{{- define "apiserver.init" -}}
- name: keys
  image: {{ include "dhow.image" (list . "keysImage") | quote }}
  imagePullPolicy: {{ include "dhow.pullPolicy" . }}
  args: [release, keys, --from=/etc/dhow/keys, --to=/var/lib/dhow/keys]
  {{- with .Values.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- include "dhow.restricted" . | nindent 4 }}
  volumeMounts:
    - name: keys-secret
      mountPath: /etc/dhow/keys
      readOnly: true
    - name: keys
      mountPath: /var/lib/dhow/keys
{{- end -}}

{{- define "apiserver.env" -}}
- name: POD_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
{{- end -}}
