"""The record at size: 1,000 runs in one folder, made from the example run. What is looked at often must not wait for it, and `rebuild` may only grow in proportion.

    python benchmarks/record.py [--runs 1000] [--folder DIR]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import timeit
from datetime import datetime, timedelta
from pathlib import Path

import duckdb

from ssr_nb import store
from ssr_nb.core import shipped

QUESTION = "SELECT concept, count(*) AS answers, avg(mean) AS mean FROM rated_answers WHERE status = 'ok' GROUP BY concept ORDER BY mean DESC"


def link(source: str, target: str) -> None:
    "The same file once more; a copy where the file system has no links."
    try: os.link(source, target)
    except OSError: shutil.copyfile(source, target)


def make_runs(folder: Path, count: int) -> Path:
    "So many runs: the example's tables, each with a manifest of its own."
    example = store.list_runs(shipped("example"))[0]
    started, finished = (datetime.fromisoformat(example.manifest[name]) for name in ("started_at", "finished_at"))
    for number in range(count):
        later = timedelta(minutes=number)
        run_id = f"{started + later:%Y%m%d-%H%M%S}-concept_test-{number:04x}"
        shutil.copytree(example.folder, folder / run_id, copy_function=link, ignore=shutil.ignore_patterns("run.json"))
        (folder / run_id / "run.json").write_text(json.dumps({**example.manifest, "run_id": run_id, "started_at": (started + later).isoformat(), "finished_at": (finished + later).isoformat(), "seed": number}, indent=1), encoding="utf-8")
    return folder


def seconds(function, repeats: int = 3) -> float:
    "The best of a few runs."
    return min(timeit.repeat(function, number=1, repeat=repeats))


def ssr(*arguments: str) -> None: subprocess.run([str(Path(sys.executable).with_name("ssr")), *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def ask(runs: Path) -> list[tuple]:
    with store.connect(runs) as log: return log.execute(QUESTION).fetchall()


def bare(runs: Path) -> list[tuple]:
    "The same question to the files alone, without a log and without run ids."
    answers, ratings = (f"read_parquet('{runs}/*/{name}.parquet', filename=true)" for name in ("answers", "ratings"))
    with duckdb.connect() as connection:
        return connection.execute(f"""SELECT concept, count(*), avg(mean) AS mean FROM (SELECT *, split_part(filename, '/', -2) AS run FROM {answers}) JOIN (SELECT *, split_part(filename, '/', -2) AS run FROM {ratings})
                                      USING (run, answer_id) WHERE status = 'ok' GROUP BY concept ORDER BY mean DESC""").fetchall()


def report(runs: Path, few: Path, count: int, part: int) -> None:
    rebuilt = {folder: seconds(lambda: store.rebuild(folder), repeats=1) for folder in (few, runs)}
    print(f"rebuild of the log: {rebuilt[runs]:.1f} s, {rebuilt[runs] / count / (rebuilt[few] / part):.2f} times as long a run as with {part:,} runs")
    listed, manifests = seconds(lambda: ssr("runs", "list", "--runs", runs)), seconds(lambda: [run.manifest for run in store.list_runs(runs)])
    start = seconds(lambda: ssr("runs", "list", "--runs", few))
    print(f"ssr runs list: {listed:.2f} s, {listed / start:.1f} times as long as with {part:,} runs; reading the manifests alone is {manifests / listed:.2f} of it")
    connected, answered, alone = seconds(lambda: store.connect(runs).close()), seconds(lambda: ask(runs)), seconds(lambda: bare(runs))
    assert [row[:2] for row in ask(runs)] == [row[:2] for row in bare(runs)] and sum(row[1] for row in ask(runs)) == count * store.list_runs(runs)[0].table("answers").query("status == 'ok'").shape[0]
    print(f"connect() and the first SQL answer: {answered:.2f} s ({connected:.2f} s to connect), {answered / alone:.1f} times as long as the files alone")
    with duckdb.connect(str(runs / "ssr.duckdb"), read_only=True) as log: print(f"the log itself answers in {seconds(lambda: log.execute(QUESTION).fetchall()) / answered:.2f} of that")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1000, help="how many")
    parser.add_argument("--folder", type=Path, help="where they are made, and kept; a temporary folder by default")
    given = parser.parse_args()
    part = max(1, given.runs // 10)
    with tempfile.TemporaryDirectory() as temporary:
        place = given.folder or Path(temporary)
        started = time.perf_counter()
        folders = [make_runs(place / name, count) for name, count in (("all", given.runs), ("part", part))]
        print(f"{given.runs:,} runs in one folder, made in {time.perf_counter() - started:.1f} s: {given.runs * store.list_runs(folders[0])[0].manifest['answers']:,} answers")
        report(*folders, given.runs, part)


if __name__ == "__main__": main()
