{{- define "sluice.labels" -}}
app.kubernetes.io/name: sluice
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "sluice.selector" -}}
app.kubernetes.io/name: sluice
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* The host for the kubelet's probes: loopback if the agent listens on all addresses. */ -}}
{{- define "sluice.probeHost" -}}
{{- $host := regexReplaceAll ":[0-9]+$" .Values.httpAddress "" | trimAll "[]" -}}
{{- if has $host (list "" "0.0.0.0" "::" "localhost") }}127.0.0.1{{ else }}{{ $host }}{{ end }}
{{- end }}
