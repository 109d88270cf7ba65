{{- define "dhow.metadata" -}}
name: {{ include "dhow.fullname" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "dhow.labels" . | nindent 2 }}
{{- with .Values.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* A Service for the chart's pods: (list . (dict name port)). */}}
{{- define "dhow.service" -}}
{{- $root := first . -}}
{{- with $root.Values.service -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "dhow.fullname" $root }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "dhow.labels" $root | nindent 4 }}
  {{- with mergeOverwrite (dict) $root.Values.annotations (.annotations | default dict) }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  type: {{ .type | default "ClusterIP" }}
  {{- with .loadBalancerClass }}
  loadBalancerClass: {{ . }}
  {{- end }}
  {{- with .loadBalancerSourceRanges }}
  loadBalancerSourceRanges:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .externalTrafficPolicy }}
  externalTrafficPolicy: {{ . }}
  {{- end }}
  selector:
    {{- include "dhow.selector" $root | nindent 4 }}
  ports:
    {{- range $name, $port := index $ 1 }}
    - name: {{ $name }}
      port: {{ $port }}
      targetPort: {{ $name }}
      {{- with dig "nodePorts" $name 0 $root.Values.service }}
      nodePort: {{ . }}
      {{- end }}
    {{- end }}
{{- end }}
{{- end -}}

{{/* How many of the chart's pods may be evicted at once: (list . policy), the policy for pods that are not ready. */}}
{{- define "dhow.disruptionBudget" -}}
{{- $policy := last . -}}
{{- with first . -}}
{{- if .Values.podDisruptionBudget.enabled }}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "dhow.metadata" . | nindent 2 }}
spec:
  maxUnavailable: {{ .Values.podDisruptionBudget.maxUnavailable }}
  unhealthyPodEvictionPolicy: {{ $policy }}
  selector:
    matchLabels:
      {{- include "dhow.selector" . | nindent 6 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Who may connect to the chart's pods: (list . rules), rules as in a NetworkPolicy. The metrics port is for metricsFrom. */}}
{{- define "dhow.networkPolicy" -}}
{{- $root := first . -}}
{{- if $root.Values.networkPolicy.enabled }}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- include "dhow.metadata" $root | nindent 2 }}
spec:
  podSelector:
    matchLabels:
      {{- include "dhow.selector" $root | nindent 6 }}
  policyTypes: [Ingress]
  ingress:
    {{- toYaml (last .) | nindent 4 }}
    - ports:
        - port: metrics
      {{- with $root.Values.networkPolicy.metricsFrom }}
      from:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    {{- with $root.Values.networkPolicy.extraIngress }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}
{{- end -}}

{{/* Not the Service that clients use: metrics are not for everyone who reaches that one. */}}
{{- define "dhow.monitor" -}}
{{- with .Values.metrics.serviceMonitor }}
{{- if .enabled }}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "dhow.fullname" $ }}-metrics
  namespace: {{ $.Release.Namespace }}
  labels:
    {{- include "dhow.labels" $ | nindent 4 }}
    app.kubernetes.io/component: metrics
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector:
    {{- include "dhow.selector" $ | nindent 4 }}
  ports:
    - name: metrics
      port: {{ $.Values.metrics.port }}
      targetPort: metrics
---
apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
metadata:
  name: {{ include "dhow.fullname" $ }}
  namespace: {{ $.Release.Namespace }}
  labels:
    {{- include "dhow.labels" $ | nindent 4 }}
    {{- with .labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  selector:
    matchLabels:
      {{- include "dhow.selector" $ | nindent 6 }}
      app.kubernetes.io/component: metrics
  endpoints:
    - port: metrics
      interval: {{ .interval }}
{{- end }}
{{- end }}
{{- end -}}
