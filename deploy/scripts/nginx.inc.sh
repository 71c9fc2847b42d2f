# shellcheck shell=bash
# How scripts reach nginx, wherever it runs. To be read in by others.
#   COMPOSE_FILE       compose's own variable (with COMPOSE_PROJECT_NAME): another file than that of the shared project, such as deploy/docker-compose.production.yml
#   NGINX_EXEC         goes before each command; its default enters nginx's container; empty: nginx runs on this machine
#   NGINX_CONF         its configuration (/etc/nginx/nginx.conf)
#   NGINX_LIVE_DIR     the folder of the include that says what is live (/etc/nginx/live)
#   NGINX_INSIDE_PORT  where it answers those inside (8081)
deploy=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
compose=(docker compose); [ -n "${COMPOSE_FILE:-}" ] || compose+=(-p ssr-shared -f "$deploy/docker-compose.shared.yml")
if [ -z "${NGINX_EXEC+x}" ]; then enter=("${compose[@]}" exec -T nginx); else read -ra enter <<< "$NGINX_EXEC"; fi
NGINX_CONF=${NGINX_CONF:-/etc/nginx/nginx.conf} NGINX_LIVE_DIR=${NGINX_LIVE_DIR:-/etc/nginx/live} NGINX_INSIDE_PORT=${NGINX_INSIDE_PORT:-8081}

in_nginx() { "${enter[@]}" "$@"; } # a command where nginx runs
# What nginx answers those inside: status, a space, and the body. Asked by bash, since not every image of nginx has curl.
inside() {
  # shellcheck disable=SC2016 # variables of the inner shell
  in_nginx timeout 15 bash -c 'exec 3<> "/dev/tcp/127.0.0.1/$2" && printf "GET %s HTTP/1.0\r\nHost: localhost\r\n\r\n" "$1" >&3 && cat <&3' inside "$1" "$NGINX_INSIDE_PORT" < /dev/null |
    tr -d '\r' | awk 'NR == 1 {printf "%s ", $2} body {print} /^$/ {body = 1}'
}
# Each part of an answer of /health on a line of its own.
parts() { sed -n 's/.*"parts": *{\(.*\)}.*/\1/p' <<< "$1" | { grep -oE '"[^"\\]+": *"([^"\\]|\\.)*"' || true; } | sed -E 's/^"([^"]*)": *"(.*)"$/  \1: \2/'; }
