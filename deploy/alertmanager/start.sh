#!/bin/sh
# Start Alertmanager with the addresses of its receivers from the environment: it reads none itself.
set -eu
if [ "${1:-}" = --help ]; then
  cat <<'TEXT'
start.sh [OPTION OF ALERTMANAGER]...
Reads CONFIGURATION (/etc/alertmanager/alertmanager.yml) and writes it with the receivers' addresses to RENDERED (/tmp/alertmanager.yml):
ALERT_WEBHOOK_CRITICAL, ALERT_WEBHOOK_WARNING (critical's by default), ALERT_WEBHOOK_HEARTBEAT (critical's by default). Then runs ALERTMANAGER (alertmanager).
Exit codes: 2 the first address is missing; else Alertmanager's own.
Example: ALERT_WEBHOOK_CRITICAL=https://hooks.example.com/critical sh start.sh --storage.path=/alertmanager
TEXT
  exit 0
fi
: "${ALERT_WEBHOOK_CRITICAL:?give the address that critical alerts are posted to}"
rendered=${RENDERED:-/tmp/alertmanager.yml}
warning=${ALERT_WEBHOOK_WARNING:-$ALERT_WEBHOOK_CRITICAL}
heartbeat=${ALERT_WEBHOOK_HEARTBEAT:-$ALERT_WEBHOOK_CRITICAL}
escape() { printf %s "$1" | sed 's/[\\&|]/\\&/g'; }
umask 077
sed -e "s|http://critical.invalid/|$(escape "$ALERT_WEBHOOK_CRITICAL")|" -e "s|http://warning.invalid/|$(escape "$warning")|" -e "s|http://heartbeat.invalid/|$(escape "$heartbeat")|" \
  "${CONFIGURATION:-/etc/alertmanager/alertmanager.yml}" > "$rendered"
exec "${ALERTMANAGER:-alertmanager}" --config.file="$rendered" "$@"
