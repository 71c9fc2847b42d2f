#!/usr/bin/env bash
# Send all requests to the other colour, if that one is well; or leave everything as it is.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=deploy/scripts/nginx.inc.sh
. "$here/nginx.inc.sh"
help() { cat <<'TEXT'
switch_lb.sh blue|green [--checks N] [--dry-run]
Makes a colour (compose project ssr-blue or ssr-green) the live one: nginx sends new requests there, those that are on their way end where they are.
First nginx asks the colour for /health N times (--checks, 5), so that every replica is likely to be met: all answers have to be good. Then the include
live/upstream.conf is written anew, nginx is told, and it is seen that the new colour answers; else the old one is put back.
Switching back is the same command with the other colour.
  NGINX_EXEC          goes before each command where nginx runs; empty for an nginx of this machine
                      (docker compose -p ssr-shared -f deploy/docker-compose.shared.yml exec -T nginx)
  NGINX_LIVE_DIR      folder of the include (/etc/nginx/live);  NGINX_CONF (/etc/nginx/nginx.conf);  NGINX_INSIDE_PORT (8081)
Exit codes: 0 the colour is live, 1 it is not and nothing has changed (says why), 2 wrong use.
Example: deploy/scripts/health_check.sh http://green-api:8000 && deploy/scripts/switch_lb.sh green && deploy/scripts/monitor.sh green 600
TEXT
}
wrong() { echo "switch_lb.sh: $1" >&2; exit 2; }
colour='' dry='' checks=5
while [ $# -gt 0 ]; do
  case $1 in
    --help) help; exit 0 ;;
    --dry-run) dry=yes ;;
    --checks) [[ ${2:-} =~ ^[1-9][0-9]{0,2}$ ]] || wrong "--checks is '${2:-}': give a whole number from 1 to 999"; checks=$2; shift ;;
    blue | green) [ -z "$colour" ] || wrong "two colours, '$colour' and '$1': give one"; colour=$1 ;;
    *) wrong "'$1' is no colour: give blue or green" ;;
  esac
  shift
done
[ -n "$colour" ] || wrong "no colour: give blue or green"
failed() { echo "switch_lb.sh: $1" >&2; exit 1; }

live() { local told; told=$(inside /live) && [[ $told == "200 "* ]] && echo "${told#200 }"; }
before=$(live) || failed "nginx does not tell what is live: is it running, and is NGINX_EXEC right? Nothing was changed"
if [ -n "$dry" ]; then
  echo "+ ask $colour-api for /health $checks times through nginx"
  echo "+ write 'set \$api_upstream $colour-api;' to $NGINX_LIVE_DIR/upstream.conf (now: $before)"
  echo "+ nginx -t, nginx -s reload, ask what is live and whether it answers"
  exit 0
fi
for ((i = 1; i <= checks; i++)); do
  told=$(inside "/$colour/health") || true
  [[ $told == "200 "* ]] || failed "$colour-api is not healthy, so $before stays live. It told: ${told:-nothing}"
done

# written beside and renamed: nginx never reads half a file
put() { printf '%s\n' "$1" | in_nginx sh -c "cat > '$NGINX_LIVE_DIR/upstream.conf.new' && mv '$NGINX_LIVE_DIR/upstream.conf.new' '$NGINX_LIVE_DIR/upstream.conf'"; }
reload() { in_nginx sh -c "nginx -t -q -c '$NGINX_CONF' && nginx -s reload -c '$NGINX_CONF'" < /dev/null 2>&1 | { grep -v 'signal process started' || true; } >&2; }
old=$(in_nginx cat "$NGINX_LIVE_DIR/upstream.conf" < /dev/null)
back() { trap '' INT TERM; put "$old" && reload || true; failed "$1: $before stays live"; }
trap 'back "interrupted"' INT TERM
put "set \$api_upstream $colour-api;" || back "the include could not be written"
reload || back "nginx refuses the configuration"
# for a moment old workers take connections beside the new ones: done when ten answers in a row come from new ones
agreed=0
for ((i = 0; i < 100 && agreed < 10; i++)); do
  if [ "$(live || true)" = "$colour-api" ]; then agreed=$((agreed + 1)); else agreed=0; sleep .2; fi
done
[ "$agreed" -eq 10 ] || back "nginx did not take the change"
told=$(inside /live/health) || true
[[ $told == "200 "* ]] || back "$colour-api did not answer as the live one (${told:-nothing})"
trap - INT TERM
if [ "$before" = "$colour-api" ]; then echo "$colour-api was live already, and still is"; else echo "$colour-api is live, before it was $before"; fi
