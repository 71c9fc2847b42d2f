"""The canary scripts with real kubectl before a stand-in of a cluster, and a real Prometheus that scrapes what the tests make it see."""

import os
import shutil
import signal
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

import kubernetes_server
from conftest import ROOT
from docker_engine import eventually, free_port

SCRIPTS = ROOT / "deploy/scripts"
KUBECTL, PROMETHEUS = shutil.which("kubectl"), shutil.which("prometheus")
needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="SKIP: no kubectl on this machine")
needs_prometheus = pytest.mark.skipif(PROMETHEUS is None, reason="SKIP: no Prometheus on this machine")
OLD, NEW = "registry.example.com/ssr-api:0.1.0", "registry.example.com/ssr-api:0.2.0"


class Track:
    "Metrics of the pods of one track, which grow with every look at them."
    def __init__(self, requests: float = 200, errors: float = 0, seconds: float = .1): self.requests, self.errors, self.seconds, self.looks = requests, errors, seconds, 0

    def text(self) -> str:
        self.looks += 1
        good, bad = self.looks * (self.requests - self.errors), self.looks * self.errors
        slow = "".join(f'http_request_duration_seconds_bucket{{le="{edge}"}} {(good + bad) * (edge >= self.seconds)}\n' for edge in (.05, .1, .5, 1, 5))
        return f'http_requests_total{{method="GET",path="/api/v1/surveys",status="200"}} {good}\nhttp_requests_total{{method="GET",path="/api/v1/surveys",status="500"}} {bad}\n{slow}http_request_duration_seconds_bucket{{le="+Inf"}} {good + bad}\n'


