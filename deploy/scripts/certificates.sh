#!/usr/bin/env bash
# The certificate that nginx shows: ask for it, keep it fresh, say when it ends.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=deploy/scripts/nginx.inc.sh
. "$here/nginx.inc.sh"
help() { cat <<'TEXT'
certificates.sh request|renew|schedule|check [--staging] [--days N] [--dry-run]
request    get a certificate for DOMAIN from Let's Encrypt (certbot puts its proofs where nginx serves them on port 80), and give it to nginx
renew      get a new one if the time has come, give it to nginx if it is new, then check. Harmless at any time.
schedule   put `renew` into this user's crontab, twice a day; once is enough
check      say how long the certificate in use holds, and write ssr_certificate_expiry_timestamp_seconds for Prometheus (alert CertificateEndsSoon)
A new certificate is looked at first: it must fit its key and hold for DOMAIN. If nginx refuses it, the old one is put back.
nginx starts only with a certificate: for the first request start it with TLS_SELF_SIGNED=true.
  DOMAIN             such as ssr.example.com;  EMAIL  whom Let's Encrypt writes to (request)
  CERTBOT            the command of certbot (docker compose -p ssr-shared -f deploy/docker-compose.shared.yml run --rm -T certbot)
  CERTBOT_CAT        the command that prints a file of certbot's store (the same with --entrypoint cat)
  CERTBOT_LIVE       the folder of certificates in that store (/etc/letsencrypt/live);  ACME_WEBROOT  where proofs are put, as certbot sees it (/var/www/acme)
  NGINX_CERTIFICATES where nginx reads it (/etc/nginx/certificates);  NGINX_EXEC, NGINX_CONF: as for switch_lb.sh
  COMPOSE_FILE       where all runs in one project: deploy/docker-compose.production.yml, as a whole path (with COMPOSE_PROJECT_NAME if it is not ssr-production)
  METRICS_DIR        folder of the node exporter's textfile collector; without it no metric is written
  --staging          Let's Encrypt's servers for trials (request);  --days  how many days are too few (14)
Exit codes: 0 done, 1 it could not be had, or holds for less than 14 days (says why), 2 wrong use.
Example: DOMAIN=ssr.example.com EMAIL=ops@example.com deploy/scripts/certificates.sh request
TEXT
}
wrong() { echo "certificates.sh: $1" >&2; exit 2; }
failed() { echo "certificates.sh: $1" >&2; exit 1; }
what='' dry='' days=14 staging=()
while [ $# -gt 0 ]; do
  case $1 in
    --help) help; exit 0 ;;
    --dry-run) dry=yes ;;
    --staging) staging=(--staging) ;;
    --days) [[ ${2:-} =~ ^[0-9]{1,3}$ ]] || wrong "--days is '${2:-}': give a whole number of days"; days=$2; shift ;;
    request | renew | schedule | check) [ -z "$what" ] || wrong "both $what and $1: give one"; what=$1 ;;
    *) wrong "'$1' is not known: give request, renew, schedule or check (see --help)" ;;
  esac
  shift
done
[ -n "$what" ] || wrong "nothing to do: give request, renew, schedule or check"
[ "${#staging[@]}" = 0 ] || [ "$what" = request ] || wrong "--staging belongs to request"
domain=${DOMAIN:-}
if [ "$what" = request ] || [ "$what" = renew ] || [ "$what" = schedule ]; then [[ $domain =~ ^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$ ]] || wrong "DOMAIN is '$domain': give the name that clients use, such as ssr.example.com"; fi
if [ "$what" = request ]; then [[ ${EMAIL:-} == ?*@?*.?* ]] || wrong "EMAIL is '${EMAIL:-}': give the address that Let's Encrypt may write to"; fi
if [ -n "${CERTBOT:-}" ]; then read -ra certbot <<< "$CERTBOT"; else certbot=("${compose[@]}" run --rm -T certbot); fi
if [ -n "${CERTBOT_CAT:-}" ]; then read -ra stored <<< "$CERTBOT_CAT"; else stored=("${compose[@]}" run --rm -T --entrypoint cat certbot); fi
live=${CERTBOT_LIVE:-/etc/letsencrypt/live}/$domain used=${NGINX_CERTIFICATES:-/etc/nginx/certificates}
run() { if [ -n "$dry" ]; then echo "+ $*"; else "$@" < /dev/null; fi; }

