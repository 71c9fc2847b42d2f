"""What is done to a running service, with real parts: asking for its health, watching it, firewall, certificates, logs, and PgBouncer."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import sqlalchemy as sa

from conftest import ROOT
from ssr_nb.service.processes import free_port, start_process, stop_process

DEPLOY = ROOT / "deploy"
SCRIPTS = DEPLOY / "scripts"
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="SKIP: the scripts are for Linux")


def found(program: str) -> str | None: return shutil.which(program, path=PATH)


def run(script: str, *arguments, **environment) -> subprocess.CompletedProcess:
    given = {name: value for name, value in os.environ.items() if name not in ("API_SUBNET", "INTERNAL_SUBNET", "DOMAIN", "EMAIL")} | {"PATH": PATH, "NGINX_EXEC": ""} | environment
    return subprocess.run([SCRIPTS / script, *map(str, arguments)], env=given, capture_output=True, text=True, timeout=60)


def wait_for(what, seconds: float = 60):
    until = time.monotonic() + seconds
    while not (came := what()):
        assert time.monotonic() < until, "did not come"
        time.sleep(.05)
    return came


@contextmanager
def pages(answer):
    "A server on a free port; `answer(path)` gives status and text."
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, text = answer(urllib.parse.unquote_plus(self.path))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())
        def log_message(self, *_): pass
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield server.server_address[1]
    finally: server.shutdown()


@pytest.mark.parametrize("script", ["health_check.sh", "switch_lb.sh", "monitor.sh", "firewall.sh", "certificates.sh"])
def test_scripts_say_what_they_are(script):
    told = run(script, "--help")
    assert told.returncode == 0 and told.stdout.startswith(script) and "Exit codes" in told.stdout and "Example: " in told.stdout
    assert os.access(SCRIPTS / script, os.X_OK) and (SCRIPTS / script).read_text().startswith("#!/usr/bin/env bash\n# ")
    for arguments in ((), ("--what",)):
        wrong = run(script, *arguments)
        assert wrong.returncode == 2 and wrong.stderr.startswith(f"{script}: ") and wrong.stderr.count("\n") == 1


def test_scripts_pass_shellcheck():
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{PATH}")
    if program is None: pytest.skip("SKIP: no shellcheck (extra deploy)")
    scripts = [SCRIPTS / name for name in ("health_check.sh", "switch_lb.sh", "monitor.sh", "firewall.sh", "certificates.sh")] + [DEPLOY / name / "start.sh" for name in ("nginx", "pgbouncer", "logging")]
    done = subprocess.run([program, "-x", *scripts], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


# ---- health_check.sh

WELL = (200, '{"status":"ok","parts":{"database":"ok","redis":"ok","models":"ok","workers":"ok"}}')
ILL = (503, '{"status":"down","parts":{"database":"does not answer","redis":"ok","models":"ok","workers":"no worker answers: surveys \\"wait\\""}}')


def test_health_is_waited_for():
    answers = [(502, "<html>"), ILL, WELL]
    with pages(lambda path: answers.pop(0) if path == "/health" else (404, "")) as port:
        done = run("health_check.sh", f"http://127.0.0.1:{port}/", "--timeout", 30, "--interval", 0)
    assert done.returncode == 0 and not answers and all(f"  {part}: ok\n" in done.stdout for part in ("database", "redis", "models", "workers"))


def test_what_is_ill_is_named():
    with pages(lambda path: ILL) as port: done = run("health_check.sh", f"http://127.0.0.1:{port}", "--timeout", 0)
    assert done.returncode == 1 and "  database: does not answer\n" in done.stderr and "workers: no worker answers" in done.stderr and "redis: ok" in done.stderr
    with pages(lambda path: (200, "It works!")) as port: done = run("health_check.sh", f"http://127.0.0.1:{port}", "--timeout", 0)
    assert done.returncode == 1 and "It works!" in done.stderr, "another program on that port is not healthy"
    done = run("health_check.sh", f"http://127.0.0.1:{free_port()}", "--timeout", 0)
    assert done.returncode == 1 and "not healthy" in done.stderr
    for arguments, word in ((("ftp://x",), "ftp://x"), (("http://a", "http://b"), "two addresses"), (("http://a", "--timeout", "soon"), "--timeout"), (("http://a", "--ca-file", "/no/such"), "--ca-file")):
        done = run("health_check.sh", *arguments)
        assert done.returncode == 2 and word in done.stderr


# ---- monitor.sh

@contextmanager
def watched(**told):
    "nginx's inside and Prometheus' API, as they would answer; gives the variables that lead there."
    numbers = {"up{": "3", "http_errors": "0.001", "p95": "0.2", "surveys": "0"} | told
    def inside(path): return (200, numbers.get("live", "green-api") + "\n") if path == "/live" else numbers.get("health", WELL)
    def prometheus(path):
        value = next(value for name, value in numbers.items() if name in path.partition("query=")[2])
        return (200, json.dumps({"status": "success", "data": {"resultType": "vector", "result": [] if value is None else [{"metric": {}, "value": [time.time(), value]}]}}, separators=(",", ":")))
    with pages(inside) as nginx, pages(prometheus) as port: yield {"NGINX_INSIDE_PORT": str(nginx), "PROMETHEUS_URL": f"http://127.0.0.1:{port}/"}


def test_a_good_colour_is_watched_to_the_end():
    for told in ({}, {"http_errors": None, "p95": "NaN", "surveys": None}):
        with watched(**told) as given: done = run("monitor.sh", "green", 2, "--interval", 1, **given)
        assert done.returncode == 0 and done.stdout.count("green: replicas 3") >= 2 and "well for 2 seconds" in done.stdout, done.stderr


@pytest.mark.parametrize("told, word", [({"http_errors": "0.051"}, "errors"), ({"p95": "1.5"}, "95 %"), ({"p95": "+Inf"}, "95 %"), ({"surveys": "0.2"}, "surveys"), ({"up{": "0"}, "no replica"), ({"up{": None}, "no replica"),
                                        ({"live": "blue-api"}, "not the live one"), ({"health": ILL}, "not healthy")])
def test_a_bad_colour_is_told_at_once(told, word):
    with watched(**told) as given: done = run("monitor.sh", "green", 600, **given)
    assert done.returncode == 1 and word in done.stderr and "switch_lb.sh blue" in done.stderr


def test_watching_without_eyes_is_a_failure():
    with watched() as given:
        done = run("monitor.sh", "green", 600, **given | {"PROMETHEUS_URL": f"http://127.0.0.1:{free_port()}"})
        assert done.returncode == 1 and "does not answer" in done.stderr
        done = run("monitor.sh", "green", 600, **given | {"NGINX_INSIDE_PORT": str(free_port())})
        assert done.returncode == 1 and "nginx" in done.stderr
        assert run("monitor.sh", "green", 1, "--max-errors", "0.0001", **given).returncode == 1
        for arguments, word in ((("red", 1), "red"), (("green",), "SECONDS"), (("green", "ten"), "ten"), (("green", 1, "--max-p95", "fast"), "--max-p95"), (("green", 1, 2), "too much")):
            done = run("monitor.sh", *arguments, **given)
            assert done.returncode == 2 and word in done.stderr


@pytest.mark.system
def test_monitor_reads_a_real_prometheus(tmp_path):
    if found("prometheus") is None: pytest.skip("SKIP: no prometheus on this machine (apt: prometheus)")
    counts = {"202": 0, "500": 0, "failing": 0}
    def metrics(path):
        counts["202"] += 10
        counts["500"] += counts["failing"]
        return 200, "".join(f'http_requests_total{{method="POST",path="/api/v1/surveys",status="{status}"}} {counts[status]}\n' for status in ("202", "500"))
    with pages(metrics) as api, watched() as given:
        (tmp_path / "recording.yml").write_text((DEPLOY / "prometheus/recording.yml").read_text().replace("interval: 15s", "interval: 1s"))
        (tmp_path / "prometheus.yml").write_text(json.dumps({"global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}, "rule_files": ["recording.yml"], "scrape_configs": [{"job_name": "api", "static_configs": [{"targets": [f"127.0.0.1:{api}"]}]}]}))
        port = free_port()
        given["PROMETHEUS_URL"] = f"http://127.0.0.1:{port}"
        process = start_process([found("prometheus"), f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address=127.0.0.1:{port}"], tmp_path / "log")
        def recorded() -> str | None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?query=ssr:http_errors:ratio_rate5m", timeout=5) as response: result = json.load(response)["data"]["result"]
            except OSError: return None
            return result[0]["value"][1] if result else None
        try:
            wait_for(recorded)
            done = run("monitor.sh", "green", 1, **given)
            assert done.returncode == 0 and "replicas 1, errors 0, p95 no traffic" in done.stdout, done.stdout + done.stderr
            counts["failing"] = 10
            wait_for(lambda: float(recorded()) > .05)
            done = run("monitor.sh", "green", 600, **given)
            assert done.returncode == 1 and "the share of errors is 0." in done.stderr
        finally: stop_process(process)


# ---- firewall.sh

ALLOWED = {"API_SUBNET": "10.77.1.0/24", "INTERNAL_SUBNET": "10.77.0.0/16,fd77::/64"}


@contextmanager
def networks():
    "A machine, and a neighbour with addresses in and out of the subnets: two network namespaces with a cable between. Gives functions that run commands there."
    if found("ip") is None or found("iptables") is None: pytest.skip("SKIP: no ip or no iptables on this machine (apt: iproute2 iptables)")
    one, two = (f"ssr{random.randrange(10**8)}" for _ in range(2))
    def at(name, *command, **options): return subprocess.run(["ip", "netns", "exec", name, *map(str, command)], capture_output=True, text=True, env={**os.environ, "PATH": PATH, **options}, timeout=60)
    made = []
    try:
        for name in (one, two):
            done = subprocess.run(["ip", "netns", "add", name], env={"PATH": PATH}, capture_output=True, text=True)
            if done.returncode: pytest.skip(f"SKIP: no network namespaces for this user or in this kernel: {done.stderr.strip()}")
            made.append(name)
            at(name, "ip", "link", "set", "lo", "up")
        done = at(one, "ip", "link", "add", "name", "eth0", "type", "veth", "peer", "name", "eth0", "netns", two)
        if done.returncode: pytest.skip(f"SKIP: this kernel makes no cable between namespaces: {done.stderr.strip()}")
        if (done := at(one, "iptables", "-S")).returncode: pytest.skip(f"SKIP: this kernel refuses iptables: {done.stderr.strip()}")
        for name, addresses in ((one, ["10.77.0.1/8", "fd77::1/48"]), (two, ["10.77.1.5/8", "10.77.9.5/8", "10.99.0.5/8", "fd77::5/48", "fd77:0:0:9::5/48"])):
            for address in addresses: at(name, "ip", "addr", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
            at(name, "ip", "link", "set", "eth0", "up")
        yield lambda *command, **options: at(one, *command, **options), lambda *command, **options: at(two, *command, **options)
    finally:
        for name in made: subprocess.run(["ip", "netns", "del", name], env={"PATH": PATH})


LISTEN = "import socket,sys,time\nservers=[socket.create_server(('::', int(port)), family=socket.AF_INET6, dualstack_ipv6=True, backlog=50) for port in sys.argv[1:]]\nprint('ready', flush=True)\nwhile True: time.sleep(60)"
REACH = "import socket,sys\nfor port in sys.argv[3:]:\n  try: socket.create_connection((sys.argv[2], int(port)), .7, (sys.argv[1], 0)).close(); print(port)\n  except OSError: pass"


@pytest.mark.system
def test_the_firewall_lets_through_whom_it_should():
    ports = ["22", "80", "443", "5432", "6379", "8000"]
    with networks() as (machine, neighbour):
        name = machine("ip", "netns", "identify").stdout.strip()
        listener = subprocess.Popen(["ip", "netns", "exec", name, sys.executable, "-c", LISTEN, *ports], stdout=subprocess.PIPE, env={**os.environ, "PATH": PATH})
        try:
            assert listener.stdout.readline() == b"ready\n"
            def reached(source, target="10.77.0.1", by=neighbour): return set(by(sys.executable, "-c", REACH, source, target, *ports).stdout.split())
            def firewall(*arguments, **more): return machine(SCRIPTS / "firewall.sh", *arguments, **ALLOWED, **more)
            assert reached("10.99.0.5") == reached("fd77:0:0:9::5", "fd77::1") == set(ports)
            before = machine("iptables-save").stdout, machine("ip6tables-save").stdout
            plan = firewall("apply", "--dry-run")
            assert plan.returncode == 0 and "dport 443 -j ACCEPT" in plan.stdout and (machine("iptables-save").stdout, machine("ip6tables-save").stdout) == before
            done = firewall("apply")
            assert done.returncode == 0, done.stderr
            rules = machine("iptables", "-S").stdout, machine("ip6tables", "-S").stdout
            assert firewall("apply").returncode == 0 and (machine("iptables", "-S").stdout, machine("ip6tables", "-S").stdout) == rules, "twice is once"
            assert reached("10.99.0.5") == {"22", "443", "8000"}, "a stranger: https, and what is none of its business"
            assert reached("10.77.1.5") == {"22", "443", "5432", "6379", "8000"}, "an API server is inside too"
            assert reached("10.77.9.5") == {"22", "443", "6379", "8000"}, "a worker asks Redis alone"
            assert reached("fd77::5", "fd77::1") == {"22", "443", "6379", "8000"} and reached("fd77:0:0:9::5", "fd77::1") == {"22", "443", "8000"}, "IPv6 is no way around"
            assert reached("127.0.0.1", "127.0.0.1", machine) == set(ports), "the machine itself"
            assert "-A SSR -j DROP" in firewall("show").stdout
            assert firewall("apply", "--http").returncode == 0 and reached("10.99.0.5") == {"22", "80", "443", "8000"}
            assert machine(SCRIPTS / "firewall.sh", "apply", "--http", API_SUBNET="10.99.0.5", INTERNAL_SUBNET="10.99.0.0/24").returncode == 0
            assert reached("10.99.0.5") == set(ports) and reached("10.77.1.5") == {"22", "80", "443", "8000"}, "other subnets take the place of the old ones"
            assert firewall("remove").returncode == 0 and reached("10.99.0.5") == set(ports) and "SSR" not in machine("iptables-save").stdout + machine("ip6tables-save").stdout
            assert firewall("remove").returncode == 0, "nothing to remove is no failure"
        finally: listener.kill(), listener.wait()


@pytest.mark.system
def test_the_firewall_before_docker():
    with networks() as (machine, neighbour):
        firewall = ["--docker", "--interface", "eth0"]
        done = machine(SCRIPTS / "firewall.sh", "apply", *firewall, **ALLOWED)
        assert done.returncode == 1 and "start Docker first" in done.stderr and "SSR" not in machine("iptables-save").stdout
        # as Docker does it: 5432 is published from a container, here another address of the machine behind a second cable
        for command in ("-t nat -A PREROUTING -i eth0 -p tcp --dport 5432 -j DNAT --to-destination 10.77.0.1:15432", "-N DOCKER-USER", "-A FORWARD -j DOCKER-USER", "-A INPUT -p tcp --dport 15432 -j DOCKER-USER", "-A DOCKER-USER -j RETURN"):
            done = machine("iptables", *command.split())
            if done.returncode: pytest.skip(f"SKIP: this kernel has no address translation: {done.stderr.strip()}")
        name = machine("ip", "netns", "identify").stdout.strip()
        listener = subprocess.Popen(["ip", "netns", "exec", name, sys.executable, "-c", LISTEN, "15432"], stdout=subprocess.PIPE, env={**os.environ, "PATH": PATH})
        try:
            assert listener.stdout.readline() == b"ready\n"
            def reached(source): return set(neighbour(sys.executable, "-c", REACH, source, "10.77.0.1", "5432").stdout.split())
            assert reached("10.99.0.5") == {"5432"}
            done = machine(SCRIPTS / "firewall.sh", "apply", *firewall, **ALLOWED)
            assert done.returncode == 0 and machine(SCRIPTS / "firewall.sh", "apply", *firewall, **ALLOWED).returncode == 0 and machine("iptables", "-S").stdout.count("-j SSR-DOCKER") == 1, done.stderr
            assert reached("10.99.0.5") == set() and reached("10.77.1.5") == {"5432"}, "the port that was asked for counts, not the container's"
            assert machine(SCRIPTS / "firewall.sh", "remove", *firewall).returncode == 0 and reached("10.99.0.5") == {"5432"}
        finally: listener.kill(), listener.wait()


@pytest.mark.parametrize("change, word", [({"API_SUBNET": ""}, "API_SUBNET is not set"), ({"API_SUBNET": "10.0.0.300/24"}, "300"), ({"API_SUBNET": "10.0.0.0/33"}, "32 bits"), ({"API_SUBNET": "0.0.0.0/0"}, "everybody"), ({"INTERNAL_SUBNET": "::/0"}, "everybody"),
                                          ({"INTERNAL_SUBNET": "10.0.0.0/8 -j ACCEPT"}, "INTERNAL_SUBNET"), ({"INTERNAL_SUBNET": "inside.example.com"}, "inside.example.com"), ({"INTERNAL_SUBNET": "10.0.0.0/8,"}, None), ({"INTERNAL_SUBNET": "fd00::/129"}, "128")])
def test_the_firewall_looks_at_subnets(change, word):
    done = run("firewall.sh", "apply", "--dry-run", **ALLOWED | change)
    assert (done.returncode, done.stderr.count("\n") == 1 and word in done.stderr) == (2, True) if word else done.returncode == 0
    assert word is None or "-A SSR" not in done.stdout


def test_the_firewall_says_what_is_missing():
    for arguments, word in ((("apply", "remove"), "give one"), (("apply", "--docker"), "--interface"), (("apply", "--interface", "eth0"), "--docker"), (("apply", "--docker", "--interface", "a b"), "a b")):
        done = run("firewall.sh", *arguments, **ALLOWED)
        assert done.returncode == 2 and word in done.stderr


# ---- certificates.sh

CERTBOT = r"""#!/bin/sh
# stands in for certbot: `certonly` and `renew` leave a certificate in the store
echo "$@" >> STORE/asked
[ ! -e STORE/fail ] || { echo "Some challenges have failed." >&2; exit 1; }
[ "$1" != renew ] || [ -e STORE/due ] || exit 0
rm -f STORE/due
mkdir -p STORE/live/ssr.example.com
openssl req -x509 -newkey rsa:2048 -nodes -days "$(cat STORE/days 2> /dev/null || echo 90)" -subj /CN=x -addext "subjectAltName=DNS:$(cat STORE/name 2> /dev/null || echo ssr.example.com)" \
  -keyout STORE/live/ssr.example.com/privkey.pem -out STORE/live/ssr.example.com/fullchain.pem 2> /dev/null
