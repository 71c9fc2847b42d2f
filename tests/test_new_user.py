"""What somebody does who has the README, the guide and an empty folder: the README's own commands, with a stand-in model and few respondents."""

import json
import os
import re
import shlex
from datetime import datetime, timedelta, timezone
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

from conftest import ROOT, command
from model_server import model_server
from ssr_nb.sites import check_links

SMALL = ("-p", "llm_model", "stand-in", "-p", "cohort_size", "4", "-p", "samples", "1")
CONCEPTS = next(cell.source for cell in nbformat.read(ROOT / "nbs/guide/first_survey.ipynb", as_version=4).cells if "my_concepts.csv" in cell.source).split("```\n")[1]


def told(start: str, **names: str) -> list[str]:
    "A command as the README has it, without `.venv/bin/ssr` and its comment."
    found = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(f".venv/bin/ssr {start}")]
    assert found, f"the README does not tell 'ssr {start}'"
    return [names.get(word, word) for word in shlex.split(found[0], comments=True)[1:]]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "An empty folder, and a shell in it that knows a model and nothing else."
    folder = tmp_path_factory.mktemp("new user")
    with model_server() as server:
        blank = dict.fromkeys((name for name in os.environ if name.startswith(("SSR_", "GOOGLE_", "OPENAI_", "ENABLE_"))), "")
        variables = {**blank, "OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "test", "SSR_CACHE": str(folder / ".cache")}
        def ssr(*arguments, code=0, **options):
            done = command(*arguments, cwd=options.pop("cwd", folder), env={**variables, **options.pop("env", {})})
            assert done.returncode == code and "Traceback" not in done.stderr, done.stdout + done.stderr
            return done.stdout + done.stderr
        yield folder, ssr


def latest(folder: Path) -> tuple[str, dict]:
    "The id and the manifest of the newest run."
    newest = max((folder / "runs").glob("2*/run.json"), key=lambda path: path.stat().st_mtime)
    return newest.parent.name, json.loads(newest.read_text())


def test_own_concepts_become_a_report(place):
    folder, ssr = place
    assert "run a survey first" in ssr("runs", "list", code=2)
    (folder / "my_concepts.csv").write_text(CONCEPTS)
    said = ssr(*told("run concept_test -p concepts my_concepts.csv -p cohort_size"), *SMALL)
    run_id, manifest = latest(folder)
    report = folder / re.search(r"report +(\S+)", said)[1]
    assert manifest["status"] == "complete" and manifest["answers"] == 8 and "Everwarm Mug" in said and "A toothpaste that tastes of raw fish" in report.read_text()
    assert run_id in ssr(*told("runs list")) and "every table is equal" in ssr(*told("runs verify", RUN=run_id))


def test_a_mistyped_name_says_what_to_do(place):
    folder, ssr = place
    assert "parameter 'cohort' is unknown: choose one of" in ssr("run", "concept_test", "-p", "cohort", "4", code=2)
    listed = ssr("run", "concept_test", "--help-parameters")
    assert "cohort_size (int or none, default None)" in listed and "Write a list with commas" in listed


def test_people_of_ones_own_are_asked(place):
    folder, ssr = place
    pd.DataFrame({"name": ["Ann", "Bo", "Cy", "Di", "Ed"], "age": [23, 35, 47, 59, 71], "gender": ["female", "male"] * 2 + ["female"], "club": ["gold", "gold", "none", "none", "none"]}).to_csv(folder / "people.csv", index=False)
    ssr(*told("run concept_test -p concepts my_concepts.csv -p panel_file"), *SMALL[:3], *SMALL[6:])
    run_id, manifest = latest(folder)
    assert manifest["cohort_size"] == 5 and manifest["panel_source"] == "the file people.csv"
    asked = pd.read_parquet(folder / "runs" / run_id / "calls.parquet")["request"].str.cat()
    assert "59-year-old" in asked and "Ann" not in asked and "gold" not in asked and "Everwarm Mug, gold" in (folder / "runs" / run_id / "report.html").read_text()


def test_a_schedule_runs(place):
    folder, ssr = place
    schedule = {"name": "weekly", "notebook": "concept_test", "cron": "* * * * *", "parameters": {"concepts": "my_concepts.csv", "llm_model": "stand-in", "cohort_size": 3, "samples": 1}}
    (folder / "schedules.yaml").write_text(yaml.safe_dump({"timezone": "Europe/Berlin", "schedules": [schedule]}))
    assert ssr(*told("schedule")).count("weekly") == 3
    ssr("schedule", "schedules.yaml", "--once")  # takes note
    ledger = folder / "runs/.schedules.json"
    known = json.loads(ledger.read_text())
    known["weekly"]["until"] = (datetime.now(timezone.utc) - timedelta(seconds=61)).isoformat()  # instead of a minute's waiting
    ledger.write_text(json.dumps(known))
    said = ssr("schedule", "schedules.yaml", "--once")
    assert "running concept_test" in said and latest(folder)[1]["schedule"]["name"] == "weekly" and latest(folder)[1]["cohort_size"] == 3


def test_a_sweep_is_compared(place):
    folder, ssr = place
    sweep = [word.replace("seed=0,1,2", "seed=1,2") for word in told("sweep concept_test")]
    ssr(*sweep, *SMALL)
    assert ssr(*sweep, *SMALL).count("done before") == 2
    runs = [run["run_id"] for run in json.loads(ssr("runs", "list", "--json"))][:2]
    assert "seed" in ssr("runs", "compare", *runs)


def test_a_site_is_published(place):
    folder, ssr = place
    ssr(*told("publish"), "--no-pdf")
    reports = {path.stem for path in (folder / "site/reports").glob("*.html")}
    assert reports == {path.parent.name for path in (folder / "runs").glob("2*/run.json")} and check_links(folder / "site") == []
    assert (folder / "site/guide/own_panel.html").exists() and str(folder) not in "".join(path.read_text() for path in (folder / "site").rglob("*.html"))


def test_somebody_elsewhere_verifies_it(place, tmp_path):
    folder, ssr = place
    run_id = min(path.parent.name for path in (folder / "runs").glob("2*/run.json"))
    archive = folder / ssr(*told("runs export", RUN=run_id)).strip()
    (elsewhere := tmp_path / "their folder").mkdir()
    theirs = {"env": {"SSR_RUNS": str(tmp_path / "their runs"), "SSR_CACHE": str(tmp_path / "their cache"), "OPENAI_BASE_URL": "", "OPENAI_API_KEY": ""}, "cwd": elsewhere}
    assert "every table is equal" in ssr("runs", "verify", str(archive), **theirs)
    assert run_id in ssr("runs", "import", str(archive), **theirs) and "every table is equal" in ssr("runs", "verify", run_id, **theirs)
    assert list(elsewhere.iterdir()) == []


def test_guide_pages_run_where_lab_puts_them(tmp_path):
    from ssr_nb.lab import prepare
    prepare(tmp_path / "notebooks")
    pages = {path.stem: path for path in (tmp_path / "notebooks/guide").glob("*.ipynb")}
    for page in pages.values(): assert not [cell.source for cell in nbformat.read(page, as_version=4).cells if cell.cell_type == "code" and "../.." in cell.source], page.name
    from nbclient import NotebookClient
    page = nbformat.read(pages["reading_a_report"], as_version=4)
    page.cells = page.cells[:4]  # up to the example run
    NotebookClient(page, timeout=120, resources={"metadata": {"path": str(pages["reading_a_report"].parent)}}).execute()
