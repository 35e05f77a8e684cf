{{/* PODIUM_JOBS: how a conductor makes a trial's Job here. Its keys are those of components/launch/job_settings.py. */}}
{{- define "podium.jobSettings" -}}
{{- $trials := .Values.trials -}}
image: {{ include "podium.image" (list . "trainer") }}
image_pull_policy: {{ .Values.images.pullPolicy }}
{{- with .Values.images.pullSecrets }}
image_pull_secrets: {{ toJson . }}
{{- end }}
service_account: {{ $trials.serviceAccount.name }}
secret: {{ default "null" .Values.credentials.existingSecret }}
config_map: {{ .Values.runtime.configMap }}
{{- with include "podium.trialPriority" . }}
priority_class: {{ . }}
{{- end }}
{{- if $trials.queue }}
queue: {{ $trials.queue }}
{{- else if include "podium.kueueVersion" . }}
queue: {{ .Values.kueue.localQueue }}
{{- end }}
{{- with $trials.parallel }}
parallel: {{ . }}
{{- end }}
{{- with $trials.cpu }}
cpu: {{ . | quote }}
{{- end }}
{{- with $trials.memory }}
memory: {{ . | quote }}
{{- end }}
shared_memory: {{ $trials.sharedMemory }}
scratch: {{ $trials.scratch }}
ttl_seconds: {{ int64 $trials.ttlSeconds }}
grace_seconds: {{ int64 $trials.graceSeconds }}
start_seconds: {{ int64 $trials.startSeconds }}
patience_seconds: {{ int64 $trials.patienceSeconds }}
{{- with $trials.deadlineSeconds }}
deadline_seconds: {{ int64 . }}
{{- end }}
{{- with $trials.labels }}
labels:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $trials.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- include "podium.gpuClasses" . }}
{{- end -}}

{{- define "podium.gpuClasses" -}}
{{- with .Values.gpuClasses }}
gpu_classes:
  {{- range $name := keys . | sortAlpha }}
  {{- $class := index $.Values.gpuClasses $name }}
  {{ $name }}:
    resource: {{ default "nvidia.com/gpu" $class.resource }}
    {{- with $class.nodeSelector }}
    node_selector:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with $class.tolerations }}
    tolerations:
      {{- toYaml . | nindent 6 }}
    {{- end }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* What `podium upload`, `submit` and `doctor` must know of this installation. */}}
{{- define "podium.installation" -}}
store: {{ .Values.store.uri }}
launcher: {{ .Values.trials.launcher }}
secret: {{ default "podium-credentials" .Values.credentials.existingSecret }}
config: {{ .Values.runtime.configMap }}
steps_image: {{ include "podium.image" (list . "steps") }}
trainer_image: {{ include "podium.image" (list . "trainer") }}
image_pull_policy: {{ .Values.images.pullPolicy }}
{{- with .Values.images.pullSecrets }}
image_pull_secrets: {{ toJson . }}
{{- end }}
shared_memory: {{ .Values.trials.sharedMemory }}
{{- include "podium.gpuClasses" . }}
{{- end -}}
