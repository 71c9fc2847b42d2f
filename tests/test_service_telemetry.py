"Logs without secrets, ids that travel to workers, and metrics that add up over processes."
import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from ssr_nb.core import SSRError
from ssr_nb.service.settings import ServiceSettings
from ssr_nb.service.telemetry import Mask, about, mark_process_dead, secrets_of, serve_worker_metrics, set_up_logging, set_up_tracing

SECRETS = {"OPENAI_API_KEY": "sk-proj-1234567890abcdef", "GOOGLE_API_KEY": "AIzaSyB-1234567890abcdefghijklmnopqrstu", "API_KEYS": "a first key of the house, a-second-one-that-is-long-enough",
           "DATABASE_URL": "postgres://ssr:p%40ss%2Fw%22rd@db:5432/ssr", "DATABASE_REPLICA_URL": "postgres://ssr:replica-pass@db2/ssr", "REDIS_URL": "redis://:pass@redis:6379/0"}
PLAIN = ["sk-proj-1234567890abcdef", SECRETS["GOOGLE_API_KEY"], "a first key of the house", "a-second-one-that-is-long-enough", 'p@ss/w"rd', "p%40ss%2Fw%22rd", "replica-pass", f"ssr_0123abcd_{'k' * 43}"]


@pytest.fixture
def logs():
    "Set logging up as a process of the service does, and put everything back."
    root, hooks = logging.getLogger(), (sys.excepthook, threading.excepthook)
    before, level = list(root.handlers), root.level

    def make(**changes):
        stream = io.StringIO()
        set_up_logging(ServiceSettings.from_environment({**SECRETS, **changes}), stream, SECRETS)
        return stream
    yield make
    root.handlers, (sys.excepthook, threading.excepthook) = before, hooks
    root.setLevel(level)
    logging.captureWarnings(False)
    for name in ("uvicorn", "uvicorn.access", "httpx", "httpx2", "httpcore", "alembic.runtime.migration"): logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("secret", PLAIN)
def test_no_way_of_logging_shows_a_secret(logs, secret, form):
    stream = logs(LOG_FORMAT=form)
    log = logging.getLogger("some.library")
    log.warning("plain %s", secret)
    log.warning(f"inside '{secret}', {secret!r} and {json.dumps(secret)}", extra={"extra": {"deep": [secret, {secret: 1}]}})
    log.warning("args %r", {"key": secret})
    try:
        try: raise ValueError(f"inner {secret}")
        except ValueError as error: raise ConnectionError({"url": f"redis://:{secret}@host"}) from error
    except ConnectionError: log.exception("it broke")
    log.warning("stack", stack_info=True)
    sys.excepthook(RuntimeError, RuntimeError(secret), None)
    threading.excepthook(threading.ExceptHookArgs((RuntimeError, RuntimeError(secret), None, None)))
    text = stream.getvalue()
    assert text.count("it broke") == 1 and "ConnectionError" in text
    for spelling in (secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], quote(secret, safe="")): assert spelling not in text
    if form == "json": assert len([json.loads(line) for line in text.splitlines()]) >= 7


@given(st.text(min_size=8, max_size=40).filter(lambda text: text.strip()), st.text(max_size=30), st.text(max_size=30))
def test_any_known_secret_is_masked_in_any_surrounding(secret, before, after):
    mask = Mask([secret])
    if secret in before + "***" + after or "***" in secret: return
    lines = logging.LogRecord("x", logging.INFO, "f", 1, before + secret + after, (), None)
    from ssr_nb.service.telemetry import _Context, _JsonLine
    _Context().filter(lines)
    line = _JsonLine(mask).format(lines)
    message = json.loads(line)["message"]
    assert mask(message) == message and (secret not in message or secret in mask("***"))


@given(st.from_regex(r"\A[0-9a-f]{8}\Z"), st.from_regex(r"\A[A-Za-z0-9_-]{43}\Z"), st.text(max_size=20))
def test_our_own_keys_are_masked_unknown_as_they_are_and_keep_their_id(id, rest, around):
    masked = Mask()(f"{around} ssr_{id}_{rest} {around}")
    assert rest not in masked and f"ssr_{id}_***" in masked


@given(st.from_regex(r"\A(postgresql\+psycopg|redis|rediss|https?)\Z"), st.from_regex(r"\A[a-z]{0,8}\Z"), st.from_regex(r"\A[A-Za-z0-9%._~!$&'()*+,;=-]{1,30}\Z"))
def test_passwords_in_urls_are_masked(scheme, user, password):
    masked = Mask()(f"cannot reach {scheme}://{user}:{password}@host:5432/db, retrying")
    assert masked == f"cannot reach {scheme}://{user}:***@host:5432/db, retrying"


