{{/* Equal to CONDUCTOR_RULES of components/launch/job_cluster.py; a test compares them. */}}
{{- define "podium.conductorRules" -}}
- apiGroups: [batch]
  resources: [jobs]
  verbs: [create, delete, get, list, watch]
- apiGroups: [""]
  resources: [services]
  verbs: [create]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list]
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
- apiGroups: [""]
  resources: [events]
  verbs: [list]
{{- end -}}

{{/* Equal to REAPER_RULES of components/launch/job_cluster.py; a test compares them. */}}
{{- define "podium.reaperRules" -}}
- apiGroups: [batch]
  resources: [jobs]
  verbs: [delete, list]
{{- end -}}
