#!/usr/bin/env bash
# Bring a backup back: looked through first, restored beside the live database, compared, and only then put in its place.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=deploy/scripts/backup_lib.sh
. "$here/backup_lib.sh"
help() {
  cat <<'TEXT'
restore.sh [--dry-run] [--help] [--verify] [--no-services] [--without-manifest] [FILE] [--redis RDB] [--undo NAME]
Restore the dump FILE (ssr_….sql.gz, its manifest ….json beside it) and the snapshot RDB (redis_….rdb), or one of them, in this order:
  1. look through the files: checksums, the end, whose they are, whether this code knows their schema
  2. restore the dump into a new database NAME_restore_TIME and compare rows and checksums of each table
  3. stop the services, swap the names (the database of before is kept as NAME_before_TIME), load RDB in the place of what Redis has, start the services
Until 3 nothing that is live is touched.
  --undo NAME_before_TIME  in the place of files: swap the names back, with 3 alone
  --verify            end after 2 and drop the new database: a drill that needs no interruption
  --no-services       stop and start nothing: whoever runs it has done so
  --without-manifest  FILE has none (made by pg_dump alone): compare with the rows in it
  --dry-run           do 1, print the rest

Variables
  DATABASE_URL, BACKUP_DATABASE_URL, DB_HOST, DB_USER, DB_NAME, PG_BINDIR, REDIS_URL  as of backup.sh. The role must be a superuser, or own the database and have CREATEDB.
  MAINTENANCE_DATABASE  where to stand while names are swapped (postgres)
  COMPOSE_FILE     whose services are stopped (deploy/docker-compose.yml)
  STOP_COMMAND     docker compose stop api celery-worker celery-beat
  MIGRATE_COMMAND  docker compose run --rm migrate; only for a dump with an older schema than this code's
  START_COMMAND    docker compose start api celery-worker celery-beat

Exit codes: 0 restored (or verified); 1 not, and why: up to a failed comparison all is as it was; 2 wrong use or a file that cannot be trusted, nothing was touched.
Example: restore.sh --verify /backups/ssr_20260101.sql.gz && restore.sh /backups/ssr_20260101.sql.gz
TEXT
}

dry='' verify='' services=yes manifest=yes file='' rdb='' back=''
while (( $# )); do
  case $1 in
    --help) help; exit 0 ;;
    --dry-run) dry=yes ;;
    --verify) verify=yes ;;
    --no-services) services='' ;;
    --without-manifest) manifest='' ;;
    --redis) rdb=${2:-}; [ -n "$rdb" ] || refuse "--redis names no file: give a snapshot such as /backups/redis_20260101_060000.rdb"; shift ;;
    --undo) back=${2:-}; [ -n "$back" ] || refuse "--undo names no database: give the one that restore.sh kept, such as ssr_before_20260101120000"; shift ;;
    -*) refuse "'$1' is not known: see restore.sh --help" ;;
    *) [ -z "$file" ] || refuse "'$file' and '$1' are given: give one dump"; file=$1 ;;
  esac
  shift
done
[ -z "$back" ] || [ -z "$file$rdb$verify" ] || refuse "--undo '$back' is given with files or --verify: it stands alone"
[ -n "$manifest" ] || [ -n "$file" ] || refuse "--without-manifest is given without a dump: it belongs to one"
[ -n "$file$rdb$back" ] || refuse "no file is given: name a dump such as /backups/ssr_20260101.sql.gz; see restore.sh --help"
compose="docker compose -f ${COMPOSE_FILE:-$here/../docker-compose.yml}"
[ -z "${COMPOSE_FILE:-}" ] || compose="docker compose"  # which reads it itself
STOP_COMMAND=${STOP_COMMAND:-$compose stop api celery-worker celery-beat}
START_COMMAND=${START_COMMAND:-$compose start api celery-worker celery-beat}
MIGRATE_COMMAND=${MIGRATE_COMMAND:-$compose run --rm migrate}
umask 077
now() { date -u +%Y%m%d%H%M%S; }
stamp=$(now) work=$(mktemp -d) new='' stopped='' held='' server=''
trap 'exit 143' TERM
trap 'exit 130' INT
trap clean EXIT
clean() {
  local status=$?
  set +e
  end_child
  [ -z "$server" ] || kill "$server"
  [ -z "$held" ] || admin -c "ALTER DATABASE \"$live\" ALLOW_CONNECTIONS true"
  [ -z "$new" ] || [ -n "$back" ] || admin -c "DROP DATABASE IF EXISTS \"$new\" WITH (FORCE)"
  [ -z "$stopped" ] || { say "the services are started again"; start; }
  rm -rf "$work"
  exit "$status"
}
admin() { PGDATABASE=${MAINTENANCE_DATABASE:-postgres} ask "$@"; }
run() { if [ -n "$dry" ]; then echo "+ $1"; else bash -c "$1" >&2; fi; }
start() { stopped=; run "$START_COMMAND"; }