"""
NGINX = """#!/bin/sh
echo "$@" >> STORE/nginx
case "$*" in *-t*) [ ! -e STORE/refuse ] || { echo "nginx: [emerg] no" >&2; exit 1; } ;; esac
"""


@pytest.fixture
def certificates(tmp_path):
    "Runs certificates.sh with stand-ins for certbot, nginx and crontab; what they do is in the folder `store`."
    if found("openssl") is None: pytest.skip("SKIP: no openssl on this machine")
    store, used, metrics, programs = (tmp_path / name for name in ("store", "used", "metrics", "programs"))
    for folder in (store, used, metrics, programs): folder.mkdir()
    for name, text in {"certbot": CERTBOT, "nginx": NGINX, "crontab": "#!/bin/sh\nif [ \"$1\" = -l ]; then cat STORE/crontab; else cat > STORE/crontab.new; mv STORE/crontab.new STORE/crontab; fi\n"}.items():
        (programs / name).write_text(text.replace("STORE", str(store)))
        (programs / name).chmod(0o755)
    given = {"PATH": f"{programs}:{PATH}", "CERTBOT": "certbot", "CERTBOT_CAT": "cat", "CERTBOT_LIVE": f"{store}/live", "NGINX_CERTIFICATES": str(used), "DOMAIN": "ssr.example.com", "EMAIL": "ops@example.com", "METRICS_DIR": str(metrics), "TMPDIR": str(tmp_path)}
    def call(*arguments, **more): return run("certificates.sh", *arguments, **given | more)
    call.store, call.used, call.metrics, call.folder = store, used, metrics, tmp_path
    return call


def both(folder: Path) -> tuple[str, str]: return (folder / "fullchain.pem").read_text(), (folder / "privkey.pem").read_text()


def test_a_certificate_comes_to_nginx_and_is_renewed(certificates):
    live = certificates.store / "live/ssr.example.com"
    plan = certificates("request", "--dry-run")
    assert plan.returncode == 0 and all(line.startswith("+ ") for line in plan.stdout.splitlines()) and not list(certificates.store.iterdir())
    done = certificates("request", "--staging")
    assert done.returncode == 0 and "89 days" in done.stdout + done.stderr or "90 days" in done.stdout, done.stderr
    asked = (certificates.store / "asked").read_text()
    assert "certonly --webroot --webroot-path /var/www/acme --domain ssr.example.com" in asked and "--staging" in asked
    assert both(certificates.used) == both(live) and (certificates.used / "privkey.pem").stat().st_mode & 0o077 == 0 and len(list(certificates.used.iterdir())) == 2
    told = (certificates.store / "nginx").read_text().splitlines()
    assert "-t" in told[0] and "reload" in told[1] and len(told) == 2
    metric = (certificates.metrics / "certificate.prom").read_text().splitlines()[-1].split()
    assert metric[0] == "ssr_certificate_expiry_timestamp_seconds" and 89 < (float(metric[1]) - time.time()) / 86400 <= 90
    assert certificates("renew").returncode == 0 and len((certificates.store / "nginx").read_text().splitlines()) == 2, "nothing new: nginx is left alone"
    (certificates.store / "due").touch()
    before = both(certificates.used)
    assert certificates("renew").returncode == 0 and both(certificates.used) == both(live) != before and len((certificates.store / "nginx").read_text().splitlines()) == 4
    assert "PRIVATE KEY" not in done.stdout + done.stderr and not list(certificates.folder.glob("tmp.*")), "the key is left nowhere"


@pytest.mark.parametrize("fault, word", [("fail", "could not renew"), ("name", "not for ssr.example.com"), ("refuse", "the old one is back"), ("key", "does not fit"), ("days", "less than 14")])
def test_a_bad_renewal_leaves_the_old_certificate(certificates, fault, word):
    assert certificates("request").returncode == 0
    before = both(certificates.used)
    (certificates.store / "due").touch()
    (certificates.store / fault).write_text({"name": "other.example.com", "days": "5"}.get(fault, ""))
    if fault == "key":
        certbot = certificates.folder / "programs/certbot"
        certbot.write_text(certbot.read_text() + f"openssl genrsa -out {certificates.store}/live/ssr.example.com/privkey.pem 2048 2> /dev/null\n")
    done = certificates("renew")
    assert done.returncode == 1 and word in done.stderr and not list(certificates.folder.glob("tmp.*")), done.stderr
    assert (both(certificates.used) == before) is (fault != "days"), "one that ends soon is still better than one that ends sooner"
    (certificates.store / fault).unlink()
    if fault == "days":
        done = certificates("check")
        assert done.returncode == 1 and certificates("check", "--days", "3").returncode == 0
        assert 4 < (float((certificates.metrics / "certificate.prom").read_text().split()[-1]) - time.time()) / 86400 <= 5, "the alert sees it"


def test_renewal_is_scheduled_once(certificates):
    (certificates.store / "crontab").write_text("0 2 * * * backup\n")
    for _ in range(2): assert certificates("schedule").returncode == 0
    other, line = (certificates.store / "crontab").read_text().splitlines()
    assert other == "0 2 * * * backup" and line.startswith("17 3,15 * * * ") and "DOMAIN=ssr.example.com" in line and f"METRICS_DIR={certificates.metrics}" in line
    command = line.split(" ", 5)[5].partition(" 2>&1")[0]
    done = subprocess.run(["sh", "-c", command], env={"PATH": f"{certificates.folder}/programs:{PATH}"}, capture_output=True, text=True)
    assert done.returncode == 1 and "certbot has no" in done.stderr, "cron's own environment is enough to come to certbot"
    for change, arguments, word in (({"DOMAIN": "a b"}, ("request",), "DOMAIN"), ({"EMAIL": "nobody"}, ("request",), "EMAIL"), ({}, ("check", "--days", "x"), "--days"), ({}, ("renew", "--staging"), "--staging"), ({}, ("check", "renew"), "give one")):
        done = certificates(*arguments, **change)
        assert done.returncode == 2 and word in done.stderr
    done = certificates("check")
    assert done.returncode == 1 and "no certificate" in done.stderr


def test_the_containers_are_entered_through_compose(certificates):
    "By their defaults scripts enter the shared project; COMPOSE_FILE leads to another."
    programs = certificates.folder / "programs"
    (programs / "docker").write_text(f"#!/bin/sh\nprintf '%s ' \"$@\" > {certificates.store}/docker\nexit 1\n")
    (programs / "docker").chmod(0o755)
    given = {name: value for name, value in os.environ.items() if not name.startswith(("COMPOSE", "CERTBOT", "NGINX"))} | {"PATH": f"{programs}:{PATH}", "DOMAIN": "ssr.example.com"}
    def asked(script, *arguments, **more):
        assert subprocess.run([SCRIPTS / script, *arguments], env=given | more, capture_output=True).returncode == 1
        return (certificates.store / "docker").read_text().strip()
    assert asked("certificates.sh", "check") == f"compose -p ssr-shared -f {DEPLOY}/docker-compose.shared.yml exec -T nginx cat /etc/nginx/certificates/fullchain.pem"
    assert asked("certificates.sh", "renew") == f"compose -p ssr-shared -f {DEPLOY}/docker-compose.shared.yml run --rm -T certbot renew --cert-name ssr.example.com --non-interactive"
    assert asked("switch_lb.sh", "green").startswith(f"compose -p ssr-shared -f {DEPLOY}/docker-compose.shared.yml exec -T nginx timeout 15 bash -c ")
    assert asked("certificates.sh", "check", COMPOSE_FILE="/other.yml") == "compose exec -T nginx cat /etc/nginx/certificates/fullchain.pem"


# ---- logging

class Sink:
    "Takes lines, as Vector or Logstash would."
    def __init__(self, port: int):
        self.lines, self.socket = [], socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self.accept, daemon=True).start()
    def accept(self):
        while True:
            try: client, _ = self.socket.accept()
            except OSError: return
            threading.Thread(target=self.read, args=(client,), daemon=True).start()
    def read(self, client): self.lines.extend(map(json.loads, client.makefile()))


@pytest.mark.system
def test_logs_come_to_the_sink(tmp_path):
    if found("rsyslogd") is None: pytest.skip("SKIP: no rsyslogd on this machine (apt: rsyslog)")
    containers = tmp_path / "containers"
    for folder in (containers / "a1", tmp_path / "spool"): folder.mkdir(parents=True)
    shutil.copy(DEPLOY / "logging/start.sh", tmp_path)
    (tmp_path / "rsyslog.conf").write_text((DEPLOY / "logging/rsyslog.conf").read_text().replace("/var/lib/docker/containers", str(containers)).replace("/var/spool/rsyslog", str(tmp_path / "spool")))
    port, number = free_port(), iter(range(10**6))
    def write(name: str, text: str) -> int:  # as Docker's driver json-file does
        place = next(number)
        with open(containers / name / f"{name}-json.log", "a") as file: file.write(json.dumps({"log": text.replace("PLACE", str(place)) + "\n", "stream": "stdout", "attrs": {"tag": f"ssr-{name}"}, "time": "2026-01-01T00:00:00Z"}) + "\n")
        return place
    def start(): return start_process(["sh", tmp_path / "start.sh"], tmp_path / "log", {**os.environ, "PATH": PATH, "LOG_SINK_HOST": "127.0.0.1", "LOG_SINK_PORT": str(port)})
    def places(sink): return sorted(line["log"]["place"] for line in sink.lines if "log" in line)
    shipper, sink = start(), None
    try:
        for _ in range(5): write("a1", '{"place": PLACE, "level": "INFO", "message": "say \\"hello\\" to C:\\\\x"}')  # the sink is away
        sink = Sink(port)
        wait_for(lambda: places(sink) == list(range(5)))
        assert sink.lines[0] == {"time": "2026-01-01T00:00:00Z", "service": "ssr-a1", "stream": "stdout", "log": {"place": 0, "level": "INFO", "message": 'say "hello" to C:\\x'}}
        write("a1", 'Traceback (most recent call last): "x"\t\\')
        write("a1", '{"cut in two": ')
        (containers / "b2").mkdir()  # a container that comes later
        write("b2", '{"place": PLACE}')
        wait_for(lambda: len(sink.lines) == 8)
        assert {line["text"] for line in sink.lines if "text" in line} == {'Traceback (most recent call last): "x"\t\\', '{"cut in two": '} and {line["service"] for line in sink.lines} == {"ssr-a1", "ssr-b2"}
        stop_process(shipper)
        for _ in range(20): write("b2", '{"place": PLACE}')
        shipper = start()
        wait_for(lambda: len(sink.lines) >= 28)
        assert places(sink) == [*range(5), 7, *range(8, 28)], "what was printed meanwhile comes, and nothing twice"
    finally:
        stop_process(shipper)
        if sink: sink.socket.close()


def test_the_shipper_refuses_to_start_without_a_sink():
    for given, word in (({}, "LOG_SINK_HOST"), ({"LOG_SINK_HOST": "a b", "LOG_SINK_PORT": "1"}, "a b"), ({"LOG_SINK_HOST": "sink", "LOG_SINK_PORT": "tcp"}, "LOG_SINK_PORT")):
        done = subprocess.run(["sh", DEPLOY / "logging/start.sh"], env={"PATH": PATH, **given}, capture_output=True, text=True)
        assert done.returncode == 2 and word in done.stderr
    assert "LOG_SINK_HOST" in subprocess.run(["sh", DEPLOY / "logging/start.sh", "--help"], check=True, capture_output=True, text=True).stdout


# ---- PgBouncer

@contextmanager
def pgbouncer(server, **more):
    "PgBouncer before a server, as its container starts it. Gives a function that leads the URL of a database through it."
    folder = Path(tempfile.mkdtemp(prefix="ssr-pgbouncer-"))  # PgBouncer is another user where the tests run as root
    folder.chmod(0o755)
    port, user = free_port(), {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    given = {"PATH": PATH, "POSTGRES_USER": "ssr", "POSTGRES_PASSWORD": server.password, "DB_HOST": "127.0.0.1", "DB_PORT": str(server.port), "PGBOUNCER_PORT": str(port), "FOLDER": f"{tempfile.gettempdir()}/ssr-pgbouncer-{port}", **more}
    for name in ("pgbouncer.ini", "start.sh"): shutil.copy(DEPLOY / "pgbouncer" / name, folder)
    process = start_process(["sh", folder / "start.sh"], folder / "pgbouncer.log", given, **user)
    def answers():
        assert process.poll() is None, (folder / "pgbouncer.log").read_text()
        try: socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError: return False
        return True
    try:
        wait_for(answers)
        yield lambda url: url.replace(f":{server.port}/", f":{port}/")
    finally:
        stop_process(process)
        assert server.password not in (folder / "pgbouncer.log").read_text()
        for one in (given["FOLDER"], folder): shutil.rmtree(one, ignore_errors=True)


needs_pgbouncer = pytest.mark.skipif(found("pgbouncer") is None, reason="SKIP: no pgbouncer on this machine (apt: pgbouncer)")


@pytest.fixture
def small(monkeypatch):
    "A PostgreSQL that allows 20 connections."
    from ssr_nb.service import servers
    start = servers.start_process
    monkeypatch.setattr(servers, "start_process", lambda command, *arguments, **options: start(["max_connections=20" if part == "max_connections=200" else part for part in command], *arguments, **options))
    with servers.Postgres() as server: yield server


def together(url: str, label: str, clients: int = 100) -> list[str]:
    "What clients get that are connected all at once and each work with the service's code."
    from ssr_nb.service.database import make_engine, transaction
    from ssr_nb.service.keys import create_key
    told, all_in = [], threading.Barrier(clients, timeout=60)
    def client(number):
        engine = make_engine(f"{url}?application_name=client{number}", pool_size=1)
        try:
            try:
                with engine.connect(): pass  # kept by the pool
            finally: all_in.wait()
            for _ in range(5):
                with transaction(engine) as session: create_key(session, f"{label} {number}", "team", ("surveys:read",))
            with engine.connect() as connection: told.append("ok" if connection.scalar(sa.text("SELECT count(*) FROM api_keys WHERE name = :name"), {"name": f"{label} {number}"}) == 5 else "lost")
        except Exception as error: told.append(str(error))
        finally: engine.dispose()
    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads: thread.start()
    for thread in threads: thread.join(90)
    return told


@needs_pgbouncer
@pytest.mark.system
def test_too_many_clients_and_none_too_many(small):
    from ssr_nb.service.database import upgrade
    url = small.database("ssr")
    upgrade(url)
    told = together(url, "directly")
    assert len(told) == 100 and sum("sorry, too many clients already" in one for one in told) >= 80, "the guide's case"
    wait_for(lambda: small.running)
    with pgbouncer(small, PGBOUNCER_POOL_SIZE="10", PGBOUNCER_RESERVE="3") as through:
        told = together(through(url), "pooled")
        assert told == ["ok"] * 100, [one for one in told if one != "ok"][:3]


@needs_pgbouncer
@pytest.mark.system
def test_the_service_works_through_it(postgres, database, redis_url, server, tmp_path, monkeypatch):
    from service_app import Service
    from ssr_nb.service.settings import ServiceSettings
    with pgbouncer(postgres, PGBOUNCER_POOL_SIZE="2", PGBOUNCER_RESERVE="0") as through:  # two connections: a session is never the client's own
        for name, value in {"DATABASE_URL": through(database), "REDIS_URL": redis_url, "OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "test", "SSR_RUNS": str(tmp_path / "runs"), "CHUNK_ANSWERS": "10"}.items(): monkeypatch.setenv(name, value)
        service = Service(ServiceSettings.from_environment())
        with service.client() as client:
            told = {"concepts": [{"name": "Mug", "description": "A mug that keeps coffee hot."}], "constructs": ["purchase_intent"], "cohort_size": 12, "samples": 1, "llm_model": "gpt-4o", "embedding_model": "minilm"}
            answer = client.post("/api/v1/surveys", json=told)
            assert answer.status_code == 202, answer.text
            service.work_off()
            survey = client.get(f"/api/v1/surveys/{answer.json()['id']}").json()
            assert survey["status"] == "completed" and client.get(f"/api/v1/surveys/{survey['id']}/results").status_code == 200
            codes = []
            threads = [threading.Thread(target=lambda: codes.append(client.get("/api/v1/surveys").status_code)) for _ in range(30)]
            for thread in threads: thread.start()
            for thread in threads: thread.join(60)
            assert codes == [200] * 30
            assert client.get("/health/ready").json()["parts"]["database"] == "ok"
        service.engine.dispose()


@pytest.mark.parametrize("change, word", [({"POSTGRES_PASSWORD": ""}, "POSTGRES_PASSWORD"), ({"POSTGRES_USER": ""}, "POSTGRES_USER"), ({"DB_HOST": "a b"}, "DB_HOST"), ({"PGBOUNCER_POOL_SIZE": "many"}, "many"), ({"PGBOUNCER_POOL_SIZE": "0"}, "at least 1"), ({"FOLDER": "x"}, "FOLDER")])
def test_pgbouncer_looks_at_its_variables(change, word):
    given = {"PATH": PATH, "POSTGRES_USER": "ssr", "POSTGRES_PASSWORD": "secret", "PGBOUNCER": "false", **change}
    user = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    script = (DEPLOY / "pgbouncer/start.sh").read_text()
    done = subprocess.run(["sh", "-s"], input=script, env=given, capture_output=True, text=True, cwd="/", **user)
    assert done.returncode == 2 and word in done.stderr and "secret" not in done.stderr
    if os.geteuid() == 0: assert "root" in subprocess.run(["sh", DEPLOY / "pgbouncer/start.sh"], env=given, capture_output=True, text=True).stderr
