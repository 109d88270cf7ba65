{{/* Flags that every service has, a list in YAML. */}}
{{- define "dhow.args" -}}
- --tls-cacert=/etc/dhow/certificate/ca.crt
- --tls-cert=/etc/dhow/certificate/tls.crt
- --tls-key=/etc/dhow/certificate/tls.key
- --metrics-listen=:{{ .Values.metrics.port }}
- --log-level={{ include "dhow.setting" (list . "log.level" "log.level" "info") }}
- --log-format={{ include "dhow.setting" (list . "log.format" "log.format" "json") }}
{{- with include "dhow.setting" (list . "otlpEndpoint" "otlpEndpoint" "") }}
- --otlp-endpoint={{ . }}
{{- end }}
{{- end -}}

{{/* What a container of the control plane may: nothing beside running. Namespaces that enforce the Pod Security Standard "restricted" take it. */}}
{{- define "dhow.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "dhow.pullSecrets" -}}
{{- with .Values.image.pullSecrets | default (dig "image" "pullSecrets" list (.Values.global | default dict)) }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Where pods run. */}}
{{- define "dhow.placement" -}}
{{- with include "dhow.setting" (list . "priorityClassName" "priorityClassName" "") }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* One pod a node and zone while there are enough of both. */}}
{{- define "dhow.spread" -}}
{{- with .Values.topologySpread }}
{{- if .enabled }}
topologySpreadConstraints:
  {{- range .topologyKeys }}
  - maxSkew: {{ $.Values.topologySpread.maxSkew }}
    topologyKey: {{ . }}
    whenUnsatisfiable: {{ $.Values.topologySpread.whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "dhow.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* A probe: (list timing scheme path port). */}}
{{- define "dhow.probe" -}}
httpGet:
  scheme: {{ index . 1 }}
  path: {{ index . 2 }}
  port: {{ index . 3 }}
{{ toYaml (index . 0) }}
{{- end -}}

{{/*
A service's pod template: (dict "root" . "args" (list…) "ports" (dict name port) "ready" (list scheme path port) "live" (list scheme path port) and, where they are needed,
"annotations", "env", "mounts", "volumes", "initContainers", "securityContext", "podSecurityContext", "podSpec", each as it is in a pod; "ownCertificate":
the chart mounts no certificate).
*/}}
{{- define "dhow.pod" -}}
{{- $root := .root -}}
{{- $values := $root.Values -}}
metadata:
  # Without what an upgrade changes: pods are replaced when they themselves change, and not before.
  labels:
    {{- include "dhow.selector" $root | nindent 4 }}
    app.kubernetes.io/part-of: dhow
    {{- with $values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with merge (dict) (.annotations | default dict) $values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- with $values.serviceAccountName }}
  serviceAccountName: {{ . }}
  {{- end }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds }}
  {{- with include "dhow.pullSecrets" $root | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with include "dhow.placement" $root | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with include "dhow.spread" $root | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with .podSpec }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  securityContext:
    {{- if .podSecurityContext }}
    {{- toYaml .podSecurityContext | nindent 4 }}
    {{- else }}
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile:
      type: RuntimeDefault
    {{- end }}
  {{- with .initContainers }}
  initContainers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ $root.Chart.Name }}
      image: {{ include "dhow.image" (list $root "image") | quote }}
      imagePullPolicy: {{ include "dhow.pullPolicy" $root }}
      args:
        {{- range concat .args $values.extraArgs }}
        - {{ . | quote }}
        {{- end }}
      {{- with concat (.env | default list) $values.extraEnv }}
      env:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        {{- range $name, $port := .ports }}
        - name: {{ $name }}
          containerPort: {{ $port }}
        {{- end }}
        - name: metrics
          containerPort: {{ $values.metrics.port }}
      {{- with $values.resources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      startupProbe:
        {{- include "dhow.probe" (prepend .live $values.probes.startup) | nindent 8 }}
      livenessProbe:
        {{- include "dhow.probe" (prepend .live $values.probes.liveness) | nindent 8 }}
      readinessProbe:
        {{- include "dhow.probe" (prepend .ready $values.probes.readiness) | nindent 8 }}
      securityContext:
        {{- if .securityContext }}
        {{- toYaml .securityContext | nindent 8 }}
        {{- else }}
        {{- include "dhow.restricted" $root | nindent 8 }}
        {{- end }}
      volumeMounts:
        {{- if not .ownCertificate }}
        - name: certificate
          mountPath: /etc/dhow/certificate
          readOnly: true
        {{- end }}
        {{- with concat (.mounts | default list) $values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    {{- if not .ownCertificate }}
    - name: certificate
      secret:
        secretName: {{ $values.certificateSecret | default (include "dhow.secret" (list $root $root.Chart.Name)) }}
        defaultMode: 0440
    {{- end }}
    {{- with concat (.volumes | default list) $values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}
