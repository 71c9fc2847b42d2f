#!/usr/bin/env bash
# Is the canary as good as what is stable? Errors and speed of both, side by side, from Prometheus.
set -euo pipefail
help() { cat <<'TEXT'
canary_metrics.sh [--window 5m] [--min-requests 100] [--max-error-ratio 0.01] [--max-slowdown 1.5] [--dry-run]
Compares the pods with track=canary with those with track=stable over the last --window, by what Prometheus saw of them.
The canary is worse when its share of answers 5xx is more than --max-error-ratio above that of stable, or its p95 latency is more than --max-slowdown times that of stable.
With fewer than --min-requests requests to the canary nothing can be told, and nothing is.
  PROMETHEUS_URL   (http://localhost:9091), such as: kubectl port-forward -n ssr-prod service/prometheus 9091:9090
  --dry-run        print the queries
Exit codes: 0 as good, 1 worse, or Prometheus does not answer (says which), 2 wrong use, 3 too few requests to tell.
Example: deploy/scripts/canary_metrics.sh --window 10m --min-requests 500
TEXT
}
wrong() { echo "canary_metrics.sh: $1" >&2; exit 2; }
window=5m least=100 ratio=0.01 slowdown=1.5 dry=''
number='^[0-9]+(\.[0-9]+)?$'
while [ $# -gt 0 ]; do
  case $1 in
    --help) help; exit 0 ;;
    --dry-run) dry=yes; shift; continue ;;
    --window) [[ ${2:-} =~ ^[1-9][0-9]*[smh]$ ]] || wrong "--window is '${2:-}': give a time such as 30s, 5m or 1h"; window=$2 ;;
    --min-requests) [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || wrong "--min-requests is '${2:-}': give a whole number of at least 1"; least=$2 ;;
    --max-error-ratio) [[ ${2:-} =~ $number ]] || wrong "--max-error-ratio is '${2:-}': give a share such as 0.01"; ratio=$2 ;;
    --max-slowdown) [[ ${2:-} =~ $number ]] || wrong "--max-slowdown is '${2:-}': give a number such as 1.5"; slowdown=$2 ;;
    *) wrong "'$1' is not known: see --help" ;;
  esac
  shift 2
done
url=${PROMETHEUS_URL:-http://localhost:9091}
[[ $url =~ ^https?:// ]] || wrong "PROMETHEUS_URL is '$url': give an address such as http://localhost:9091"

query() { # WHAT TRACK
  local of="track=\"$2\",path!~\"/health.*|/metrics\""
  case $1 in
    requests) echo "sum(increase(http_requests_total{$of}[$window])) or vector(0)" ;;
    errors) echo "(sum(increase(http_requests_total{$of,status=~\"5..\"}[$window])) or vector(0)) / sum(increase(http_requests_total{$of}[$window]))" ;;
    p95) echo "histogram_quantile(0.95, sum by (le) (rate(http_request_duration_seconds_bucket{track=\"$2\"}[$window])))" ;;
  esac
}
ask() { # prints a number, or nothing where there is no data
  local told
  told=$(curl -fsS --max-time 15 --data-urlencode "query=$(query "$1" "$2")" "$url/api/v1/query") || { echo "canary_metrics.sh: Prometheus at $url does not answer: is it there, and is PROMETHEUS_URL right?" >&2; return 1; }
  grep -oE '"value":\[[^]]*\]' <<< "$told" | sed -E 's/.*"([^"]*)"\]/\1/' | grep -v NaN || true
}

if [ -n "$dry" ]; then
  for track in stable canary; do for what in requests errors p95; do echo "+ $(query $what $track)"; done; done
  exit 0
fi
declare -A seen
for track in stable canary; do
  for what in requests errors p95; do seen[$track$what]=$(ask $what $track); done
done
printf '%-8s %10s %12s %10s\n' track requests 'errors 5xx' p95
for track in stable canary; do
  awk -v track=$track -v requests="${seen[${track}requests]}" -v errors="${seen[${track}errors]}" -v p95="${seen[${track}p95]}" \
    'BEGIN { printf "%-8s %10.0f %12s %10s\n", track, requests, errors == "" ? "-" : sprintf("%.2f %%", 100 * errors), p95 == "" ? "-" : sprintf("%.3f s", p95) }'
done
awk -v least="$least" -v requests="${seen[canaryrequests]}" 'BEGIN { exit !(requests < least) }' &&
  { echo "too few requests to the canary to tell: fewer than $least in $window"; exit 3; }
awk -v most="$ratio" -v canary="${seen[canaryerrors]}" -v stable="${seen[stableerrors]:-0}" 'BEGIN { exit !(canary > stable + most) }' &&
  { echo "the canary fails more often than stable, by more than $ratio of its requests"; exit 1; }
awk -v most="$slowdown" -v canary="${seen[canaryp95]:-0}" -v stable="${seen[stablep95]:-0}" 'BEGIN { exit !(stable > 0 && canary > stable * most) }' &&
  { echo "the canary is slower than stable, by more than $slowdown times"; exit 1; }
echo "the canary is as good as stable"
