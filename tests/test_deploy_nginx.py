"""nginx as it is deployed, for real: TLS, what is closed, events, a replica that is killed, and the change of colours under load."""

import http.client
import json
import os
import random
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from conftest import ROOT
from ssr_nb.service.processes import kill_process, start_process, stop_process

NGINX, SCRIPTS = ROOT / "deploy/nginx", ROOT / "deploy/scripts"
PROGRAM = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = [pytest.mark.system, pytest.mark.skipif(None in (PROGRAM, shutil.which("openssl")), reason="SKIP: no nginx or no openssl on this machine (apt: nginx-light openssl)"),
              pytest.mark.skipif(not sys.platform.startswith("linux"), reason="SKIP: replicas need addresses such as 127.1.2.3, which Linux has")]

REPLICA = r"""
import json, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
name, address, port, health = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
go_on = threading.Event()
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def page(self, status, told):
        body = json.dumps(told, separators=(",", ":")).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Strict-Transport-Security", "max-age=1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_POST(self): self.rfile.read(int(self.headers["Content-Length"])), self.page(202, {"replica": name})
    def do_GET(self):
        if self.path == "/health": return self.page(200 if health == "ok" else 503, {"status": health, "parts": {"database": "ok", "workers": "ok" if health == "ok" else "no worker answers"}})
        if self.path == "/api/v1/go-on": go_on.set()
        if self.path.endswith("/events"):
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(b"data: first\n\n"), self.wfile.flush()
            go_on.wait(60)
            return self.wfile.write(b"data: second\n\n")
        self.page(200, {"replica": name, "headers": dict(self.headers)})
class Server(ThreadingHTTPServer): request_queue_size = 128; daemon_threads = True
Server((address, port), Handler).serve_forever()
"""


class Names:
    "What Docker's name server does: `names` may change at any time."
    def __init__(self):
        self.names, self.socket = {}, socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try: asked, client = self.socket.recvfrom(512)
            except OSError: return
            labels, place = [], 12
            while length := asked[place]: labels.append(asked[place + 1:place + 1 + length].decode()); place += 1 + length
            found = self.names.get(".".join(labels), [])
            records = b"".join(b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 1, 4) + socket.inet_aton(address) for address in found)
            self.socket.sendto(asked[:2] + struct.pack("!HHHHH", 0x8180 if found else 0x8183, 1, len(found), 0, 0) + asked[12:place + 5] + records, client)


class Front:
    "nginx with deploy/nginx, where names, ports and folders are of this test alone."
    def __init__(self, folder: Path):
        self.folder, self.names, self.processes, self.nginx = folder, Names(), {}, None
        self.tls, self.plain, self.inside, self.behind = (low_port() for _ in range(4))
        self.net = f"127.{os.getpid() % 250 + 1}.{self.tls % 250}"
        shutil.copytree(NGINX, folder / "nginx", ignore=shutil.ignore_patterns(".gitignore"))
        for name in ("certificates", "live", "acme"): (folder / "nginx" / name).mkdir(exist_ok=True)
        for file in (folder / "nginx/nginx.conf", folder / "nginx/start.sh"):
            text = file.read_text()
            for old, new in {"listen 443 ssl": f"listen 127.0.0.1:{self.tls} ssl", "listen 80 ": f"listen 127.0.0.1:{self.plain} ", "listen 8081": f"listen 127.0.0.1:{self.inside}", ":8000": f":{self.behind}",
                             "127.0.0.11 valid=5s": f"127.0.0.1:{self.names.port} valid=1s", "/tmp/": f"{folder}/tmp-", "/var/www/acme": f"{folder}/nginx/acme"}.items():
                assert old in text or file.name == "start.sh"
                text = text.replace(old, new)
            file.write_text(text)
        self.environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin", "TLS_SELF_SIGNED": "true", "LIVE_API": "api"}
        self.script_environment = {**self.environment, "NGINX_EXEC": "", "NGINX_CONF": f"{folder}/nginx/nginx.conf", "NGINX_LIVE_DIR": f"{folder}/nginx/live", "NGINX_INSIDE_PORT": str(self.inside)}

    def replica(self, name: str, number: int, health: str = "ok") -> str:
        "Start a tiny backend, and return its address."
        address = f"{self.net}.{number}"
        self.processes[name] = start_process([sys.executable, "-c", REPLICA, name, address, self.behind, health], self.folder / "replicas.log")
        wait_for(lambda: answers(address, self.behind))
        return address

    def start(self):
        self.nginx = start_process(["sh", self.folder / "nginx/start.sh"], self.folder / "nginx.log", self.environment)
        def serves():  # that something listens is not enough: `nginx -t` does too, for a moment
            try: return self.ask_inside("/live")[0] == 200
            except (OSError, http.client.HTTPException): return False
        wait_for(lambda: serves() or self.nginx.poll() is not None)
        assert self.nginx.poll() is None, (self.folder / "nginx.log").read_text()
        return self

    def stop(self):
        if self.nginx: stop_process(self.nginx)
        for process in self.processes.values(): kill_process(process)
        self.names.socket.close()

    def connection(self) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cafile=str(self.folder / "nginx/certificates/fullchain.pem"))
        return http.client.HTTPSConnection("localhost", self.tls, timeout=20, context=context)

    def ask(self, path: str, method: str = "GET", body=None, headers={}):
        with closing(self.connection()) as connection:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response, response.read()

    def ask_inside(self, path: str) -> tuple[int, str]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.inside, timeout=20)) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def log(self) -> list[dict]: return [json.loads(line) for line in (self.folder / "nginx.log").read_text().splitlines() if line.startswith('{"time"')]

    def run(self, script: str, *arguments: str): return subprocess.run([SCRIPTS / script, *arguments], env=self.script_environment, capture_output=True, text=True, timeout=60)


