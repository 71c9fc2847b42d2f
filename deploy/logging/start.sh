#!/bin/sh
# Start the shipper of logs.
set -eu
if [ "${1:-}" = --help ]; then
  cat <<'TEXT'
start.sh
The command of the shipper's container: sh /etc/ssr-logging/start.sh. Reads /var/lib/docker/containers (mounted read-only), keeps its place in /var/spool/rsyslog (a volume).
  LOG_SINK_HOST, LOG_SINK_PORT   who receives the lines over TCP (Vector, Fluent Bit, Logstash, rsyslog …). Lines are not encrypted: a sink in the same network, or at the end of a tunnel.
  RSYSLOGD (rsyslogd)            the program
What it sends, a line each: {"time":…,"service":NAME,"stream":"stdout","log":{the line of the service}}, or "text" in the place of "log" for what is not JSON.
NAME is the container's, if the compose file says so: logging: {driver: json-file, options: {tag: "{{.Name}}", max-size: 50m, max-file: "5"}}
Exit codes: 2 a variable makes no sense; else rsyslogd's own.
TEXT
  exit 0
fi
say() { echo "start.sh: $1" >&2; exit 2; }
host=${LOG_SINK_HOST:-} port=${LOG_SINK_PORT:-}
case $host in '' | *[!A-Za-z0-9._:-]*) say "LOG_SINK_HOST is '$host': give the name or the address of who receives the logs" ;; esac
case $port in '' | *[!0-9]* | ??????*) say "LOG_SINK_PORT is '$port': give its port, such as 5170" ;; esac
here=$(cd "$(dirname "$0")" && pwd)
export LOG_SINK_HOST LOG_SINK_PORT
"${RSYSLOGD:-rsyslogd}" -N1 -f "$here/rsyslog.conf" > /dev/null 2>&1 || { "${RSYSLOGD:-rsyslogd}" -N1 -f "$here/rsyslog.conf" >&2 || true; say "rsyslogd refuses its configuration: it says why above"; }
exec "${RSYSLOGD:-rsyslogd}" -n -i NONE -f "$here/rsyslog.conf"
