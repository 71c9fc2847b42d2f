"""Run folders and the log, with several processes at once."""

import os
import subprocess
import sys

import duckdb
import pandas as pd
import pytest

from ssr_nb.core import SSRError
from ssr_nb.store import FILES, connect, enter_pending, finish_run, list_runs, open_run, partial_folder, rebuild, write_table


def make_run(runs, run_id):
    with partial_folder(runs, run_id) as folder:
        write_table(pd.DataFrame({"concept": [run_id], "description": ["x"], "price": [None]}), folder / FILES["concepts"])
        return finish_run(folder, {"run_id": run_id, "status": "complete", "parameters": {"a": 1}}, runs)


def test_a_folder_that_was_not_finished_is_no_run(tmp_path):
    with pytest.raises(RuntimeError):
        with partial_folder(tmp_path, "one") as folder:
            write_table(pd.DataFrame({"x": [1]}), folder / "answers.parquet")
            raise RuntimeError
    assert list_runs(tmp_path) == [] and list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_swept_and_the_living_are_spared(tmp_path):
    holder = "import sys, time\nfrom pathlib import Path\nfrom ssr_nb.store import partial_folder\nwith partial_folder(Path(sys.argv[1]), sys.argv[2]): print(flush=True); time.sleep(60)"
    dead, living = (subprocess.Popen([sys.executable, "-c", holder, tmp_path, name], stdout=subprocess.PIPE) for name in ("dead", "living"))
    for process in (dead, living): process.stdout.readline()
    dead.kill()
    dead.wait()
    make_run(tmp_path, "new")
    assert {path.name for path in tmp_path.glob(".partial-*")} == {".partial-living"}
    living.kill()


def test_runs_are_visible_while_another_program_holds_the_log(tmp_path):
    make_run(tmp_path, "first")
    holder = subprocess.Popen([sys.executable, "-c", "import duckdb, sys, time\nc = duckdb.connect(sys.argv[1], read_only=True); print(c.execute('SELECT count(*) FROM runs').fetchall(), flush=True); time.sleep(60)",
                               tmp_path / "ssr.duckdb"], stdout=subprocess.PIPE)
    assert b"1" in holder.stdout.readline()
    writers = [subprocess.Popen([sys.executable, "-c", "import sys\nfrom pathlib import Path\nsys.path.insert(0, sys.argv[3])\nfrom test_store import make_run\nmake_run(Path(sys.argv[1]), sys.argv[2])",
                                 tmp_path, f"run-{n}", os.path.dirname(__file__)]) for n in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    assert enter_pending(tmp_path) is None
    assert connect(tmp_path).execute("SELECT count(*) FROM runs").fetchall() == [(5,)]
    assert connect(tmp_path).execute("SELECT count(*) FROM concepts WHERE run_id = concept").fetchall() == [(5,)]
    holder.kill()
    holder.wait()
    connect(tmp_path)
    with duckdb.connect(str(tmp_path / "ssr.duckdb"), read_only=True) as log: assert log.execute("SELECT count(*) FROM runs").fetchall() == [(5,)]


def test_the_log_can_be_made_anew(tmp_path):
    for name in ("a", "b"): make_run(tmp_path, name)
    (tmp_path / "ssr.duckdb").write_bytes(b"broken")
    assert rebuild(tmp_path) == 2
    with duckdb.connect(str(tmp_path / "ssr.duckdb"), read_only=True) as log: assert log.execute("SELECT parameters->>'a' FROM runs ORDER BY run_id").fetchall() == [("1",), ("1",)]


def test_a_runs_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(SSRError, match="choose another with --runs"): make_run(tmp_path / "runs", "x")


def test_a_run_is_named_by_id_or_path(tmp_path):
    run = make_run(tmp_path, "named")
    assert open_run("named", tmp_path).folder == open_run(run.folder).folder == run.folder
