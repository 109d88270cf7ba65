{{- define "certificates.name" -}}
{{ include "dhow.plane" . }}-certificates
{{- end -}}

{{- define "certificates.labels" -}}
app.kubernetes.io/name: certificates
app.kubernetes.io/instance: {{ include "dhow.plane" . }}
app.kubernetes.io/part-of: dhow
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/* Where the administrator reaches an API: (list . "server" 7443). */}}
{{- define "certificates.server" -}}
{{- $root := first . -}}
{{- get $root.Values.access (index . 1) | default (printf "%s:%d" (include "dhow.peer" (list $root "apiserver")) (last .)) -}}
{{- end -}}

{{/* What the API server is called, a list in YAML. */}}
{{- define "certificates.names" -}}
{{- $name := include "dhow.secret" (list . "apiserver") -}}
{{- $names := list $name (printf "%s.%s" $name .Release.Namespace) (printf "%s.%s.svc" $name .Release.Namespace) (printf "%s.%s.svc.cluster.local" $name .Release.Namespace) -}}
{{- range list .Values.access.server .Values.access.kubernetesServer -}}
{{- with . }}{{ $names = append $names (regexReplaceAll ":[0-9]+$" . "" | trimAll "[]") }}{{ end -}}
{{- end -}}
{{- toYaml (concat $names .Values.certificates.apiserverNames | uniq) -}}
{{- end -}}

{{/* The stores reach each other at names below this one. */}}
{{- define "certificates.stores" -}}
*.{{ include "dhow.secret" (list . "store") }}-members.{{ .Release.Namespace }}.svc
{{- end -}}

{{/* The Secrets that the job makes, by what they are for. */}}
{{- define "certificates.secrets" -}}
{{- if .Values.certificates.certManager.enabled -}}
[keys]
{{- else -}}
[admin, apiserver, ca, controller-manager, keys, scheduler, store]
{{- end -}}
{{- end -}}

{{- define "certificates.rules" -}}
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, update]
  resourceNames:
    {{- range include "certificates.secrets" . | fromYamlArray }}
    - {{ include "dhow.secret" (list $ .) }}
    {{- end }}
    {{- if .Values.certificates.certManager.enabled }}
    # To refuse new keys for a control plane that has had others.
    - {{ include "dhow.secret" (list . "ca") }}
    - {{ include "dhow.secret" (list . "apiserver") }}
    {{- end }}
# The right to create cannot be limited by name.
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
{{- end -}}

{{/* The job's spec: (list . service-account). */}}
{{- define "certificates.job" -}}
{{- $root := first . -}}
{{- with $root.Values.certificates -}}
backoffLimit: 4
template:
  metadata:
    labels:
      {{- include "certificates.labels" $root | nindent 6 }}
  spec:
    serviceAccountName: {{ last $ }}
    restartPolicy: OnFailure
    {{- with dig "image" "pullSecrets" list $root.Values.global }}
    imagePullSecrets:
      {{- range . }}
      - name: {{ . }}
      {{- end }}
    {{- end }}
    {{- with $root.Values.global.priorityClassName }}
    priorityClassName: {{ . }}
    {{- end }}
    {{- with .nodeSelector }}
    nodeSelector:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with .tolerations }}
    tolerations:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    securityContext:
      runAsNonRoot: true
      runAsUser: 65532
      runAsGroup: 65532
      fsGroup: 65532
      seccompProfile:
        type: RuntimeDefault
    containers:
      - name: certificates
        image: {{ include "dhow.image" (list $root "certificates.image") | quote }}
        imagePullPolicy: {{ $root.Values.global.image.pullPolicy | default "IfNotPresent" }}
        args:
          - release
          - certificates
          - --namespace={{ $root.Release.Namespace }}
          - --name={{ include "dhow.plane" $root }}
          - --label=app.kubernetes.io/part-of=dhow,app.kubernetes.io/instance={{ include "dhow.plane" $root }}
          - --dir=/tmp
          {{- if .certManager.enabled }}
          - --keys-only
          {{- else }}
          - --store-name={{ include "certificates.stores" $root }}
          - --apiserver-name={{ include "certificates.names" $root | fromYamlArray | join "," }}
          - --service-cidr={{ dig "network" "serviceCIDR" "10.96.0.0/16" $root.Values.apiserver }}
          - --server={{ include "certificates.server" (list $root "server" 7443) }}
          - --kubernetes-server=https://{{ include "certificates.server" (list $root "kubernetesServer" 6443) }}
          - --ttl={{ .validity }}
          {{- end }}
        {{- with .resources }}
        resources:
          {{- toYaml . | nindent 10 }}
        {{- end }}
        securityContext:
          {{- include "dhow.restricted" $root | nindent 10 }}
        volumeMounts:
          - name: tmp
            mountPath: /tmp
    volumes:
      - name: tmp
        emptyDir: {medium: Memory, sizeLimit: 1Mi}
{{- end -}}
{{- end -}}
