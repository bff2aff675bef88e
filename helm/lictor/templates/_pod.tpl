{{/* What all pods have in common, above their containers. */}}
{{- define "lictor.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{/* Pods of one part, web or sync, that keep apart. */}}
{{- define "lictor.apart" -}}
{{- with .context.Values.affinity -}}
affinity: {{- toYaml . | nindent 2 }}
{{- else -}}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- include "lictor.selector" .context | nindent 14 }}
              app.kubernetes.io/component: {{ .part }}
{{- end }}
{{- end }}

{{- define "lictor.account" -}}
{{- if .Values.serviceAccount.create -}}
serviceAccountName: {{ include "lictor.fullname" . }}
{{- end }}
{{- end }}

{{/* What all containers have in common. */}}
{{- define "lictor.container" -}}
image: {{ include "lictor.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* Settings. Those of `settings` win over the chart's own. */}}
{{- define "lictor.env" -}}
{{- $own := dict
  "LICTOR_BIND" "0.0.0.0:8080"
  "LICTOR_METRICS_BIND" "0.0.0.0:8081"
  "LICTOR_WORKERS" (.Values.web.workers | toString) }}
{{- $registries := list }}
{{- with .Values.consul }}
{{- if .enabled }}
{{- $registries = append $registries "consul" }}
{{- $_ := set $own "LICTOR_CONSUL_DATACENTERS" .datacenters }}
{{- if .namespace }}{{ $_ := set $own "CONSUL_NAMESPACE" .namespace }}{{ end }}
{{- if .tokenSecret }}{{ $_ := set $own "CONSUL_HTTP_TOKEN_FILE" "/etc/lictor/consul-token/token" }}{{ end }}
{{- if .tlsSecret }}{{ $_ := set $own "CONSUL_CACERT" "/etc/lictor/consul-tls/ca.crt" }}{{ end }}
{{- if .clientCertificate }}
{{- $_ := set $own "CONSUL_CLIENT_CERT" "/etc/lictor/consul-tls/tls.crt" }}
{{- $_ := set $own "CONSUL_CLIENT_KEY" "/etc/lictor/consul-tls/tls.key" }}
{{- end }}
{{- end }}
{{- end }}
{{- if .Values.push.enabled }}
{{- $registries = append $registries "push" }}
{{- if include "lictor.pushSecret" . }}{{ $_ := set $own "LICTOR_PUSH_TOKEN_FILE" "/etc/lictor/push/token" }}{{ end }}
{{- end }}
{{- $_ := set $own "LICTOR_REGISTRIES" (join "," $registries) }}
{{- if .Values.fetchAllow }}{{ $_ := set $own "LICTOR_FETCH_ALLOW" .Values.fetchAllow }}{{ end }}
{{- if .Values.consul.enabled }}
{{- $scheme := ternary "https" "http" .Values.consul.https }}
{{- if .Values.consul.nodeAgent }}
- name: HOST_IP
  valueFrom: {fieldRef: {fieldPath: status.hostIP}}
{{- $_ := set $own "CONSUL_HTTP_ADDR" (printf "%s://$(HOST_IP):%v" $scheme .Values.consul.port) }}
{{- else }}
{{- $_ := set $own "CONSUL_HTTP_ADDR" (printf "%s://%s" $scheme .Values.consul.address) }}
{{- end }}
{{- end }}
{{- if eq .Values.mode "ha" }}
- name: LICTOR_DATABASE_URL
  valueFrom: {secretKeyRef: {name: {{ .Values.database.urlSecret }}, key: url}}
{{- end }}
{{- range $name, $value := merge (dict) .Values.settings $own }}
- name: {{ $name }}
  value: {{ $value | toString | quote }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Mounts without subPath, so that a Secret that is replaced reaches the pod. */}}
{{- define "lictor.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if and .Values.consul.enabled .Values.consul.tokenSecret }}
- {name: consul-token, mountPath: /etc/lictor/consul-token, readOnly: true}
{{- end }}
{{- if and .Values.consul.enabled .Values.consul.tlsSecret }}
- {name: consul-tls, mountPath: /etc/lictor/consul-tls, readOnly: true}
{{- end }}
{{- if include "lictor.pushSecret" . }}
- {name: push-token, mountPath: /etc/lictor/push, readOnly: true}
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "lictor.volumes" -}}
- name: tmp
  emptyDir: {}
{{- if and .Values.consul.enabled .Values.consul.tokenSecret }}
- name: consul-token
  secret: {secretName: {{ .Values.consul.tokenSecret }}}
{{- end }}
{{- if and .Values.consul.enabled .Values.consul.tlsSecret }}
- name: consul-tls
  secret: {secretName: {{ .Values.consul.tlsSecret }}}
{{- end }}
{{- with include "lictor.pushSecret" . }}
- name: push-token
  secret: {secretName: {{ . }}}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The endpoints leave before SIGTERM comes; then the server takes up to ten seconds to end. */}}
{{- define "lictor.serving" -}}
lifecycle:
  preStop: {exec: {command: [sleep, "5"]}}
startupProbe:
  httpGet: {path: /healthz, port: http}
  periodSeconds: 2
  failureThreshold: 60
readinessProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 5
  timeoutSeconds: 3
livenessProbe:
  httpGet: {path: /healthz, port: http}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end }}
