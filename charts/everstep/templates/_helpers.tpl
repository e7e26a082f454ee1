{{- define "everstep.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "everstep.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "everstep.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "everstep.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "everstep.selector" -}}
app.kubernetes.io/name: {{ include "everstep.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "everstep.labels" -}}
{{ include "everstep.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "everstep.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "everstep.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- /* The name of the Secret with a profile's static credentials; empty when it has none. */ -}}
{{- define "everstep.profileSecret" -}}
{{- with .profile.credentials }}
{{- .existingSecret | default (printf "%s-profile-%s" (include "everstep.fullname" $.root) $.profile.name) }}
{{- end }}
{{- end }}

{{- /* The profiles file: the values without what is secret, and with the directory that the Secret is mounted at. */ -}}
{{- define "everstep.profiles" -}}
{{- $profiles := list }}
{{- $names := list }}
{{- range .Values.storageProfiles }}
{{- if has .name $names }}
{{- fail (printf "storageProfiles: two of them have the name %s" .name) }}
{{- end }}
{{- $names = append $names .name }}
{{- $profile := omit . "credentials" }}
{{- if .credentials }}
{{- $profile = set $profile "credentials" (dict "directory" (printf "profiles/%s" .name)) }}
{{- end }}
{{- $profiles = append $profiles $profile }}
{{- end }}
{{- dict "profiles" $profiles | toYaml }}
{{- end }}

{{- /* Two settings together that the operator would end over. */ -}}
{{- define "everstep.checkSettings" -}}
{{- with .Values.settings }}
{{- if and .pollSeconds .pollMaxSeconds (gt (float64 .pollSeconds) (float64 .pollMaxSeconds)) }}
{{- fail (printf "settings.pollSeconds (%v) must not exceed settings.pollMaxSeconds (%v)" .pollSeconds .pollMaxSeconds) }}
{{- end }}
{{- if and .leaseSeconds .leaseRenewSeconds (gt (mulf 2 .leaseRenewSeconds) (float64 .leaseSeconds)) }}
{{- fail (printf "settings.leaseRenewSeconds (%v) must be at most half of settings.leaseSeconds (%v)" .leaseRenewSeconds .leaseSeconds) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "everstep.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest | quote }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) | quote }}
{{- end }}
{{- end }}

{{- define "everstep.testSelector" -}}
app.kubernetes.io/name: {{ include "everstep.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: test
{{- end }}

{{- /* Whether an object of the Prometheus operator is made: `auto` where the cluster knows its kind. */ -}}
{{- define "everstep.wanted" -}}
{{- if eq (toString .value) "auto" -}}
{{ .root.Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" .kind) }}
{{- else -}}
{{ .value }}
{{- end -}}
{{- end }}

{{- /* The ports of the profiles' endpoints, as a JSON array of numbers. */ -}}
{{- define "everstep.storagePorts" -}}
{{- $ports := list }}
{{- range .Values.storageProfiles }}
{{- $url := urlParse (.endpoint | default "https://aws" | trimSuffix "/") }}
{{- $given := regexFind ":[0-9]+$" $url.host | trimPrefix ":" }}
{{- $ports = append $ports (int ($given | default (ternary "80" "443" (eq $url.scheme "http")))) }}
{{- end }}
{{- $ports | uniq | toJson }}
{{- end }}
