#!/usr/bin/env bash
# The dump of PostgreSQL and the snapshot of Redis, each looked through before it counts.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=deploy/scripts/backup_lib.sh
. "$here/backup_lib.sh"
help() {
  cat <<'TEXT'
backup.sh [--dry-run] [--help] database|redis|all|schedule [--now]
  database  dump PostgreSQL into BACKUP_DIR/ssr_YYYYMMDD.sql.gz (with the time if that day has one), beside it a manifest, ….json:
            checksum, version, revision of the schema, rows and checksum of each table, all of one snapshot
  redis     have Redis write its own snapshot (BGSAVE) and fetch one into BACKUP_DIR/redis_YYYYMMDD_HHMMSS.rdb
  all       both
  schedule  stay, and make the dump every day and the snapshot every few hours; --now: also both at once. One that failed is tried again.
  --dry-run print what would be done

Variables
  DATABASE_URL           postgresql://user:password@host:5432/name; else DB_HOST, DB_USER, DB_NAME with PGPASSWORD or a ~/.pgpass
  BACKUP_DATABASE_URL    in the place of DATABASE_URL where that leads to a pooler (PgBouncer): PostgreSQL itself
  PG_BINDIR              folder of pg_dump and psql, which must be as new as the server (those on the PATH)
  REDIS_URL              redis://:password@host:6379/0, or rediss:// with TLS
  BACKUP_DIR             where backups are kept (/backups)
  BACKUP_RETENTION_DAYS  older ones are removed here after one that succeeded, never the newest (30). In S3 a lifecycle rule does that: docs/BACKUP.md
  BACKUP_S3_URL          copies go there too, by `aws s3 cp`, such as s3://ssr-backups/daily/; AWS_ENDPOINT_URL for a store that is not Amazon's
  BACKUP_METRICS_DIR     for the textfile collector of the node exporter (BACKUP_DIR/metrics)
  BACKUP_REDIS_TIMEOUT_SECONDS  how long Redis may take (600)
  BACKUP_DATABASE_AT, BACKUP_REDIS_EVERY_HOURS, BACKUP_RETRY_SECONDS  of schedule: 02:00 UTC, 6 (0: no Redis, for one that a cloud manages), 900

Exit codes: 0 made, looked through and copied; 1 not made, or not copied, and why; 2 wrong use, nothing was done.
Example: DATABASE_URL=postgresql://ssr:secret@127.0.0.1:5432/ssr BACKUP_DIR=/var/backups/ssr backup.sh database
TEXT
}

dry='' now='' kind=''
for option; do
  case $option in
    --help) help; exit 0 ;;
    --dry-run) dry=yes ;;
    --now) now=yes ;;
    database | redis | all | schedule) [ -z "$kind" ] || refuse "'$kind' and '$option' are given: give one"; kind=$option ;;
    *) refuse "'$option' is not known: give database, redis, all or schedule; see backup.sh --help" ;;
  esac
