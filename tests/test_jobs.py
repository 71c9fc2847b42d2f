"""Survey notebooks as jobs: by the command line, as a user runs them."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import nbformat
import pytest

from conftest import command, interruptible
from model_server import model_server
from ssr_nb.core import InputError
from ssr_nb.jobs import check_parameters, find_notebook, read_parameters
from ssr_nb.store import connect, list_runs

SMALL = ("-p", "llm_model", "stand-in", "-p", "cohort_size", "5", "-p", "samples", "1")


def environment(server, tmp_path): return {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "test", "SSR_RUNS": str(tmp_path / "runs")}


def test_a_run_leaves_everything(server, tmp_path):
    done = command("run", "concept_test", *SMALL, "--json", env=environment(server, tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    folder = Path(found["folder"])
    assert {path.name for path in folder.iterdir()} == {"run.json", "notebook.ipynb", "report.html", "answers.parquet", "ratings.parquet", "embeddings.parquet", "calls.parquet", "summary.parquet", "findings.parquet", "inputs"}
    manifest = json.loads((folder / "run.json").read_text())
    assert manifest["status"] == "complete" and manifest["parameters"]["cohort_size"] == 5 and manifest["parameters"]["seed"] == 0 and len(manifest["reference_sets"]) == 6
    report = (folder / "report.html").read_text()
    assert "Everwarm Mug" in report and report.count("<svg") == 4 and manifest["fingerprint"] in report
    assert "http://" not in report.replace("http://www.w3.org", "") and "https://" not in report and "<script" not in report
    assert connect(tmp_path / "runs").execute("SELECT run_id, answers FROM runs").fetchall() == [(found["run_id"], 15)]
    assert not list((tmp_path / "runs" / ".journal").glob("*.sqlite"))
    assert command("runs", "verify", folder, env=environment(server, tmp_path)).returncode == 0


def test_parameters_are_checked_before_a_kernel_starts(server, tmp_path):
    for given, said in ((("-p", "cohort", "5"), "parameter 'cohort' is unknown"), (("-p", "cohort_size", "many"), "give a whole number"), (("-p", "cohort_size"), "has no value")):
        done = command("run", "concept_test", *given, env=environment(server, tmp_path))
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists() and server.requests == 0


@pytest.mark.parametrize("given, said", [(("-p", "concepts", "nowhere.csv"), "does not exist"), (("-p", "cohort_size", "0"), "cohort_size is 0"), (("-p", "constructs", "intent"), "construct 'intent' is unknown")])
def test_a_survey_that_cannot_be_made_is_one_sentence(server, tmp_path, given, said):
    done = command("run", "concept_test", *SMALL, *given, env=environment(server, tmp_path))
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr
    assert [run.manifest["status"] for run in list_runs(tmp_path / "runs")] == ["failed"]


def test_passing_failures_are_tried_again(tmp_path):
    with model_server(fail=lambda number: 500 if number % 3 == 0 else None) as server:
        done = command("run", "concept_test", *SMALL, env=environment(server, tmp_path))
        assert done.returncode == 0, done.stderr
        assert len(server.asked) == 15 and server.requests > 15


def test_an_incomplete_run_says_so_and_is_filled_by_running_again(tmp_path):
    with model_server(fail=lambda number: 429 if number > 10 else None) as server:
        first = command("run", "concept_test", *SMALL, env={**environment(server, tmp_path)})
        assert first.returncode == 1 and "5 of 15 answers failed" in first.stderr
        server.fail = lambda number: None
        second = command("run", "concept_test", *SMALL, "--json", env=environment(server, tmp_path))
        assert second.returncode == 0 and json.loads(second.stdout)["journalled"] == 10 and len(server.asked) == 15
    assert [run.manifest["status"] for run in list_runs(tmp_path / "runs")] == ["incomplete", "complete"]


def kill_tree(process):
    "kill -9 of the command alone: its kernel has to notice by itself."
    process.kill()
    process.wait()


@pytest.mark.parametrize("moment", [.5, .9])
def test_kill_9_loses_nothing(tmp_path, moment):
    killed_at_random(tmp_path, kills=1, moments=lambda: 3 + 4 * moment)


@pytest.mark.soak
def test_kill_9_at_random_moments_loses_nothing(tmp_path):
    random.seed(int(os.environ.get("SSR_SEED", "1")))
    killed_at_random(tmp_path, kills=max(2, round(20 * float(os.environ.get("SOAK", "1")))), moments=lambda: random.uniform(.2, 7), cohort_size=60)


def journalled_texts(runs):
    "key -> text of every call that is on the disk in a journal."
    found = {}
    for path in (runs / ".journal").glob("*.sqlite"):
        with sqlite3.connect(path) as connection: found |= dict(connection.execute("SELECT key, text FROM calls"))
    return found


def killed_at_random(tmp_path, kills, moments, cohort_size=20):
    with model_server(delay=.3) as server:  # with a delay, every answer ends in the number of its request
        arguments = [str(Path(sys.executable).with_name("ssr")), "run", "concept_test", "-p", "llm_model", "stand-in", "-p", "cohort_size", str(cohort_size), "-p", "samples", "2"]
        variables = {**os.environ, **environment(server, tmp_path)}
        kept = {}
        for _ in range(kills):
            process = subprocess.Popen(arguments, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(moments())
            kill_tree(process)
            if list_runs(tmp_path / "runs"): break  # it was faster than the kill
            kept |= journalled_texts(tmp_path / "runs")
        if not list_runs(tmp_path / "runs"):
            done = subprocess.run([*arguments, "--json"], env=variables, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["journalled"] >= len(kept)
        [run] = list_runs(tmp_path / "runs")
        calls = run.table("calls").set_index("key")["text"]
        assert run.manifest["status"] == "complete" and len(calls) == len(run.table("answers")) == 3 * cohort_size * 2
        assert {key: calls[key] for key in kept} == kept, "a journalled answer was asked for again"
        assert len(server.asked) <= len(calls) + 2 * server.most_at_once * kills, "more was asked again than can have been on its way to us or to the disk"
        assert not list((tmp_path / "runs").glob(".partial-*"))


def test_ctrl_c_keeps_the_answers(tmp_path):
    with model_server(delay=.5) as server:
        arguments = [str(Path(sys.executable).with_name("ssr")), "run", "concept_test", "-p", "llm_model", "stand-in", "-p", "cohort_size", "60", "-p", "samples", "1"]
        process = subprocess.Popen(arguments, env={**os.environ, **environment(server, tmp_path)}, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=interruptible)
        while len(server.asked) < 40: time.sleep(.1)
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 130 and "every answer so far is kept" in said and "Traceback" not in said
        assert list_runs(tmp_path / "runs") == [] and not list((tmp_path / "runs").glob(".partial-*"))
        asked = len(server.asked)
        done = subprocess.run([*arguments, "--json"], env={**os.environ, **environment(server, tmp_path)}, capture_output=True, text=True)
        assert done.returncode == 0 and json.loads(done.stdout)["journalled"] >= 20  # 40 less those that were in flight
        assert len(server.asked) <= 180 + (asked - json.loads(done.stdout)["journalled"])


def notebook(tmp_path, *cells, tags=("parameters",)):
    content = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell, metadata={"tags": list(tags)} if number == 0 and tags else {}) for number, cell in enumerate(cells)],
                                       metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}})
    path = tmp_path / "mine.ipynb"
    nbformat.write(content, path)
    return path


@pytest.mark.parametrize("last, said", [("raise ValueError('a reason')", "ValueError: a reason"), ("1 + 1", "ended without results.save()"), ("import os; os._exit(3)", "kernel"), ("import os; os.abort()", "kernel")])
def test_papermills_lies_are_not_believed(tmp_path, last, said):
    done = command("run", notebook(tmp_path, "a: int = 1  # one", last), env={"SSR_RUNS": str(tmp_path / "runs")})
    assert done.returncode == 1 and said in done.stderr and "Current thread" not in done.stderr
    assert list_runs(tmp_path / "runs")[0].manifest["status"] == "failed"


def test_parameters_must_be_tagged_and_typed(tmp_path):
    with pytest.raises(InputError, match="0 cells with the tag"): read_parameters(notebook(tmp_path, "a: int = 1", tags=()))
    with pytest.raises(InputError, match="name: type = default"): read_parameters(notebook(tmp_path, "a = 1"))
    declared = read_parameters(notebook(tmp_path, "a: int = 1  # one\nb: float = .5\nc: bool = True\nd: list = ['x']\ne: str = 's'  # text"))
    assert declared["e"].help == "text" and declared["d"].default == ["x"]
    assert check_parameters(declared, {"a": "7", "b": "2", "c": "false", "d": "y,z", "e": "7"}) == {"a": 7, "b": 2.0, "c": False, "d": ["y", "z"], "e": "7"}
    for wrong in ({"a": True}, {"c": "maybe"}, {"a": "1.5"}, {"e": 7}):
        with pytest.raises(InputError): check_parameters(declared, wrong)


def test_shipped_survey_notebooks_document_their_parameters():
    for path in find_notebook("concept_test").parent.glob("*.ipynb"):
        declared = read_parameters(path)
        assert declared and all(parameter.help for parameter in declared.values()), path.name


def test_four_jobs_at_once_while_another_program_holds_the_log(server, tmp_path):
    variables = {**os.environ, **environment(server, tmp_path)}
    run = [str(Path(sys.executable).with_name("ssr")), "run", "concept_test", *SMALL]
    assert subprocess.run(run, env=variables, capture_output=True).returncode == 0
    log = tmp_path / "runs/ssr.duckdb"
    holder = subprocess.Popen([sys.executable, "-c", "import duckdb, sys, time\nc = duckdb.connect(sys.argv[1], read_only=True); print(c.execute('SELECT count(*) FROM runs').fetchall(), flush=True); time.sleep(120)", log],
                              stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline().strip() == "[(1,)]"
    jobs = [subprocess.Popen(run, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(4)]
    assert [job.wait() for job in jobs] == [0] * 4
    assert connect(tmp_path / "runs").execute("SELECT count(*), sum(answers) FROM runs").fetchall() == [(5, 75)]
    holder.kill()
    holder.wait()
    assert len(json.loads(subprocess.run([run[0], "runs", "list", "--json"], env=variables, capture_output=True, text=True).stdout)) == 5
    with duckdb.connect(str(log), read_only=True) as entered: assert entered.execute("SELECT count(*) FROM runs").fetchall() == [(5,)]
