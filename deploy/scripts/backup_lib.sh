# shellcheck shell=bash
# Sourced by backup.sh and restore.sh: addresses into the variables of libpq and redis-cli, what a database holds, what a dump holds.

say() { echo "${0##*/}: $*" >&2; }
fail() { say "$*"; exit 1; }
refuse() { say "$*"; exit 2; }
need() { command -v "$1" > /dev/null || refuse "there is no program '$1' here: $2"; }
decode() { local text=${1//\\/\\\\}; printf '%b' "${text//%/\\x}"; }
field() { sed -n "s/^ *\"$1\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}\$/\1/p" "$2" | head -n 1; }  # of a manifest, which has one field a line
number() { [[ ${!1} =~ ^[0-9]+$ ]] || refuse "$1 is '${!1}': give a whole number of $2"; }

# In a process group of its own, so that an end of the script ends it too, with all that it started. bash runs a trap during `wait`, not during a program.
child=
killable() {
  local status=0
  set -m; "$@" & child=$!; set +m
  wait "$child" || status=$?
  child=
  return "$status"
}
end_child() { [ -z "$child" ] || { kill -TERM -- "-$child" 2> /dev/null; wait "$child"; } || true; }

# PostgreSQL. Nothing secret becomes an argument, which others see in the list of processes.
use_database() {
  if [ -n "${PG_BINDIR:-}" ]; then
    [ -x "$PG_BINDIR/pg_dump" ] || refuse "PG_BINDIR is '$PG_BINDIR', where there is no 'pg_dump': name the folder of PostgreSQL's programs, such as /usr/lib/postgresql/15/bin"
    PATH=$PG_BINDIR:$PATH
  fi
  need psql "install postgresql-client, or set PG_BINDIR to the folder of PostgreSQL's programs"
  local name=DATABASE_URL url=${DATABASE_URL:-} place pair
  if [ -n "${BACKUP_DATABASE_URL:-}" ]; then name=BACKUP_DATABASE_URL url=$BACKUP_DATABASE_URL; fi
  if [ -n "$url" ]; then
    local form='^postgres(ql)?(\+[a-z0-9]+)?://(([^:/@?]*)(:([^/@?]*))?@)?([^/?@]*)/([^/?]+)(\?(.*))?$'
    [[ $url =~ $form ]] || refuse "$name is not of the form postgresql://user:password@host:5432/name: write characters such as @ / : ? of the password as %40 %2F %3A %3F"
    local -a at=("${BASH_REMATCH[@]}")
    PGUSER=$(decode "${at[4]}") PGDATABASE=$(decode "${at[8]}") place=${at[7]}
    [ -z "${at[5]}" ] || { PGPASSWORD=$(decode "${at[6]}"); export PGPASSWORD; }
    [[ $place =~ ^(\[([0-9a-fA-F:.]+)\]|[^:,]*)(:([0-9]+))?$ ]] || refuse "$name names the host '$place': give one host, and its port after a colon"
    PGHOST=${BASH_REMATCH[2]:-${BASH_REMATCH[1]}} PGPORT=${BASH_REMATCH[4]:-5432}
    while IFS= read -r -d '&' pair; do
      [ -n "$pair" ] || continue
      local value; value=$(decode "${pair#*=}")
      case ${pair%%=*} in
        host) PGHOST=$value ;;
        port) PGPORT=$value ;;
        sslmode) export PGSSLMODE="$value" ;;
        sslrootcert) export PGSSLROOTCERT="$value" ;;
        sslcert) export PGSSLCERT="$value" ;;
        sslkey) export PGSSLKEY="$value" ;;
        channel_binding) export PGCHANNELBINDING="$value" ;;
        target_session_attrs) export PGTARGETSESSIONATTRS="$value" ;;
        connect_timeout) export PGCONNECT_TIMEOUT="$value" ;;
        application_name | keepalives*) ;;  # of the service's connections, which these are not
        *) refuse "$name has the parameter '${pair%%=*}', which is not known here: leave it out, or set BACKUP_DATABASE_URL without it" ;;
      esac
    done <<< "${at[10]}&"
  else
    [ -n "${DB_HOST:-}" ] && [ -n "${DB_USER:-}" ] && [ -n "${DB_NAME:-}" ] || refuse "DATABASE_URL is not set: give postgresql://user:password@host:5432/name, or DB_HOST, DB_USER and DB_NAME with PGPASSWORD"
    PGHOST=$DB_HOST PGUSER=$DB_USER PGDATABASE=$DB_NAME
  fi
  [ -n "$PGHOST" ] && [ -n "$PGUSER" ] || refuse "$name names no host or no user: give postgresql://user:password@host:5432/name"
  # One way of writing values, so that checksums agree everywhere. A pooler does not let ssr.direct through, and that is how it shows.
  PGOPTIONS="-c ssr.direct=yes -c timezone=UTC -c datestyle=ISO,YMD -c intervalstyle=postgres -c extra_float_digits=1 -c bytea_output=hex"
  PGOPTIONS+=" -c statement_timeout=0 -c idle_in_transaction_session_timeout=0 -c lock_timeout=60s"
  PGAPPNAME=ssr-backup PGCONNECT_TIMEOUT=${PGCONNECT_TIMEOUT:-10}
  export PGHOST PGUSER PGDATABASE PGOPTIONS PGAPPNAME PGCONNECT_TIMEOUT
  [ -z "${PGPORT:-}" ] || export PGPORT
}

