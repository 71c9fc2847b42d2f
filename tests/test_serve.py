"""`ssr serve`: the whole service as processes of one machine, started, watched, stopped, killed, and found again."""
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import psycopg
import pytest
from conftest import command, interruptible

from ssr_nb.core import InputError, SSRError
from ssr_nb.service.processes import free_port, started
from ssr_nb.service.supervisor import Supervisor, _Part, listen, running_service

SSR = str(Path(sys.executable).with_name("ssr"))
PLAIN = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL", "OPENAI_API_KEY", "GOOGLE_API_KEY", "OPENAI_BASE_URL", "GOOGLE_GEMINI_BASE_URL", "ENV", "API_KEYS")} | {"CELERY_WORKER_CONCURRENCY": "1"}


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end: time.sleep(.05)
    return found


def get(url, key=None, timeout=30):
    "Status and body."
    request = urllib.request.Request(url, headers={"X-API-Key": key} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer: return answer.status, answer.read()
    except urllib.error.HTTPError as error: return error.code, error.read()


class Served:
    "An `ssr serve` as a user starts it."

    def __init__(self, folder, *arguments, env=None):
        self.process = subprocess.Popen([SSR, "serve", "--data", str(folder), "--json", *map(str, arguments)], env=PLAIN | (env or {}), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible, cwd=folder.parent)

    def ready(self):
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if line.startswith("}"): break
        assert lines, self.process.communicate()[1]
        self.found = json.loads("".join(lines))
        self.all = [self.process.pid, *(child.pid for child in psutil.Process(self.process.pid).children(recursive=True))]
        return self.found

    def end(self, how):
        self.process.send_signal(how)
        return self.process.communicate(timeout=60), self.process.returncode

    def left(self): return [pid for pid in self.all if started(pid)]


@pytest.fixture
def serve():
    made = []

    def start(*arguments, **options):
        made.append(Served(*arguments, **options))
        return made[-1]
    yield start
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate()


def test_serve_from_the_first_start_to_the_last(serve, tmp_path):
    data, port = tmp_path / "data", free_port()
    one = serve(data, "--port", port, "--api", 2)
    found = one.ready()
    assert found["api"] == [f"http://127.0.0.1:{port}"] and found["hosted_models"] == [] and running_service(data)["pid"] == one.process.pid
    names = {name for pid in one.all[1:] for name in [" ".join(psutil.Process(pid).cmdline())]}
    for part in ("postgres", "valkey-server", "serve_socket", " worker ", " beat ", " flower"): assert any(part in name for name in names), part

    # the first key: shown once, kept for the owner's eyes, and good
    key = found["first_key"]
    assert Path(found["first_key_file"]).read_text().strip() == key
    for secret in ("first-key", "state.json", "flower-login", "postgres/password", "valkey/password"): assert (data / secret).stat().st_mode & 0o077 == 0, secret
    surveys = f"{found['api'][0]}/api/v1/surveys"
    assert get(surveys)[0] == 401 and get(surveys, key[:-1] + ("a" if key[-1] != "a" else "b"))[0] == 401 and get(surveys, key)[0] == 200
    assert all(get(url)[0] == 200 for url in (found["docs"], *found["metrics"])) and get(found["flower"])[0] == 401

    # the operator's commands find it by its folder
    made = json.loads(command("keys", "create", "team key", "--owner", "team", "--budget-usd", "5", "--data", data, "--json", env=PLAIN).stdout)
    assert get(surveys, made["key"])[0] == 200 and made["owner"] == "team" and "surveys:read" in made["scopes"] and "admin" not in made["scopes"]
    listed = command("keys", "list", "--data", data, env=PLAIN).stdout
    assert made["id"] in listed and made["key"] not in listed and "first key" in listed
    turned = json.loads(command("keys", "rotate", made["id"], "--grace-hours", "0", "--data", data, "--json", env=PLAIN).stdout)
    assert get(surveys, made["key"])[0] == 401 and get(surveys, turned["key"])[0] == 200
    assert "has ended" in command("keys", "revoke", turned["id"], "--data", data, env=PLAIN).stdout and get(surveys, turned["key"])[0] == 401
    assert json.loads(command("keys", "list", "--data", data, "--ended", "--json", env=PLAIN).stdout)[-1]["revoked_at"]
    assert command("database", "current", "--data", data, env=PLAIN).returncode == 0
    assert json.loads(command("surveys", "list", "--data", data, "--json", env=PLAIN).stdout) == [] and json.loads(command("surveys", "requeue", "--data", data, "--json", env=PLAIN).stdout) == {"requeued": []}

    # alone in its folder and on its port
    second = command("serve", "--data", data, "--port", free_port(), env=PLAIN)
    assert second.returncode == 1 and f"is served already, by process {one.process.pid}: stop that one first" in second.stderr
    other = command("serve", "--data", tmp_path / "other", "--port", port, env=PLAIN)
    assert other.returncode == 2 and f"port {port} of 127.0.0.1 cannot be used" in other.stderr and "choose another port" in other.stderr

    # Ctrl-C
    (output, errors), code = one.end(signal.SIGINT)
    assert code == 0 and "stopped" in errors and "Traceback" not in errors, errors
    assert not one.left() and not (data / "state.json").exists()
    gone = command("keys", "list", "--data", data, env=PLAIN)
    assert gone.returncode == 1 and "no service runs in" in gone.stderr and "DATABASE_URL" in gone.stderr

    # again: everything is found; then it is killed, and nothing is left
    two = serve(data, "--port", port)
    again = two.ready()
    assert again["first_key"] is None and Path(again["first_key_file"]).read_text().strip() == key and get(surveys, key)[0] == 200
    two.process.kill()
    two.process.communicate()
    three = serve(data, "--port", port)  # at once: it waits for what the guard still stops
    three.ready()
    assert not two.left() and get(surveys, key)[0] == 200
    (_, errors), code = three.end(signal.SIGTERM)
    assert code == 0 and not three.left(), errors


def test_ctrl_c_while_it_starts(serve, tmp_path):
    for pause in (0, 1.0, 2.5):
        one = serve(tmp_path / "data", "--port", free_port())
        assert one.process.stderr.readline().startswith("starting in")
        time.sleep(pause)
        one.all = [child.pid for child in psutil.Process(one.process.pid).children(recursive=True)]
        (output, errors), code = one.end(signal.SIGINT)
        assert code == 0 and "Traceback" not in errors and until(lambda: not one.left()), errors


def test_parts_that_die_are_started_again(tmp_path):
    told = []
    with Supervisor(tmp_path, api=2, workers=1, own_ports=True, durable=False, environment=PLAIN, say=told.append) as service:
        assert len(set(service.api_urls)) == 2 and service.first_key
        for name in ("api-2", "worker-1", "postgres", "valkey", "beat", "flower"):
            before = until(lambda: service.pids(name))
            service.kill(name)
            assert until(lambda: (service.pids(name) or before)[0] != before[0]), name
            assert until(lambda: not set(before) & {pid for pid in before if started(pid)}), name
        assert until(lambda: all(get(f"{url}/health/ready")[0] == 200 for url in service.api_urls)) and get(f"{service.api_urls[1]}/api/v1/surveys", service.first_key)[0] == 200
        assert [line.split()[0] for line in told if "(signal 9)" in line] == ["api-2", "worker-1", "postgres", "valkey", "beat", "flower"] and "ended (signal 9); it is started again now" in told[0]
        before = service.pids("api-1")
        service.restart("api-1")
        assert until(lambda: get(f"{service.api_urls[0]}/health/ready")[0] == 200) and service.pids("api-1") != before and not any(line.startswith("api-1") for line in told), told
        with pytest.raises(InputError, match="part 'api-3' is unknown: choose one of api-1"): service.kill("api-3")
        with pytest.raises(SSRError, match="running already"): service.start()
        every = [pid for name in service.parts for pid in service.pids(name)]
    assert not [pid for pid in every if started(pid)] and not service.parts


def test_servers_that_run_already_are_used_and_left(postgres, redis_url, tmp_path):
    url = postgres.database("given")
    with Supervisor(tmp_path, beat=False, flower=False, environment=PLAIN | {"DATABASE_URL": url, "REDIS_URL": redis_url}) as service:
        assert set(service.parts) == {"api-1", "worker-1"} and service.described()["flower"] is None
        with psycopg.connect(url.replace("+psycopg", "")) as connection: assert connection.execute("SELECT name FROM api_keys").fetchall() == [("first key",)]
        env = PLAIN | {"DATABASE_URL": url, "REDIS_URL": redis_url}
        assert command("database", "current", "--json", env=env).returncode == 0 and len(json.loads(command("keys", "list", "--json", env=env).stdout)) == 1
    assert postgres.running and not (tmp_path / "postgres").exists()
    postgres.drop("given")


def test_a_start_that_cannot_succeed_says_why_and_leaves_nothing(tmp_path, postgres, redis_url):
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    gone = f"postgresql://ssr:x@127.0.0.1:{free_port()}/ssr"
    cases = [({"DATABASE_URL": gone, "REDIS_URL": redis_url}, "the database does not answer"), ({"ENV": "production", "API_KEYS": "k" * 40}, "no model provider is set"), ({"LOG_LEVEL": "LOUD"}, "LOG_LEVEL"),
             ({"DATABASE_URL": postgres.database("some"), "REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}, "Redis does not answer")]
    for environment, told in cases:
        service = Supervisor(tmp_path, environment=PLAIN | environment, durable=False)
        with pytest.raises(SSRError, match=told): service.start()
        assert not service.parts and not (tmp_path / "state.json").exists()
    postgres.drop("some")
    assert until(lambda: {child.pid for child in psutil.Process().children(recursive=True)} - before <= {_guard_pid()})
    for mistake, told in ((dict(port=0), "port is 0"), (dict(api=0), "api is 0"), (dict(workers=-1), "workers is -1")):
        with pytest.raises(InputError, match=told): Supervisor(tmp_path, **mistake)
    with pytest.raises(InputError, match="port is 70000"): listen("127.0.0.1", 70000)
    with pytest.raises(InputError, match="host 'no.such.host.invalid' is unknown"): listen("no.such.host.invalid", 1)


def _guard_pid():
    from ssr_nb.service import processes
    return processes._guard[1].pid


def test_an_api_that_ends_at_once_shows_its_last_words(tmp_path, monkeypatch, postgres, redis_url):
    service = Supervisor(tmp_path, workers=0, beat=False, flower=False, environment=PLAIN | {"DATABASE_URL": postgres.database("brief"), "REDIS_URL": redis_url})
    monkeypatch.setattr(service, "_open_sockets", lambda: service._sockets.append(socket.socket()))  # does not listen: uvicorn can do nothing with it
    add = service._add
    monkeypatch.setattr(service, "_add", lambda name, command, *more, **options: add(name, [sys.executable, "-c", "raise SystemExit('the very last words')"], *more, **options))
    with pytest.raises(SSRError, match="api-1 ended at once: the very last words"): service.start()
    postgres.drop("brief")


def test_pauses_grow_where_a_part_dies_again_and_again(tmp_path):
    told = []
    service = Supervisor(tmp_path, say=told.append, environment=PLAIN)
    part = _Part("brief", [sys.executable, "-c", "raise SystemExit(3)"], dict(PLAIN), tmp_path / "log")
    service._start(part)
    for _ in range(8):
        part.process.wait()
        service._look_after(part)
        if part.due is not None:
            part.due = time.monotonic()
            service._look_after(part)
    assert [one.split("is started again ")[1].split(",")[0] for one in told] == ["now", *(f"in {pause:g} s" for pause in (.5, 1, 2, 4, 8, 16, 30))] and told[1].startswith("brief ended (exit code 3); ")
    part.process.wait()
    part.since -= 61  # it lived for a minute
    service._look_after(part)
    assert part.failures == 1
    part.stop()


def test_a_worker_that_does_not_listen_is_urged_and_then_killed(tmp_path):
    program = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True)); signal.signal(signal.SIGQUIT, lambda *_: print('urged', flush=True)); print('ready', flush=True)\nwhile True: time.sleep(.01)"
    part = _Part("deaf", [sys.executable, "-c", program], dict(PLAIN), tmp_path / "log", ((signal.SIGTERM, .5), (signal.SIGQUIT, .5)))
    part.start()
    assert until(lambda: "ready" in part.log.read_text())
    part.ask_to_stop()
    part.stop()
    assert part.log.read_text().split() == ["ready", "asked", "urged"] and part.process.returncode == -9 and part.last_words() == "urged"


def test_connections_wait_while_the_only_api_process_is_started_again(tmp_path, postgres, redis_url):
    with Supervisor(tmp_path, workers=0, beat=False, flower=False, environment=PLAIN | {"DATABASE_URL": postgres.database("waits"), "REDIS_URL": redis_url}) as service:
        service.kill("api-1")
        assert get(f"{service.api_urls[0]}/health/live")[0] == 200
    postgres.drop("waits")


@pytest.mark.soak
def test_a_survey_outlives_the_service(serve, server, tmp_path):
    "Killed and interrupted while it runs, the service goes on with a survey where it was; no answer is asked twice beyond what was in flight."
    from ssr_nb.personas import Panel
    from ssr_nb.service import surveys
    from ssr_nb.service.database import SurveyRow, make_engine, transaction
    from ssr_nb.service.settings import ServiceSettings
    from ssr_nb.survey import Survey, read_concepts
    environment = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "test", "CHUNK_ANSWERS": "10"}
    one = serve(tmp_path / "data", "--port", free_port(), env=environment)
    assert one.ready()["hosted_models"] == ["OpenAI", server.url]

    def reach():
        state = running_service(tmp_path / "data")
        settings = ServiceSettings.from_environment(PLAIN | environment | {"DATABASE_URL": state["database_url"], "REDIS_URL": state["redis_url"]})
        return settings, make_engine(settings.database_url)

    def progress():
        with transaction(engine) as session: return surveys.progress(session, session.get(SurveyRow, identity))
    settings, engine = reach()
    with transaction(engine) as session: row = surveys.create(session, Survey(concepts=read_concepts("demo_concepts.csv"), constructs=["purchase_intent"], panel=Panel.us_adults(150, seed=1), llm_model="gpt-4o", samples=1), {}, owner="local", settings=settings)
    identity, in_flight = row.id, 0
    surveys.enqueue(settings, row)
    for how in (signal.SIGKILL, signal.SIGINT):
        before = progress()["done"]
        assert until(lambda: progress()["done"] > before + 20, 120) and progress()["status"] == "running"
        one.all = [one.process.pid, *(child.pid for child in psutil.Process(one.process.pid).children(recursive=True))]
        one.end(how)
        engine.dispose()
        last, one = one, serve(tmp_path / "data", "--port", free_port(), env=environment)
        one.ready()
        assert not last.left()
        settings, engine = reach()
        in_flight += 64
    assert until(lambda: progress()["status"] not in ("queued", "running"), 300)
    assert progress()["status"] == "completed" and progress()["done"] == 450 and 450 <= server.requests <= 450 + in_flight
    engine.dispose()
    assert one.end(signal.SIGINT)[1] == 0 and not one.left()


def test_commands_without_a_service(tmp_path, postgres):
    folder = tmp_path / "none"
    nothing = command("keys", "list", env=PLAIN, cwd=tmp_path)
    assert nothing.returncode == 1 and "no service runs in 'ssr-data': start it with 'ssr serve --data ssr-data', or set DATABASE_URL" in nothing.stderr
    (tmp_path / "state.json").write_text(json.dumps({"pid": os.getpid(), "started": "1.0"}))  # of a process that is gone, whose number another one has
    with pytest.raises(SSRError, match="no service runs"): running_service(tmp_path)
    env = PLAIN | {"DATABASE_URL": postgres.database("bare")}
    bare = command("keys", "list", env=env)
    assert bare.returncode == 1 and "has no tables of the service: make them with 'ssr database upgrade'" in bare.stderr
    current = command("database", "current", env=env)
    assert current.returncode == 1 and "no tables, and the newest is" in current.stdout
    up = json.loads(command("database", "upgrade", "--json", env=env).stdout)
    assert up["before"] is None and up["current"]
    assert command("database", "current", env=env).stdout.strip() == up["current"]
    careful = command("database", "downgrade", "base", env=env)
    assert careful.returncode == 2 and "then say --yes" in careful.stderr
    assert json.loads(command("database", "downgrade", "base", "--yes", "--json", env=env).stdout) == {"before": up["current"], "current": None}
    wrong = command("database", "upgrade", "nowhere", env=env)
    assert wrong.returncode == 1 and "revision 'nowhere' is not possible" in wrong.stderr
    command("database", "upgrade", env=env)
    for arguments, told in ((("keys", "create", "x", "--scope", "all"), "scope 'all' is unknown"), (("keys", "revoke", "12345678"), "key '12345678' is unknown"), (("surveys", "list", "--status", "done"), "status 'done' is unknown")):
        failed = command(*arguments, env=env)
        assert failed.returncode == 2 and told in failed.stderr, failed.stderr
    assert command("surveys", "requeue", env=env).returncode == 1  # without REDIS_URL
    away = command("keys", "list", env=PLAIN | {"DATABASE_URL": f"postgresql://ssr:x@127.0.0.1:{free_port()}/ssr"})
    assert away.returncode == 1 and "the database does not answer" in away.stderr
    assert not folder.exists()
    postgres.drop("bare")


def test_without_the_extra_the_command_says_what_to_install(monkeypatch):
    import importlib.util

    from ssr_nb.cli_service import need_service
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "celery" else real(name, *more))
    with pytest.raises(SSRError, match=r'the service is not installed \(celery is missing\): pip install "ssr_nb\[service\]"'): need_service()


def test_help_imports_nothing_of_the_service():
    program = "import sys, ssr_nb.cli; print([name for name in ('sqlalchemy', 'celery', 'fastapi', 'redis', 'psutil', 'ssr_nb.service') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "[]"