def test_a_short_password_is_masked_as_a_word_and_ordinary_words_stay():
    mask = Mask(["ssr", "12345"])
    assert mask("ssr_nb reads ssr and 12345, not 123456") == "ssr_nb reads *** and ***, not 123456"
    assert mask.of({"port": 12345, "n": 5}) == {"port": "***", "n": 5}
    assert Mask([])("GET /api/v1/surveys 200 in 0.3 s") == "GET /api/v1/surveys 200 in 0.3 s"


@hypothesis_settings(deadline=None)
@given(st.text(alphabet="a:/@.x-", max_size=3000))
def test_masking_does_not_hang(text): Mask(["some-secret"])(text)


@pytest.mark.parametrize("header", ["X-API-Key: abc-def", "'x-api-key': 'abc-def'", "b'x-api-key', b'abc-def'", "Authorization: Bearer abc-def", '"authorization": "Basic abc-def"'])
def test_headers_with_keys_are_masked(header): assert "abc-def" not in Mask()(header)


def test_secrets_are_those_of_the_environment():
    assert set(secrets_of(ServiceSettings.from_environment(SECRETS), SECRETS)) == {"sk-proj-1234567890abcdef", SECRETS["GOOGLE_API_KEY"], "a first key of the house", "a-second-one-that-is-long-enough", "p%40ss%2Fw%22rd", "replica-pass", "pass"}


def test_every_line_has_its_fields_and_belongs_to_its_request(logs):
    stream = logs()
    log = logging.getLogger("ssr_nb.test")
    with about(request="r1"):
        log.info("outer")
        with about(survey="s1"): log.info("inner %d", 5, extra={"seconds": .25, "path": Path("x")})
    log.info("after")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [list(line)[:6] for line in lines] == [["timestamp", "level", "logger", "message", "request_id", "survey_id"]] * 3
    assert [(line["message"], line["request_id"], line["survey_id"]) for line in lines] == [("outer", "r1", None), ("inner 5", "r1", "s1"), ("after", None, None)]
    assert lines[1]["seconds"] == .25 and lines[1]["path"] == "x"


@pytest.mark.parametrize("name", ["uvicorn", "uvicorn.error", "celery", "celery.task", "celery.worker", "kombu"])
def test_uvicorn_and_celery_write_through_the_same_handler_once(logs, name):
    import logging.config
    import uvicorn
    logging.config.dictConfig(uvicorn.config.LOGGING_CONFIG)
    stream = logs()
    logging.getLogger(name).warning("here")
    assert [json.loads(line)["logger"] for line in stream.getvalue().splitlines()] == [name]


def test_called_again_there_is_one_handler_and_the_level_is_honoured(logs):
    logs()
    stream = logs(LOG_LEVEL="ERROR")
    logging.getLogger("x").warning("no")
    logging.getLogger("x").error("yes")
    assert len(stream.getvalue().splitlines()) == 1


def test_a_client_cannot_forge_a_line_of_text(logs):
    stream = logs(LOG_FORMAT="text")
    logging.getLogger("x").warning("said %s", "one\n2026-01-01 00:00:00,000 CRITICAL root [None None] forged\r\nthree")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3 and all(line.startswith("    ") for line in lines[1:])


# metrics

def python(program: str, folder, **more) -> str:
    done = subprocess.run([sys.executable, "-c", "import os, sys\nfrom ssr_nb.service.settings import ServiceSettings\nfrom ssr_nb.service.telemetry import *\n" + program], env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder), **more}, capture_output=True, text=True)
    assert done.returncode in (0, -9), done.stderr
    return done.stdout


def page(folder) -> dict[str, float]:
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in python("print(metrics_page()[0].decode())", folder).splitlines() if line and not line.startswith("#")}


def test_names_and_labels_are_those_of_the_guide():
    from ssr_nb.service import telemetry
    found = {(family.name + ("_total" if family.type == "counter" else ""), *sorted({label for sample in family.samples for label in sample.labels} - {"le"})) for family in telemetry.REGISTRY.collect() if family.samples}
    for one in [("ssr_surveys_total", "status"), ("ssr_survey_duration_seconds",), ("ssr_responses_generated_total",), ("llm_request_duration_seconds",), ("llm_tokens_consumed_total", "type"), ("llm_cost_dollars_total",), ("http_request_duration_seconds",), ("celery_task_total", "status"), ("ssr_answers_total", "status"), ("ssr_cache_hits_total", "cache")]: assert one in found
    telemetry.expect_model("m")
    telemetry.expect_route("GET", "/x/{id}", [200, 500])
    text = telemetry.metrics_page()[0].decode()
    assert 'llm_requests_total{model="m",status="error"} 0.0' in text and 'http_requests_total{method="GET",path="/x/{id}",status="500"} 0.0' in text and "_created" not in text and "process_resident_memory_bytes" in text


