{{- define "goprof.name" -}}
{{- .Values.fullnameOverride | default "goprof" | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "goprof.selector" -}}
app.kubernetes.io/name: {{ include "goprof.name" . }}
{{- end -}}

{{- define "goprof.labels" -}}
{{ include "goprof.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "goprof.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "goprof.name" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- define "goprof.priorityClass" -}}
{{- .Values.priorityClass.name | default (ternary (include "goprof.name" .) "" .Values.priorityClass.create) -}}
{{- end -}}

{{- define "goprof.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}
