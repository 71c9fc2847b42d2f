#!/usr/bin/env bash
# How much does the service bear? Many researchers at once, by Locust.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
help() { cat <<'TEXT'
load_test.sh URL --key-file FILE [--users 50] [--seconds 60] [--max-error-ratio 0.01] [--max-p95 1] [--surveys --max-cost-usd X] [--report FILE.html] [--dry-run]
Users look at lists and surveys, estimate and rate texts, with half a second to two seconds between; no language model is asked.
  --key-file       holds the service key, which should have no rate limit of its own (RATE_LIMIT_ENABLED=false on a stack for trials): refusals (429) count as errors
  --surveys        surveys are posted too, of 20 people each, none of which may cost more than --max-cost-usd; LLM_MODEL says which model (gpt-4o-mini)
  --max-error-ratio, --max-p95   the most that is good: a share, and seconds
  LOCUST           the program (locust; pip install locust)
Exit codes: 0 it held, 1 it did not (says what), 2 wrong use.
Example: deploy/scripts/load_test.sh https://staging.example.com --key-file key --users 200 --seconds 300 --report load.html
TEXT
}
wrong() { echo "load_test.sh: $1" >&2; exit 2; }
failed() { echo "load_test.sh: $1" >&2; exit 1; }
url='' key='' users=50 seconds=60 ratio=0.01 p95=1 surveys=no cost='' report='' dry='' number='^[0-9]+(\.[0-9]+)?$'
while [ $# -gt 0 ]; do
  case $1 in
    --help) help; exit 0 ;;
    --dry-run) dry=yes; shift; continue ;;
    --surveys) surveys=yes; shift; continue ;;
    --key-file) [ -r "${2:-}" ] || wrong "--key-file is '${2:-}', which cannot be read: give a file that holds the service key"; key=$2 ;;
    --users | --seconds) [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || wrong "$1 is '${2:-}': give a whole number of at least 1"; declare "${1#--}=$2" ;;
    --max-error-ratio) [[ ${2:-} =~ $number ]] || wrong "$1 is '${2:-}': give a share such as 0.01"; ratio=$2 ;;
    --max-p95) [[ ${2:-} =~ $number ]] || wrong "$1 is '${2:-}': give seconds, such as 1"; p95=$2 ;;
    --max-cost-usd) [[ ${2:-} =~ $number ]] || wrong "$1 is '${2:-}': give dollars, such as 0.10"; cost=$2 ;;
    --report) [ -n "${2:-}" ] || wrong "--report has no file: give one that ends in .html"; report=$2 ;;
    http://* | https://*) url=$1; shift; continue ;;
    *) wrong "'$1' is not known: see --help" ;;
  esac
  shift 2
done
[ -n "$url" ] || wrong "no URL: give the service's address, such as https://staging.example.com"
[ -n "$key" ] || wrong "no --key-file: give a file that holds the service key"
[ "$surveys" = no ] || [ -n "$cost" ] || wrong "--surveys needs --max-cost-usd: the most that one survey may cost"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
run=("${LOCUST:-locust}" --locustfile "$here/locustfile.py" --host "${url%/}" --headless --users "$users" --spawn-rate "$users" --run-time "${seconds}s" --csv "$folder/load" --only-summary --exit-code-on-error 0)
[ -z "$report" ] || run+=(--html "$report")
if [ -n "$dry" ]; then echo "+ KEY_FILE=$key SURVEYS=$surveys MAX_COST_USD=$cost ${run[*]}"; exit 0; fi
command -v "${LOCUST:-locust}" > /dev/null || failed "${LOCUST:-locust} is not installed: pip install locust"
KEY_FILE=$key SURVEYS=$surveys MAX_COST_USD=$cost "${run[@]}" > "$folder/log" 2>&1 || { tail -n 5 "$folder/log" >&2; failed "locust failed"; }
# the last line is the sum: requests are column 3, failures 4, requests a second 10, the quantiles begin at 12 with 50 %; 95 % is 17, in milliseconds
awk -F , -v ratio="$ratio" -v p95="$p95" 'END {
  if ($2 != "Aggregated" || $3 == 0) { print "no request was made"; exit 1 }
  printf "%d requests, %.1f a second, median %.3f s, p95 %.3f s, errors %.2f %%\n", $3, $10, $12 / 1000, $17 / 1000, 100 * $4 / $3
  if ($4 / $3 > ratio) { printf "too many errors: more than %s %%\n", 100 * ratio; bad = 1 }
  if ($17 / 1000 > p95) { printf "too slow: p95 is over %s s\n", p95; bad = 1 }
  exit bad
}' "$folder/load_stats.csv" || { awk -F , 'NR > 1 {print "  " $4 " × " $2 " " $3}' "$folder/load_failures.csv" | head -n 5; exit 1; }