def test_counts_of_ended_processes_stay_and_their_files_become_one(tmp_path):
    for _ in range(4): python("import signal; SURVEYS.labels('completed').inc(2); LLM_SECONDS.observe(.3); LLM_COST.inc(.25); os.kill(os.getpid(), signal.SIGKILL)", tmp_path)
    assert len(list(tmp_path.glob("counter_[0-9]*.db"))) == 4
    for _ in range(2):  # looking twice changes nothing
        found = page(tmp_path)
        assert found['ssr_surveys_total{status="completed"}'] == 8 and found["llm_cost_dollars_total"] == 1 and found["llm_request_duration_seconds_count"] == 4
        assert found['llm_request_duration_seconds_bucket{le="0.5"}'] == 4 and found['llm_request_duration_seconds_bucket{le="0.25"}'] == 0 and abs(found["llm_request_duration_seconds_sum"] - 1.2) < 1e-9
    assert len(list(tmp_path.glob("counter_ended.db"))) == 1 and len(list(tmp_path.glob("counter_[0-9]*.db"))) == 1  # that of the last page, whose process has ended too


def test_adding_up_while_others_count_and_look_loses_nothing(tmp_path):
    counting = [subprocess.Popen([sys.executable, "-c", "from ssr_nb.service.telemetry import *\nfor _ in range(2000): RESPONSES.inc()"], env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}) for _ in range(3)]
    seen = [float(value) for value in python("import time\nfor _ in range(40):\n    print(next(line.split()[1] for line in metrics_page()[0].decode().splitlines() if line.startswith('ssr_responses_generated_total ')), flush=True)\n    time.sleep(.05)", tmp_path).split()]
    assert [process.wait() for process in counting] == [0, 0, 0]
    assert seen == sorted(seen) and page(tmp_path)["ssr_responses_generated_total"] == 6000


def test_a_process_can_be_marked_dead_by_its_id(tmp_path):
    pid = int(python("RESPONSES.inc(7); print(os.getpid())", tmp_path))
    mark_process_dead(pid, tmp_path)
    mark_process_dead(pid, tmp_path)
    assert not list(tmp_path.glob(f"*_{pid}.db")) and page(tmp_path)["ssr_responses_generated_total"] == 7


def test_an_empty_variable_counts_as_unset(): assert "ssr_surveys_total" in python("assert 'PROMETHEUS_MULTIPROC_DIR' not in os.environ; print(metrics_page()[0].decode())", "")


def test_workers_answer_prometheus_and_say_what_they_lack(tmp_path, monkeypatch):
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    with pytest.raises(SSRError, match="PROMETHEUS_MULTIPROC_DIR is not set"): serve_worker_metrics(9)
    program = ("import urllib.request, socket, subprocess\nRESPONSES.inc(2)\nwith socket.socket() as free:\n    free.bind(('127.0.0.1', 0)); port = free.getsockname()[1]\nserver = serve_worker_metrics(port)\n"
               "subprocess.run([sys.executable, '-c', 'from ssr_nb.service.telemetry import *; RESPONSES.inc(3)'])\nprint(urllib.request.urlopen(f'http://127.0.0.1:{port}/metrics').read().decode())\nserver.shutdown()")
    assert "ssr_responses_generated_total 5.0" in python(program, tmp_path)


# Celery and traces

WORKER = '''
import logging, os
from celery import Celery
from ssr_nb.service.settings import ServiceSettings
from ssr_nb.service.telemetry import follow_celery
settings = ServiceSettings.from_environment(os.environ)
app = Celery("t", broker=settings.redis_url)
follow_celery(settings)
@app.task
def fine(): logging.getLogger("task").info("in the task of %s", settings.redis_url)
@app.task
def broken(): raise RuntimeError("broken at " + settings.redis_url)
'''


