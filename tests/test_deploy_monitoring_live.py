"""Prometheus and Alertmanager for real: alerts fire, reach whom they should, and resolve; every panel shows something."""

import json
import os
import re
import shutil
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from conftest import ROOT
from ssr_nb.service.processes import free_port, start_process, stop_process
from test_deploy_monitoring import ALERTMANAGER, PROMETHEUS, panels, read

PROGRAMS = {"prometheus": ("prometheus",), "alertmanager": ("prometheus-alertmanager", "alertmanager")}
FOUND = {name: next(filter(None, map(shutil.which, names)), None) for name, names in PROGRAMS.items()}
pytestmark = [pytest.mark.system, pytest.mark.skipif(None in FOUND.values(), reason=f"SKIP: not on this machine: {', '.join(name for name, path in FOUND.items() if path is None)} (apt: prometheus prometheus-alertmanager)")]


@contextmanager
def pages(answer):
    "A server on a free port; `answer(path, body)` gives status and text."
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self): self.respond(b"")
        def do_POST(self): self.respond(self.rfile.read(int(self.headers["Content-Length"])))
        def log_message(self, *_): pass
        def respond(self, body):
            status, text = answer(self.path, body)
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(text.encode())
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield server.server_address[1]
    finally: server.shutdown()


def shortened(text: str) -> str:
    "The same rules and routes sixty times as fast."
    def seconds(match): return f"{max(1, round(int(match[1]) * {'s': 1, 'm': 60, 'h': 3600}[match[2]] / 60))}s"
    return re.sub(r"(?<=\[)(\d+)([smh])(?=\])|(?<=for: )(\d+)([smh])$|(?<=interval: )(\d+)([smh])$|(?<=wait: )(\d+)([smh])$", lambda match: seconds(re.match(r"(\d+)([smh])", match[0])), text, flags=re.M)


def wait_for(what, seconds: float = 60):
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "did not come"
        time.sleep(.3)
    return found


