{{/* Prefix of every name: short enough that no suffix passes a CronJob's 52 characters. */}}
{{- define "podium.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Prefix of what belongs to the cluster, not to a namespace: two installs share none. */}}
{{- define "podium.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "podium.fullname" .) -}}
{{- end -}}

{{- define "podium.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels of an object: (list context component). */}}
{{- define "podium.labels" -}}
{{- $root := index . 0 -}}
{{ include "podium.selectorLabels" $root }}
app.kubernetes.io/component: {{ index . 1 }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: podium
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels of a pod: (list context component). Istio's sidecar would keep Jobs from ever ending. */}}
{{- define "podium.podLabels" -}}
{{ include "podium.labels" . }}
sidecar.istio.io/inject: "false"
{{- end -}}

{{/* Full name of an image: (list context "steps"|"trainer"). */}}
{{- define "podium.image" -}}
{{- $root := index . 0 -}}
{{- $image := index $root.Values.images (index . 1) -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default $root.Chart.AppVersion $image.tag }}
{{- end -}}
{{- end -}}

{{- define "podium.pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* The runners' namespaces, each once, as a JSON list. */}}
{{- define "podium.runnerNamespaces" -}}
{{- $found := list -}}
{{- range .Values.runners }}{{ $found = append $found .namespace }}{{ end -}}
{{- $found | uniq | sortAlpha | toJson -}}
{{- end -}}

{{/* The namespaces that hold the configuration: the runners' and the release's own. */}}
{{- define "podium.configuredNamespaces" -}}
{{- append (include "podium.runnerNamespaces" . | fromJsonArray) .Release.Namespace | uniq | sortAlpha | toJson -}}
{{- end -}}

{{- define "podium.mlflowUri" -}}
{{- if .Values.mlflow.enabled -}}
http://{{ include "podium.fullname" . }}-mlflow.{{ .Release.Namespace }}.svc:{{ .Values.mlflow.service.port }}
{{- else -}}
{{- .Values.mlflow.externalUri -}}
{{- end -}}
{{- end -}}

{{- define "podium.mlflowArtifacts" -}}
{{- default (printf "%s/mlflow-artifacts" (trimSuffix "/" .Values.store.uri)) .Values.mlflow.artifacts.root -}}
{{- end -}}

{{- define "podium.uploads" -}}
{{- if and .Values.upload.enabled .Values.kfp.endpoint }}true{{ end -}}
{{- end -}}

{{/* The API version of Kueue's kinds that this cluster serves; empty where it has none or `kueue` is not enabled. */}}
{{- define "podium.kueueVersion" -}}
{{- if .Values.kueue.enabled -}}
{{- if .Capabilities.APIVersions.Has "kueue.x-k8s.io/v1beta2" -}}
kueue.x-k8s.io/v1beta2
{{- else if .Capabilities.APIVersions.Has "kueue.x-k8s.io/v1beta1" -}}
kueue.x-k8s.io/v1beta1
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The PriorityClass of Jobs: one of the chart's own by its full name, or what the cluster has. */}}
{{- define "podium.trialPriority" -}}
{{- $wanted := .Values.trials.priorityClass -}}
{{- $name := $wanted -}}
{{- range .Values.priorityClasses -}}
{{- if eq .name $wanted }}{{ $name = printf "%s-%s" (include "podium.clusterName" $) .name }}{{ end -}}
{{- end -}}
{{- $name -}}
{{- end -}}