def test_ids_travel_to_workers_and_tasks_are_counted(tmp_path, redis_url, monkeypatch):
    (tmp_path / "ssr_worker_of_test.py").write_text(WORKER)
    metrics = tmp_path / "metrics"
    environment = {**os.environ, "REDIS_URL": redis_url, "PROMETHEUS_MULTIPROC_DIR": str(metrics), "PYTHONPATH": str(tmp_path)}
    worker = subprocess.Popen([sys.executable, "-m", "celery", "-A", "ssr_worker_of_test", "worker", "-c", "1", "--without-gossip", "--without-mingle"], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        sender = "import ssr_worker_of_test as w\nfrom ssr_nb.service.telemetry import about\nwith about(request='req-9', survey='sur-9'): w.fine.delay(); w.broken.delay()\nw.fine.delay()"
        subprocess.run([sys.executable, "-c", sender], env=environment, cwd=tmp_path, check=True)
        until = time.monotonic() + 60
        while time.monotonic() < until and (not metrics.exists() or page(metrics).get('celery_task_total{status="success"}', 0) < 2): time.sleep(.2)
    finally:
        worker.terminate()
        said, _ = worker.communicate(timeout=60)
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    mine = [(line["request_id"], line["survey_id"]) for line in lines if line["logger"] == "task"]
    assert mine == [("req-9", "sur-9"), (None, None)]
    failure = next(line for line in lines if line["level"] == "ERROR")
    assert failure["request_id"] == "req-9" and "RuntimeError" in failure["exc_info"] and "test-password" not in said
    found = page(metrics)
    assert (found['celery_task_total{status="success"}'], found['celery_task_total{status="error"}']) == (2, 1)


def test_traces_are_off_without_a_collector_and_need_their_packages(monkeypatch):
    settings = ServiceSettings()
    assert set_up_tracing(settings, environment={}) is False
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SSRError, match="pip install"): set_up_tracing(settings, environment={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"})


def test_traces_reach_a_collector_and_log_lines_name_them(tmp_path):
    got = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_): pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    program = ("import logging\nfrom fastapi import FastAPI\nfrom fastapi.testclient import TestClient\nsettings = ServiceSettings()\nset_up_logging(settings)\napp = FastAPI()\n"
               "@app.get('/seen/{id}')\ndef seen(id): logging.getLogger('x').info('traced')\n@app.get('/health')\ndef health(): return 1\n"
               "assert set_up_tracing(settings, app) and set_up_tracing(settings)\nclient = TestClient(app); client.get('/seen/7'); client.get('/health')\nfrom opentelemetry import trace\ntrace.get_tracer_provider().shutdown()")
    done = subprocess.run([sys.executable, "-c", "import os, sys\nfrom ssr_nb.service.settings import ServiceSettings\nfrom ssr_nb.service.telemetry import *\n" + program], env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "OTEL_SERVICE_NAME": "ssr-test"}, capture_output=True, text=True)
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr
    sent = b"".join(body for path, body in got if path == "/v1/traces")
    assert b"ssr-test" in sent and b"/seen/{id}" in sent and b"/health" not in sent
    line = next(json.loads(line) for line in done.stderr.splitlines() if "traced" in line)
    assert len(line["trace_id"]) == 32 and bytes.fromhex(line["trace_id"]) in sent


def test_gauges_tell_what_is_there_and_survive_an_outage(database, redis_url):
    import redis
    from ssr_nb.service.database import SurveyRow, make_engine, transaction
    from ssr_nb.service.gauges import Gauges
    from ssr_nb.service.keys import create_key, revoke_key
    from ssr_nb.service.telemetry import metrics_page
    settings = ServiceSettings(database_url=database, redis_url=redis_url)
    with transaction(make_engine(database)) as session:
        for owner, budget in (("a", 5.0), ("a", 7.0), ("b", None)): create_key(session, "k", owner, ["costs"], budget_usd=budget)
        revoke_key(session, create_key(session, "gone", "c", ["costs"], budget_usd=9.0)[0].id)
        session.add(SurveyRow(owner="b", status="running", request={}, specification={}, queue="ssr.small", total=1, elicitation_hash="", fingerprint=""))
    with redis.Redis.from_url(redis_url) as client: client.lpush("ssr.large", 1, 2)
    text = metrics_page(Gauges(settings))[0].decode()
    for line in ('ssr_budget_left_dollars{owner="a"} 12.0', 'ssr_surveys_open{status="running"} 1.0', 'ssr_surveys_open{status="queued"} 0.0', 'ssr_queue_depth{queue="ssr.large"} 2.0', 'ssr_up{server="database"} 1.0'): assert line in text
    assert 'owner="b"' not in text and 'owner="c"' not in text
    make_engine(database).dispose()
    away = metrics_page(Gauges(ServiceSettings(database_url="postgresql+psycopg://x:y@127.0.0.1:9/x", redis_url="redis://127.0.0.1:9")))[0].decode()
    assert 'ssr_up{server="database"} 0.0' in away and 'ssr_up{server="redis"} 0.0' in away and "ssr_surveys_total" in away
