"""A real Docker engine for the tests, the images of the product on it, and compose projects that clean up after themselves."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[1]
DEPLOY, DOCKER = ROOT / "deploy", ROOT / "tests/docker"
COMPOSE = shutil.which("docker-compose", path=str(Path(sys.executable).parent))
STANDINS = {"POSTGRES_IMAGE": "postgres", "REDIS_IMAGE": "redis", "NGINX_IMAGE": "nginx", "PROMETHEUS_IMAGE": "prometheus", "ALERTMANAGER_IMAGE": "alertmanager", "PGBOUNCER_IMAGE": "pgbouncer",
            "POSTGRES_EXPORTER_IMAGE": "postgres-exporter", "REDIS_EXPORTER_IMAGE": "redis-exporter", "NGINX_EXPORTER_IMAGE": "nginx-exporter", "NODE_EXPORTER_IMAGE": "node-exporter"}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@dataclass
class Engine:
    "A reachable engine: how to call its client."
    environment: dict[str, str]

    def run(self, *command: str, check: bool = True, **options) -> subprocess.CompletedProcess:
        done = subprocess.run(["docker", *command], env=self.environment, capture_output=True, text=True, timeout=1800, **options)
        if check: assert done.returncode == 0, f"docker {' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done

    def lines(self, *command: str) -> list[str]: return self.run(*command).stdout.split()

    def inspect(self, *names: str) -> list[dict]: return json.loads(self.run("inspect", *names).stdout)


@dataclass
class Project:
    "Compose files under one project name, with an .env of their own."
    engine: Engine
    name: str
    files: tuple[Path, ...]
    values: dict[str, str]
    folder: Path

    def compose(self, *command: str, check: bool = True, more: dict[str, str] = {}, timeout: float = 900) -> subprocess.CompletedProcess:
        environment = self.folder / f"{self.name}.env"
        environment.write_text("".join(f"{name}={value}\n" for name, value in self.values.items()))
        files = [part for file in self.files for part in ("-f", str(file))]
        done = subprocess.run([COMPOSE, "--progress", "plain", "-p", self.name, "--project-directory", str(DEPLOY), "--env-file", str(environment), *files, *command], env=self.engine.environment | more, capture_output=True, text=True, timeout=timeout)
        if check and done.returncode: raise AssertionError(f"compose {' '.join(command)}: {done.stderr[-3000:]}\n{self.logs()}")
        return done

    def up(self, *more: str) -> None: self.compose("up", "--detach", "--no-build", "--pull", "never", "--wait", "--wait-timeout", "400", *more)

    def logs(self) -> str: return self.compose("logs", "--tail", "15", "--no-color", check=False).stdout[-6000:]

    def containers(self, service: str = "") -> list[dict]:
        names = self.engine.lines("ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={self.name}", *(("--filter", f"label=com.docker.compose.service={service}") if service else ()))
        return self.engine.inspect(*names) if names else []

    def down(self) -> None:
        "Take everything away, and see that nothing stays behind."
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "5")
        label = f"label=com.docker.compose.project={self.name}"
        left = [*self.engine.lines("ps", "--all", "--quiet", "--filter", label), *self.engine.lines("volume", "ls", "--quiet", "--filter", label), *self.engine.lines("network", "ls", "--quiet", "--filter", label)]
        assert left == [], f"left behind by {self.name}: {left}"


def _reachable(environment: dict) -> bool: return bool(shutil.which("docker", path=environment.get("PATH"))) and subprocess.run(["docker", "version"], env=environment, capture_output=True).returncode == 0


@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    "The engine of this machine, or one from Debian's packages for as long as the tests take."
    environment, own, script = dict(os.environ), False, str(DOCKER / "engine.sh")
    if COMPOSE is None: pytest.skip("SKIP: docker-compose is not installed (extra deploy)")
    if not _reachable(environment):
        if os.getuid() != 0 or not shutil.which("mmdebstrap"): pytest.skip("SKIP: no Docker engine is reachable, and one can be started only by root on Debian with mmdebstrap")
        started = subprocess.run(["bash", script, "up"], capture_output=True, text=True)
        if started.returncode: pytest.skip(f"SKIP: no Docker engine: {started.stderr.strip()[-300:]}")
        told = subprocess.run(["bash", "-c", f'eval "$({script} env)" && env'], capture_output=True, text=True, check=True).stdout
        environment |= dict(line.split("=", 1) for line in told.splitlines() if line.startswith(("DOCKER_HOST=", "DOCKER_CONFIG=", "PATH=")))
        own = True
    engine = Engine(environment)
    try:
        if not engine.lines("images", "--quiet", "python:3.12-slim-bookworm") and own:
            made = subprocess.run(["bash", script, "base"], env=environment, capture_output=True, text=True)
            if "no Python 3.12 here" in made.stderr: pytest.skip(f"SKIP: no base image: {made.stderr.strip()[-300:]}")
            assert made.returncode == 0, made.stderr[-3000:]
        subprocess.run(["bash", script, "standins"], env=environment, check=True, capture_output=True)
        yield engine
    finally:
        if own: subprocess.run(["bash", script, "down"], check=True)


@pytest.fixture(scope="session")
def images(engine) -> dict[str, str]:
    "Variable of the compose files -> image: the product's, built from what the checkout has, and the stand-ins."
    for name, file in (("ssr-api", "deploy/Dockerfile"), ("ssr-backup", "deploy/backup/Dockerfile")):
        engine.run("buildx", "build", "--network=host", "--build-arg", "BASE=python:3.12-slim-bookworm", "--load", "--provenance=false", "--file", file, "--tag", f"ssr-test/{name}", ".", cwd=ROOT)
    return {"SSR_IMAGE": "ssr-test/ssr-api", "SSR_BACKUP_IMAGE": "ssr-test/ssr-backup", **{variable: f"ssr-test/{name}" for variable, name in STANDINS.items()}}


def example_values() -> dict[str, str]: return dict(line.split("=", 1) for line in (DEPLOY / ".env.example").read_text().splitlines() if line and not line.startswith("#"))


def eventually(look, patience: float = 90, what: str = ""):
    "What `look` says as soon as it is true."
    until, told = time.monotonic() + patience, None
    while time.monotonic() < until:
        try: told = look()
        except (httpx.HTTPError, json.JSONDecodeError, KeyError) as error: told = error
        else:
            if told: return told
        time.sleep(.5)
    raise AssertionError(f"{what or look} did not come true: {told!r}")
