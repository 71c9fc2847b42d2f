#!/usr/bin/env bash
# Watch a colour that has just become the live one; stop as soon as it does worse than it may.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=deploy/scripts/nginx.inc.sh
. "$here/nginx.inc.sh"
help() { cat <<'TEXT'
monitor.sh blue|green SECONDS [--interval SECONDS] [--max-errors SHARE] [--max-p95 SECONDS] [--max-failed SHARE]
Every --interval (15) for SECONDS: is the colour the live one, does nginx find it healthy, and what does Prometheus say of
  --max-errors   the share of requests that ended in a 5xx in the last 5 minutes (0.05, as the alert HighErrorRate)
  --max-p95      the time within which 95 % of the requests of the last 5 minutes were answered (1 second, as SlowRequests)
  --max-failed   the share of the surveys that ended in the last 10 minutes which lack answers (0.1, as SurveysFail)
Prometheus does not tell colours apart: it finds the API's replicas by one name. What it measures is the whole API, which is this colour's work, since nginx
sends requests to the live one only; in the first minutes the other's last requests are still in it. Liveness and health are asked of this colour alone.
  PROMETHEUS_URL   (http://127.0.0.1:9091);  NGINX_EXEC, NGINX_INSIDE_PORT: as for switch_lb.sh
Exit codes: 0 all was well for SECONDS, 1 a limit was exceeded, the colour is not live or not well, or nobody can tell (says which), 2 wrong use.
Example: deploy/scripts/monitor.sh green 600 || deploy/scripts/switch_lb.sh blue
TEXT
}
wrong() { echo "monitor.sh: $1" >&2; exit 2; }
colour='' seconds='' interval=15 max_errors=0.05 max_p95=1 max_failed=0.1
while [ $# -gt 0 ]; do
  case $1 in
    --help) help; exit 0 ;;
    --interval) [[ ${2:-} =~ ^[1-9][0-9]{0,4}$ ]] || wrong "$1 is '${2:-}': give a whole number of seconds"; interval=$2; shift ;;
    --max-errors | --max-p95 | --max-failed) [[ ${2:-} =~ ^[0-9]+(\.[0-9]+)?$ ]] || wrong "$1 is '${2:-}': give a number such as 0.05"; name=${1#--}; declare "${name//-/_}=$2"; shift ;;
    -*) wrong "there is no option $1: see --help" ;;
    *) if [ -z "$colour" ]; then colour=$1; elif [ -z "$seconds" ]; then seconds=$1; else wrong "'$1' is too much: give a colour and a number of seconds"; fi ;;
  esac
  shift
done
case $colour in blue | green) ;; *) wrong "the colour is '$colour': give blue or green" ;; esac
[[ $seconds =~ ^[1-9][0-9]{0,6}$ ]] || wrong "SECONDS is '$seconds': give a whole number such as 600"
prometheus=${PROMETHEUS_URL:-http://127.0.0.1:9091}
[[ $prometheus =~ ^https?:// ]] || wrong "PROMETHEUS_URL is '$prometheus': give an address such as http://127.0.0.1:9091"
other=blue; [ "$colour" != blue ] || other=green
failed() { echo "monitor.sh: $1. To go back: deploy/scripts/switch_lb.sh $other" >&2; exit 1; }

# the number that Prometheus has, or nothing if it has none (no traffic, say); it must answer
query() {
  local told
  told=$(curl --silent --show-error --fail --max-time 10 --get --data-urlencode "query=$1" "${prometheus%/}/api/v1/query" 2>&1) || { echo "$told" >&2; return 1; }
  [[ $told == *'"status":"success"'* ]] || { echo "$told" >&2; return 1; }
  sed -nE 's/.*"value":\[[^,]*,"([^"]*)"\].*/\1/p' <<< "$told" | grep -v NaN || true
}
above() { [ -n "$1" ] && awk -v found="$1" -v most="$2" 'BEGIN {exit !(found + 0 > most + 0 || found == "+Inf")}'; }
surveys='sum(increase(ssr_surveys_total{status=~"failed|incomplete"}[10m])) / sum(increase(ssr_surveys_total{status=~"completed|failed|incomplete"}[10m]))'

until=$((SECONDS + seconds))
while :; do
  live=$(inside /live) || failed "nginx does not tell what is live"
  [ "$live" = "200 $colour-api" ] || failed "$colour-api is not the live one (nginx told: $live)"
  health=$(inside "/$colour/health") || failed "nginx cannot ask $colour-api"
  [[ $health == "200 "* ]] || failed "$colour-api is not healthy: $health"
  { targets=$(query 'sum(up{job="api"})') && errors=$(query ssr:http_errors:ratio_rate5m) && p95=$(query ssr:http_request_duration_seconds:p95_5m) &&
    lacking=$(query "$surveys"); } || failed "Prometheus at $prometheus does not answer"
  above "$targets" 0 || failed "Prometheus sees no replica of the API (sum(up{job=\"api\"}) is ${targets:-empty})"
  echo "$(date -u +%H:%M:%SZ) $colour: replicas $targets, errors ${errors:-no traffic}, p95 ${p95:-no traffic}, failed surveys ${lacking:-none ended}"
  if above "$errors" "$max_errors"; then failed "the share of errors is $errors, more than $max_errors"; fi
  if above "$p95" "$max_p95"; then failed "95 % of the requests take up to $p95 seconds, more than $max_p95"; fi
  if above "$lacking" "$max_failed"; then failed "the share of failed surveys is $lacking, more than $max_failed"; fi
  left=$((until - SECONDS))
  [ "$left" -gt 0 ] || break
  sleep $((left < interval ? left : interval))
done
echo "$colour was well for $seconds seconds"
