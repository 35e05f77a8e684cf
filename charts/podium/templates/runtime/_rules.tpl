{{/* Equal to CONDUCTOR_RULES of components/launch/job_rbac.py; a test compares them. */}}
{{- define "podium.conductorRules" -}}
- apiGroups: [batch]
  resources: [jobs]
  verbs: [create, delete, get, list, watch]
{{- end -}}

{{/* Equal to REAPER_RULES of components/launch/job_rbac.py; a test compares them. */}}
{{- define "podium.reaperRules" -}}
- apiGroups: [batch]
  resources: [jobs]
  verbs: [delete, list]
{{- end -}}
