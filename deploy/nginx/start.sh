#!/bin/sh
# Start nginx as the one way in: see that it knows where the API is and has a certificate, then run it.
set -eu
if [ "${1:-}" = --help ]; then
  cat <<'TEXT'
start.sh
The command of nginx's container: sh /etc/nginx/start.sh
  LIVE_API         the name that requests go to at the first start, without colours (api); later deploy/scripts/switch_lb.sh says it, in live/upstream.conf
  TLS_SELF_SIGNED  true: make a certificate for a trial if there is none in certificates/ (fullchain.pem, privkey.pem). Clients will not trust it.
  DOMAIN           the name in that certificate (localhost)
Exit codes: 1 no certificate, or nginx refuses the configuration; 2 a variable makes no sense; else nginx's own.
Example: TLS_SELF_SIGNED=true LIVE_API=blue-api sh /etc/nginx/start.sh
TEXT
  exit 0
fi
here=$(cd "$(dirname "$0")" && pwd)
say() { echo "start.sh: $1" >&2; exit "$2"; }
api=${LIVE_API:-api}
case $api in *[!a-z0-9.-]* | [.-]*) say "LIVE_API is '$api': give a host name of small letters, digits, dots and hyphens, such as api or blue-api" 2 ;; esac
case ${TLS_SELF_SIGNED:-false} in true | false) ;; *) say "TLS_SELF_SIGNED is '$TLS_SELF_SIGNED': give true or false" 2 ;; esac
domain=${DOMAIN:-localhost}
case $domain in *[!A-Za-z0-9.-]*) say "DOMAIN is '$domain': give a host name such as ssr.example.com" 2 ;; esac

if [ ! -s "$here/live/upstream.conf" ]; then
  # shellcheck disable=SC2016 # a variable of nginx
  { printf 'set $api_upstream %s;\n' "$api" > "$here/live/upstream.conf.new" && mv "$here/live/upstream.conf.new" "$here/live/upstream.conf"; } ||
    say "$here/live cannot be written: mount a volume or a tmpfs there" 1
fi
if [ ! -s "$here/certificates/fullchain.pem" ] || [ ! -s "$here/certificates/privkey.pem" ]; then
  [ "${TLS_SELF_SIGNED:-false}" = true ] ||
    say "there is no certificate in $here/certificates: put fullchain.pem and privkey.pem there (deploy/scripts/certificates.sh), or set TLS_SELF_SIGNED=true for a trial" 1
  (umask 077; openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj "/CN=$domain" -addext "subjectAltName=DNS:$domain" \
    -keyout "$here/certificates/privkey.pem" -out "$here/certificates/fullchain.pem") 2> /tmp/nginx-openssl.log || say "no certificate could be made: $(tail -n 1 /tmp/nginx-openssl.log)" 1
  echo "start.sh: made a self-signed certificate for $domain: for trials only" >&2
fi

# since 1.27.4 a kept connection of a client is not cut in the moment of a reload, in which its next request may be on the way
version=$(nginx -v 2>&1 | sed 's|.*/\([0-9.]*\).*|\1|')
if [ "$(printf '%s\n' 1.27.4 "$version" | sort -V | head -n 1)" = 1.27.4 ]; then echo 'keepalive_min_timeout 10s;' > /tmp/nginx-version.conf; else rm -f /tmp/nginx-version.conf; fi

nginx -t -q -c "$here/nginx.conf" || say "nginx refuses its configuration: it says why above" 1
exec nginx -c "$here/nginx.conf" -g 'daemon off;'
