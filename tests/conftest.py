import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from model_server import model_server  # noqa: E402
from service_fixtures import database, migrated, postgres, redis_url, valkey  # noqa: E402, F401

ROOT = Path(__file__).parent.parent


@pytest.fixture
def server():
    with model_server() as running: yield running


@pytest.fixture
def hosted(server, tmp_path, monkeypatch):
    "Settings whose models are asked at the stand-in server, with runs in a folder of their own."
    from ssr_nb.core import Settings
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    monkeypatch.setenv("SSR_RUNS", str(tmp_path / "runs"))
    return Settings.from_environment()


@pytest.fixture
def concepts():
    from ssr_nb.survey import read_concepts
    return read_concepts("demo_concepts.csv")


def command(*arguments: str, **options):
    "Run `ssr` as a user does."
    import subprocess
    environment = {**os.environ, **options.pop("env", {})}
    return subprocess.run([str(Path(sys.executable).with_name("ssr")), *map(str, arguments)], capture_output=True, text=True, env=environment, **options)


def interruptible():
    "Run in a child before it starts: an interruption reaches it, also where the tests themselves run in the background."
    import signal
    signal.signal(signal.SIGINT, signal.SIG_DFL)