ask() { psql -XAtqw -v ON_ERROR_STOP=1 "$@"; }

check_server() {  # of the database $1; leaves its version in server_version
  local told
  if ! told=$(PGDATABASE=$1 ask -F ' ' -c "SELECT current_setting('server_version_num'), coalesce(current_setting('ssr.direct', true), '')" 2>&1); then
    [[ $told != *"unsupported startup parameter"* ]] || refuse "DATABASE_URL leads to a pooler such as PgBouncer, which cannot carry a dump: set BACKUP_DATABASE_URL to PostgreSQL itself"
    fail "the database '$1' at $PGHOST does not answer: $(tail -n 1 <<< "$told")"
  fi
  [[ $told == *" yes" ]] || refuse "DATABASE_URL leads to a pooler such as PgBouncer, which cannot carry a dump: set BACKUP_DATABASE_URL to PostgreSQL itself"
  # shellcheck disable=SC2034
  server_version=$(( ${told% *} / 10000 ))
}

# A line for each table: name, rows, and a sum of the rows' hashes, in which their order does not matter. Asks psql for the SQL, and then runs it.
# shellcheck disable=SC2034
HOLDINGS="SELECT format('SELECT %L, count(*), coalesce(sum((''x'' || left(md5(whole_row::text), 16))::bit(64)::bigint::numeric), 0) FROM ONLY %s AS whole_row', name, name)
  FROM (SELECT format('%I.%I', nspname, relname) AS name FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE relkind = 'r' AND nspname !~ '^pg_' AND nspname <> 'information_schema'
    AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e')) AS tables ORDER BY name COLLATE \"C\" \\gexec"

# Reads the whole dump $1; a line for each table with its rows, and what else it says of itself. Fails where it cannot be unpacked.
examine() {
  gzip -cd -- "$1" | LC_ALL=C awk -F '\t' -v OFS='\t' '
    copying { if ($0 == "\\.") copying = 0; else { rows[table]++; if (table == "public.alembic_version") print "revision", $1 }; next }
    /^COPY .* FROM stdin;$/ { table = $0; sub(/^COPY /, "", table); sub(/ \(.*$/, "", table); rows[table] += 0; copying = 1; next }
    NR < 6 && $0 == "-- PostgreSQL database dump" { print "header", "" }
    $0 == "-- PostgreSQL database dump complete" { print "complete", "" }
    /^\\/ && !/^\\(un)?restrict / { print "command", $1 }  # psql would obey: \connect leads to another database
    END { for (table in rows) print "rows", table, rows[table] }'
}
said() { awk -F '\t' -v OFS='\t' -v what="$1" '$1 == what { sub(/^[^\t]*\t/, ""); print }' "$2" | LC_ALL=C sort; }  # of what examine wrote

table_lines() { awk -F '\t' '{ gsub(/[\\"]/, "\\\\&", $1); printf "    \"%s\": {\"rows\": %s, \"checksum\": \"%s\"}\n", $1, $2, $3 }'; }  # of a manifest

# Redis
use_redis() {
  need redis-cli "install redis-tools"
  local form='^(rediss?)://(([^:/@?]*)(:([^/@?]*))?@)?(\[[0-9a-fA-F:.]+\]|[^:/?@]+)(:([0-9]+))?(/([0-9]*))?(\?(.*))?$' pair host
  [ -n "${REDIS_URL:-}" ] || refuse "REDIS_URL is not set: give redis://:password@host:6379/0, or rediss:// with TLS"
  [[ $REDIS_URL =~ $form ]] || refuse "REDIS_URL is not of the form redis://:password@host:6379/0: write characters such as @ / : ? of the password as %40 %2F %3A %3F"
  local -a at=("${BASH_REMATCH[@]}")
  host=${at[6]#[}; host=${host%]}
  redis_options=(-e -h "$host" -p "${at[8]:-6379}")
  [ -z "${at[3]}" ] || redis_options+=(--user "$(decode "${at[3]}")")
  [ -z "${at[4]}" ] || { REDISCLI_AUTH=$(decode "${at[5]}"); export REDISCLI_AUTH; }
  [ "${at[1]}" = redis ] || redis_options+=(--tls --sni "$host")
  while IFS= read -r -d '&' pair; do
    case $pair in
      ssl_ca_certs=*) redis_options+=(--cacert "$(decode "${pair#*=}")") ;;
      ssl_certfile=*) redis_options+=(--cert "$(decode "${pair#*=}")") ;;
      ssl_keyfile=*) redis_options+=(--key "$(decode "${pair#*=}")") ;;
      ssl_cert_reqs=none | ssl_cert_reqs=CERT_NONE) redis_options+=(--insecure) ;;
      ssl_cert_reqs=required | ssl_cert_reqs=CERT_REQUIRED) ;;
      ssl_*) refuse "REDIS_URL has the parameter '${pair%%=*}', which redis-cli cannot honour: leave it out" ;;
      *) ;;  # how a client keeps its connections
    esac
  done <<< "${at[12]}&"
}
redis() { redis-cli "${redis_options[@]}" "$@"; }
