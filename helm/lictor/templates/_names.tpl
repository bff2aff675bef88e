{{- define "lictor.fullname" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else }}{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}
{{- end }}

{{/* What never changes between versions: a selector can't. */}}
{{- define "lictor.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "lictor.labels" -}}
{{ include "lictor.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The labels of a pod, of which those of the selector come last: they win. */}}
{{- define "lictor.podLabels" -}}
{{- with .Values.podLabels }}
{{- toYaml . }}
{{ end }}
{{- include "lictor.labels" . }}
{{- end }}

{{/* Where the bearer token is; empty where pushes need none or are refused. */}}
{{- define "lictor.pushSecret" -}}
{{- if .Values.push.enabled -}}
{{- if .Values.push.generateToken }}{{ include "lictor.fullname" . }}-push{{ else }}{{ .Values.push.tokenSecret }}{{ end }}
{{- end }}
{{- end }}

{{- define "lictor.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}