done
[ -n "$kind" ] || refuse "nothing is said to be backed up: give database, redis, all or schedule; see backup.sh --help"
[ -z "$now" ] || [ "$kind" = schedule ] || refuse "--now is given with '$kind': it belongs to schedule"
BACKUP_DIR=${BACKUP_DIR:-/backups} BACKUP_RETENTION_DAYS=${BACKUP_RETENTION_DAYS:-30} BACKUP_S3_URL=${BACKUP_S3_URL:-}
BACKUP_DIR=${BACKUP_DIR%/}
BACKUP_METRICS_DIR=${BACKUP_METRICS_DIR:-$BACKUP_DIR/metrics} BACKUP_REDIS_TIMEOUT_SECONDS=${BACKUP_REDIS_TIMEOUT_SECONDS:-600}
BACKUP_DATABASE_AT=${BACKUP_DATABASE_AT:-02:00} BACKUP_REDIS_EVERY_HOURS=${BACKUP_REDIS_EVERY_HOURS:-6} BACKUP_RETRY_SECONDS=${BACKUP_RETRY_SECONDS:-900}
number BACKUP_RETENTION_DAYS days
number BACKUP_REDIS_TIMEOUT_SECONDS seconds
number BACKUP_RETRY_SECONDS seconds
number BACKUP_REDIS_EVERY_HOURS hours
(( BACKUP_RETENTION_DAYS > 0 )) || refuse "BACKUP_RETENTION_DAYS is '$BACKUP_RETENTION_DAYS': keep at least 1 day"
(( BACKUP_REDIS_EVERY_HOURS == 0 || 24 % BACKUP_REDIS_EVERY_HOURS == 0 )) || refuse "BACKUP_REDIS_EVERY_HOURS is '$BACKUP_REDIS_EVERY_HOURS': give 1, 2, 3, 4, 6, 8, 12 or 24, or 0 for none"
[[ $BACKUP_DATABASE_AT =~ ^([01][0-9]|2[0-3]):[0-5][0-9]$ ]] || refuse "BACKUP_DATABASE_AT is '$BACKUP_DATABASE_AT': give a time of UTC such as 02:00"
if [ -n "$BACKUP_S3_URL" ]; then
  [[ $BACKUP_S3_URL =~ ^s3://[a-z0-9.-]+(/.*)?$ ]] || refuse "BACKUP_S3_URL is '$BACKUP_S3_URL': give a bucket and a folder, such as s3://ssr-backups/daily/"
  need aws "install awscli, or leave BACKUP_S3_URL out"
  for name in "${!AWS_@}"; do [ -n "${!name}" ] || unset "$name"; done  # compose hands down empty ones, which aws would take for a region or an address
fi
umask 077
work='' started=$(date -u +%s)
trap 'end_child; [ -z "$work" ] || rm -rf "$work"' EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

begin() {  # a folder of its own, and nobody else at the same work
  (umask 022 && mkdir -p "$BACKUP_DIR") 2> /dev/null || refuse "BACKUP_DIR is '$BACKUP_DIR', which cannot be made: name a folder that may be written"
  [ -w "$BACKUP_DIR" ] || refuse "BACKUP_DIR is '$BACKUP_DIR', which user $(id -u) may not write: change its owner, or name another"
  (umask 022 && mkdir -p "$BACKUP_METRICS_DIR") 2> /dev/null || refuse "BACKUP_METRICS_DIR is '$BACKUP_METRICS_DIR', which cannot be made: name a folder that may be written"
  [ -w "$BACKUP_METRICS_DIR" ] || refuse "BACKUP_METRICS_DIR is '$BACKUP_METRICS_DIR', which user $(id -u) may not write: change its owner, or name another"
  exec {lock}> "$BACKUP_DIR/.$1.lock"
  flock -n "$lock" || fail "another backup of this kind is at work in '$BACKUP_DIR'"
  rm -rf "$BACKUP_DIR/.partial.$1"  # of one that was killed
  mkdir "$BACKUP_DIR/.partial.$1"
  work=$BACKUP_DIR/.partial.$1
}

keep() {  # keep NAME EXTENSION: what was made in $work as backup and manifest gets its name, the manifest first
  local file=$BACKUP_DIR/$1.$2
  if [ -e "$file" ]; then file=$BACKUP_DIR/$(name_now "${1%%_*}").$2; fi
  while [ -e "$file" ]; do sleep 1; file=$BACKUP_DIR/$(name_now "${1%%_*}").$2; done
  sed "s/\"file\": \"\"/\"file\": \"${file##*/}\"/" "$work/manifest" > "$file.json"
  mv "$work/backup" "$file"
  sync "$file" "$file.json" "$BACKUP_DIR"
  kept=$file
}
name_now() { echo "$1_$(date -u +%Y%m%d_%H%M%S)"; }

retain() {  # retain PREFIX EXTENSION: the day stands in the name
  local oldest name names
  oldest=$1_$(date -u -d "@$(( $(date -u +%s) - BACKUP_RETENTION_DAYS * 86400 ))" +%Y%m%d)
  mapfile -t names < <(find "$BACKUP_DIR" -maxdepth 1 -type f -regextype posix-extended -regex ".*/$1_[0-9]{8}(_[0-9]{6})?\.$2" -printf '%f\n' | LC_ALL=C sort)
  for name in "${names[@]:0:${#names[@]}-1}"; do
    [[ ${name:0:${#oldest}} < $oldest ]] || continue
    rm -f "$BACKUP_DIR/$name" "$BACKUP_DIR/$name.json"
    say "removed $name, older than $BACKUP_RETENTION_DAYS days"
  done
}

upload() {
  [ -n "$BACKUP_S3_URL" ] || return 0
  local file to=${BACKUP_S3_URL%/}
  for file in "$1" "$1.json"; do
    killable aws s3 cp --only-show-errors ${AWS_ENDPOINT_URL:+--endpoint-url "$AWS_ENDPOINT_URL"} "$file" "$to/${file##*/}" ||
      fail "$file is made and good, but did not get to $to: see what aws says above"
  done
}

measure() {  # measure KIND FILE, in a whole file at once: the collector may read at any moment
  local at; at=$(date -u +%s)
  cat > "$work/metrics" <<TEXT
# HELP ssr_backup_last_success_timestamp_seconds When a backup of this kind was last made, looked through and copied.
# TYPE ssr_backup_last_success_timestamp_seconds gauge
ssr_backup_last_success_timestamp_seconds{kind="$1"} $at
# HELP ssr_backup_size_bytes How large it is.
# TYPE ssr_backup_size_bytes gauge
ssr_backup_size_bytes{kind="$1"} $(stat -c %s "$2")
# HELP ssr_backup_duration_seconds How long it took.
# TYPE ssr_backup_duration_seconds gauge
ssr_backup_duration_seconds{kind="$1"} $(( at - started ))
TEXT
  chmod 644 "$work/metrics"
  cp -p "$work/metrics" "$BACKUP_METRICS_DIR/.ssr_backup_$1"
  mv "$BACKUP_METRICS_DIR/.ssr_backup_$1" "$BACKUP_METRICS_DIR/ssr_backup_$1.prom"
}

dump() {  # psql holds the snapshot while pg_dump reads it; what is counted is what is dumped
  ask -F $'\t' > "$work/holdings" <<SQL
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SELECT pg_export_snapshot() AS snapshot \gset
\setenv SNAPSHOT :snapshot
$HOLDINGS
\! pg_dump --no-password --format=plain --compress=6 --no-owner --no-privileges --lock-wait-timeout=60s --snapshot="\$SNAPSHOT" --file="\$WORK/backup"; echo \$? > "\$WORK/status"
SQL
}

database() {
  use_database
  need pg_dump "install postgresql-client, or set PG_BINDIR to the folder of PostgreSQL's programs"
  local name client server_version revision
  name=ssr_$(date -u +%Y%m%d)
  if [ -n "$dry" ]; then
    echo "+ pg_dump of '$PGDATABASE' at $PGHOST:${PGPORT:-5432} to $BACKUP_DIR/$name.sql.gz and its manifest"
    [ -z "$BACKUP_S3_URL" ] || echo "+ aws s3 cp $BACKUP_DIR/$name.sql.gz ${BACKUP_S3_URL%/}/$name.sql.gz"
    echo "+ remove dumps older than $BACKUP_RETENTION_DAYS days from $BACKUP_DIR"
    return
  fi
  check_server "$PGDATABASE"
  client=$(pg_dump --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')
  (( client >= server_version )) || refuse "pg_dump is of PostgreSQL $client and the server of $server_version: set PG_BINDIR to the folder of pg_dump $server_version or later"
  begin database
  WORK=$work killable dump || fail "the dump of '$PGDATABASE' failed: see above; nothing is kept of it"
  [ "$(cat "$work/status" 2> /dev/null)" = 0 ] || fail "pg_dump of '$PGDATABASE' failed: see above; nothing is kept of it"
  # the dump against what was counted
  killable examine "$work/backup" > "$work/said" || fail "the dump of '$PGDATABASE' cannot be unpacked; nothing is kept of it"
  grep -q '^complete' "$work/said" || fail "the dump of '$PGDATABASE' has no end; nothing is kept of it"
  said rows "$work/said" | diff - <(cut -f 1,2 "$work/holdings") >&2 || fail "the dump of '$PGDATABASE' has other rows than the database had (<: the dump); nothing is kept of it"
  revision=$(said revision "$work/said")
  [ -n "$revision" ] || fail "'$PGDATABASE' has no table alembic_version, so it is not a database of this service: check DATABASE_URL; nothing is kept of it"
  {
    printf '{\n  "application": "ssr_nb",\n  "kind": "database",\n  "file": "",\n  "made_at": "%s",\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)"
    printf '  "sha256": "%s",\n  "bytes": %s,\n' "$(sha256sum < "$work/backup" | cut -d ' ' -f 1)" "$(stat -c %s "$work/backup")"
    printf '  "server_version": "%s",\n  "alembic_revision": "%s",\n  "tables": {\n' "$(ask -c 'SHOW server_version')" "$revision"
    table_lines < "$work/holdings" | sed '$!s/$/,/'
    printf '  }\n}\n'
  } > "$work/manifest"
  keep "$name" sql.gz
  retain ssr 'sql\.gz'
  upload "$kept"
  measure database "$kept"
  say "$kept: $(stat -c %s "$kept") bytes, $(awk '{ rows += $2 } END { print rows + 0 }' "$work/holdings") rows in $(wc -l < "$work/holdings") tables, revision $revision"
}

asked() { answer=$(redis "$@" 2>&1 | tr -d '\r') || fail "Redis does not answer $1: $(tail -n 1 <<< "$answer")"; }
wait_for() {  # wait_for WHAT COMMAND…
  local what=$1 until=$(( SECONDS + BACKUP_REDIS_TIMEOUT_SECONDS )); shift
  until "$@"; do
    (( SECONDS < until )) || fail "Redis did not $what in $BACKUP_REDIS_TIMEOUT_SECONDS seconds (BACKUP_REDIS_TIMEOUT_SECONDS)"
    sleep 0.2
  done
}
idle() { asked INFO persistence; [[ $answer == *rdb_bgsave_in_progress:0* ]]; }
second_over() { asked TIME; (( ${answer%%$'\n'*} > before )); }
saved() { asked LASTSAVE; (( answer > before )); }
save_ended() { idle && [[ $answer != *rdb_bgsave_scheduled:1* ]] && { [[ $answer == *rdb_last_bgsave_status:err* ]] || saved; }; }

redis_snapshot() {
  use_redis
  need redis-check-rdb "install redis-tools"
  local keys at
  at=$(name_now redis)
  if [ -n "$dry" ]; then
    echo "+ BGSAVE and a copy of the snapshot to $BACKUP_DIR/$at.rdb"
    [ -z "$BACKUP_S3_URL" ] || echo "+ aws s3 cp $BACKUP_DIR/$at.rdb ${BACKUP_S3_URL%/}/$at.rdb"
    echo "+ remove snapshots older than $BACKUP_RETENTION_DAYS days from $BACKUP_DIR"
    return
  fi
  asked PING
  begin redis
  wait_for "end the snapshot that it was at" idle
  asked LASTSAVE
  before=$answer
  wait_for "let a second pass" second_over  # LASTSAVE counts in seconds
  asked BGSAVE SCHEDULE
  wait_for "write its snapshot" save_ended
  saved || fail "Redis could not write its snapshot (rdb_last_bgsave_status is err): see its log"
  killable redis --rdb "$work/backup" > "$work/told" 2>&1 || fail "the snapshot did not come over: $(tail -n 1 "$work/told"); nothing is kept of it"
  redis-check-rdb "$work/backup" > "$work/told" || fail "the snapshot that came over is damaged, or of a newer Redis than redis-check-rdb: $(grep -i error "$work/told" || tail -n 1 "$work/told"); nothing is kept of it"
  keys=$(sed -n 's/.*\] \([0-9]*\) keys read$/\1/p' "$work/told")
  {
    printf '{\n  "application": "ssr_nb",\n  "kind": "redis",\n  "file": "",\n  "made_at": "%s",\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)"
    printf '  "sha256": "%s",\n  "bytes": %s,\n' "$(sha256sum < "$work/backup" | cut -d ' ' -f 1)" "$(stat -c %s "$work/backup")"
    printf '  "server_version": "%s",\n  "keys": %s\n}\n' "$(redis INFO server | tr -d '\r' | sed -n 's/^redis_version://p')" "$keys"
  } > "$work/manifest"
  keep "$at" rdb
  retain redis rdb
  upload "$kept"
  measure redis "$kept"
  say "$kept: $(stat -c %s "$kept") bytes, $keys keys"
}

all() {
  local one status=0 code
  for one in database redis; do
    code=0
    killable "$here/backup.sh" ${dry:+--dry-run} "$one" || code=$?
    (( code <= status )) || status=$code
  done
  return "$status"
}

schedule() {
  use_database
  (( BACKUP_REDIS_EVERY_HOURS == 0 )) || use_redis
  local clock day at due one failed=${TMPDIR:-/tmp}/ssr-backup.failed
  local -A next
  rm -f "$failed".*
  at=$(( 10#${BACKUP_DATABASE_AT%:*} * 3600 + 10#${BACKUP_DATABASE_AT#*:} * 60 ))
  plan() {  # plan KIND: its next regular time
    if [ "$1" = redis ]; then next[redis]=$(( (clock / (BACKUP_REDIS_EVERY_HOURS * 3600) + 1) * BACKUP_REDIS_EVERY_HOURS * 3600 )); return; fi
    day=$(( clock - clock % 86400 ))
    next[database]=$(( day + at > clock ? day + at : day + at + 86400 ))
  }
  clock=$(date -u +%s)
  plan database
  (( BACKUP_REDIS_EVERY_HOURS == 0 )) || plan redis
  for one in "${!next[@]}"; do
    say "$one: next at $(date -u -d "@${next[$one]}" '+%Y-%m-%d %H:%M UTC')"
    [ -z "$now" ] || next[$one]=$clock
  done
  [ -z "$dry" ] || return 0
  while :; do
    for one in database redis; do
      clock=$(date -u +%s)
      (( clock >= ${next[$one]:-clock + 1} )) || continue
      plan "$one"
      if killable "$here/backup.sh" "$one"; then rm -f "$failed.$one"; continue; fi
      touch "$failed.$one"  # the container's health
      clock=$(date -u +%s)
      due=$(( clock + BACKUP_RETRY_SECONDS ))
      (( due > next[$one] )) || next[$one]=$due
      say "$one failed; it is tried again at $(date -u -d "@${next[$one]}" '+%Y-%m-%d %H:%M UTC')"
    done
    clock=$(date -u +%s) due=$(( clock + 300 ))  # in steps: a machine that slept would wake late
    for one in "${!next[@]}"; do (( due <= next[$one] )) || due=${next[$one]}; done
    (( due <= clock )) || killable sleep $(( due - clock ))
  done
}

case $kind in
  database) database ;;
  redis) redis_snapshot ;;
  all) all ;;
  schedule) schedule ;;
esac
