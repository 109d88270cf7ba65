{{- define "store.external" -}}
{{- if .Values.etcd.endpoints }}true{{ end -}}
{{- end -}}

{{- define "store.replicas" -}}
{{- $asked := include "dhow.setting" (list . "replicas" "stores" "") -}}
{{- if include "store.external" . -}}
{{- .Values.replicas | default 2 | int -}}
{{- else -}}
{{- $n := $asked | default 1 | int -}}
{{- if not (has $n (list 1 3)) }}{{ fail (printf "store: replicas is %d: one store, or 3 of which 2 are enough" $n) }}{{ end -}}
{{- if and (eq $n 3) (not .Values.persistence.enabled) }}{{ fail "store: 3 stores need persistence.enabled: a member that lost its data is not the member that it was" }}{{ end -}}
{{- $existing := lookup "apps/v1" "StatefulSet" .Release.Namespace (include "dhow.fullname" .) -}}
{{- with dig "spec" "replicas" nil $existing -}}
{{- if ne (int .) $n }}{{ fail (printf "store: this database was made for %d stores, replicas is %d: back it up (dhow backup) and restore it into another release" (int .) $n) }}{{ end -}}
{{- end -}}
{{- $n -}}
{{- end -}}
{{- end -}}

{{- define "store.members" -}}
{{ include "dhow.fullname" . }}-members
{{- end -}}

{{- define "store.args" -}}
- --listen=:6440
- --history={{ .Values.history }}
{{- if include "store.external" . }}
- --etcd-endpoints={{ join "," .Values.etcd.endpoints }}
- --etcd-cacert=/etc/dhow/etcd/ca.crt
- --etcd-cert=/etc/dhow/etcd/tls.crt
- --etcd-key=/etc/dhow/etcd/tls.key
{{- with int64 .Values.etcd.maxTxnOps }}
- --etcd-max-txn-ops={{ . }}
{{- end }}
{{- with int64 .Values.etcd.maxRequestBytes }}
- --etcd-max-request-bytes={{ . }}
{{- end }}
{{- else }}
- --data-dir=/var/lib/dhow/store
- --quota-bytes={{ int64 .Values.quotaBytes }}
{{- $n := int (include "store.replicas" .) }}
{{- if gt $n 1 }}
{{- $name := include "dhow.fullname" . }}
{{- $members := list }}
{{- range until $n }}
{{- $members = append $members (printf "%s-%d=%s-%d.%s.%s.svc:6439" $name . $name . (include "store.members" $) $.Release.Namespace) }}
{{- end }}
- --member=$(POD_NAME)
- --members={{ join "," $members }}
- --member-listen=0.0.0.0:6439
- --members-token={{ .Values.membersToken | default (printf "%s/%s" .Release.Namespace $name) }}
{{- end }}
{{- end }}
{{ include "dhow.args" . }}
{{- end -}}

{{- define "store.pod" -}}
{{- $pod := dict "root" . "args" (include "store.args" . | fromYamlArray) "ready" (list "HTTP" "/readyz" "metrics") "live" (list "HTTP" "/livez" "metrics") -}}
{{- if include "store.external" . -}}
{{- $_ := set $pod "ports" (dict "grpc" 6440) -}}
{{- $_ := set $pod "mounts" (list (dict "name" "etcd" "mountPath" "/etc/dhow/etcd" "readOnly" true)) -}}
{{- $_ := set $pod "volumes" (list (dict "name" "etcd" "secret" (dict "secretName" (required "store: etcd.certificateSecret is needed with etcd.endpoints" .Values.etcd.certificateSecret) "defaultMode" 0o440))) -}}
{{- else -}}
{{- $_ := set $pod "ports" (dict "grpc" 6440 "members" 6439) -}}
{{- $_ := set $pod "env" (list (dict "name" "POD_NAME" "valueFrom" (dict "fieldRef" (dict "fieldPath" "metadata.name")))) -}}
{{- $_ := set $pod "mounts" (list (dict "name" "data" "mountPath" "/var/lib/dhow")) -}}
{{- if not .Values.persistence.enabled -}}
{{- $_ := set $pod "volumes" (list (dict "name" "data" "emptyDir" (dict "sizeLimit" .Values.persistence.emptyDirSizeLimit))) -}}
{{- end -}}
{{- end -}}
{{- include "dhow.pod" $pod -}}
{{- end -}}
