#!/usr/bin/env bash
# Ask the service how it is until it is well, or until the time is up.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
help() { cat <<'TEXT'
health_check.sh URL [--timeout SECONDS] [--interval SECONDS] [--insecure | --ca-file FILE]
Asks URL/health until every part of the service (database, redis, models, workers) answers, and prints the parts.
  URL          the service's address, such as https://ssr.example.com or http://localhost:8000.
               http://blue-api:8000 and http://green-api:8000 are names inside the containers' network: where they mean nothing, nginx's container is asked to look
               (NGINX_EXEC goes before commands there; its default enters the project ssr-shared).
  --timeout    how long to go on asking (60); 0: ask once
  --interval   between two questions (2)
  --insecure   take any certificate, for trials;  --ca-file  trust those who sign in FILE
Exit codes: 0 healthy, 1 not healthy in time (says which part), 2 wrong use.
Example: deploy/scripts/health_check.sh http://green-api:8000 --timeout 120
TEXT
}
wrong() { echo "health_check.sh: $1" >&2; exit 2; }
url='' timeout=60 interval=2 tls=()
while [ $# -gt 0 ]; do
  case $1 in
    --help) help; exit 0 ;;
    --timeout | --interval) [[ ${2:-} =~ ^[0-9]{1,6}$ ]] || wrong "$1 is '${2:-}': give a whole number of seconds"; declare "${1#--}=$2"; shift ;;
    --insecure) tls+=(--insecure) ;;
    --ca-file) [ -r "${2:-}" ] || wrong "--ca-file is '${2:-}', which cannot be read: give a file of certificates (PEM)"; tls+=(--cacert "$2"); shift ;;
    -*) wrong "there is no option $1: see --help" ;;
    *) [ -z "$url" ] || wrong "two addresses, '$url' and '$1': give one"; url=$1 ;;
  esac
  shift
done
[[ $url =~ ^https?://[^/[:space:]]+ ]] || wrong "URL is '$url': give the service's address, such as http://localhost:8000"
url=${url%/} url=${url%/health}

# shellcheck source=deploy/scripts/nginx.inc.sh
. "$here/nginx.inc.sh"
from_inside=''
if [[ $url =~ ^http://(blue|green)-api(:8000)?$ ]] && ! getent hosts "${BASH_REMATCH[1]}-api" > /dev/null; then
  from_inside=/${BASH_REMATCH[1]}/health
  echo "$url is a name of the inside: nginx asks there"
fi
ask() { # status, a space, and the body
  if [ -n "$from_inside" ]; then inside "$from_inside" 2>&1 || true
  else curl --silent --show-error --max-time 15 "${tls[@]}" --write-out '\n%{http_code}' "$url/health" 2>&1 | awk '{line[NR] = $0} END {printf "%s", line[NR]; for (i = 1; i < NR; i++) printf " %s", line[i]; print ""}' || true; fi
}
until=$((SECONDS + timeout))
while :; do
  told=$(ask)
  if [[ $told == 200\ *'"status":"ok"'* ]]; then
    echo "healthy: $url"; parts "$told"; exit 0
  fi
  [ "$SECONDS" -lt "$until" ] || break
  sleep "$interval"
done
echo "health_check.sh: $url is not healthy after $timeout seconds" >&2
found=$(parts "$told")
if [ -n "$found" ]; then echo "$found" >&2; else echo "  it told: ${told:-nothing}" >&2; fi
exit 1