# 1. the files
same_sum() {  # same_sum FILE KIND
  local recorded
  [ -f "$1.json" ] || refuse "'$1' has no manifest '$1.json': fetch it too, or, for a dump made by pg_dump alone, say --without-manifest"
  [ "$(field application "$1.json")" = ssr_nb ] && [ "$(field kind "$1.json")" = "$2" ] || refuse "'$1.json' is not the manifest of a $2 backup of this service: name another file"
  recorded=$(field sha256 "$1.json")
  [ "$(sha256sum < "$1" | cut -d ' ' -f 1)" = "$recorded" ] || refuse "'$1' is not what was written: its SHA-256 is not $recorded of the manifest; take another copy, or another backup"
}
there() { [ -f "$1" ] && [ -r "$1" ] || refuse "'$1' is not there or cannot be read: see what there is in BACKUP_DIR"; }
known_revisions() {  # of this code, oldest first; none where only the scripts are here
  local folder
  for folder in "$here/../migrations" "$here/../../ssr_nb/service/migrations/versions"; do
    [ -d "$folder" ] || continue
    cat "$folder"/[0-9]*.py | sed -n 's/^revision = "\(.*\)"$/\1/p'
    return
  done
}
check_dump() {
  there "$file"
  [ -z "$manifest" ] || same_sum "$file" database
  killable examine "$file" > "$work/said" 2> "$work/errors" || refuse "'$file' cannot be unpacked: $(tail -n 1 "$work/errors")"
  grep -q '^header' "$work/said" || refuse "'$file' is not a dump of PostgreSQL in SQL: give one that backup.sh made"
  grep -q '^complete' "$work/said" || refuse "'$file' has no end: the dump was cut off; take another one"
  grep -q '^command' "$work/said" && refuse "'$file' has psql's '$(said command "$work/said" | head -n 1)', which may lead out of the new database: make the dump without --create"
  revision=$(said revision "$work/said")
  local table known
  for table in public.alembic_version public.surveys public.answers; do
    said rows "$work/said" | grep "^$table"$'\t' > /dev/null || refuse "'$file' has no table $table, so it is not a dump of this service: name another file"
  done
  [ -n "$revision" ] || refuse "'$file' does not say the revision of its schema (alembic_version is empty): name another file"
  mapfile -t known < <(known_revisions)
  if (( ${#known[@]} == 0 )); then say "the migrations are not here, so nothing says whether the code knows the schema $revision"
  else
    printf '%s\n' "${known[@]}" | grep -xF "$revision" > /dev/null || refuse "'$file' has the schema $revision, which is newer than this code's ${known[-1]}: use the scripts and images of the version that wrote it"
    [ "$revision" = "${known[-1]}" ] || older=${known[-1]}
  fi
}
check_rdb() {
  there "$rdb"
  same_sum "$rdb" redis
  need redis-check-rdb "install redis-tools"
  need redis-server "install redis-server: it loads the snapshot aside before anything is given to Redis"
  redis-check-rdb "$rdb" > "$work/told" || refuse "'$rdb' is damaged, or of a newer Redis than the one here: $(grep -i error "$work/told" || tail -n 1 "$work/told")"
}
older=''
[ -z "$file" ] || check_dump
[ -z "$rdb" ] || check_rdb

# 2. beside the live one
restore_dump() {
  gzip -cd -- "$file" | PGOPTIONS="$PGOPTIONS -c role=${owner// /\\ }" PGDATABASE=$new ask --single-transaction -o /dev/null
}
prepare_database() {
  local began=$SECONDS
  admin -v new="$new" -v live="$live" -v owner="$owner" > /dev/null <<'SQL' || fail "'$new' cannot be made: see above"
SELECT format('CREATE DATABASE %I TEMPLATE template0 OWNER %I', :'new', :'owner') || coalesce((SELECT format(' ENCODING %L LC_COLLATE %L LC_CTYPE %L', pg_encoding_to_char(encoding), datcollate, datctype)
  || CASE to_jsonb(d) ->> 'datlocprovider' WHEN 'i' THEN format(' LOCALE_PROVIDER icu ICU_LOCALE %L', coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale'))
     WHEN 'b' THEN format(' LOCALE_PROVIDER builtin BUILTIN_LOCALE %L', to_jsonb(d) ->> 'datlocale') ELSE '' END FROM pg_database d WHERE datname = :'live'), '') \gexec
SQL
  killable restore_dump || fail "the dump cannot be restored: see above; '$live' is as it was"
  PGDATABASE=$new ask -F $'\t' <<< "$HOLDINGS" > "$work/holdings"
  said rows "$work/said" | diff - <(cut -f 1,2 "$work/holdings") >&2 || fail "what was restored has other rows than the dump (<): '$live' is as it was"
  if [ -n "$manifest" ]; then
    grep '^    "' "$file.json" | sed 's/,$//' | diff - <(table_lines < "$work/holdings") >&2 || fail "what was restored is not what the manifest (<) counted: '$live' is as it was"
  fi
  PGDATABASE=$new ask -c ANALYZE
  say "restored into '$new' and compared: $(awk '{ rows += $2 } END { print rows + 0 }' "$work/holdings") rows in $(wc -l < "$work/holdings") tables, $(( SECONDS - began )) s"
}
aside() { env -u REDISCLI_AUTH redis-cli -s "$work/socket" "$@"; }
load_aside() {  # a Redis of our own, reached by a socket, has the snapshot; it tells what to give to the live one
  cp "$rdb" "$work/dump.rdb"
  redis-server --port 0 --unixsocket "$work/socket" --dir "$work" --dbfilename dump.rdb --save '' --appendonly no > "$work/redis.log" 2>&1 &
  server=$!
  local until=$(( SECONDS + 600 ))
  until [ "$(aside PING 2> /dev/null)" = PONG ]; do
    { kill -0 "$server" 2> /dev/null && (( SECONDS < until )); } || fail "'$rdb' cannot be loaded: $(tail -n 1 "$work/redis.log")"
    sleep 0.2
  done
  aside INFO keyspace | tr -d '\r' | sed -n 's/^db\([0-9]*\):keys=\([0-9]*\),.*/\1 \2/p' > "$work/databases"
}
if [ -n "$file$back" ]; then
  use_database
  live=$PGDATABASE
  (( ${#live} <= 40 )) || refuse "the name '$live' is longer than 40 characters, so there is no room for '_restore_$stamp': rename the database first"
  [[ $live != *[\"\\]* ]] || refuse "the name '$live' has a quote or a backslash: rename the database first"
  [ "$live" != "${MAINTENANCE_DATABASE:-postgres}" ] || refuse "MAINTENANCE_DATABASE is '$live', the database to be replaced: name another one of this server"
  if [ -n "$back" ]; then
    [[ $back == "${live}_before_"* ]] || refuse "--undo names '$back', which is no '${live}_before_TIME': see \\l in psql"
    check_server "${MAINTENANCE_DATABASE:-postgres}"
    [ "$(admin -v new="$back" <<< "SELECT count(*) FROM pg_database WHERE datname = :'new'")" = 1 ] || refuse "--undo names '$back', which is not there: see \\l in psql"
    new=$back
  elif [ -n "$dry" ]; then echo "+ restore $file into ${live}_restore_$stamp and compare it with its manifest"
  else
    check_server "${MAINTENANCE_DATABASE:-postgres}"
    owner=$(admin -v live="$live" <<< "SELECT coalesce((SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = :'live'), current_user)")
    may=$(admin -v owner="$owner" <<< "SELECT rolsuper OR (rolcreatedb AND pg_has_role(:'owner', 'MEMBER')) FROM pg_roles WHERE rolname = current_user")
    [ "$may" = t ] || refuse "the role '$PGUSER' may not make databases for '$owner': set BACKUP_DATABASE_URL to a superuser, or to the owner with CREATEDB"
    new=${live}_restore_$stamp
    prepare_database
  fi
fi
if [ -n "$rdb" ]; then
  use_redis
  if [ -n "$dry" ]; then echo "+ load $rdb into a Redis aside"
  else
    redis PING > "$work/told" 2>&1 || fail "Redis does not answer: $(tail -n 1 "$work/told")"
    load_aside
  fi
fi
if [ -n "$verify" ]; then [ -n "$dry" ] || say "good; nothing that is live was touched"; exit 0; fi

# 3. in its place; what was there before keeps a name of its own, where another restore took that of this second
kept() { admin -v name="${live}_before_$stamp" <<< "SELECT count(*) FROM pg_database WHERE datname = :'name'"; }
swap() {
  local there
  while [ "$(kept)" = 1 ]; do sleep 0.1; stamp=$(now); done
  there=$(admin -v live="$live" <<< "SELECT count(*) FROM pg_database WHERE datname = :'live'")
  if [ "$there" = 0 ]; then  # a server that was lost with all it had
    admin -c "ALTER DATABASE \"$new\" RENAME TO \"$live\"" || fail "'$new' cannot be renamed: see above"
    new=
    say "'$live' is the dump; there was none before"
    return
  fi
  admin -c "ALTER DATABASE \"$live\" ALLOW_CONNECTIONS false" || fail "'$live' cannot be closed: see above"
  held=yes
  admin -v live="$live" -v new="$new" > /dev/null <<< "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname IN (:'live', :'new')" || fail "the connections to '$live' cannot be ended: see above"
  admin <<SQL || fail "the names cannot be swapped: see above; '$live' is as it was"
BEGIN;
ALTER DATABASE "$live" RENAME TO "${live}_before_$stamp";
ALTER DATABASE "$new" RENAME TO "$live";
ALTER DATABASE "${live}_before_$stamp" ALLOW_CONNECTIONS true;
COMMIT;
SQL
  held='' new=''
  say "'$live' is what was restored, and what was there is '${live}_before_$stamp'"
  say "to undo: restore.sh --undo ${live}_before_$stamp"
}
# Every key as the command that makes it, with the time it has left.
COMMANDS="local out = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local left, value = redis.call('PTTL', key), redis.call('DUMP', key)
  if value then
    out[#out + 1] = '*4\r\n'
    for _, part in ipairs({'RESTORE', key, string.format('%d', left < 0 and 0 or left), value}) do out[#out + 1] = '\$' .. #part .. '\r\n' .. part .. '\r\n' end
  end
end
return table.concat(out)"
load_redis() {
  local number keys before
  while before=$(dirname "$rdb")/redis_before_$stamp.rdb; [ -e "$before" ]; do sleep 0.1; stamp=$(now); done
  redis --rdb "$before" > "$work/told" 2>&1 || fail "what Redis has cannot be kept in '$before': $(tail -n 1 "$work/told"); it is as it was"
  say "what Redis had is '$before'"
  asked_once FLUSHALL
  while read -r number keys; do
    aside --raw -n "$number" EVAL "$COMMANDS" 0 | head -c -1 | redis -n "$number" --pipe > "$work/told" 2>&1 ||
      fail "the snapshot did not go in: $(tail -n 1 "$work/told"); what Redis had is '$before'"
    say "Redis, database $number: $keys keys loaded"
  done < "$work/databases"
}
asked_once() { redis "$@" > "$work/told" 2>&1 || fail "Redis refuses $1: $(tail -n 1 "$work/told")"; }

if [ -n "$services" ]; then
  [ -n "$dry" ] || stopped=yes
  run "$STOP_COMMAND" || fail "the services cannot be stopped by '$STOP_COMMAND' (STOP_COMMAND): nothing was swapped"
fi
if [ -n "$file$back" ]; then
  if [ -n "$dry" ]; then echo "+ swap the names: $live becomes ${live}_before_$stamp, ${back:-${live}_restore_$stamp} becomes $live"; else swap; fi
fi
if [ -n "$older" ]; then
  if [ -z "$services" ]; then say "the dump has the schema $revision and this code $older: migrate ('ssr database upgrade') before services start"
  else
    run "$MIGRATE_COMMAND" || { stopped=; fail "the dump has the schema $revision, and '$MIGRATE_COMMAND' (MIGRATE_COMMAND) failed: the services stay stopped; migrate, then run '$START_COMMAND'"; }
  fi
fi
if [ -n "$rdb" ]; then
  if [ -n "$dry" ]; then echo "+ keep what Redis has beside $rdb, empty it, load $rdb"; else load_redis; fi
fi
if [ -n "$services" ]; then start || fail "the services cannot be started by '$START_COMMAND' (START_COMMAND): the data is restored, start them by hand"; fi
[ -n "$dry" ] || say "done; drop what was there before when you are sure"
