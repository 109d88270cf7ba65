{{/* The control plane's name: what the names of all its objects begin with, and how charts that are installed one by one find each other. */}}
{{- define "dhow.plane" -}}
{{- dig "name" "" (.Values.global | default dict) | default .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* The name of this chart's objects. */}}
{{- define "dhow.fullname" -}}
{{- .Values.fullnameOverride | default (printf "%s-%s" (include "dhow.plane" .) (.Values.nameOverride | default .Chart.Name)) | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* The host name of another chart's Service: (list . "store"). */}}
{{- define "dhow.peer" -}}
{{- $root := first . -}}
{{- printf "%s-%s.%s.svc" (include "dhow.plane" $root) (last .) $root.Release.Namespace -}}
{{- end -}}

{{/* The name of a Secret that the certificates' job (or cert-manager) makes: (list . "store"). */}}
{{- define "dhow.secret" -}}
{{- printf "%s-%s" (include "dhow.plane" (first .)) (last .) -}}
{{- end -}}

{{- define "dhow.chart" -}}
{{- printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* What selects the chart's pods. It never changes: selectors of workloads cannot. */}}
{{- define "dhow.selector" -}}
app.kubernetes.io/name: {{ .Values.nameOverride | default .Chart.Name }}
app.kubernetes.io/instance: {{ include "dhow.plane" . }}
{{- end -}}

{{/* What selects the pods of another chart of the control plane: (list . "apiserver"). */}}
{{- define "dhow.peerSelector" -}}
app.kubernetes.io/name: {{ last . }}
app.kubernetes.io/instance: {{ include "dhow.plane" (first .) }}
{{- end -}}

{{- define "dhow.labels" -}}
{{ include "dhow.selector" . }}
app.kubernetes.io/part-of: dhow
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ include "dhow.chart" . }}
{{- end -}}

{{/* A value of the chart's own or, where it is empty, of global, or the default: (list . path-in-values path-in-global default), paths with dots. */}}
{{- define "dhow.setting" -}}
{{- $root := index . 0 -}}
{{- $found := "" -}}
{{- range list (list $root.Values (index . 1)) (list ($root.Values.global | default dict) (index . 2)) -}}
{{- $at := first . -}}
{{- range splitList "." (last .) -}}
{{- $at = kindIs "map" $at | ternary (get (kindIs "map" $at | ternary $at dict) .) "" -}}
{{- end -}}
{{- if not $found }}{{ $found = $at }}{{ end -}}
{{- end -}}
{{- $found | default (index . 3) -}}
{{- end -}}

{{/* Reference of an image: (list . path-in-values). */}}
{{- define "dhow.image" -}}
{{- $root := first . -}}
{{- $path := last . -}}
{{- $repository := include "dhow.setting" (list $root (printf "%s.repository" $path) "" "") -}}
{{- $registry := include "dhow.setting" (list $root (printf "%s.registry" $path) "image.registry" "dhow.dev") -}}
{{- $tag := include "dhow.setting" (list $root (printf "%s.tag" $path) "image.tag" $root.Chart.AppVersion) -}}
{{- $digest := include "dhow.setting" (list $root (printf "%s.digest" $path) "" "") -}}
{{- printf "%s/%s:%s" $registry $repository $tag -}}{{- with $digest }}@{{ . }}{{ end -}}
{{- end -}}

{{- define "dhow.pullPolicy" -}}
{{- include "dhow.setting" (list . "image.pullPolicy" "image.pullPolicy" "IfNotPresent") -}}
{{- end -}}
