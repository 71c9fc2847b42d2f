#!/bin/sh
# Start PgBouncer with what the environment says. It must not run as root.
set -eu
if [ "${1:-}" = --help ]; then
  cat <<'TEXT'
start.sh
The command of PgBouncer's container: sh /etc/pgbouncer/start.sh. The service then reaches PostgreSQL at port 6432 of this container, in transaction mode.
  POSTGRES_USER, POSTGRES_PASSWORD   of the service; clients show the same
  DB_HOST (postgres), DB_PORT (5432) where PostgreSQL is
  PGBOUNCER_PORT (6432)              where to listen
  PGBOUNCER_POOL_SIZE (20)           connections to PostgreSQL for each database, and PGBOUNCER_RESERVE (5) more in need
  PGBOUNCER_MAX_CLIENTS (2000)       connections of clients
  PGBOUNCER (pgbouncer)              the program;  FOLDER (/tmp/pgbouncer)  where the configuration is written, for this user alone
Exit codes: 2 a variable makes no sense, or this is root; else PgBouncer's own.
Migrations, backups and exporters ask PostgreSQL itself. Of a database server, allow max_connections for the pool, the reserve and these: 50 at the least.
TEXT
  exit 0
fi
say() { echo "start.sh: $1" >&2; exit 2; }
[ "$(id -u)" != 0 ] || say "PgBouncer does not run as root: give the container another user, such as 'user: \"65534:65534\"'"
user=${POSTGRES_USER:-} password=${POSTGRES_PASSWORD:-}
[ -n "$user" ] || say "POSTGRES_USER is not set: give the user of the service's database"
[ -n "$password" ] || say "POSTGRES_PASSWORD is not set: give the password of $user"
here=$(cd "$(dirname "$0")" && pwd)
FOLDER=${FOLDER:-/tmp/pgbouncer} DB_HOST=${DB_HOST:-postgres} DB_PORT=${DB_PORT:-5432} PGBOUNCER_PORT=${PGBOUNCER_PORT:-6432}
PGBOUNCER_POOL_SIZE=${PGBOUNCER_POOL_SIZE:-20} PGBOUNCER_RESERVE=${PGBOUNCER_RESERVE:-5} PGBOUNCER_MAX_CLIENTS=${PGBOUNCER_MAX_CLIENTS:-2000}
case $DB_HOST in '' | *[!A-Za-z0-9._:-]*) say "DB_HOST is '$DB_HOST': give a host name or an address" ;; esac
case $FOLDER in /*[!A-Za-z0-9._/-]* | [!/]*) say "FOLDER is '$FOLDER': give a path from the root, without spaces" ;; esac
for one in "DB_PORT $DB_PORT" "PGBOUNCER_PORT $PGBOUNCER_PORT" "PGBOUNCER_POOL_SIZE $PGBOUNCER_POOL_SIZE" "PGBOUNCER_RESERVE $PGBOUNCER_RESERVE" "PGBOUNCER_MAX_CLIENTS $PGBOUNCER_MAX_CLIENTS"; do
  case ${one#* } in '' | *[!0-9]* | ??????*) say "${one% *} is '${one#* }': give a whole number" ;; esac
done
[ "$PGBOUNCER_POOL_SIZE" -gt 0 ] || say "PGBOUNCER_POOL_SIZE is '$PGBOUNCER_POOL_SIZE': give at least 1"
umask 077
mkdir -p "$FOLDER"
quoted() { printf %s "$1" | sed 's/"/""/g'; } # printf is the shell's own: no password among the arguments of a process
printf '"%s" "%s"\n' "$(quoted "$user")" "$(quoted "$password")" > "$FOLDER/userlist.txt"
sed -e "s|@FOLDER@|$FOLDER|" -e "s|@DB_HOST@|$DB_HOST|" -e "s|@DB_PORT@|$DB_PORT|" -e "s|@PGBOUNCER_PORT@|$PGBOUNCER_PORT|" -e "s|@PGBOUNCER_POOL_SIZE@|$PGBOUNCER_POOL_SIZE|" \
  -e "s|@PGBOUNCER_RESERVE@|$PGBOUNCER_RESERVE|" -e "s|@PGBOUNCER_MAX_CLIENTS@|$PGBOUNCER_MAX_CLIENTS|" -e "s|@PGBOUNCER_MAX_CONNECTIONS@|$((PGBOUNCER_POOL_SIZE + PGBOUNCER_RESERVE))|" \
  "$here/pgbouncer.ini" > "$FOLDER/pgbouncer.ini"
unset POSTGRES_PASSWORD
exec "${PGBOUNCER:-pgbouncer}" "$FOLDER/pgbouncer.ini"
