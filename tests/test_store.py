"""Run folders and the log, with several processes at once."""

import os
import subprocess
import sys

import duckdb
import pandas as pd
import pytest

from ssr_nb.core import Settings, SSRError
from ssr_nb.store import FILES, TABLES, VIEWS, column_names, connect, enter_pending, finish_run, list_runs, open_run, partial_folder, rebuild, record, write_table


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


def test_runs_of_every_age_are_one_table(tmp_path):
    rows = {"old": {"concept": ["a"], "description": ["x"]}, "none": {"concept": ["b"], "description": ["x"], "price": [None], "image": [None]}, "whole": {"concept": ["c"], "description": ["x"], "price": ["$3"], "image": ["c.png"], "later": [1]}}
    for name, columns in rows.items():
        with partial_folder(tmp_path, name) as folder:
            write_table(pd.DataFrame(columns), folder / FILES["concepts"])
            finish_run(folder, {"run_id": name, "status": "complete"}, tmp_path)
    rebuild(tmp_path)
    with connect(tmp_path) as shown, duckdb.connect(str(tmp_path / "ssr.duckdb"), read_only=True) as log:
        for one in (shown, log): assert one.execute("SELECT run_id, price, image FROM concepts ORDER BY concept").fetchall() == [("old", None, None), ("none", None, None), ("whole", "$3", "c.png")]
        assert {name for name, in shown.execute("SHOW TABLES").fetchall()} == {*TABLES, *VIEWS}
        described = lambda one, table: [row[:2] for row in one.execute(f"DESCRIBE {table}").fetchall()]
        for table in (*TABLES, *VIEWS): assert sorted(described(shown, table)) == sorted(described(log, table)), table


def test_a_run_goes_by_its_folder(tmp_path):
    make_run(tmp_path, "first")
    (tmp_path / "first").rename(tmp_path / "renamed")
    assert enter_pending(tmp_path) == ["renamed"] and enter_pending(tmp_path) == []
    with connect(tmp_path) as shown: assert shown.execute("SELECT runs.run_id, concepts.run_id FROM runs JOIN concepts USING (run_id)").fetchall() == [("renamed", "renamed")]


def test_many_runs_are_entered_at_once(tmp_path):
    for number in range(7): make_run(tmp_path, f"it's {number}")
    assert rebuild(tmp_path) == 7
    (tmp_path / "it's 3" / FILES["concepts"]).write_text("torn")
    with pytest.raises(SSRError, match="it's 3 cannot be read"): rebuild(tmp_path)
    make_run(tmp_path, "new")
    with duckdb.connect(str(tmp_path / "ssr.duckdb"), read_only=True) as log:
        for table in ("runs", "concepts"): assert log.execute(f"SELECT count(*) FROM {table} WHERE run_id <> 'it''s 3'").fetchall() == log.execute(f"SELECT count(*) FROM {table}").fetchall() == [(7,)], "a damaged run keeps no other out, and is not there by half"


@pytest.mark.parametrize("manifest, began", [({}, 100.0), ({"parent": "another"}, None)])
def test_a_run_by_hand_says_when(tmp_path, manifest, began):
    calls = pd.DataFrame({"key": ["a", "b", "c"], "created_at": [50.0, 100.0, 130.0], "mode": ["cache", "live", "live"]}).reindex(columns=column_names("calls"))
    run = record("survey", {"status": "complete", **manifest}, lambda folder: write_table(calls, folder / FILES["calls"]), Settings(runs=tmp_path))
    started, finished = (pd.Timestamp(run.manifest[name]).timestamp() for name in ("started_at", "finished_at"))
    assert started == (finished if began is None else began) and abs(finished - pd.Timestamp.now("UTC").timestamp()) < 60
    with connect(tmp_path) as shown: assert shown.execute("SELECT started_at <= finished_at FROM runs").df().iloc[0, 0]
    no_calls = record("other", {"status": "complete"}, lambda folder: None, Settings(runs=tmp_path))
    assert no_calls.manifest["started_at"] == no_calls.manifest["finished_at"]
