#!/bin/bash
# What the vendor's image does at its first start: make the cluster, the user and the database.
set -euo pipefail
mkdir -p "$PGDATA" /var/run/postgresql
chown -R postgres "$PGDATA" /var/run/postgresql
chmod 700 "$PGDATA"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  install -m 400 -o postgres /dev/null /tmp/password
  printf '%s\n' "$POSTGRES_PASSWORD" > /tmp/password
  gosu postgres initdb -D "$PGDATA" -U "$POSTGRES_USER" --pwfile=/tmp/password --auth-host=scram-sha-256 --auth-local=trust -E UTF8 > /dev/null
  rm /tmp/password
  echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
  gosu postgres pg_ctl -D "$PGDATA" -o "-c listen_addresses=''" -w start > /dev/null
  PGPASSWORD=$POSTGRES_PASSWORD createdb -h /var/run/postgresql -U "$POSTGRES_USER" "$POSTGRES_DB"
  gosu postgres pg_ctl -D "$PGDATA" -m fast -w stop > /dev/null
fi
exec gosu postgres "$@" -c listen_addresses='*'
