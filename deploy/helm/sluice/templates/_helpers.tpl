{{- /* The name of the chart in labels and names. */ -}}
{{- define "sluice.name" -}}
{{- default "sluice" .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{- /* The name of the objects. It is the release's name, so that a release has one name
everywhere; nameOverride is appended unless the release's name contains it. */ -}}
{{- define "sluice.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if or (not .Values.nameOverride) (contains .Values.nameOverride .Release.Name) -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "sluice.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "sluice.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{- define "sluice.labels" -}}
{{ include "sluice.labelsWith" (list . dict) }}
{{- end }}

{{- /* The labels of an object: those of the chart, further ones, and commonLabels, in this order
of precedence. It takes a list of the context and the further labels. */ -}}
{{- define "sluice.labelsWith" -}}
{{- $further := index . 1 -}}
{{- with index . 0 -}}
{{ include "sluice.selector" . }}
app.kubernetes.io/component: agent
app.kubernetes.io/part-of: sluice
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with merge (deepCopy $further) .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "sluice.selector" -}}
app.kubernetes.io/name: {{ include "sluice.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* The labels of the pods: podLabels count before commonLabels. */ -}}
{{- define "sluice.podLabels" -}}
{{ include "sluice.selector" . }}
{{- with merge (deepCopy .Values.podLabels) .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "sluice.image" -}}
{{- $image := printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- with .Values.image.digest }}{{ $image = printf "%s@%s" $image . }}{{ end -}}
{{ $image }}
{{- end }}

{{- /* NET_ADMIN is for iptables, NFQUEUE and conntrack. iptables-legacy also needs NET_RAW.
BPF is for the kernel's flow cache and the guard. Without them the agent does not start, so that the
capabilities of the values do not replace these, as other lists would. */ -}}
{{- define "sluice.securityContext" -}}
{{- $own := include "sluice.ownSecurityContext" . | fromYaml -}}
{{- $needed := $own.capabilities.add -}}
{{- $all := mergeOverwrite $own .Values.securityContext -}}
{{- $capabilities := set $all.capabilities "add" (concat $needed $all.capabilities.add | uniq) -}}
{{ toYaml $all }}
{{- end }}

{{- define "sluice.ownSecurityContext" -}}
runAsUser: 0
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
  add: [NET_ADMIN, NET_RAW{{ if or (ne .Values.kernelCache "off") (ne .Values.guard "off") }}, BPF{{ end }}]
{{- end }}

{{- /* The API server refuses an update that may neither add an agent on a node nor remove one, and one
that may do both. */ -}}
{{- define "sluice.rollingUpdate" -}}
{{- with .Values.updateStrategy.rollingUpdate -}}
{{- if eq (has (printf "%v" .maxSurge) (list "0" "0%")) (has (printf "%v" .maxUnavailable) (list "0" "0%")) -}}
{{- fail (printf "updateStrategy.rollingUpdate: maxSurge is %v and maxUnavailable is %v: set exactly one of the two to 0" .maxSurge .maxUnavailable) -}}
{{- end -}}
{{ toYaml . }}
{{- end -}}
{{- end }}

{{- /* The host for the kubelet's probes: loopback if the agent listens on all addresses. */ -}}
{{- define "sluice.probeHost" -}}
{{- $host := regexReplaceAll ":[0-9]+$" .Values.httpAddress "" | trimAll "[]" -}}
{{- if has $host (list "" "0.0.0.0" "::" "localhost") }}127.0.0.1{{ else }}{{ $host }}{{ end }}
{{- end }}

{{- define "sluice.httpPort" -}}
{{ regexFind "[0-9]+$" .Values.httpAddress }}
{{- end }}

{{- /* Whether the pods declare the port of the metrics. */ -}}
{{- define "sluice.declaresPort" -}}
{{- if .Values.metrics.declarePort -}}
{{- if not .Values.httpAddress -}}
{{- fail "metrics.declarePort: set httpAddress, which has the port" -}}
{{- end -}}
{{- if and (eq .Values.updateStrategy.type "RollingUpdate") (not (has (printf "%v" .Values.updateStrategy.rollingUpdate.maxSurge) (list "0" "0%"))) -}}
{{- fail "metrics.declarePort: a second pod with the same port does not fit on a node: set updateStrategy.rollingUpdate.maxSurge=0 and maxUnavailable=1" -}}
{{- end -}}
true
{{- end -}}
{{- end }}

{{- /* Whether something scrapes the metrics over the network. The alerts need that: without any metrics, they
report that there is no agent. */ -}}
{{- define "sluice.scraped" -}}
{{- if or .Values.metrics.service.enabled .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled .Values.metrics.prometheusRule.enabled -}}
{{- if or (not .Values.httpAddress) (regexMatch "^(127\\.|localhost:|\\[::1\\]:)" .Values.httpAddress) -}}
{{- fail (printf "metrics: Prometheus cannot reach httpAddress %q from another node: set httpAddress to 0.0.0.0:10301" .Values.httpAddress) -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled -}}
{{- fail "metrics: serviceMonitor and podMonitor would count each agent twice: enable one of them" -}}
{{- end -}}
true
{{- end -}}
{{- end }}