@contextmanager
def prometheus(folder: Path, targets: dict[str, int], alertmanager: int | None = None, shorten: bool = True):
    "The real configuration with these targets in the place of names; gives a function that asks it."
    config = read(PROMETHEUS / "prometheus.yml")
    config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s", "scrape_timeout": "1s"}
    config["scrape_configs"] = [{"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]} for name, port in targets.items()]
    config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{alertmanager}"]}]}]} if alertmanager else {}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    for name in config["rule_files"]: (folder / name).write_text(shortened((PROMETHEUS / name).read_text()) if shorten else (PROMETHEUS / name).read_text().replace("interval: 15s", "interval: 1s"))
    port = free_port()
    process = start_process([FOUND["prometheus"], f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}", "--rules.alert.resend-delay=1s"], folder / "prometheus.log")
    def ask(path: str, **parameters):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as response: return json.load(response)["data"]
    def ready():
        assert process.poll() is None, (folder / "prometheus.log").read_text()[-2000:]
        try: return ask("/api/v1/targets")
        except (urllib.error.URLError, OSError, ValueError): return None
    try:
        wait_for(ready)
        yield ask
    finally: stop_process(process)


class Service:
    "Metrics of a service that answers, until it is told to fail."
    def __init__(self): self.start, self.rates, self.values, self.away, self.counts = time.monotonic(), {}, {}, False, {}
    def page(self) -> tuple[int, str]:
        now = time.monotonic()
        for name, rate in self.rates.items(): self.counts[name] = self.counts.get(name, 0.0) + rate * (now - self.start)
        self.start = now
        return (503, "") if self.away else (200, "".join(f"{name} {value}\n" for name, value in {**self.counts, **self.values}.items()))


def request(status): return f'http_requests_total{{method="POST",path="/api/v1/surveys",status="{status}"}}'


def call(status): return f'llm_requests_total{{model="gpt-4o",status="{status}"}}'


def test_alerts_reach_a_webhook_and_resolve(tmp_path):
    service, told = Service(), []
    healthy = {request(202): 100, request(500): 0, call("success"): 100, call("error"): 0, "llm_cost_dollars_total": .01, 'celery_task_total{status="success"}': 5, 'celery_task_total{status="error"}': 0}
    service.rates, service.values = dict(healthy), {'ssr_up{server="database"}': 1, 'ssr_up{server="redis"}': 1, 'ssr_queue_depth{queue="ssr.small"}': 0}
    def receive(path, body):
        told.extend((path, alert["status"], alert["labels"]["alertname"], alert["labels"]) for alert in json.loads(body)["alerts"])
        return 200, ""
    def has(path, status, name, since=0): return any(entry[:3] == (path, status, name) for entry in told[since:])
    with pages(lambda path, body: service.page()) as metrics, pages(receive) as webhook:
        (tmp_path / "alertmanager.yml").write_text(shortened((ALERTMANAGER / "alertmanager.yml").read_text()))
        port = free_port()
        address = f"http://127.0.0.1:{webhook}"
        given = {**os.environ, "CONFIGURATION": str(tmp_path / "alertmanager.yml"), "RENDERED": str(tmp_path / "rendered.yml"), "ALERTMANAGER": FOUND["alertmanager"], "ALERT_WEBHOOK_CRITICAL": f"{address}/critical", "ALERT_WEBHOOK_WARNING": f"{address}/warning", "ALERT_WEBHOOK_HEARTBEAT": f"{address}/heartbeat"}
        alertmanager = start_process(["sh", ALERTMANAGER / "start.sh", f"--storage.path={tmp_path / 'alerts'}", f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address="], tmp_path / "alertmanager.log", given)
        try:
            with prometheus(tmp_path, {"api": metrics, "worker": metrics}, port) as ask:
                wait_for(lambda: has("/heartbeat", "firing", "Watchdog"))
                wait_for(lambda: {alert["labels"]["alertname"] for alert in ask("/api/v1/alerts")["alerts"] if alert["state"] == "firing"} == {"Watchdog"})  # not before the first scrape
                time.sleep(8)
                before = len(told)
                time.sleep(8)
                assert {entry[2] for entry in told[before:]} == {"Watchdog"}, "all is well and somebody was called"

                service.rates |= {request(500): 20, call("error"): 30, "llm_cost_dollars_total": 100, 'celery_task_total{status="error"}': 5}
                for path, name in (("/critical", "HighErrorRate"), ("/critical", "LLMAPIFailure"), ("/critical", "ErrorBudgetBurnsFast"), ("/warning", "HighCost"), ("/warning", "TasksFail")): wait_for(lambda: has(path, "firing", name))
                assert next(entry[3] for entry in told if entry[2] == "LLMAPIFailure")["model"] == "gpt-4o"
                service.rates |= healthy | {"llm_cost_dollars_total": 0}
                for path, name in (("/critical", "HighErrorRate"), ("/critical", "LLMAPIFailure"), ("/warning", "TasksFail")): wait_for(lambda: has(path, "resolved", name))
                wait_for(lambda: has("/warning", "resolved", "HighCost"), 120)
                wait_for(lambda: not [alert for alert in ask("/api/v1/alerts")["alerts"] if alert["labels"]["alertname"] not in ("Watchdog", "ErrorBudgetBurnsSlowly", "BackupUnknown")], 120)

                before = len(told)
                service.values |= {'ssr_up{server="database"}': 0}
                service.rates |= {request(500): 50}
                wait_for(lambda: has("/critical", "firing", "DatabaseDown", before))
                wait_for(lambda: "HighErrorRate" in {alert["labels"]["alertname"] for alert in ask("/api/v1/alerts")["alerts"] if alert["state"] == "firing"})
                time.sleep(4)
                assert not has("/critical", "firing", "HighErrorRate", before), "what follows from a cause stays quiet"
                service.values |= {'ssr_up{server="database"}': 1}
                service.rates |= healthy
                wait_for(lambda: has("/critical", "resolved", "DatabaseDown", before))

                before = len(told)
                service.away = True
                for name in ("ApiDown", "WorkersDown"): wait_for(lambda: has("/critical", "firing", name, before))
                service.away = False
                for name in ("ApiDown", "WorkersDown"): wait_for(lambda: has("/critical", "resolved", name, before))
                assert not has("/warning", "firing", "TargetDown", before)
        finally: stop_process(alertmanager)


TRAFFIC = """
import random, sys, time
from ssr_nb.service import telemetry as t
from ssr_nb.service.gauges import Gauges
from ssr_nb.service.settings import ServiceSettings
settings = ServiceSettings.from_environment()
t.expect_model("gpt-4o"); t.expect_route("POST", "/api/v1/surveys", (202, 422, 500))
t.serve_worker_metrics(int(sys.argv[1]), Gauges(settings))
while True:
    for status, share in ((202, .7), (200, .1), (401, .05), (429, .05), (422, .05), (500, .05)):
        if random.random() < share: t.HTTP_REQUESTS.labels("POST", "/api/v1/surveys", str(status)).inc(); t.HTTP_SECONDS.observe(random.random())
    for status in ("success", "success", "success", "error"): t.LLM_REQUESTS.labels("gpt-4o", status).inc(); t.LLM_SECONDS.observe(random.random() * 3)
    for status in ("ok", "ok", "ok", "refusal"): t.ANSWERS.labels(status).inc(); t.RESPONSES.inc()
    for status in ("success", "success", "error", "retry"): t.CELERY_TASKS.labels(status).inc()
    for status in ("queued", "running", "completed", "completed", "incomplete", "failed"): t.SURVEYS.labels(status).inc()
    t.SURVEY_SECONDS.observe(random.random() * 1200); t.LLM_COST.inc(.01)
    for kind in ("prompt", "completion"): t.LLM_TOKENS.labels(kind).inc(50)
    for cache in ("embeddings", "answers"): t.CACHE_HITS.labels(cache).inc()
    t.AUDIT_SKIPPED.labels("database").inc()
    time.sleep(.05)
"""


def test_every_panel_shows_something(tmp_path, database, redis_url):
    from urllib.parse import urlsplit

    import sqlalchemy as sa

    from ssr_nb.service.database import make_engine, transaction
    from ssr_nb.service.keys import create_key
    engine = make_engine(database)
    with transaction(engine) as session: create_key(session, "a key", "team", ("surveys:write",), None, 100.0)
    with engine.connect() as connection: assert connection.scalar(sa.text("SELECT count(*) FROM api_keys")) == 1
    environment = {**os.environ, "DATABASE_URL": database, "REDIS_URL": redis_url, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "counts"), "PYTHONPATH": str(ROOT)}
    (tmp_path / "text").mkdir()
    (tmp_path / "text/backup.prom").write_text(f'ssr_backup_last_success_timestamp_seconds{{kind="database"}} {time.time() - 3600}\n')
    server = urlsplit(database)
    address = f"postgresql://{server.netloc.rpartition('@')[2] if not server.username else server.netloc}{server.path}?sslmode=disable"
    exporters = {"node": ("prometheus-node-exporter", [f"--collector.textfile.directory={tmp_path / 'text'}"], {}), "redis": ("prometheus-redis-exporter", [f"-redis.addr={redis_url}"], {}),
                 "postgres": ("prometheus-postgres-exporter", [], {"DATA_SOURCE_NAME": address}), "nginx": ("prometheus-nginx-exporter", [], {})}
    targets, started, missing = {"api": free_port()}, [], set()
    with pages(lambda path, body: (200, "Active connections: 3 \nserver accepts handled requests\n 10 10 20 \nReading: 0 Writing: 1 Waiting: 2 \n")) as nginx:
        try:
            started.append(start_process([sys.executable, "-c", TRAFFIC, str(targets["api"])], tmp_path / "service.log", environment))
            for name, (program, options, more) in exporters.items():
                if (path := shutil.which(program)) is None: missing.add(name)
                else:
                    targets[name] = free_port()
                    listen = {"redis": f"-web.listen-address=127.0.0.1:{targets[name]}", "nginx": f"-web.listen-address=127.0.0.1:{targets[name]}"}.get(name, f"--web.listen-address=127.0.0.1:{targets[name]}")
                    if name == "nginx": options = [f"-nginx.scrape-uri=http://127.0.0.1:{nginx}/"]
                    started.append(start_process([path, listen, *options], tmp_path / f"{name}.log", {**os.environ, **more}))
            with prometheus(tmp_path, targets | {"worker": targets["api"]}, shorten=False) as ask:
                wait_for(lambda: all(target["health"] == "up" for target in ask("/api/v1/targets")["activeTargets"]) and ask("/api/v1/targets")["activeTargets"], 90)
                without = {"node": "node_|ssr:backup", "redis": "redis_", "postgres": "pg_", "nginx": "nginx_"}
                expected = [(name, title, query) for name, title, query in panels() if not any(re.search(without[exporter], query) for exporter in missing)]
                def empty(): return [(name, title, query) for name, title, query in expected if not [one for one in ask("/api/v1/query", query=query.replace("$__rate_interval", "10s"))["result"] if one["value"][1] != "NaN"]]
                until = time.monotonic() + 60
                while (left := empty()) and time.monotonic() < until: time.sleep(1)
                assert not left, f"{len(left)} panels are empty: {left}"
                assert len(expected) >= 45
        finally:
            for process in started: stop_process(process)
            engine.dispose()
    if missing: pytest.skip(f"SKIP: the panels of {', '.join(sorted(missing))} were not drawn, the exporters are not on this machine (apt: {' '.join(exporters[name][0] for name in sorted(missing))}); all others show something")