@pytest.fixture
def prometheus(tmp_path):
    "A real Prometheus that looks every second at two tracks; their numbers are set by the test."
    tracks = {"stable": Track(), "canary": Track()}

    class Metrics(BaseHTTPRequestHandler):
        def log_message(self, *_): pass

        def do_GET(self):
            data = tracks[self.path.strip("/")].text().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(data)

    metrics, port = ThreadingHTTPServer(("127.0.0.1", 0), Metrics), free_port()
    threading.Thread(target=metrics.serve_forever, daemon=True).start()
    jobs = "".join(f"  - {{job_name: api-{name}, metrics_path: /{name}, static_configs: [{{targets: ['127.0.0.1:{metrics.server_port}'], labels: {{track: {name}}}}}]}}\n" for name in tracks)
    (tmp_path / "prometheus.yml").write_text(f"global: {{scrape_interval: 1s}}\nscrape_configs:\n{jobs}")
    process = subprocess.Popen([PROMETHEUS, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address=127.0.0.1:{port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    def samples(): return all(len(found) >= 1 for found in [httpx.get(f"{url}/api/v1/query", params={"query": f'increase(http_requests_total{{track="{name}"}}[10s]) > 0'}).json()["data"]["result"] for name in tracks])
    try:
        eventually(samples, 60, "the first samples")
        yield url, tracks
    finally:
        process.kill()
        process.wait()
        metrics.shutdown()


def metrics_script(url: str, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run([SCRIPTS / "canary_metrics.sh", "--window", "10s", "--min-requests", "50", *options], env=os.environ | {"PROMETHEUS_URL": url}, capture_output=True, text=True)


@needs_prometheus
def test_what_the_metrics_tell(prometheus):
    url, tracks = prometheus
    good = metrics_script(url)
    assert good.returncode == 0 and "as good as stable" in good.stdout and good.stdout.split()[:5] == ["track", "requests", "errors", "5xx", "p95"], good
    few = metrics_script(url, "--min-requests", "1000000")
    assert few.returncode == 3 and "too few requests" in few.stdout
    tracks["canary"].errors = 20
    eventually(lambda: metrics_script(url).returncode == 1, 30, "failing more often")
    assert "fails more often" in metrics_script(url).stdout and metrics_script(url, "--max-error-ratio", "0.5").returncode == 0
    tracks["stable"].errors = 20
    eventually(lambda: metrics_script(url).returncode == 0, 30, "as bad as stable")
    tracks["canary"].seconds = 1
    eventually(lambda: "slower than stable" in metrics_script(url).stdout, 30, "slower")
    assert metrics_script(url, "--max-slowdown", "100").returncode == 0


def test_no_prometheus_is_not_a_good_canary():
    away = metrics_script(f"http://127.0.0.1:{free_port()}")
    assert away.returncode == 1 and "does not answer" in away.stderr


@pytest.fixture
def cluster(tmp_path):
    held = kubernetes_server.Cluster(OLD)
    server = kubernetes_server.start(held)
    (tmp_path / "kubeconfig").write_text(f"apiVersion: v1\nkind: Config\nclusters: [{{name: test, cluster: {{server: 'http://127.0.0.1:{server.server_port}'}}}}]\ncontexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n"
                                         "current-context: test\nusers: [{name: test, user: {}}]\n")
    held.environment = os.environ | {"KUBECONFIG": str(tmp_path / "kubeconfig"), "HOME": str(tmp_path)}
    yield held
    server.shutdown()


def command(*options: str) -> list[str]: return [str(SCRIPTS / "canary.sh"), *options]


def canary(cluster, metrics: str, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(*options), env=cluster.environment | {"CANARY_METRICS": metrics}, capture_output=True, text=True, timeout=120)


QUICK = ("--watch", "1", "--every", "1", "--timeout", "5")


def as_before(cluster) -> bool:
    return (cluster.replicas("ssr-api-stable"), cluster.replicas("ssr-api-canary"), cluster.bounds) == (4, 0, (3, 20)) and not cluster.objects["deployments", "ssr-api-canary"]["metadata"]["annotations"]


@needs_kubectl
def test_a_good_canary_comes_to_everybody(cluster):
    done = canary(cluster, "/bin/true", NEW, *QUICK)
    assert done.returncode == 0, done.stderr
    assert cluster.changes == [("ssr-api-canary", 1), ("ssr-api-stable", 9), ("ssr-api-canary", 3), ("ssr-api-stable", 9), ("ssr-api-canary", 5), ("ssr-api-stable", 5), ("ssr-api-canary", 10), ("ssr-api-stable", 0), ("ssr-api-stable", 4), ("ssr-api-canary", 0)]
    assert {cluster.image(name) for name in ("ssr-api-stable", "celery-worker", "celery-beat", "flower")} == {NEW} and as_before(cluster)
    again = canary(cluster, "/bin/true", NEW, *QUICK)
    assert again.returncode == 1 and "stable has" in again.stderr


@needs_kubectl
@needs_prometheus
def test_a_bad_canary_goes_back_by_itself(cluster, prometheus):
    url, tracks = prometheus
    tracks["canary"].errors = 50
    cluster.environment["PROMETHEUS_URL"] = url
    done = canary(cluster, str(SCRIPTS / "canary_metrics.sh"), NEW, "--watch", "20", "--every", "1", "--timeout", "5", "--", "--window", "10s", "--min-requests", "50")
    assert done.returncode == 1 and "did not hold at 1/9" in done.stderr and "fails more often" in done.stdout, done
    assert cluster.changes[:2] == [("ssr-api-canary", 1), ("ssr-api-stable", 9)] and as_before(cluster)
    assert {cluster.image(name) for name in ("ssr-api-stable", "celery-worker")} == {OLD}


@needs_kubectl
def test_too_little_to_tell_is_not_good(cluster, tmp_path):
    (tmp_path / "unsure").write_text("#!/bin/sh\necho too few requests\nexit 3\n")
    (tmp_path / "unsure").chmod(0o755)
    done = canary(cluster, str(tmp_path / "unsure"), NEW, *QUICK)
    assert done.returncode == 1 and "too few requests" in done.stdout and as_before(cluster)


@needs_kubectl
def test_pods_that_do_not_come_up(cluster):
    cluster.broken.add(NEW)
    done = canary(cluster, "/bin/true", NEW, "--timeout", "2")
    assert done.returncode == 1 and "did not become ready" in done.stderr and as_before(cluster) and cluster.image("ssr-api-stable") == OLD


@needs_kubectl
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_script_that_is_ended(cluster, how):
    process = subprocess.Popen(command(NEW, "--watch", "600", "--every", "1"), env=cluster.environment | {"CANARY_METRICS": "/bin/true"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    eventually(lambda: ("ssr-api-stable", 9) in cluster.changes, 30, "the first step")
    process.send_signal(how)
    process.communicate(timeout=60)
    if how == signal.SIGKILL:
        assert cluster.bounds == (9, 9)
        second = canary(cluster, "/bin/true", NEW, *QUICK)
        assert second.returncode == 1 and "canary.sh rollback" in second.stderr, "two at once are refused"
        assert canary(cluster, "/bin/true", "rollback").returncode == 0
    assert as_before(cluster) and cluster.image("ssr-api-stable") == OLD
    nothing = canary(cluster, "/bin/true", "rollback")
    assert nothing.returncode == 1 and "nothing to take back" in nothing.stderr


@needs_kubectl
def test_a_cluster_without_it(cluster):
    del cluster.objects["horizontalpodautoscalers", "ssr-api-hpa"]
    done = canary(cluster, "/bin/true", NEW)
    assert done.returncode == 1 and "no autoscaler" in done.stderr and cluster.changes == []


@pytest.mark.parametrize("options, word", [(["nothing"], "the image is 'nothing'"), ([], "no image"), ([NEW, "--steps", "1/9 5/5"], "--steps is"), ([NEW, "--watch", "soon"], "--watch is 'soon'"), ([NEW, "--namespace", "A b"], "--namespace is")])
def test_wrong_use(options, word):
    done = subprocess.run(command(*options), capture_output=True, text=True)
    assert done.returncode == 2 and word in done.stderr and len(done.stderr.splitlines()) == 1
