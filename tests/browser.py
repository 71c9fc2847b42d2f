"""JupyterLab as a user starts it, in a folder of its own, and Debian's Chromium to look at it."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import ROOT

CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


def wait_for(what: str, look: Callable[[], object], seconds: float = 90):
    "The first true thing that `look` sees."
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := look(): return found
        time.sleep(.1)
    raise AssertionError(f"not seen within {seconds:g} s: {what}")


class Lab:
    "A JupyterLab in `root`, started by `ssr_nb.lab` with the notebooks of this checkout."
    def __init__(self, root: Path, **variables: str):
        self.root, self.variables = root, variables
        for folder in ("surveys", "guide"): shutil.copytree(ROOT / "nbs" / folder, root / "nbs" / folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".ipynb_checkpoints", "runs"))
        shutil.copy(ROOT / "nbs/start.ipynb", root / "nbs")

    def start(self) -> "Lab":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.token = secrets.token_hex(8)
        own = {f"JUPYTER_{name}": str(self.root / ".jupyter" / name.lower()) for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")}
        more = ["--no-browser", f"--ServerApp.port={self.port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={self.token}", "--SurveyRunner.poll_interval=1", *(["--allow-root"] if os.geteuid() == 0 else [])]
        code = f"from ssr_nb.lab import launch; launch('nbs', more={more!r})"
        self.log = open(self.root / "lab.log", "a")
        self.process = subprocess.Popen([sys.executable, "-c", code], cwd=self.root, env={**os.environ, **own, "SSR_RUNS": "", **self.variables}, stdout=self.log, stderr=self.log, start_new_session=True)
        def up():
            assert self.process.poll() is None, (self.root / "lab.log").read_text()[-2000:]
            try: return self.ask("api/status")
            except (OSError, urllib.error.URLError): return None
        wait_for("the server", up)
        return self

    def stop(self, hard: bool = False) -> None:
        "End the server; `hard` kills it with every process that it started, as a reboot does."
        import psutil
        family = [self.process.pid, *(child.pid for child in psutil.Process(self.process.pid).children(recursive=True))] if self.process.poll() is None else []
        if not hard and family:
            self.process.terminate()
            try: self.process.wait(15)
            except subprocess.TimeoutExpired: pass
        for pid in family:
            try: os.kill(pid, signal.SIGKILL)
            except ProcessLookupError: pass
        self.process.wait()
        self.log.close()

    def ask(self, path: str, body: dict | None = None, method: str | None = None):
        "The server's reply to a request of its REST interface."
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{path}", None if body is None else json.dumps(body).encode(), {"Authorization": f"token {self.token}", "Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as reply: text = reply.read()
        return json.loads(text) if text else {}

    def refusal(self, path: str, body: dict, method: str | None = None) -> str:
        "What the server says when it refuses a request."
        try: self.ask(path, body, method)
        except urllib.error.HTTPError as error: return json.loads(error.read())["message"]
        raise AssertionError(f"not refused: {body}")

    def runs(self) -> list[dict]:
        "The manifests of the runs, oldest first."
        return [json.loads(path.read_text()) for path in sorted((self.root / "runs").glob("[!.]*/run.json"))]


@contextmanager
def lab(root: Path, **variables: str) -> Iterator[Lab]:
    server = Lab(root, **variables).start()
    try: yield server
    finally: server.stop()


@contextmanager
def browser(width: int = 1400, height: int = 1000) -> Iterator:
    "A page of a headless browser."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = chromium.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(60_000)
        try: yield page
        finally: chromium.close()


class Notebook:
    "A notebook that is open in JupyterLab."
    def __init__(self, page, server: Lab, path: str):
        self.page = page
        page.goto(f"http://127.0.0.1:{server.port}/lab/tree/{path}?reset&token={server.token}")
        self.box = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)").last
        page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for()  # the indicator says idle before there is a kernel

    def cell(self, text: str):
        "The code cell that holds `text`."
        return self.box.locator(".jp-CodeCell").filter(has=self.page.locator(".jp-InputArea", has_text=text)).first

    def replace(self, text: str, by: str) -> None:
        "Another source for the cell that holds `text`."
        self.cell(text).locator(".cm-content").click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(by)

    def run_all(self) -> None: self._menu("Run", "Run All Cells")

    def _menu(self, menu: str, item: str) -> None:
        self.page.get_by_role("menuitem", name=menu, exact=True).click()
        self.page.get_by_role("menuitem", name=re.compile(f"^{item}")).click()  # its name ends in its shortcut, if it has one

    def run(self, text: str) -> None:
        "Run the cell that holds `text`."
        self.cell(text).locator(".cm-content").click()
        self.page.keyboard.press("Control+Enter")

    def interrupt(self) -> None: self._menu("Kernel", "Interrupt Kernel")

    def idle(self, seconds: float = 120) -> None:
        "Wait until nothing runs any more."
        self.box.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(timeout=seconds * 1000)
