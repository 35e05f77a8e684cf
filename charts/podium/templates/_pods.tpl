{{/* What every pod of the chart has: Pod Security `restricted`, and no route to the API unless it says so. */}}
{{- define "podium.podSecurity" -}}
securityContext:
  runAsNonRoot: true
  {{- with .Values.runAs.user }}
  runAsUser: {{ int64 . }}
  {{- end }}
  {{- with .Values.runAs.group }}
  runAsGroup: {{ int64 . }}
  fsGroup: {{ int64 . }}
  {{- end }}
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{- define "podium.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{/* A container of the steps image: its image and the environment that a read-only root needs. */}}
{{- define "podium.stepsImage" -}}
image: {{ include "podium.image" (list . "steps") }}
imagePullPolicy: {{ .Values.images.pullPolicy }}
{{ include "podium.containerSecurity" . }}
{{- end -}}

{{- define "podium.scratchEnv" -}}
- name: HOME
  value: /tmp
- name: TMPDIR
  value: /tmp
{{- end -}}

{{/* Access to S3, as boto3 reads it. */}}
{{- define "podium.s3Env" -}}
{{- with .Values.s3.endpoint }}
- name: AWS_ENDPOINT_URL
  value: {{ . | quote }}
{{- end }}
{{- with .Values.s3.region }}
- name: AWS_REGION
  value: {{ . | quote }}
- name: AWS_DEFAULT_REGION
  value: {{ . | quote }}
{{- end }}
{{- with .Values.credentials.existingSecret }}
{{- range list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" }}
- name: {{ . }}
  valueFrom:
    secretKeyRef:
      name: {{ $.Values.credentials.existingSecret }}
      key: {{ . }}
{{- end }}
- name: AWS_SESSION_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: AWS_SESSION_TOKEN
      optional: true
{{- end }}
{{- end -}}

{{/* Kubeflow's API and the token by which the pod introduces itself. */}}
{{- define "podium.kfpEnv" -}}
- name: PODIUM_INSTALLATION
  value: /etc/podium/installation/installation.yaml
{{- with .Values.kfp.endpoint }}
- name: KF_PIPELINES_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- with .Values.kfp.namespace }}
- name: PODIUM_KFP_NAMESPACE
  value: {{ . | quote }}
{{- end }}
{{- if .Values.kfp.tokenAudience }}
- name: PODIUM_KFP_TOKEN_FILE
  value: /var/run/secrets/kubeflow/pipelines/token
{{- end }}
{{- end -}}

{{- define "podium.kfpMounts" -}}
- name: installation
  mountPath: /etc/podium/installation
  readOnly: true
{{- if .Values.kfp.tokenAudience }}
- name: kubeflow-token
  mountPath: /var/run/secrets/kubeflow/pipelines
  readOnly: true
{{- end }}
{{- end -}}

{{- define "podium.kfpVolumes" -}}
- name: installation
  configMap:
    name: {{ include "podium.fullname" . }}-installation
{{- with .Values.kfp.tokenAudience }}
- name: kubeflow-token
  projected:
    sources:
      - serviceAccountToken:
          path: token
          audience: {{ . }}
          expirationSeconds: 3600
{{- end }}
{{- end -}}