ends() { date -d "$(openssl x509 -noout -enddate | cut -d= -f2)" +%s; } # in seconds since 1970
check() {
  local end left
  end=$(in_nginx cat "$used/fullchain.pem" < /dev/null | ends 2> /dev/null) || failed "there is no certificate in $used: run certificates.sh request"
  left=$(((end - $(date +%s)) / 86400))
  if [ -n "${METRICS_DIR:-}" ]; then
    # readable for the node exporter, and never read half written
    printf '# HELP ssr_certificate_expiry_timestamp_seconds When the certificate that nginx shows ends.\n# TYPE ssr_certificate_expiry_timestamp_seconds gauge\nssr_certificate_expiry_timestamp_seconds %s\n' "$end" > "$METRICS_DIR/certificate.prom.new"
    chmod 644 "$METRICS_DIR/certificate.prom.new"
    mv "$METRICS_DIR/certificate.prom.new" "$METRICS_DIR/certificate.prom"
  fi
  [ "$left" -ge "$days" ] || failed "the certificate holds for $left days, less than $days: run certificates.sh renew, and see why it was not renewed"
  echo "the certificate holds for $left days"
}
swap() { in_nginx sh -c "cd '$used' && for one in fullchain privkey; do if [ -e \$one.pem$1 ]; then [ -z '$2' ] || [ ! -e \$one.pem ] || cp -p \$one.pem \$one.pem$2; mv \$one.pem$1 \$one.pem; fi; done" < /dev/null; }
install_certificate() { # what certbot has -> nginx, if it is another
  folder=$(mktemp -d) # of this user alone; it holds the key for a moment
  trap 'rm -rf "$folder"' EXIT
  for one in fullchain privkey; do "${stored[@]}" "$live/$one.pem" < /dev/null > "$folder/$one.pem" || failed "certbot has no $live/$one.pem"; done
  if in_nginx cat "$used/fullchain.pem" < /dev/null 2> /dev/null | cmp -s - "$folder/fullchain.pem"; then echo "nginx has this certificate already"; return; fi
  [ "$(openssl x509 -noout -pubkey -in "$folder/fullchain.pem" 2>&1)" = "$(openssl pkey -pubout -in "$folder/privkey.pem" 2>&1)" ] || failed "certbot's certificate does not fit its key: nginx keeps the old one"
  openssl x509 -noout -checkhost "$domain" -in "$folder/fullchain.pem" | grep -q 'does match' || failed "certbot's certificate is not for $domain: nginx keeps the old one"
  openssl x509 -noout -checkend 0 -in "$folder/fullchain.pem" > /dev/null || failed "certbot's certificate has ended: nginx keeps the old one"
  # the key goes through a pipe: it is never among arguments; each file is written beside and renamed, and nginx reads them when it is told
  for one in fullchain privkey; do in_nginx sh -c "umask 077; cat > '$used/$one.pem.new'" < "$folder/$one.pem" || failed "$used cannot be written"; done
  swap .new .old
  if ! in_nginx nginx -t -q -c "$NGINX_CONF" < /dev/null; then swap .old ''; failed "nginx refuses the new certificate: the old one is back"; fi
  in_nginx nginx -s reload -c "$NGINX_CONF" < /dev/null 2> /dev/null || failed "nginx was not told of the new certificate: is it running?"
  in_nginx rm -f "$used/fullchain.pem.old" "$used/privkey.pem.old" < /dev/null
  echo "nginx has a new certificate for $domain"
}

case $what in
  request) run "${certbot[@]}" certonly --webroot --webroot-path "${ACME_WEBROOT:-/var/www/acme}" --domain "$domain" --email "$EMAIL" --agree-tos --non-interactive --keep-until-expiring "${staging[@]}" || failed "certbot got no certificate for $domain: it says why above" ;;
  renew) run "${certbot[@]}" renew --cert-name "$domain" --non-interactive || failed "certbot could not renew: it says why above" ;;
  schedule)
    # the crontab knows none of our variables: those that are set go along
    line="17 3,15 * * *"
    for name in DOMAIN COMPOSE_FILE COMPOSE_PROJECT_NAME CERTBOT CERTBOT_CAT CERTBOT_LIVE NGINX_EXEC NGINX_CONF NGINX_CERTIFICATES METRICS_DIR; do [ -z "${!name+x}" ] || line+=" $name=$(printf %q "${!name}")"; done
    line+=" $here/certificates.sh renew 2>&1 | logger -t ssr-certificates"
    if [ -n "$dry" ]; then echo "+ crontab: $line"; exit 0; fi
    command -v crontab > /dev/null || failed "there is no crontab on this machine: install cron, or run certificates.sh renew twice a day by other means"
    { crontab -l 2> /dev/null | grep -vF "certificates.sh renew" || true; echo "$line"; } | crontab - || failed "the crontab could not be written"
    echo "renewal is in the crontab, at 03:17 and 15:17"; exit 0 ;;
esac
if [ -n "$dry" ]; then [ "$what" = check ] || echo "+ give $live to nginx if it is new"; echo "+ check $used/fullchain.pem"; exit 0; fi
[ "$what" = check ] || install_certificate
check
