#!/bin/sh
# What tests need beside wheels: for those marked `system` a browser and servers as Debian builds them, for `deploy` the parts of the stack too.
set -eu
wanted="chromium:chromium redis-server:redis-server /usr/lib/postgresql/15/bin/initdb:postgresql-15"
[ "${1:-}" = deploy ] && wanted="$wanted nginx:nginx-light prometheus:prometheus promtool:prometheus prometheus-alertmanager:prometheus-alertmanager amtool:prometheus-alertmanager prometheus-node-exporter:prometheus-node-exporter
  prometheus-redis-exporter:prometheus-redis-exporter prometheus-postgres-exporter:prometheus-postgres-exporter prometheus-nginx-exporter:prometheus-nginx-exporter pgbouncer:pgbouncer rsyslogd:rsyslog mmdebstrap:mmdebstrap iptables:iptables ip:iproute2 jq:jq curl:curl"
missing=""
for one in $wanted; do command -v "${one%%:*}" >/dev/null 2>&1 || missing="$missing ${one##*:}"; done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  apt-get update -qq || true
  if [ ! -e /usr/sbin/policy-rc.d ]; then  # installed, and not started as daemons
    printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  for package in $missing; do
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" >/dev/null || echo "tests: $package cannot be installed here: what needs it will be skipped" >&2
  done
else
  echo "tests: no$missing here, and they cannot be installed by this user: what needs them will be skipped" >&2
fi
