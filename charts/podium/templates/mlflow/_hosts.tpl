{{/*
Host headers that MLflow answers to. Since 3.5 it refuses all but localhost and private addresses, and compares the
port too; a client sends the port unless it is 80 or 443. Prometheus calls a pod by its address.
*/}}
{{- define "podium.mlflowHosts" -}}
{{- $service := printf "%s-mlflow" (include "podium.fullname" .) -}}
{{- $scoped := printf "%s.%s" $service .Release.Namespace -}}
{{- $hosts := list "localhost" "localhost:*" "127.0.0.1" "127.0.0.1:*" -}}
{{- range list $service $scoped (printf "%s.svc" $scoped) (printf "%s.svc.%s" $scoped .Values.clusterDomain) -}}
{{- $hosts = concat $hosts (list . (printf "%s:%d" . (int $.Values.mlflow.service.port))) -}}
{{- end -}}
{{- if .Values.mlflow.ingress.enabled -}}
{{- range .Values.mlflow.ingress.hosts }}{{ $hosts = concat $hosts (list . (printf "%s:*" .)) }}{{ end -}}
{{- end -}}
{{- if .Values.mlflow.serviceMonitor.enabled -}}
{{- $hosts = append $hosts "$(POD_IP):5000" -}}
{{- end -}}
{{- concat $hosts .Values.mlflow.extraAllowedHosts | uniq | join "," -}}
{{- end -}}

{{/* Origins of pages that may change something: the server's own under its ingress hosts, whose browsers send one. */}}
{{- define "podium.mlflowOrigins" -}}
{{- $origins := list -}}
{{- if .Values.mlflow.ingress.enabled -}}
{{- range .Values.mlflow.ingress.hosts }}{{ $origins = concat $origins (list (printf "https://%s" .) (printf "http://%s" .)) }}{{ end -}}
{{- end -}}
{{- concat $origins .Values.mlflow.extraCorsOrigins | uniq | join "," -}}
{{- end -}}

{{/* The database: its whole address from the secret, or libpq's variables, with which no password needs escaping. */}}
{{- define "podium.databaseEnv" -}}
{{- $database := .Values.mlflow.database -}}
{{- if $database.host }}
- name: MLFLOW_BACKEND_STORE_URI
  value: "postgresql://"
- name: PGHOST
  value: {{ $database.host | quote }}
- name: PGPORT
  value: {{ $database.port | quote }}
- name: PGDATABASE
  value: {{ $database.name | quote }}
- name: PGUSER
  valueFrom:
    secretKeyRef:
      name: {{ $database.existingSecret }}
      key: {{ $database.usernameKey }}
- name: PGPASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ $database.existingSecret }}
      key: {{ $database.passwordKey }}
{{- else }}
- name: MLFLOW_BACKEND_STORE_URI
  valueFrom:
    secretKeyRef:
      name: {{ $database.existingSecret }}
      key: {{ $database.uriKey }}
{{- end }}
{{- with $database.sslMode }}
- name: PGSSLMODE
  value: {{ . }}
{{- end }}
{{- end -}}