def low_port() -> int:
    "A free port that no outgoing connection of anybody is given while nginx starts."
    while True:
        with socket.socket() as found:
            try: found.bind(("127.0.0.1", port := random.randrange(12000, 32000)))
            except OSError: continue
            return port


def answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1): return True
    except OSError: return False


def wait_for(what, seconds: float = 30):
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "did not come"
        time.sleep(.05)
    return found


@pytest.fixture
def front():
    with TemporaryDirectory(prefix="ssr-nginx-") as folder:
        Path(folder).chmod(0o755)  # nginx's workers are another user where the tests run as root; pytest's own folders are closed to them
        made = Front(Path(folder))
        try: yield made
        finally: made.stop()


@contextmanager
def load(front: Front, threads: int = 4):
    "Requests without a pause: half of the clients open a connection for each, half keep theirs. Gives what they got, and every failure."
    got, failures, done = [], [], threading.Event()
    def one(connection): connection.request("GET", "/api/v1/version"); response = connection.getresponse(); return response.status, json.loads(response.read())["replica"]
    def client(kept: bool):
        connection = front.connection()
        while not done.is_set():
            reused = connection.sock is not None
            try: told = one(connection)
            except (http.client.RemoteDisconnected, ConnectionError, ssl.SSLEOFError) as error:
                connection.close()
                if not reused: failures.append(error); continue
                try: told = one(connection)  # a kept connection was closed before any answer came: every client opens another (RFC 9112, 9.5)
                except Exception as again: failures.append(again); connection.close(); continue
            except Exception as error: failures.append(error); connection.close(); continue
            if told[0] != 200: failures.append(told)
            got.append(told[1])
            if not kept: connection.close()
        connection.close()
    clients = [threading.Thread(target=client, args=(number % 2 == 0,), daemon=True) for number in range(threads)]
    for thread in clients: thread.start()
    try: yield got, failures
    finally:
        done.set()
        for thread in clients: thread.join(30)


