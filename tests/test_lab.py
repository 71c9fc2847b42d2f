"""JupyterLab: the start page, notebooks run in a real browser, and survey notebooks as jobs through jupyter-scheduler."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

import pytest

from browser import CHROMIUM, Lab, Notebook, browser, lab, wait_for
from conftest import ROOT
from model_server import model_server
from ssr_nb.core import InputError, Settings
from ssr_nb.lab import lab_command, notebooks, prepare, recent_runs

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: run tests/system_packages.sh as root")
PICTURES = os.environ.get("SSR_PICTURES")  # a folder that keeps screenshots


def picture(page, name: str) -> None:
    if PICTURES: page.screenshot(path=Path(PICTURES) / f"{name}.png")


# the start page

def test_the_start_page_leads_to_every_notebook(monkeypatch):
    monkeypatch.chdir(ROOT / "nbs")
    for folder in ("guide", "surveys"):
        shelf = notebooks(folder)
        assert {path.name for path, _, _ in shelf.notebooks} == {path.name for path in Path(folder).glob("*.ipynb")}
        assert all(title and told for _, title, told in shelf.notebooks), shelf
        for link in re.findall("href='([^']+)'", shelf._repr_html_()): assert Path(urllib.parse.unquote(link)).is_file()


def test_notebooks_are_listed_by_what_they_say_of_themselves(tmp_path):
    import nbformat
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A <b> & title\n\n> Told.")]), tmp_path / "it's.ipynb")
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "bare.ipynb")
    (tmp_path / "torn.ipynb").write_text("{")
    shelf = notebooks(tmp_path)
    assert [(title, told) for _, title, told in shelf.notebooks] == [("bare", ""), ("A <b> & title", "Told.")]
    assert "<b>" not in shelf._repr_html_() and "it&#x27;s.ipynb" in shelf._repr_html_()
    with pytest.raises(InputError, match="does not exist"): notebooks(tmp_path / "none")


def test_recent_runs_reads_only_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(30):
        folder = tmp_path / f"runs/202601{number + 1:02}-120000-x"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"run_id": folder.name, "status": "failed" if number == 29 else "complete", "error": "no <answer>" if number == 29 else None, "started_at": f"2026-01-{number + 1:02}T12:00:00+00:00"}) if number > 9 else "torn")
        (folder / "report.html").write_text("")
    shown = recent_runs(3, Settings())
    html = shown._repr_html_()
    assert [run.run_id[:8] for run in shown.runs] == ["20260130", "20260129", "20260128"] and "3 of 30 runs" in html
    assert "no &lt;answer&gt;" in html and "href='runs/20260130-120000-x/report.html'" in html and "20260129-120000-x" in repr(shown)
    assert recent_runs(0, Settings()).runs == ()


def test_copies_for_whoever_has_no_checkout(tmp_path):
    (tmp_path / "notebooks/surveys").mkdir(parents=True)
    (tmp_path / "notebooks/surveys/concept_test.ipynb").write_text("mine")
    new = prepare(tmp_path / "notebooks")
    assert tmp_path / "notebooks/surveys/demo_concepts.csv" in new and (tmp_path / "notebooks/surveys/concept_test.ipynb").read_text() == "mine"
    assert prepare(tmp_path / "notebooks") == [] and prepare(ROOT / "nbs") == []
    command, variables = lab_command(tmp_path / "notebooks", Settings(runs=tmp_path / "elsewhere/runs"), tmp_path)
    assert "--SurveyScheduler.output_directory=elsewhere/runs/jobs" in command and variables["SSR_RUNS"] == str(tmp_path / "elsewhere/runs")
    assert "--SurveyScheduler.output_directory=jobs" in lab_command(tmp_path / "notebooks", Settings(runs=tmp_path / "runs"), tmp_path / "notebooks")[0]
    with pytest.raises(InputError, match="is outside"): lab_command(tmp_path, Settings(), tmp_path / "notebooks")


# what the scheduler keeps, without a server

@pytest.fixture
def scheduler(tmp_path, monkeypatch):
    from jupyter_scheduler.orm import create_tables
    from ssr_nb.lab_jobs import SurveyEnvironment, SurveyScheduler
    monkeypatch.setenv("SSR_RUNS", str(tmp_path / "runs"))
    shutil.copytree(ROOT / "nbs/surveys", tmp_path / "surveys")
    create_tables(url := f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    return SurveyScheduler(root_dir=str(tmp_path), environments_manager=SurveyEnvironment(), db_url=url)


FORM = {"input_uri": "surveys/concept_test.ipynb", "runtime_environment_name": "ssr_nb", "name": "a job", "output_formats": ["ipynb", "html"]}


def definitions(scheduler) -> list:
    from jupyter_scheduler.models import ListJobDefinitionsQuery
    return scheduler.list_job_definitions(ListJobDefinitionsQuery()).job_definitions


@pytest.mark.parametrize("change, sentence", [
    ({"schedule": "every day"}, "give minute, hour"), ({"schedule": "* * * * * *"}, "give minute, hour"), ({"schedule": "0 0 31 2 *"}, "never due"), ({"schedule": "61 * * * *"}, "never due"),
    ({"schedule": "0 9 * * *", "timezone": "Mars"}, "timezone is 'Mars'"), ({"parameters": {"cohort": "3"}}, "parameter 'cohort' is unknown"),
    ({"parameters": {"cohort_size": "three"}}, "give a whole number"), ({"parameters": {"llm_model": "sk-abcdefghijkl"}}, "looks like a secret key"), ({"input_uri": "surveys/none.ipynb"}, "does not exist")])
def test_what_could_not_run_is_refused_and_not_kept(scheduler, change, sentence):
    from jupyter_scheduler.exceptions import SchedulerError
    from jupyter_scheduler.models import CreateJob, CreateJobDefinition, ListJobsQuery
    with pytest.raises(SchedulerError, match=re.escape(sentence)): scheduler.create_job_definition(CreateJobDefinition(**{**FORM, **change}))
    assert definitions(scheduler) == []
    if "schedule" not in change:
        with pytest.raises(SchedulerError, match=re.escape(sentence)): scheduler.create_job(CreateJob(**{**FORM, **change}))
        assert scheduler.list_jobs(ListJobsQuery()).jobs == []


def test_an_update_is_refused_as_well(scheduler):
    from jupyter_scheduler.exceptions import SchedulerError
    from jupyter_scheduler.models import CreateJobDefinition, UpdateJobDefinition
    kept = scheduler.create_job_definition(CreateJobDefinition(**FORM, schedule="0 9 * * MON", timezone="Europe/Berlin", parameters={"cohort_size": "3"}))
    for change in ({"schedule": "nonsense"}, {"timezone": "Mars"}, {"parameters": {"cohort_size": "many"}, "schedule": "0 8 * * *"}):
        with pytest.raises(SchedulerError): scheduler.update_job_definition(kept, UpdateJobDefinition(**change))
    [found] = definitions(scheduler)
    assert (found.schedule, found.timezone, found.parameters, found.runtime_environment_parameters) == ("0 9 * * MON", "Europe/Berlin", {"cohort_size": "3"}, {"folder": "surveys"})
    scheduler.update_job_definition(kept, UpdateJobDefinition(schedule="30 7 * * *"))
    assert definitions(scheduler)[0].schedule == "30 7 * * *"


def test_one_server_serves_the_schedules(scheduler):
    from jupyter_scheduler.exceptions import SchedulerError
    from jupyter_scheduler.models import CreateJobDefinition
    from ssr_nb.lab_jobs import SurveyEnvironment, SurveyScheduler
    assert scheduler.task_runner.leads() and scheduler.task_runner.leads()
    second = SurveyScheduler(root_dir=scheduler.root_dir, environments_manager=SurveyEnvironment(), db_url=scheduler.db_url)
    with pytest.raises(SchedulerError, match="another JupyterLab"): second.create_job_definition(CreateJobDefinition(**FORM, schedule="0 9 * * MON"))
    assert definitions(second) == []


def test_a_bad_line_of_others_does_not_stop_the_rest(scheduler):
    from jupyter_scheduler.models import CreateJobDefinition
    from jupyter_scheduler.orm import JobDefinition
    bad, good = (scheduler.create_job_definition(CreateJobDefinition(**FORM, schedule="0 9 * * MON")) for _ in range(2))
    with scheduler.db_session() as session:
        session.query(JobDefinition).filter(JobDefinition.job_definition_id == bad).update({"schedule": "nonsense"})
        session.commit()
    runner = type(scheduler.task_runner)(scheduler=scheduler)
    runner.populate_cache()
    assert runner.queue.peek().job_definition_id == good and len(runner.queue) == 2
    runner.process_queue()


def test_a_dead_job_says_so_and_a_live_one_is_left_alone(scheduler):
    from jupyter_scheduler.models import ListJobsQuery, Status
    from jupyter_scheduler.orm import Job
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    now = int(time.time() * 1000)
    common = dict(runtime_environment_name="ssr_nb", input_filename="concept_test.ipynb", output_formats=[], name="x", pid=process.pid)
    with scheduler.db_session() as session:
        session.add_all([Job(job_id="runs", status=Status.IN_PROGRESS, start_time=now, **common), Job(job_id="number-reused", status=Status.IN_PROGRESS, start_time=now - 3_600_000, **common),
                         Job(job_id="not-begun", status=Status.STOPPED, **common), Job(job_id="stopped", status=Status.STOPPED, start_time=now, **common)])
        session.commit()
    def statuses(): return {job.job_id: str(job.status) for job in scheduler.list_jobs(ListJobsQuery()).jobs}
    assert statuses() == {"runs": "IN_PROGRESS", "number-reused": "FAILED", "not-begun": "STOPPED", "stopped": "STOPPED"}
    process.kill()
    process.wait()
    assert statuses() == {"runs": "FAILED", "number-reused": "FAILED", "not-begun": "FAILED", "stopped": "STOPPED"}
    assert "every answer so far is kept" in scheduler.get_job("runs").status_message


def test_what_still_runs_is_not_started_again(scheduler):
    from jupyter_scheduler.models import CreateJobDefinition, Status
    from jupyter_scheduler.orm import Job
    kept = scheduler.create_job_definition(CreateJobDefinition(**FORM, schedule="* * * * *", parameters={"cohort_size": "3"}))
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with scheduler.db_session() as session:
        session.add(Job(job_id="first", job_definition_id=kept, status=Status.IN_PROGRESS, start_time=int(time.time() * 1000), runtime_environment_name="ssr_nb", input_filename="concept_test.ipynb", output_formats=[], name="x", pid=process.pid))
        session.commit()
    made = []
    scheduler.create_job = made.append
    scheduler.task_runner.create_job(kept)
    assert made == []
    process.kill()
    process.wait()
    scheduler.task_runner.create_job(kept)
    assert made[0].parameters == {"cohort_size": "3"} and made[0].job_definition_id == kept
    assert made[0].runtime_environment_parameters == {"folder": "surveys"} and Path(made[0].input_uri).is_relative_to(scheduler.staging_path)


# a real server, by its REST interface

def job(server: Lab, **change) -> dict:
    "A job's row when it has ended."
    job_id = server.ask("scheduler/jobs", {**FORM, "input_uri": "nbs/surveys/concept_test.ipynb", **change})["job_id"]
    return ended(server, job_id)


def ended(server: Lab, job_id: str, seconds: float = 120) -> dict:
    def look():
        row = server.ask(f"scheduler/jobs/{job_id}")
        return row if row["status"] in ("COMPLETED", "FAILED") or row["status"] == "STOPPED" and row["end_time"] else None
    return wait_for("the job's end", look, seconds)


SMALL = {"llm_model": "stand-in", "cohort_size": "4", "samples": "1"}


@pytest.mark.system
def test_jobs_are_runs(tmp_path):
    with model_server() as models, lab(tmp_path, OPENAI_BASE_URL=models.url, OPENAI_API_KEY="test") as server:
        (tmp_path / "nbs/surveys/mine.csv").write_text("name,description\nKettle,It boils water.\n")
        row = job(server, parameters={**SMALL, "concepts": "mine.csv"})  # beside the notebook, as by hand
        assert row["status"] == "COMPLETED", row["status_message"]
        [run] = server.runs()
        assert row["tags"] == [run["run_id"]] and run["status"] == "complete" and run["answers"] == 4
        assert run["parameters"]["cohort_size"] == 4 and run["job"]["name"] == "a job" and len(models.asked) == 4
        server.ask(f"scheduler/jobs/{row['job_id']}/download_files")
        def files():
            found = server.ask(f"scheduler/jobs/{row['job_id']}")
            return found["downloaded"] and {one["file_format"]: server.root / one["file_path"] for one in found["job_files"]}
        outputs = wait_for("the outputs", files)
        folder = server.root / "runs" / run["run_id"]
        assert outputs["html"].read_text() == (folder / "report.html").read_text() and "Kettle" in outputs["html"].read_text()
        assert outputs["ipynb"].read_text() == (folder / "notebook.ipynb").read_text()

        said = server.refusal("scheduler/jobs", {**FORM, "input_uri": "nbs/surveys/concept_test.ipynb", "parameters": {"cohort_size": "four"}})
        assert said == "parameter 'cohort_size' is 'four': give a whole number, or none"
        assert "tag exactly one" in server.refusal("scheduler/jobs", {**FORM, "input_uri": "nbs/guide/first_survey.ipynb"})
        assert "give minute, hour" in server.refusal("scheduler/job_definitions", {**FORM, "input_uri": "nbs/surveys/concept_test.ipynb", "schedule": "now and then"})
        assert server.ask("scheduler/job_definitions")["total_count"] == 0 and server.ask("scheduler/jobs")["total_count"] == 1

        before = len((tmp_path / "lab.log").read_text())
        row = job(server, parameters={**SMALL, "concepts": "none.csv"})
        assert row["status"] == "FAILED" and row["end_time"] and "file 'none.csv' does not exist" in row["status_message"] and "\n" not in row["status_message"]
        assert server.runs()[-1]["status"] == "failed"
        assert "Traceback" not in (tmp_path / "lab.log").read_text()[before:]


@pytest.mark.system
def test_a_stopped_job_keeps_its_answers(tmp_path):
    with model_server(delay=.3) as models, lab(tmp_path, OPENAI_BASE_URL=models.url, OPENAI_API_KEY="test") as server:
        parameters = {**SMALL, "cohort_size": "100"}
        job_id = server.ask("scheduler/jobs", {**FORM, "input_uri": "nbs/surveys/concept_test.ipynb", "parameters": parameters})["job_id"]
        wait_for("some answers", lambda: len(models.asked) > 80)
        server.ask(f"scheduler/jobs/{job_id}", {"status": "STOPPED"}, "PATCH")
        assert ended(server, job_id)["status"] == "STOPPED"
        time.sleep(1.5)
        asked = len(models.asked)
        time.sleep(1)
        assert len(models.asked) == asked < 300 and server.runs() == []  # its kernel is gone as well
        row = job(server, parameters=parameters)
        assert row["status"] == "COMPLETED" and server.runs()[-1]["journalled"] > 10 and len(models.asked) < asked + 290


@pytest.mark.system
def test_a_schedule_fires_survives_a_crash_and_goes_on(tmp_path):
    with model_server(delay=.3) as models:
        server = Lab(tmp_path, OPENAI_BASE_URL=models.url, OPENAI_API_KEY="test").start()
        try:
            form = {**FORM, "input_uri": "nbs/surveys/concept_test.ipynb", "parameters": {**SMALL, "cohort_size": "60"}, "schedule": "* * * * *", "timezone": "UTC"}
            kept = server.ask("scheduler/job_definitions", form)["job_definition_id"]
            assert "never due" in server.refusal(f"scheduler/job_definitions/{kept}", {"schedule": "0 0 30 2 *"}, "PATCH")
            wait_for("the schedule to fire", lambda: len(models.asked) > 40, 90)
            server.stop(hard=True)
            asked = len(models.asked)
            assert server.runs() == [] and asked < 180
            server.start()
            [first] = server.ask("scheduler/jobs")["jobs"]
            row = ended(server, first["job_id"])
            assert row["status"] == "COMPLETED", row
            [run] = server.runs()
            assert run["journalled"] >= asked - 40 and run["answers"] == 180 and run["job"]["definition"] == kept
            models.delay = 0
            wait_for("the schedule to fire again", lambda: len(server.runs()) > 1, 90)
            assert server.ask(f"scheduler/job_definitions/{kept}")["schedule"] == "* * * * *"
        finally: server.stop(hard=True)


# a real browser

PARAMETERS = 'concepts: str = "demo_concepts.csv"'


def with_parameters(server: Lab, **values) -> None:
    "Other defaults in the concept test's cell of parameters, as a user types them."
    import nbformat
    path = server.root / "nbs/surveys/concept_test.ipynb"
    notebook = nbformat.read(path, as_version=4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    for name, value in values.items():
        cell.source, found = re.subn(rf"(?m)^({name}: [^=]+= )[^#]+(  #)", lambda line: f"{line[1]}{value!r}{line[2]}", cell.source)
        assert found == 1, name
    for cell in notebook.cells:
        if cell.cell_type == "code": cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, path)


def counted(notebook: Notebook) -> tuple[int, int] | None:
    "What the bar says: answers there, and all."
    found = re.search(r"(\d+)/(\d+)\s*\[", notebook.cell("survey.run").locator(".jp-OutputArea").inner_text())
    return found and (int(found[1]), int(found[2]))


@pytest.mark.system
@needs_browser
def test_the_start_page_opens(tmp_path):
    shutil.copytree(ROOT / "runs/example", tmp_path / "runs", ignore=shutil.ignore_patterns("ssr.duckdb*", ".journal"))
    with lab(tmp_path) as server, browser() as page:
        page.goto(f"http://127.0.0.1:{server.port}/?token={server.token}")
        page.get_by_role("heading", name="Start here").wait_for()
        assert page.url.endswith("/lab/tree/nbs/start.ipynb")
        page.get_by_role("link", name="Concept test", exact=True).click()
        page.locator(".lm-TabBar-tab", has_text="concept_test.ipynb").wait_for()
        start = Notebook(page, server, "nbs/start.ipynb")
        start.run("recent_runs()")
        link = start.cell("recent_runs()").locator(".jp-OutputArea-output a").first
        link.wait_for()
        picture(page, "start")
        link.click()
        page.locator(".lm-TabBar-tab", has_text="report.html").wait_for()
        page.frame_locator(".jp-HTMLViewer iframe").get_by_text("Everwarm Mug").first.wait_for()
        picture(page, "report")


@pytest.mark.system
@needs_browser
def test_the_concept_test_with_the_embedded_model(tmp_path):
    with lab(tmp_path) as server, browser(height=2400) as page:
        with_parameters(server, cohort_size=3, samples=1)
        notebook = Notebook(page, server, "nbs/surveys/concept_test.ipynb")
        notebook.run_all()
        notebook.cell("survey.run").locator(".jp-OutputArea .widget-hbox").wait_for()  # a widget, not text
        seen = {wait_for("the bar", lambda: counted(notebook))}
        wait_for("the bar to move to its end", lambda: seen.add(counted(notebook)) or (9, 9) in seen, 400)
        assert len(seen) > 2 and {total for _, total in seen} == {9}
        notebook.cell("results.plot()").locator(".jp-RenderedSVG img").wait_for()
        notebook.idle()
        size = notebook.cell("results.plot()").locator(".jp-RenderedSVG img").bounding_box()
        assert size["width"] > 300 and size["height"] > 100
        assert notebook.box.locator("[data-mime-type='application/vnd.jupyter.stderr'], [data-mime-type='application/vnd.jupyter.error']").count() == 0
        picture(page, "concept_test")
        [run] = server.runs()
        assert run["status"] == "complete" and run["answers"] == 9 and run["embedded"]


@pytest.mark.system
@needs_browser
def test_a_run_is_interrupted_and_resumed_from_its_cell(tmp_path):
    with model_server(delay=.5) as models, lab(tmp_path, OPENAI_BASE_URL=models.url, OPENAI_API_KEY="test") as server, browser(height=1600) as page:
        with_parameters(server, cohort_size=100, samples=1, llm_model="stand-in")
        notebook = Notebook(page, server, "nbs/surveys/concept_test.ipynb")
        notebook.run_all()
        wait_for("some answers", lambda: len(models.asked) > 30)
        wait_for("the bar", lambda: counted(notebook)[0] > 10)
        notebook.interrupt()
        output = notebook.cell("survey.run").locator(".jp-OutputArea")
        output.get_by_text("every answer so far is kept").first.wait_for()
        notebook.idle()
        picture(page, "interrupted")
        assert "interrupted: waiting for the answers on their way" in output.inner_text()
        first = len(models.asked)
        assert 30 < first < 300 and server.runs() == []
        notebook.run("survey.run")
        wait_for("the rest", lambda: counted(notebook) == (300, 300))
        notebook.idle()
        assert len(models.asked) == 300  # nothing was asked twice
        notebook.run_all()
        notebook.cell("results.plot()").locator(".jp-RenderedSVG img").wait_for()
        notebook.idle()
        assert len(models.asked) == 300 and server.runs()[-1]["answers"] == 300
        picture(page, "resumed")


@pytest.mark.system
@needs_browser
def test_create_notebook_job_records_a_run(tmp_path):
    with model_server() as models, lab(tmp_path, OPENAI_BASE_URL=models.url, OPENAI_API_KEY="test") as server, browser() as page:
        Notebook(page, server, "nbs/surveys/concept_test.ipynb")
        page.locator("[data-command='scheduling:create-from-notebook'], [title*='notebook job']").first.click()
        page.get_by_role("heading", name="Create Job").wait_for()
        def give(number: int, name: str, value: str):
            "Fill a row of parameters; the form looks at a field when it is left."
            for field, text in (("name", name), ("value", value)):
                page.locator(f"input[name='parameter-{number}-{field}']").fill(text)
                page.keyboard.press("Tab")
        for number, (name, value) in enumerate({**SMALL, "cohort_size": "five"}.items()):
            page.get_by_role("button", name="Add new parameter").or_(page.locator("[title='Add new parameter'], [aria-label='Add new parameter']")).first.click()
            give(number, name, value)
        page.get_by_role("button", name="Create", exact=True).click()
        page.get_by_text("parameter 'cohort_size' is 'five': give a whole number, or none").first.wait_for()
        picture(page, "refused")
        give(1, "cohort_size", "5")
        page.get_by_role("button", name="Create", exact=True).click()
        page.get_by_text("In progress").first.wait_for()  # left to itself, jupyter-scheduler says "Stopped" until the job has begun
        wait_for("the job's end", lambda: server.ask("scheduler/jobs")["jobs"][0]["status"] == "COMPLETED")
        page.get_by_role("button", name="Reload").first.click()
        page.get_by_text("Completed").first.wait_for(timeout=20_000)
        picture(page, "jobs")
        page.get_by_role("link", name="concept_test", exact=True).or_(page.locator("a", has_text="concept_test")).first.click()
        [run] = server.runs()
        page.get_by_text(run["run_id"]).or_(page.locator(f"input[value='{run['run_id']}']")).first.wait_for()
        picture(page, "job")
        assert run["status"] == "complete" and run["parameters"]["cohort_size"] == 5 and run["answers"] == len(models.asked) == 15 and run["job"]["name"] == "concept_test"
