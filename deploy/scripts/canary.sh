#!/usr/bin/env bash
# Bring a new version to a growing share of requests, and take it back by itself if it is worse.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
help() { cat <<'TEXT'
canary.sh IMAGE [--watch SECONDS] [--steps '1/9 3/9 5/5 10/0'] [--namespace ssr-prod] [--timeout SECONDS] [--dry-run] [-- OPTIONS OF canary_metrics.sh]
canary.sh rollback [--namespace ssr-prod]
Deployment ssr-api-canary gets IMAGE, and canary/stable replicas as in --steps, so that requests are shared in proportion: 10 %, 25 %, 50 %, all.
After each step canary_metrics.sh compares both for --watch seconds (300); it looks every --every seconds (30). Worse, or too few requests in the whole time: everything goes back as it was.
After the last step ssr-api-stable, celery-worker, celery-beat and flower get IMAGE, and the canary has no replicas any more.
While this runs the autoscaler ssr-api-hpa is pinned; what it had is noted at the canary (annotation ssr-nb/before), so that `canary.sh rollback` also ends one whose script has died.
Migrations come first, and stay compatible one version back: deploy/k8s/apply.sh runs them. Afterwards set the same tag in deploy/kustomize/production.
  PROMETHEUS_URL, KUBECTL (kubectl), CANARY_METRICS (canary_metrics.sh beside this script)
Exit codes: 0 IMAGE serves everybody, 1 it does not and the old version serves as before (says why), 2 wrong use.
Example: deploy/scripts/canary.sh registry.example.com/ssr-api:0.2.0 --watch 600 -- --window 10m --min-requests 500
TEXT
}
wrong() { echo "canary.sh: $1" >&2; exit 2; }
image='' watch=300 every=30 steps='1/9 3/9 5/5 10/0' namespace=ssr-prod timeout=600 dry='' metrics=()
while [ $# -gt 0 ]; do
  case $1 in
    --help) help; exit 0 ;;
    --dry-run) dry=yes; shift; continue ;;
    --) shift; metrics=("$@"); break ;;
    --watch | --every | --timeout) [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || wrong "$1 is '${2:-}': give a whole number of seconds"; declare "${1#--}=$2" ;;
    --steps) [[ ${2:-} =~ ^([1-9][0-9]*/[0-9]+ )*[1-9][0-9]*/0$ ]] || wrong "--steps is '${2:-}': give canary/stable, the last with no stable ones, such as '1/9 5/5 10/0'"; steps=$2 ;;
    --namespace) [[ ${2:-} =~ ^[a-z0-9-]+$ ]] || wrong "--namespace is '${2:-}': give a name such as ssr-prod"; namespace=$2 ;;
    -*) wrong "'$1' is not known: see --help" ;;
    *) [ -z "$image" ] || wrong "two images, '$image' and '$1': give one"; image=$1; shift; continue ;;
  esac
  shift 2
done
[ -n "$image" ] || wrong "no image: give one such as registry.example.com/ssr-api:0.2.0, or 'rollback'"
[ "$image" = rollback ] || [[ $image =~ ^[A-Za-z0-9./_-]+(:[0-9]+/[A-Za-z0-9./_-]+)?(:[A-Za-z0-9._-]+|@sha256:[0-9a-f]{64})$ ]] || wrong "the image is '$image': give it with a tag or a digest, such as registry.example.com/ssr-api:0.2.0"

failed() { echo "canary.sh: $1" >&2; exit 1; }
note=ssr-nb/before others=(celery-worker celery-beat flower)
kube() { if [ -n "$dry" ]; then echo "+ ${KUBECTL:-kubectl} -n $namespace $*"; else "${KUBECTL:-kubectl}" -n "$namespace" "$@" > /dev/null; fi; }
get() { "${KUBECTL:-kubectl}" -n "$namespace" get "$1" -o "jsonpath=$2"; }
scale() { kube scale "deployment/ssr-api-$1" --replicas="$2" && kube rollout status "deployment/ssr-api-$1" --timeout="${timeout}s"; }
autoscaler() { kube patch hpa ssr-api-hpa --type merge --patch "{\"spec\":{\"minReplicas\":$1,\"maxReplicas\":$2}}"; }
pin() { local one=$(($1 > 0 ? $1 : 1)); autoscaler "$one" "$one"; }

