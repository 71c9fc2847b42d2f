"""What needs more than wheels: the report in a real browser, and the built wheel alone in an empty environment."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from conftest import ROOT, command
from ssr_nb.limits import Limits

pytestmark = pytest.mark.system
CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: run tests/system_packages.sh as root")


def browse(page: Path, *more: str) -> str:
    "Open a page in headless Chromium; the document as the browser understood it, or what --screenshot said."
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
                               "--disable-sync", "--enable-logging=stderr", f"--user-data-dir={profile}", *more, f"file://{page}"], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout


@needs_browser
def test_the_example_report_in_a_browser(tmp_path):
    report = next((ROOT / "runs/example").glob("*/report.html"))
    document = browse(report, "--dump-dom")
    assert document.count("<svg") == 4 and "Everwarm Mug" in document and 'lang="en"' in document and document.count("<h1") == 1
    sizes = {}
    for width in (390, 1200):
        picture = tmp_path / f"{width}.png"
        browse(report, f"--window-size={width},1600", "--hide-scrollbars", f"--screenshot={picture}")
        sizes[width] = picture.stat().st_size
    assert min(sizes.values()) > 20_000
    wide = tmp_path / "wide.html"
    wide.write_text(report.read_text().replace("</body>", "<script>document.title = document.documentElement.scrollWidth + ' ' + innerWidth</script></body>"))
    scroll, inner = map(int, re.search(r"<title>(\d+) (\d+)</title>", browse(wide, "--window-size=500,1600", "--dump-dom")).groups())
    assert scroll <= inner, "the page is wider than a phone"


def test_a_full_disk_is_one_sentence_and_keeps_the_answers(tmp_path, server):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", disk], capture_output=True).returncode: pytest.skip("only root can mount a small disk")
    try:
        environment = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "test", "SSR_RUNS": str(disk / "runs")}
        done = command("run", "concept_test", "-p", "llm_model", "stand-in", "-p", "cohort_size", "60", env=environment)
        assert done.returncode == 1 and "free space" in done.stderr and "Traceback" not in done.stderr
        assert not list((disk / "runs").glob("[!.]*"))
        asked = len(server.asked)
        subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
        again = command("run", "concept_test", "-p", "llm_model", "stand-in", "-p", "cohort_size", "60", "--json", env=environment)
        assert again.returncode == 0 and json.loads(again.stdout)["journalled"] >= max(asked - 2 * Limits().most_concurrency, 50)  # on their way to us or to the disk
    finally: subprocess.run(["umount", disk], check=True)


def test_the_wheel_alone_runs_the_demo(tmp_path):
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT], check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "empty"], check=True)
    python = tmp_path / "empty/bin/python"
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "pip", "install", "--quiet", "--no-cache", "--python", python, "--require-hashes", "-r", ROOT / "requirements/base.lock"], check=True)
    subprocess.run([uv, "pip", "install", "--quiet", "--no-deps", "--python", python, wheel], check=True)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path / "home"), "SSR_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([python.with_name("ssr"), "demo", "--cohort-size", "6", "--runs", "runs", "--json"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["answers"] == 18 and (tmp_path / found["report"]).is_file()
    verified = subprocess.run([python.with_name("ssr"), "runs", "verify", found["folder"]], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert verified.returncode == 0, verified.stdout
    assert os.path.commonpath([subprocess.check_output([python, "-c", "import ssr_nb; print(ssr_nb.__file__)"], cwd=tmp_path, text=True), str(tmp_path)]) == str(tmp_path)
