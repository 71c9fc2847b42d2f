"""A run verifies offline, and says what was changed."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml

from conftest import ROOT, command
from ssr_nb.personas import Panel
from ssr_nb.store import open_run
from ssr_nb.survey import Survey
from ssr_nb.verify import verify


@pytest.fixture
def run(hosted, server, concepts):
    return Survey(concepts, Panel.us_adults(6, seed=1), constructs=["purchase_intent", "trust"], llm_model="stand-in").run(progress=False).save()


def rehash(run, *names):
    "Make the manifest agree with changed files, as a careful forger would."
    from ssr_nb.core import file_hash
    manifest = json.loads((run.folder / "run.json").read_text())
    manifest["files"] |= {name: file_hash(run.folder / name) for name in names}
    (run.folder / "run.json").write_text(json.dumps(manifest))
    return open_run(run.folder)


def change(run, name, function):
    frame = pd.read_parquet(run.folder / name)
    function(frame).to_parquet(run.folder / name, index=False)
    return rehash(run, name)


def test_a_run_verifies_with_every_server_gone(run, server, monkeypatch):
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"): monkeypatch.delenv(name)
    server.close()
    found = verify(run)
    assert found.equal, str(found)
    assert found.tables == {"concepts": 3, "respondents": 6, "answers": 72, "ratings": 72, "calls": 72, "summaries": 6, "findings": len(run.table("findings"))} and len(run.table("findings")) > 5
    assert any("embedded again" in note for note in found.notes)


def test_a_run_verifies_wherever_it_is_moved(run, tmp_path):
    elsewhere = tmp_path / "elsewhere" / "renamed"
    shutil.copytree(run.folder, elsewhere)
    assert verify(open_run(elsewhere)).equal


def test_one_word_of_an_anchor(run):
    path = run.folder / "inputs/anchors.yaml"
    anchors = yaml.safe_load(path.read_text())
    anchors[0]["reference_sets"][0]["anchors"][4] += " Really."
    path.write_text(yaml.safe_dump(anchors))
    said = "\n".join(verify(run).differences)
    assert "inputs/anchors.yaml was changed" in said and "purchase_intent_everyday_1" in said and "an anchor was changed" in said
    assert not verify(rehash(run, "inputs/anchors.yaml")).equal


def test_one_answer(run):
    changed = change(run, "answers.parquet", lambda f: f.assign(text=["I hate it." if n == 17 else text for n, text in enumerate(f["text"])]))
    assert any(line.startswith("answers.text in row 17 is 'I hate it.'") for line in verify(changed).differences)


def test_one_answer_in_the_calls_too(run):
    for name in ("answers.parquet", "calls.parquet"):
        first = pd.read_parquet(run.folder / "answers.parquet")["text"].iloc[0]
        changed = change(run, name, lambda f: f.assign(text=f["text"].replace(first, "It is quite all right with me.")))
    assert not verify(changed).equal


@pytest.mark.parametrize("name, column, function", [("ratings.parquet", "mean", lambda v: v + 1e-9), ("summary.parquet", "top_2_box", lambda v: v * 1.01), ("embeddings.parquet", "vector", lambda v: np.asarray(v) * np.linspace(1, 1.001, len(v)))])
def test_numbers(run, name, column, function):
    changed = change(run, name, lambda f: f.assign(**{column: [function(value) for value in f[column]]}))
    assert not verify(changed).equal


def test_a_missing_call_is_named(run):
    changed = change(run, "calls.parquet", lambda f: f.iloc[1:])
    assert "1 of 72 are missing" in verify(changed).differences[-1]


def test_another_version_of_the_code_is_a_note(run):
    manifest = json.loads((run.folder / "run.json").read_text())
    (run.folder / "run.json").write_text(json.dumps({**manifest, "version": "0.0.1"}))
    found = verify(open_run(run.folder))
    assert found.equal and any("0.0.1" in note for note in found.notes)


@pytest.mark.parametrize("processor", ["Prescott", "Nehalem", "Haswell"])  # whose instructions OpenBLAS is to sum with
def test_the_example_run_in_the_repository(processor):
    examples = list((ROOT / "runs/example").glob("*/run.json"))
    assert len(examples) == 1
    done = command("runs", "verify", examples[0].parent, "--json", env={"OPENBLAS_CORETYPE": processor})
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["equal"]
