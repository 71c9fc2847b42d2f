"""The command line: what it prints, what it refuses, and its exit codes."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest

from conftest import command


def test_help_teaches_without_heavy_imports():
    done = command("--help")
    assert done.returncode == 0 and "ssr demo" in done.stdout and all(name in done.stdout for name in ("run", "runs", "rate", "anchors", "models", "doctor", "report"))
    heavy = subprocess.run([sys.executable, "-c", "import sys, ssr_nb.cli; print(sorted({m.split('.')[0] for m in sys.modules} & {'pandas', 'numpy', 'seaborn', 'papermill', 'onnxruntime', 'openai', 'duckdb', 'matplotlib', 'xllamacpp'}))"],
                           capture_output=True, text=True)
    assert heavy.stdout.strip() == "[]"


def test_rate_adds_columns_and_keeps_rows(tmp_path):
    path = tmp_path / "said.csv"
    pd.DataFrame({"id": [7, 8, 9, 10], "said": ["It was awful, never again.", "Wonderful, I loved it!", "4/5", None]}).to_csv(path, index=False)
    done = command("rate", path, "--text-column", "said", "--construct", "satisfaction", "--out", tmp_path / "rated.parquet", "--json")
    assert done.returncode == 0, done.stderr
    rated = pd.read_parquet(tmp_path / "rated.parquet")
    assert list(rated.columns) == ["id", "said", "status", "mean", "p1", "p2", "p3", "p4", "p5", "peakedness"] and rated["id"].tolist() == [7, 8, 9, 10]
    assert rated["status"].tolist() == ["ok", "ok", "numeric", "empty"] and rated["mean"][0] < rated["mean"][1] and rated["mean"][2:].isna().all()
    assert json.loads(done.stdout)["statuses"] == {"ok": 2, "numeric": 1, "empty": 1}
    seven = command("rate", path, "--text-column", "said", "--construct", "satisfaction", "--scale-points", "7")
    assert seven.stdout.splitlines()[0].endswith("p6,p7,peakedness")


def test_rate_by_another_rater_and_by_a_calibration(tmp_path):
    said = [f"The {thing} was {word}." for thing in ("soup", "room", "film", "tent", "coat", "garden", "concert", "ride", "phone", "haircut") for word in ("dreadful", "poor", "acceptable", "nice", "wonderful")]
    pd.DataFrame({"said": said}).to_csv(tmp_path / "said.csv", index=False)
    given = ("rate", tmp_path / "said.csv", "--text-column", "said", "--construct", "satisfaction")
    means = {}
    for rater in ("ssr", "contrast"):
        assert command(*given, "--rater", rater, "--out", tmp_path / f"{rater}.csv").returncode == 0
        means[rater] = pd.read_csv(tmp_path / f"{rater}.csv")["mean"]
    low, middle, high = means["contrast"].groupby([0, 0, 1, 2, 2] * 10).mean()
    assert low + 1.5 < high and low < middle < high and not means["ssr"].equals(means["contrast"])
    from ssr_nb.raters import CalibratedRater, load_rater
    CalibratedRater.fit(said, [1, 1, 2, 3, 4] * 10, load_rater("contrast")).save(tmp_path / "harsh.json")
    done = command(*given, "--rater", "contrast", "--calibration", tmp_path / "harsh.json", "--json")
    assert json.loads(done.stdout)["mean"] == pytest.approx(2.2, abs=.2)
    done = command(*given, "--calibration", tmp_path / "harsh.json")
    assert done.returncode == 2 and "was made with another rater" in done.stderr


@pytest.mark.parametrize("arguments, said", [
    (("--text-column", "said", "--construct", "satisfaction", "--rater", "magic"), "rater 'magic' is unknown"), (("--text-column", "said", "--construct", "trust", "--rater", "contrast"), "use rater 'ssr'"),
    (("--text-column", "said", "--construct", "satisfaction", "--rater", "contrast", "--ssr-epsilon", ".1"), "has no such parameter"),
    (("--text-column", "text", "--construct", "trust"), "text column 'text' is not in"), (("--text-column", "said", "--construct", "trustt"), "construct 'trustt' is unknown"),
    (("--text-column", "said", "--construct", "trust", "--embedding-model", "ada"), "embedding_model 'ada' is unknown"), (("--text-column", "said", "--construct", "trust", "--ssr-temperature", "-1"), "ssr_temperature is -1"),
    (("--text-column", "said", "--construct", "trust", "--locale", "fr"), "the answers are in 'fr'"), (("--text-column", "said", "--construct", "trust", "--out", "x.xlsx"), "end it in .csv or .parquet"),
    (("--text-column", "said", "--construct", "missing.yaml"), "'missing.yaml' does not exist"),
])
def test_rate_refuses_in_one_sentence(tmp_path, arguments, said):
    (tmp_path / "said.csv").write_text("said\nfine\n")
    done = command("rate", tmp_path / "said.csv", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("content, said", [(b"said\ncaf\xe9\n", "not UTF-8"), (b"", "no CSV table"), (b"said\n", "has no row"), (b"a,b\n1,2\n1,2,3,4\n", "no CSV table")])
def test_bad_files(tmp_path, content, said):
    (tmp_path / "said.csv").write_bytes(content)
    done = command("rate", tmp_path / "said.csv", "--text-column", "said", "--construct", "trust")
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_unknown_run_model_and_notebook(tmp_path):
    for arguments, said in ((("runs", "show", "nothing"), "'ssr runs list'"), (("runs", "verify", "nothing"), "neither an id"), (("models", "pull", "gpt"), "embedded model 'gpt' is unknown"),
                            (("run", "nowhere.ipynb"), "does not exist"), (("run", "concept_tests"), "choose one of concept_comparison, concept_test"), (("runs", "list"), "does not exist")):
        done = command(*arguments, cwd=tmp_path)
        assert done.returncode == 2 and said in done.stderr, done.stderr


def test_a_read_only_runs_folder(tmp_path):
    if os.geteuid() == 0: tmp_path = tmp_path / "file"; tmp_path.write_text("root may write anywhere, but not below a file")
    else: tmp_path.chmod(0o500)
    done = command("run", "concept_test", "--runs", tmp_path / "runs")
    assert done.returncode == 1 and "cannot be written" in done.stderr and "Traceback" not in done.stderr


def test_doctor_and_models():
    done = command("doctor", "--json")
    checks = {check["what"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 0 and checks["embedding model minilm"]["ok"] and checks["Google"]["mend"]
    models = {row["llm_model"]: row for row in json.loads(command("models", "list", "--json", env={"OPENAI_API_KEY": "", "OPENAI_BASE_URL": ""}).stdout)}
    assert models["gemma-3-270m"]["here"] and models["gpt-4o"]["mend"] == "set OPENAI_API_KEY" and models["gpt-4o"]["input_usd"] > 0 and "gemini-2.0-flash" in models


def test_a_damaged_model_is_refused(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/gemma-3-270m-q4_k_m.gguf").write_bytes(b"not a model")
    done = command("demo", env={"SSR_CACHE": str(tmp_path), "SSR_RUNS": str(tmp_path / "runs")})
    assert done.returncode == 1 and "is damaged" in done.stderr


def test_an_estimate_asks_nothing_and_needs_no_key(tmp_path):
    done = command("estimate", "concept_test", "-p", "llm_model", "gpt-4o", "-p", "samples", "1", "--json", env={"OPENAI_API_KEY": "", "OPENAI_BASE_URL": "", "SSR_RUNS": str(tmp_path)})
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["calls"] == [600, 600] and 0 < found["usd"][0] < found["usd"][1] <= 2 * found["usd"][0] and not list(tmp_path.iterdir())


def test_what_is_thrown_away_is_said_first(tmp_path):
    journals = tmp_path / "runs/.journal"
    from ssr_nb.calls import Journal
    Journal(journals / "left-0.sqlite").close()
    environment = {"SSR_RUNS": str(tmp_path / "runs"), "SSR_CACHE": str(tmp_path / "cache")}
    assert "unfinished survey left-0" in command("runs", "gc", "--dry-run", env=environment).stdout and (journals / "left-0.sqlite").exists()
    assert command("runs", "gc", env=environment).returncode == 0 and (journals / "left-0.sqlite").exists()
    assert command("runs", "gc", "--journals", env=environment).returncode == 0 and not (journals / "left-0.sqlite").exists()


def test_the_rating_claim_of_a_file(tmp_path):
    said = {5: "Wonderful, I would come again.", 3: "It was all right, nothing special.", 1: "Awful, never again."}
    rows = [f"{text} Visit {number}.|{rating}" for number in range(6) for rating, text in said.items()]
    (tmp_path / "rated.csv").write_text("text|rating\n".replace("|", ",") + "\n".join('"' + row.replace("|", '",') for row in rows))
    done = command("validate", "rating", tmp_path / "rated.csv", "--text-column", "text", "--rating-column", "rating", "--construct", "satisfaction", "--runs", tmp_path / "runs")
    assert done.returncode == 0 and "report" in done.stdout, done.stderr
    run = next((tmp_path / "runs").glob("*/run.json")).parent
    assert "Spearman" in (run / "report.html").read_text()
    assert "Spearman" in done.stdout and "Spearman" in command("runs", "show", run).stdout
    done = command("validate", "rating", "rated.csv", "--text-column", "text", "--rating-column", "rating", "--construct", "satisfaction,trust", "--runs", tmp_path / "more", cwd=tmp_path)
    run = next((tmp_path / "more").glob("*/run.json")).parent
    compared = pd.read_parquet(run / "comparison.parquet")
    assert done.returncode == 0 and set(compared["construct"]) == {"satisfaction", "trust"} and str(tmp_path) not in (run / "report.html").read_text(), done.stderr
    assert "every table is equal" in command("runs", "verify", run).stdout
    twice = command("validate", "rating", "rated.csv", "--text-column", "text", "--rating-column", "rating", "--construct", "trust,trust", "--runs", tmp_path / "more", cwd=tmp_path)
    assert twice.returncode == 1 and "name each once" in twice.stderr
