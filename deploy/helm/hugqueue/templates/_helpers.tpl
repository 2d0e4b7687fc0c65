{{/* Names and labels. */}}
{{- define "hugqueue.fullname" -}}
{{- if contains "hugqueue" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-hugqueue" (.Release.Name | trunc 31 | trimSuffix "-") }}{{ end }}
{{- end }}

{{/* Labels that select pods. Takes a list: the root and the component. */}}
{{- define "hugqueue.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: hugqueue
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "hugqueue.labels" -}}
{{- $root := index . 0 -}}
{{ include "hugqueue.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* The image of a component. Takes a list: the root and the image's name. */}}
{{- define "hugqueue.image" -}}
{{- $image := (index . 0).Values.image -}}
{{ with $image.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ index . 1 }}:{{ $image.tag | default (index . 0).Chart.AppVersion }}
{{- end }}

{{/* Kubernetes kills the container after this: `workers start` takes at most 30 s longer than its workers' grace period. */}}
{{- define "hugqueue.terminationGracePeriodSeconds" -}}
{{ add (int .Values.graceSeconds) 30 }}
{{- end }}

{{- define "hugqueue.redisSecretName" -}}
{{ .Values.redis.existingSecret | default (printf "%s-redis" (include "hugqueue.fullname" .)) }}
{{- end }}

{{- define "hugqueue.redisSecretKey" -}}
{{ if .Values.redis.existingSecret }}{{ .Values.redis.existingSecretKey }}{{ else }}redis-password{{ end }}
{{- end }}

{{/* The variables that say where Redis is. */}}
{{- define "hugqueue.brokerEnv" -}}
{{- if .Values.redis.enabled -}}
- name: REDIS_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ include "hugqueue.redisSecretName" . }}
      key: {{ include "hugqueue.redisSecretKey" . }}
- name: CELERY_BROKER_URL
  value: redis://:$(REDIS_PASSWORD)@{{ include "hugqueue.fullname" . }}-redis:6379/0
{{- else if .Values.externalRedis.existingSecret -}}
- name: CELERY_BROKER_URL
  valueFrom:
    secretKeyRef:
      name: {{ .Values.externalRedis.existingSecret }}
      key: {{ .Values.externalRedis.existingSecretKey }}
{{- else -}}
- name: CELERY_BROKER_URL
  value: {{ required "externalRedis: set url or existingSecret, or redis.enabled=true" .Values.externalRedis.url | quote }}
{{- end }}
{{- end }}

{{/* The variables of what opens stores and models. Takes a list: the root, and more variables. */}}
{{- define "hugqueue.settingsEnv" -}}
{{- $root := index . 0 -}}
{{- if or $root.Values.trainedModels.existingClaim $root.Values.trainedModels.url }}
- name: HUGQUEUE_MODELS_URL
  value: {{ $root.Values.trainedModels.url | default "/trained" | quote }}
{{- end }}
{{- if $root.Values.huggingFace.existingSecret }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ $root.Values.huggingFace.existingSecret }}
      key: {{ $root.Values.huggingFace.key }}
{{- end }}
{{- range $variable, $value := merge (deepCopy (index . 1)) $root.Values.settings }}
- name: {{ $variable }}
  {{- /* Helm reads numbers as floats, and would write a million as 1e+06. */}}
  value: {{ and (kindIs "float64" $value) (eq $value (floor $value)) | ternary (int64 $value) $value | toString | quote }}
{{- end }}
{{- with $root.Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Volumes of one's own, and where they are mounted. */}}
{{- define "hugqueue.extraVolumes" -}}
{{- with .Values.extraVolumes }}{{ toYaml . }}{{ end }}
{{- end }}

{{- define "hugqueue.extraVolumeMounts" -}}
{{- with .Values.extraVolumeMounts }}{{ toYaml . }}{{ end }}
{{- end }}

{{/* Annotations of a pod, which restart it with a new password. Takes a list: the root, the component's values, and another secret. */}}
{{- define "hugqueue.podAnnotations" -}}
checksum/passwords: {{ printf "%s %s" (index . 0).Values.redis.password (index . 2) | sha256sum }}
{{- with (index . 1).podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "hugqueue.envFrom" -}}
{{- with .Values.settingsSecrets }}
envFrom:
  {{- range . }}
  - secretRef:
      name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* What every pod has in common. Takes a list: the root, the component's values, and its name. */}}
{{- define "hugqueue.podSpec" -}}
{{- $root := index . 0 -}}
{{- $values := index . 1 -}}
automountServiceAccountToken: false
{{- if ne (index . 2) "redis" }}
{{- with $root.Values.serviceAccountName }}
serviceAccountName: {{ . }}
{{- end }}
{{- end }}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- range $field := list "nodeSelector" "tolerations" "affinity" }}
{{- with get $values $field }}
{{ $field }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{/* The user of the Dockerfile's images. */}}
{{- define "hugqueue.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "hugqueue.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* The queues of a pool of workers, as a regular expression for Prometheus. Takes a list: kind and values. */}}
{{- define "hugqueue.queues" -}}
{{- $pool := index . 1 -}}
{{- if eq (index . 0) "train" }}train{{ else if $pool.queues }}{{ join "|" $pool.queues }}{{ else }}any|{{ gt (int $pool.gpus) 0 | ternary "gpu" "cpu" }}{{ end }}
{{- end }}
