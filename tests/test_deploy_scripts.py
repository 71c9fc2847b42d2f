"""What every script of the deployment keeps to; the load test and the security scan on real parts."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from conftest import ROOT

DEPLOY, BIN = ROOT / "deploy", Path(sys.executable).parent
SCRIPTS = sorted(path for path in [*DEPLOY.rglob("*.sh"), *(ROOT / "tests/docker").glob("engine.sh")] if not path.name.endswith((".inc.sh", "_lib.sh")))
PASS_ON = ("start.sh", "fill.sh")  # give their arguments to what they start, or read
names = [str(path.relative_to(ROOT)) for path in SCRIPTS]
needs_locust = pytest.mark.skipif(not (BIN / "locust").exists(), reason="SKIP: locust is not installed (extra deploy)")


def run(*command, **more) -> subprocess.CompletedProcess: return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300, **more)


@pytest.mark.parametrize("script", SCRIPTS, ids=names)
def test_a_script_explains_itself_and_refuses_what_it_does_not_know(script):
    text = script.read_text()
    assert re.search(r"^set -eu(o pipefail)?$", text, re.MULTILINE) and text.startswith("#!") and (os.access(script, os.X_OK) or script.name in PASS_ON)
    told = run("bash" if "bash" in text.splitlines()[0] else "sh", script, "--help")
    assert told.returncode == 0 and script.name in told.stdout and "xit code" in told.stdout and told.stderr == ""
    if script.name not in PASS_ON:
        wrong = run("bash", script, "--no-such-option")
        assert wrong.returncode == 2 and wrong.stderr.strip() and wrong.stdout == "", wrong


def test_shell_scripts_and_dockerfiles_are_clean():
    for tool, files in (("shellcheck", [*DEPLOY.rglob("*.sh"), *(ROOT / "tests").rglob("*.sh")]), ("hadolint", [*DEPLOY.rglob("*Dockerfile")])):
        found = shutil.which(tool) or shutil.which(tool, path=BIN)
        if found is None: pytest.skip(f"SKIP: {tool} is not installed (extra deploy)")
        done = run(found, *(["-x"] if tool == "shellcheck" else []), *files, cwd=ROOT)
        assert files and done.returncode == 0, done.stdout


@pytest.fixture
def key(tmp_path):
    (tmp_path / "key").write_text("a-key\n")
    return tmp_path / "key"


class Service:
    "Answers what the load test asks, or fails; notes what it was asked."
    def __init__(self):
        self.fails, self.asked, self.keys = False, [], set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_): pass

            def answer(self):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.asked.append((self.command, self.path.split("?")[0]))
                outer.keys.add(self.headers.get("X-API-Key"))
                data = json.dumps({"surveys": [{"id": "one"}]}).encode()
                self.send_response(500 if outer.fails else 200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = answer

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def service():
    made = Service()
    yield made
    made.server.shutdown()


def load(service, key, *options) -> subprocess.CompletedProcess: return run(DEPLOY / "scripts/load_test.sh", service.url, "--key-file", key, "--users", 10, "--seconds", 6, "--max-p95", 30, *options, env=os.environ | {"LOCUST": str(BIN / "locust")})


@needs_locust
def test_load_that_is_borne(service, key, tmp_path):
    done = load(service, key, "--report", tmp_path / "load.html")
    told = re.match(r"(\d+) requests, [\d.]+ a second, median [\d.]+ s, p95 [\d.]+ s, errors 0.00 %", done.stdout)
    assert done.returncode == 0 and told and 20 < int(told[1]) <= len(service.asked), done
    assert service.keys == {"a-key"} and ("POST", "/api/v1/surveys") not in service.asked, "no model is asked unless it is said"
    assert {path for _, path in service.asked} >= {"/api/v1/surveys", "/api/v1/surveys/one", "/api/v1/ratings", "/api/v1/surveys/estimate"} and "Locust" in (tmp_path / "load.html").read_text()


@needs_locust
def test_load_that_is_not_borne(service, key):
    service.fails = True
    done = load(service, key)
    assert done.returncode == 1 and "too many errors" in done.stdout and "errors 100.00 %" in done.stdout


@pytest.mark.parametrize("options, word", [([], "no URL"), (["http://x"], "no --key-file"), (["http://x", "--key-file", "/nowhere"], "'/nowhere', which cannot be read"), (["http://x", "--key-file", "KEY", "--surveys"], "--surveys needs --max-cost-usd"), (["http://x", "--users", "0"], "--users is '0'")])
def test_load_tests_that_make_no_sense(options, word, key):
    done = run(DEPLOY / "scripts/load_test.sh", *[str(key) if one == "KEY" else one for one in options])
    assert done.returncode == 2 and word in done.stderr and len(done.stderr.splitlines()) == 1


def scan(root: Path, *options) -> dict[str, str]:
    done = run(DEPLOY / "scripts/security_scan.sh", *options, env=os.environ | {"ROOT": str(root), "TOOLS": f"{BIN}:{ROOT}/.venv/checkov/bin"})
    return {"code": done.returncode, "told": done.stdout, **dict((line.split()[1].rstrip(":"), line.split()[0]) for line in done.stdout.splitlines() if line[:1].strip())}


@pytest.fixture
def copy(tmp_path):
    for folder in ("ssr_nb", "deploy", "requirements"): shutil.copytree(ROOT / folder, tmp_path / "copy" / folder, ignore=shutil.ignore_patterns("__pycache__", ".env"))
    (tmp_path / "copy/tests").mkdir()
    return tmp_path / "copy"


def test_a_security_scan(copy):
    missing = [tool for tool in ("bandit", "detect-secrets", "shellcheck", "hadolint", "gixy") if not shutil.which(tool, path=f"{os.environ['PATH']}:{BIN}")]
    if missing: pytest.skip(f"SKIP: {', '.join(missing)} not installed (extra deploy)")
    whole = scan(copy)
    assert {whole[tool] for tool in ("bandit", "detect-secrets", "shellcheck", "hadolint", "gixy")} == {"passed"} and whole["checkov"] in ("passed", "SKIPPED") and whole["trivy"] == "SKIPPED" and whole["code"] == 3, "what was skipped did not pass"
    assert scan(copy, "--allow-skipped")["code"] == 0
    (copy / "ssr_nb/planted.py").write_text("import subprocess\nsubprocess.run(input(), shell=True)\n")
    (copy / "deploy/planted.yaml").write_text("aws: AKIA" + "IOSFODNN7ABCDEFG\n")
    (copy / "deploy/planted.sh").write_text("#!/bin/sh\nrm $1\n")
    (copy / "deploy/backup/Dockerfile").write_text("FROM debian\nRUN sudo apt-get install x\n")
    found = scan(copy)
    assert found["code"] == 1 and {found[tool] for tool in ("bandit", "detect-secrets", "shellcheck", "hadolint")} == {"FAILED"}
    assert "ssr_nb/planted.py:B602" in found["told"] and "AWS Access Key" in found["told"] and "SC2086" in found["told"]
    assert all(len(line.split()) > 3 for line in (DEPLOY / "security/accepted.txt").read_text().splitlines()), "what is accepted has a reason"
