"""What a run can be used for afterwards: going on, rating anew, comparing, taking elsewhere."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from conftest import command
from model_server import model_server
from ssr_nb.core import InputError, Settings
from ssr_nb.exports import export, flat_tables, unpack
from ssr_nb.rescoring import rescore
from ssr_nb.run_comparison import compare_runs
from ssr_nb.scales import load_construct
from ssr_nb.store import Run, list_runs
from ssr_nb.sweeps import sweep
from ssr_nb.verify import results_of, verify

SMALL = ("-p", "llm_model", "stand-in", "-p", "cohort_size", "5", "-p", "samples", "1")
ROOT = Path(__file__).parent.parent


def environment(server, tmp_path): return {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "test", "SSR_RUNS": str(tmp_path / "runs")}


@pytest.fixture(scope="module")
def example(): return list_runs(ROOT / "runs/example")[0]


def test_an_incomplete_run_is_resumed_with_its_own_parameters(tmp_path):
    with model_server(fail=lambda number: 429 if number > 10 else None) as server:
        assert command("run", "concept_test", *SMALL, "-p", "seed", "7", env=environment(server, tmp_path)).returncode == 1
        [first] = list_runs(tmp_path / "runs")
        server.fail = lambda number: None
        done = command("runs", "resume", first.run_id, "--json", env=environment(server, tmp_path))
        assert done.returncode == 0 and json.loads(done.stdout)["journalled"] == 10 and len(server.asked) == 15, done.stderr
    second = list_runs(tmp_path / "runs")[1]
    assert second.manifest["resumes"] == first.run_id and second.manifest["parameters"] == first.manifest["parameters"] and second.manifest["status"] == "complete"
    refused = command("runs", "resume", second.run_id, env={"SSR_RUNS": str(tmp_path / "runs")})
    assert refused.returncode == 2 and "there is nothing to resume" in refused.stderr


def test_a_notebook_of_ones_own_is_resumed_from_the_run_folder(tmp_path):
    notebook = tmp_path / "mine.ipynb"
    notebook.write_text((ROOT / "nbs/surveys/concept_test.ipynb").read_text().replace("# Concept test", "# My test"))
    with model_server(fail=lambda number: 429 if number > 10 else None) as server:
        assert command("run", notebook, *SMALL, env=environment(server, tmp_path)).returncode == 1
        notebook.unlink()
        server.fail = lambda number: None
        [first] = list_runs(tmp_path / "runs")
        done = command("runs", "resume", first.folder, "-p", "ssr_temperature", "0.5", "--json", env=environment(server, tmp_path))
        assert done.returncode == 0 and len(server.asked) == 15, done.stderr
    second = list_runs(tmp_path / "runs")[1]
    assert "My test" in (second.folder / "report.html").read_text() and second.manifest["ssr_temperature"] == .5


def test_the_same_again_is_pointed_out_before_it_is_paid(tmp_path):
    with model_server() as server:
        environment_ = environment(server, tmp_path)
        first = command("run", "concept_test", *SMALL, env=environment_)
        [run] = list_runs(tmp_path / "runs")
        assert "fingerprint" not in first.stderr
        told = command("estimate", "concept_test", *SMALL, env=environment_).stdout
        assert f"Run {run.run_id} has this fingerprint" in told and "asks anew" in told
        again = command("run", "concept_test", *SMALL, env={**environment_, "ENABLE_LLM_CACHING": "true"})
        assert f"Run {run.run_id} has this fingerprint" in again.stderr and "cache" in again.stderr
        other = command("run", "concept_test", *SMALL, "-p", "seed", "1", env=environment_)
        assert "has this fingerprint" not in other.stderr


def test_rescoring_equals_a_survey_that_was_rated_so_from_the_start(tmp_path):
    with model_server() as server:
        for given in ((), ("-p", "ssr_temperature", "0.7", "-p", "ssr_epsilon", "0.1")):
            assert command("run", "concept_test", *SMALL, *given, env=environment(server, tmp_path)).returncode == 0
    plain, sharp = list_runs(tmp_path / "runs")
    again = rescore(plain, ssr_temperature=.7, ssr_epsilon=.1)
    assert again.manifest["fingerprint"] == sharp.manifest["fingerprint"] != plain.manifest["fingerprint"]
    columns = ["concept", "mean", "mean_low", "mean_high", "top_2_box"]
    pd.testing.assert_frame_equal(again.summary()[columns], results_of(sharp).summary()[columns], rtol=1e-9)
    done = command("runs", "rescore", plain.run_id, "--ssr-temperature", "0.7", "--ssr-epsilon", "0.1", "--json", env={"SSR_RUNS": str(tmp_path / "runs")})
    assert done.returncode == 0, done.stderr
    child = Run(Path(json.loads(done.stdout)["folder"]))
    assert child.manifest["parent"] == plain.run_id and child.manifest["parameters"]["run"] == plain.run_id and child.manifest["cost_usd"] == 0 and verify(child).equal
    assert command("runs", "rescore", plain.run_id, env={"SSR_RUNS": str(tmp_path / "runs")}).returncode == 2


def test_rescoring_with_anchors_of_ones_own(example, tmp_path):
    shipped = yaml.safe_load((ROOT / "reference_sets/purchase_intent.yaml").read_text())
    five = [one for one in shipped["reference_sets"] if len(one["anchors"]) == 5]
    shipped["reference_sets"] = [{**five[0], "id": "mine", "anchors": ["No, never.", "I doubt it.", "I can't say.", "I think so.", "Yes, at once."]}]
    (tmp_path / "purchase_intent.yaml").write_text(yaml.safe_dump(shipped))
    found = rescore(example, anchors=tmp_path / "purchase_intent.yaml")
    assert [one["id"] for one in found.manifest["reference_sets"]] == ["mine"] and found.survey.constructs[0].question == results_of(example).survey.constructs[0].question
    assert verify(found.save(tmp_path / "runs")).equal
    every = rescore(example, reference_sets=[one.id for one in load_construct("purchase_intent").reference_sets if one.scale_points == 5])
    assert np.allclose(every.summary()["mean"], results_of(example).summary()["mean"], atol=1e-12)


def test_an_export_verifies_elsewhere_and_tampering_is_noticed(example, tmp_path):
    done = command("runs", "export", example.folder, "--out", tmp_path / "sent.zip", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    elsewhere = {"SSR_RUNS": str(tmp_path / "their runs"), "SSR_CACHE": str(tmp_path / "their cache")}
    assert "every table is equal" in command("runs", "verify", tmp_path / "sent.zip", env=elsewhere).stdout
    assert command("runs", "import", tmp_path / "sent.zip", env=elsewhere).returncode == 0
    assert example.run_id in command("runs", "list", env=elsewhere).stdout and command("runs", "verify", example.run_id, env=elsewhere).returncode == 0
    assert "already" in command("runs", "import", tmp_path / "sent.zip", env=elsewhere).stderr
    evil = json.loads((example.folder / "run.json").read_text())
    for name, told in (("../../outside.txt", "leads out of its folder"), ("/etc/x", "leads out of its folder"), ("missing.parquet", "no whole file")):
        with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
            archive.writestr(f"{evil['run_id']}/run.json", json.dumps({**evil, "files": {name: "0" * 64}}))
            archive.writestr("outside.txt", "x")
        with pytest.raises(InputError, match=told): unpack(tmp_path / "evil.zip", tmp_path / "runs")
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(InputError, match="no ZIP file"): unpack(tmp_path / "text.zip", tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("*")) and not (tmp_path / "outside.txt").exists()


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_flat_tables_hold_what_the_record_holds(example, tmp_path, format):
    paths = export(example, tmp_path / "out", format)
    read = {path.stem: pd.read_csv(path) if format == "csv" else pd.read_parquet(path) for path in paths}
    assert {name: len(frame) for name, frame in read.items()} == {name: len(frame) for name, frame in flat_tables(example).items()}
    ratings = example.table("ratings").set_index("answer_id")
    assert np.allclose(read["answers"].set_index("answer_id")["mean"], ratings["mean"], equal_nan=True) and np.allclose(read["answers"]["p3"], [pmf[2] for pmf in ratings["pmf"]], equal_nan=True)
    with pytest.raises(InputError, match="format 'xlsx' is unknown"): export(example, tmp_path, "xlsx")


def test_comparison_names_what_differs(example, tmp_path):
    other = rescore(example, ssr_temperature=2).save(tmp_path / "runs")
    found = compare_runs([example, other])
    assert "ssr_temperature" in found.differences.index and "llm_model" not in found.differences.index
    done = command("runs", "compare", example.folder, other.folder, "--plot", tmp_path / "means.svg", cwd=tmp_path)
    assert done.returncode == 0 and "ssr_temperature" in done.stdout and (tmp_path / "means.svg").read_text().startswith("<svg")
    assert len(json.loads(command("runs", "compare", example.folder, other.folder, "--json", cwd=tmp_path).stdout)["results"]) == 6
    assert command("runs", "compare", example.folder, cwd=tmp_path).returncode == 2


def grid_runs(runs): return sorted(run.manifest["parameters"]["seed"] for run in list_runs(runs) if run.manifest["status"] == "complete")


def test_a_failed_job_does_not_stop_a_sweep_and_the_next_one_fills_the_gap(tmp_path):
    with model_server(fail=lambda number: 400 if number == 16 else None) as server:
        arguments = ("sweep", "concept_test", "--grid", "seed=1,2,3", "--jobs", "1", *SMALL, "--json")
        first = command(*arguments, env=environment(server, tmp_path))
        rows = json.loads(first.stdout)
        assert first.returncode == 1 and [row["problem"] is None for row in rows] == [True, False, True], first.stdout
        server.fail = lambda number: None
        asked = len(server.asked)
        second = command(*arguments, env=environment(server, tmp_path))
        assert second.returncode == 0 and [row["status"] for row in json.loads(second.stdout)] == ["done before", "complete", "done before"] and len(server.asked) == asked + 15, second.stderr
    assert grid_runs(tmp_path / "runs") == [1, 2, 3]


def test_a_sweep_on_a_dask_cluster(example, tmp_path):
    settings = replace(Settings.from_environment(), runs=tmp_path / "runs")
    found = sweep("rescore", {"ssr_temperature": [.5, 1, 2]}, {"run": str(example.folder.resolve())}, jobs=2, backend="dask", settings=settings, progress=False)
    assert found.complete and len(set(found.run_ids)) == 3, found
    assert sorted(run.manifest["ssr_temperature"] for run in list_runs(tmp_path / "runs")) == [.5, 1, 2]
    for backend, told in (("slurm", "backend 'slurm' is unknown"), ("ray", "backend 'ray' is not installed")):
        with pytest.raises(InputError, match=told): sweep("rescore", {"ssr_temperature": [9]}, {"run": str(example.folder)}, backend=backend, settings=settings, progress=False)


def killed(arguments, variables, moment):
    "Start a command and kill it alone; its workers and kernels have to notice."
    process = subprocess.Popen([str(Path(sys.executable).with_name("ssr")), *map(str, arguments)], env={**os.environ, **variables}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(moment)
    process.kill()
    process.wait()


def test_a_sweep_that_is_killed_is_finished_by_the_same_command(tmp_path):
    with model_server(delay=.2) as server:
        arguments = ("sweep", "concept_test", "--grid", "seed=1,2", "--jobs", "2", *SMALL, "--json")
        killed(arguments, environment(server, tmp_path), 9)
        done = command(*arguments, env=environment(server, tmp_path))
        assert done.returncode == 0, done.stdout + done.stderr
    assert grid_runs(tmp_path / "runs") == [1, 2] and not list((tmp_path / "runs").glob(".partial-*"))


def schedule_file(tmp_path, name="minutely"):
    (tmp_path / "schedules.yaml").write_text(yaml.safe_dump({"schedules": [{"name": name, "notebook": "concept_test", "cron": "* * * * *", "parameters": {"llm_model": "stand-in", "cohort_size": 5, "samples": 1}}]}))
    return tmp_path / "schedules.yaml"


def set_back(runs):
    "As if the schedules had last been looked at two minutes ago."
    from datetime import datetime, timedelta, timezone
    ledger = json.loads((runs / ".schedules.json").read_text())
    for one in ledger.values(): one["until"] = (datetime.now(timezone.utc) - timedelta(minutes=2)).isoformat()
    (runs / ".schedules.json").write_text(json.dumps(ledger))


def dues(runs): return [run.manifest["schedule"]["due"] for run in list_runs(runs) if "schedule" in run.manifest]


def test_a_schedule_runs_what_is_due_once(tmp_path):
    file, runs = schedule_file(tmp_path), tmp_path / "runs"
    with model_server(delay=.1) as server:
        def once(): return command("schedule", file, "--once", env=environment(server, tmp_path))
        assert once().returncode == 0 and not list_runs(runs)
        set_back(runs)
        first = once()
        assert first.returncode == 0 and len(dues(runs)) == 1 and "running concept_test" in first.stdout, first.stderr
        set_back(runs)
        killed(("schedule", file, "--once"), environment(server, tmp_path), 4)
        once()
    assert len(dues(runs)) == len(set(dues(runs))) >= 1 and not list(runs.glob(".partial-*"))


def test_schedule_files_are_checked_before_anything_waits(tmp_path):
    for change, told in (({"cron": "* * * * 1"}, "name the days"), ({"notebook": "concept_tests"}, "'concept_tests' is unknown"), ({"parameters": {"cohort": 3}}, "parameter 'cohort' is unknown"), ({"every": "day"}, "has a field 'every'"), ({"grace_hours": "soon"}, "grace_hours")):
        file = schedule_file(tmp_path)
        content = yaml.safe_load(file.read_text())
        content["schedules"][0] |= change
        file.write_text(yaml.safe_dump(content))
        done = command("schedule", file, "--upcoming", cwd=tmp_path)
        assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert "minutely" in command("schedule", schedule_file(tmp_path), "--upcoming", cwd=tmp_path).stdout and not (tmp_path / "runs").exists()


@pytest.mark.soak
def test_kill_9_of_jobs_sweeps_and_schedules(tmp_path):
    random.seed(int(os.environ.get("SSR_SEED", "2")))
    file, runs = schedule_file(tmp_path), tmp_path / "runs"
    sweeps = ("sweep", "concept_test", "--grid", "seed=1,2,3", "--jobs", "2", *SMALL)
    with model_server(delay=.3) as server:
        variables = environment(server, tmp_path)
        command("schedule", file, "--once", env=variables)
        for number in range(max(4, round(50 * float(os.environ.get("SOAK", "1"))))):
            set_back(runs)
            killed((sweeps, ("schedule", file, "--once"), ("run", "concept_test", *SMALL, "-p", "seed", "9"))[number % 3], variables, random.uniform(.5, 12))
            for run in list_runs(runs): assert run.manifest["status"] == "complete" and set(run.manifest["files"]) <= {str(path.relative_to(run.folder)) for path in run.folder.rglob("*") if path.is_file()}
        assert command(*sweeps, env=variables).returncode == 0 and command("schedule", file, "--once", env=variables).returncode == 0
        assert command("run", "concept_test", *SMALL, "-p", "seed", "9", env=variables).returncode == 0
    swept = [run for run in list_runs(runs) if "sweep" in run.manifest]
    assert sorted(run.manifest["seed"] for run in swept) == [1, 2, 3] and len(dues(runs)) == len(set(dues(runs)))
    assert not list(runs.glob(".partial-*")) and not list((runs / ".journal").glob("*.sqlite"))
    shutil.rmtree(runs)