back() { # to what was noted; may be called again after it was interrupted
  trap '' INT TERM
  local replicas least most old
  IFS=' ' read -r replicas least most old <<< "$(get deployment/ssr-api-canary '{.metadata.annotations.ssr-nb/before}')"
  [ -n "${old:-}" ] || failed "no canary is under way in $namespace: there is nothing to take back"
  [ "$(get deployment/ssr-api-stable '{.spec.template.spec.containers[0].image}')" = "$old" ] || kube set image deployment/ssr-api-stable "api=$old"
  local one
  for one in "${others[@]}"; do [ "$(get "deployment/$one" '{.spec.template.spec.containers[0].image}')" = "$old" ] || kube set image "deployment/$one" "*=$old"; done
  if ! { pin "$replicas" && scale stable "$replicas" && scale canary 0 && autoscaler "$least" "$most" && kube annotate deployment/ssr-api-canary "$note-"; }; then
    failed "could not take everything back: see kubectl -n $namespace get deployments,hpa and call 'canary.sh rollback' again"
  fi
  echo "stable has $replicas replicas of $old again, and the canary none"
}
if [ "$image" = rollback ]; then back; exit 0; fi

if [ -n "$dry" ]; then
  get() { case $2 in *replicas*) echo 3 ;; *minReplicas*) echo '3 20' ;; *image*) echo "IMAGE-OF-TODAY" ;; esac; } # nothing is asked, so these are made up
fi
old=$(get deployment/ssr-api-stable '{.spec.template.spec.containers[0].image}') || failed "there is no ssr-api-stable in $namespace"
replicas=$(get deployment/ssr-api-stable '{.spec.replicas}')
bounds=$(get hpa/ssr-api-hpa '{.spec.minReplicas} {.spec.maxReplicas}') || failed "there is no autoscaler ssr-api-hpa in $namespace"
before=$(get deployment/ssr-api-canary '{.metadata.annotations.ssr-nb/before}') || failed "there is no ssr-api-canary in $namespace"
[ "$old" != "$image" ] || failed "stable has $image already"
[ -z "$before" ] || failed "a canary is under way, or its script has died: end it with 'canary.sh rollback'"

look() { # as long as it is as good; what canary_metrics.sh says last counts
  local until=$((SECONDS + watch)) told state
  while :; do
    state=0
    told=$("${CANARY_METRICS:-$here/canary_metrics.sh}" "${metrics[@]}" 2>&1) || state=$?
    [ "$state" = 0 ] || [ "$state" = 3 ] || { echo "$told"; return 1; }
    ((SECONDS >= until)) && { echo "$told"; return "$state"; }
    sleep "$every"
  done
}
worse() { echo "canary.sh: $1. Going back" >&2; back >&2; exit 1; }
trap 'worse interrupted' INT TERM

kube annotate deployment/ssr-api-canary "$note=$replicas $bounds $old"
kube set image deployment/ssr-api-canary "api=$image" || worse "the image could not be set"
for step in $steps; do
  echo "$step: ${step%/*} of the canary, ${step#*/} of stable"
  scale canary "${step%/*}" || worse "the canary's replicas did not become ready in $timeout s"
  if ! { pin "${step#*/}" && scale stable "${step#*/}"; }; then worse "stable could not be scaled"; fi
  [ -n "$dry" ] && { echo "+ canary_metrics.sh ${metrics[*]}, for $watch s"; continue; }
  look || worse "it did not hold at $step"
done
echo "everybody: $image"
for one in ssr-api-stable "${others[@]}"; do kube set image "deployment/$one" "*=$image" || worse "$one did not take the image"; done
if ! { pin "$replicas" && scale stable "$replicas"; }; then worse "stable with the new image did not become ready"; fi
trap '' INT TERM
for one in "${others[@]}"; do kube rollout status "deployment/$one" --timeout="${timeout}s" || echo "canary.sh: $one is not ready yet: see kubectl -n $namespace rollout status deployment/$one" >&2; done
scale canary 0
autoscaler "${bounds% *}" "${bounds#* }"
kube annotate deployment/ssr-api-canary "$note-"
[ -n "$dry" ] || echo "$image serves everybody"
