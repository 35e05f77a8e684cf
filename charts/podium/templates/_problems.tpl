{{/* What no schema can say: values that contradict each other. All problems at once, each with the value's name. */}}
{{- define "podium.problems" -}}
{{- $values := .Values -}}
{{- if not $values.store.uri }}
store.uri: is required: where runs, data and models lie, such as s3://bucket/prefix
{{- end }}
{{- if $values.mlflow.enabled }}
{{- if not $values.mlflow.database.existingSecret }}
mlflow.database.existingSecret: is required with mlflow.enabled: the name of a secret with the access to PostgreSQL
{{- end }}
{{- if not (or $values.mlflow.database.host $values.mlflow.database.uriKey) }}
mlflow.database: needs host, or uriKey for a secret that holds the whole address
{{- end }}
{{- if $values.mlflow.externalUri }}
mlflow.externalUri: is for an MLflow that is already there: set mlflow.enabled to false, got {{ $values.mlflow.externalUri | quote }}
{{- end }}
{{- if and (gt (int $values.mlflow.replicas) 1) (ge (int $values.mlflow.minAvailable) (int $values.mlflow.replicas)) }}
mlflow.minAvailable: must be less than mlflow.replicas ({{ $values.mlflow.replicas }}), or no node can be drained, got {{ $values.mlflow.minAvailable }}
{{- end }}
{{- if and $values.mlflow.ingress.enabled (not $values.mlflow.ingress.hosts) }}
mlflow.ingress.hosts: is required with mlflow.ingress.enabled
{{- end }}
{{- end }}
{{- $seen := dict -}}
{{- range $index, $runner := $values.runners }}
{{- $key := printf "%s/%s" $runner.namespace $runner.serviceAccount -}}
{{- if hasKey $seen $key }}
runners[{{ $index }}]: is there twice, got {{ $key }}
{{- end }}
{{- if eq $runner.serviceAccount $values.trials.serviceAccount.name }}
runners[{{ $index }}].serviceAccount: must not be trials.serviceAccount.name, which has no rights, got {{ $runner.serviceAccount | quote }}
{{- end }}
{{- if and $runner.annotations (not $runner.create) }}
runners[{{ $index }}].annotations: only for an account that the chart makes (create: true); annotate {{ $key }} where it was made
{{- end }}
{{- $_ := set $seen $key true -}}
{{- end }}
{{- range $name := keys $values.runtime.extra | sortAlpha }}
{{- if has $name (list "AWS_ENDPOINT_URL" "AWS_REGION" "PODIUM_MLFLOW_URI" "MLFLOW_TRACKING_URI" "PODIUM_STORE" "PODIUM_JOBS") }}
runtime.extra.{{ $name }}: is set by the chart from other values
{{- end }}
{{- end }}
{{- if hasKey $values.gpuClasses "cpu" }}
gpuClasses.cpu: is the name that kueue.quotas has for trials without a GPU: choose another
{{- end }}
{{- if $values.kueue.enabled }}
{{- if not $values.kueue.quotas }}
kueue.quotas: is required with kueue.enabled: a queue without quota admits nothing
{{- end }}
{{- range $name := keys $values.kueue.quotas | sortAlpha }}
{{- $quota := index $values.kueue.quotas $name -}}
{{- if not (or (eq $name "cpu") (hasKey $values.gpuClasses $name)) }}
kueue.quotas.{{ $name }}: must be cpu or one of gpuClasses ({{ keys $values.gpuClasses | sortAlpha | join ", " | default "none" }})
{{- end }}
{{- if and (eq $name "cpu") $quota.gpus }}
kueue.quotas.cpu.gpus: the class cpu has none, got {{ $quota.gpus }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}