def test_what_is_open_and_what_is_closed(front):
    front.names.names["api"] = [front.replica("one", 1)]
    front.start()
    response, body = front.ask("/api/v1/version?q=secret-in-a-query", headers={"X-API-Key": "ssr_secret", "X-Request-ID": "my-id:1", "X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "http", "Forwarded": "for=6.6.6.6"})
    seen = json.loads(body)["headers"]
    assert response.status == 200 and (seen["X-Forwarded-For"], seen["X-Forwarded-Proto"], seen["Host"], seen["X-Request-ID"], seen["X-API-Key"]) == ("127.0.0.1", "https", "localhost", "my-id:1", "ssr_secret")
    assert "Forwarded" not in seen and response.headers.get_all("Strict-Transport-Security") == ["max-age=31536000; includeSubDomains"], "the API's own and nginx's are one"
    made = [json.loads(front.ask("/api/v1/version", headers=headers)[1])["headers"]["X-Request-ID"] for headers in ({}, {}, {"X-Request-ID": 'a"b{'})]
    assert len(set(made)) == 3 and all(len(one) == 32 for one in made)
    for path in ("/docs", "/openapi.json", "/health", "/static-offline-docs/x.js"): assert front.ask(path)[0].status == 200, path
    for path in ("/metrics", "/metrics/", "/api/../metrics", "//metrics", "/flower", "/dashboard", "/", "/nginx_status", "/live", "/green/health", "/.env", "/.well-known/acme-challenge/x", "/problem/404"):
        response, body = front.ask(path)
        assert response.status == 404 and response.headers["Content-Type"] == "application/problem+json" and json.loads(body)["status"] == 404, path
        assert response.headers["Strict-Transport-Security"] and "nginx/" not in response.headers["Server"]
    status, page = front.ask_inside("/nginx_status")
    assert status == 200 and "Active connections" in page and front.ask_inside("/live") == (200, "api\n") and front.ask_inside("/api/v1/version")[0] == 404

    response, body = front.ask("/api/v1/surveys", "POST", b"x" * 10_500_000)
    assert response.status == 202, "what is too large for the API it says itself"
    response, body = front.ask("/api/v1/surveys", "POST", b"x" * 11_600_000)
    assert response.status == 413 and json.loads(body)["status"] == 413
    kill_process(front.processes["one"])
    response, body = front.ask("/api/v1/version")
    assert response.status == 503 and json.loads(body)["status"] == 503 and response.headers["Retry-After"] == "5" and response.headers["Content-Type"] == "application/problem+json"

    wait_for(lambda: len(front.log()) >= 24)
    text = (front.folder / "nginx.log").read_text()
    [line] = [line for line in front.log() if line["request_id"] == "my-id:1"]
    assert (line["path"], line["status"], line["method"], line["live"]) == ("/api/v1/version", 200, "GET", "api") and line["upstream"].endswith(f":{front.behind}") and line["seconds"] >= 0
    assert "secret-in-a-query" not in text and "ssr_secret" not in text


def test_port_80_leads_to_https_and_serves_proofs(front):
    front.start()
    (front.folder / "nginx/acme/.well-known/acme-challenge").mkdir(parents=True)
    (front.folder / "nginx/acme/.well-known/acme-challenge/token").write_text("proof")
    with closing(http.client.HTTPConnection("127.0.0.1", front.plain, timeout=20)) as connection:
        for path, status in (("/api/v1/surveys?x=1", 308), ("/metrics", 308), ("/nginx_status", 308), ("/.well-known/acme-challenge/token", 200), ("/.well-known/acme-challenge/other", 404)):
            connection.request("GET", path, headers={"Host": "ssr.example.com"})
            response = connection.getresponse()
            body = response.read()
            assert response.status == status, path
            if status == 308: assert response.headers["Location"] == f"https://ssr.example.com{path}"
            if status == 200: assert body == b"proof"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_only_good_tls(front):
    front.start()
    def version(most) -> str | None:
        context = ssl.create_default_context(cafile=str(front.folder / "nginx/certificates/fullchain.pem"))
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = most
        context.set_ciphers("ALL:@SECLEVEL=0")
        try:
            with socket.create_connection(("127.0.0.1", front.tls), timeout=20) as plain, context.wrap_socket(plain, server_hostname="localhost") as wrapped: return wrapped.version()
        except ssl.SSLError: return None
    assert [version(most) for most in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1)] == ["TLSv1.3", "TLSv1.2", None, None]


def test_events_pass_as_they_come(front):
    front.names.names["api"] = [front.replica("one", 1)]
    front.start()
    with closing(front.connection()) as connection:
        connection.request("GET", "/api/v1/surveys/srv_1/events")
        response = connection.getresponse()
        assert response.readline() == b"data: first\n", "the second is not sent before the first was read"
        assert front.ask("/api/v1/go-on")[0].status == 200
        assert response.read() == b"\ndata: second\n\n"


def test_a_killed_replica_is_nobodys_error_and_new_ones_are_found(front):
    front.names.names["api"] = [front.replica(name, number) for number, name in enumerate(("one", "two", "three"), 1)]
    front.start()
    with load(front) as (got, failures):
        wait_for(lambda: set(got) == {"one", "two", "three"})
        kill_process(front.processes["two"])  # its name leads there on
        begin = len(got)
        wait_for(lambda: len(got) > begin + 300)
        assert set(got[begin + 50:]) == {"one", "three"}
        front.names.names["api"] = [f"{front.net}.1", front.replica("four", 4)]
        wait_for(lambda: "four" in got)
        begin = len(got)
        wait_for(lambda: "three" not in got[-100:] and len(got) > begin + 100)
    assert not failures, failures[:5]
    assert {front.ask("/api/v1/surveys", "POST", b"{}")[0].status for _ in range(20)} == {202}
    front.names.names["api"] = [f"{front.net}.1", f"{front.net}.2"]  # one that is dead: a POST that it cannot have had goes to the other
    time.sleep(1.1)
    assert {front.ask("/api/v1/surveys", "POST", b"{}")[0].status for _ in range(20)} == {202}


def test_from_blue_to_green_without_a_failed_request(front):
    front.names.names |= {"blue-api": [front.replica("blue-1", 1), front.replica("blue-2", 2)], "green-api": [front.replica("green-1", 3), front.replica("green-2", 4)]}
    front.environment["LIVE_API"] = "blue-api"
    front.start()
    told = front.run("health_check.sh", "http://green-api:8000", "--timeout", "0")
    assert told.returncode == 0 and "healthy" in told.stdout and "database: ok" in told.stdout
    with load(front) as (got, failures):
        wait_for(lambda: set(got) == {"blue-1", "blue-2"})
        include = (front.folder / "nginx/live/upstream.conf").read_text()
        plan = front.run("switch_lb.sh", "green", "--dry-run")
        assert plan.returncode == 0 and all(line.startswith("+ ") for line in plan.stdout.splitlines()) and (front.folder / "nginx/live/upstream.conf").read_text() == include
        for colour, before, expected in (("green", "blue", {"green-1", "green-2"}), ("green", "green", {"green-1", "green-2"}), ("blue", "green", {"blue-1", "blue-2"})):
            done = front.run("switch_lb.sh", colour)
            assert done.returncode == 0 and f"{colour}-api" in done.stdout, done.stderr
            assert front.ask_inside("/live") == (200, f"{colour}-api\n") and (front.folder / "nginx/live/upstream.conf").read_text() == f"set $api_upstream {colour}-api;\n"
            begin = len(got)
            wait_for(lambda: len(got) > begin + 200)
            wait_for(lambda: set(got[-100:]) == expected)
    assert not failures and len(got) > 600, failures[:5]
    stop_process(front.nginx)
    front.environment["LIVE_API"] = "green-api"
    front.start()
    assert front.ask_inside("/live") == (200, "blue-api\n"), "started again, the colour is the one that was switched to"


@pytest.mark.parametrize("why", ["unhealthy", "one of two", "away", "configuration"])
def test_a_switch_that_cannot_be_changes_nothing(front, why):
    front.names.names["blue-api"] = [front.replica("blue", 1)]
    if why != "away": front.names.names["green-api"] = [front.replica("green", 2, "down" if why == "unhealthy" else "ok")]
    if why == "one of two": front.names.names["green-api"].append(front.replica("green-2", 3, "down"))
    front.environment["LIVE_API"] = "blue-api"
    front.start()
    if why == "configuration":
        with open(front.folder / "nginx/nginx.conf", "a") as file: file.write("nonsense on;\n")
    with load(front, 2) as (got, failures):
        wait_for(lambda: len(got) > 10)
        done = front.run("switch_lb.sh", "green", "--checks", "30")
        begin = len(got)
        wait_for(lambda: len(got) > begin + 50)
    assert done.returncode == 1 and ("nonsense" in done.stderr if why == "configuration" else "green-api is not healthy" in done.stderr), done.stderr
    assert not failures and set(got) == {"blue"} and (front.folder / "nginx/live/upstream.conf").read_text() == "set $api_upstream blue-api;\n" and front.ask_inside("/live")[1] == "blue-api\n"


def test_switching_says_what_is_wrong(front):
    for arguments, word in (((), "no colour"), (("red",), "red"), (("blue", "green"), "two colours"), (("blue", "--checks", "0"), "--checks")):
        done = front.run("switch_lb.sh", *arguments)
        assert done.returncode == 2 and word in done.stderr
    done = front.run("switch_lb.sh", "green")  # no nginx
    assert done.returncode == 1 and "Nothing was changed" in done.stderr
    assert "Exit codes" in front.run("switch_lb.sh", "--help").stdout


@pytest.mark.parametrize("change, code, word", [({"TLS_SELF_SIGNED": "false"}, 1, "no certificate"), ({"TLS_SELF_SIGNED": "yes"}, 2, "TLS_SELF_SIGNED"), ({"LIVE_API": "a;b"}, 2, "LIVE_API"), ({"DOMAIN": "a/b"}, 2, "DOMAIN")])
def test_start_refuses(front, change, code, word):
    done = subprocess.run(["sh", front.folder / "nginx/start.sh"], env=front.environment | change, capture_output=True, text=True, timeout=60)
    assert done.returncode == code and word in done.stderr and done.stderr.count("\n") == 1
    assert not list((front.folder / "nginx/certificates").iterdir())


def test_start_refuses_what_nginx_refuses_and_keeps_a_certificate(front):
    made = front.folder / "nginx/certificates"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=mine", "-keyout", made / "privkey.pem", "-out", made / "fullchain.pem"], check=True, capture_output=True)
    mine = (made / "fullchain.pem").read_text()
    (front.folder / "nginx/live/upstream.conf").write_text("nonsense on;\n")
    done = subprocess.run(["sh", front.folder / "nginx/start.sh"], env=front.environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "nonsense" in done.stderr and (made / "fullchain.pem").read_text() == mine
    assert "Exit codes" in subprocess.run(["sh", NGINX / "start.sh", "--help"], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("version, known", [("1.22.1", False), ("1.27.3", False), ("1.27.4", True), ("1.29.0", True), ("2.0.1", True)])
def test_newer_versions_cut_no_kept_connection(front, version, known):
    (front.folder / "bin").mkdir()
    (front.folder / "bin/nginx").write_text(f'#!/bin/sh\n[ "$1" != -v ] || echo "nginx version: nginx/{version} (Debian)" >&2\n')
    (front.folder / "bin/nginx").chmod(0o755)
    written = front.folder / "tmp-nginx-version.conf"
    written.write_text("of an older start")
    done = subprocess.run(["sh", front.folder / "nginx/start.sh"], env=front.environment | {"PATH": f"{front.folder}/bin:{os.environ['PATH']}"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert written.read_text() == "keepalive_min_timeout 10s;\n" if known else not written.exists()


def test_the_real_api_behind_it(front, database, redis_url, server):
    environment = {**os.environ, "DATABASE_URL": database, "REDIS_URL": redis_url, "API_KEYS": "ssr_" + "0a" * 20, "OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "test", "PYTHONPATH": str(ROOT), "FORWARDED_ALLOW_IPS": "127.0.0.1", "SSR_RUNS": str(front.folder / "runs")}
    front.names.names["api"] = [f"{front.net}.9"]
    front.processes["api"] = start_process([sys.executable, "-m", "uvicorn", "--factory", "ssr_nb.service.api:create_app", "--host", f"{front.net}.9", "--port", front.behind, "--no-server-header"], front.folder / "api.log", environment, cwd=front.folder)
    wait_for(lambda: answers(f"{front.net}.9", front.behind) or front.processes["api"].poll() is not None, 60)
    front.start()
    key = {"X-API-Key": environment["API_KEYS"]}
    response, body = front.ask("/api/v1/version", headers={"X-Request-ID": "abc"})
    assert response.status == 200 and response.headers.get_all("X-Request-ID") == ["abc"], (front.folder / "api.log").read_text()[-3000:]
    assert front.ask("/metrics")[0].status == 404 and front.ask("/docs")[0].status == 200
    page = front.ask("/docs")[1].decode()
    script = next(part.split('"')[0] for part in page.split('src="')[1:])
    assert front.ask(script)[0].status == 200, "the documentation's own files pass"
    response, body = front.ask("/api/v1/surveys", "POST", b'{"x":"' + b"x" * 10_500_000 + b'"}', {**key, "Content-Type": "application/json"})
    assert response.status == 413 and "10,000,000" in json.loads(body)["detail"], "the API's own words"
    told = json.dumps({"concepts": [{"name": "Mug", "description": "A mug that keeps coffee hot."}], "constructs": ["purchase_intent"], "cohort_size": 2, "samples": 1, "llm_model": "gpt-4o", "llm_temperature": 0.5})
    response, body = front.ask("/api/v1/surveys", "POST", told, {**key, "Content-Type": "application/json"})
    assert response.status == 202, body
    with closing(front.connection()) as connection:
        connection.request("GET", f"/api/v1/surveys/{json.loads(body)['id']}/events", headers=key)
        response = connection.getresponse()
        assert response.status == 200 and response.headers["Content-Type"].startswith("text/event-stream")
        lines = [response.readline() for _ in range(3)]
        assert any(line.startswith(b"event: progress") for line in lines), lines
