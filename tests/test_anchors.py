"""All shipped sets pass the gate, and one bad set of each kind fails it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from conftest import ROOT, command
from ssr_nb.anchors import CHECKS, check_construct, check_sets, construct_status, read_ladder, record_evidence
from ssr_nb.core import InputError
from ssr_nb.rating import load_embedder
from ssr_nb.scales import ReferenceSet, constructs, load_construct

BAD = yaml.safe_load((Path(__file__).parent / "data/bad_sets.yaml").read_text())["bad_sets"]


@pytest.fixture(scope="module")
def minilm(): return load_embedder("minilm")


@pytest.mark.parametrize("name", constructs())
def test_shipped_sets_pass(name, minilm):
    found = check_construct(name, minilm)
    assert found.passed, str(found)
    assert found.ladder_answers >= 40 and len(found.sets) >= (6 if name == "purchase_intent" else 3)


def test_what_is_recorded_of_the_shipped_sets_is_true(tmp_path, minilm):
    recorded = {name: construct_status(load_construct(name), "minilm") for name in constructs()}
    assert {status.gate for status in recorded.values()} == {"passed"}  # as `test_shipped_sets_pass` finds
    assert "CEBaB" in recorded["satisfaction"].rating_claim and recorded["trust"].rating_claim.startswith("no text")
    record_evidence([check_construct("trust", minilm)], tmp_path / "evidence.yaml")
    assert "gate: passed" in (tmp_path / "evidence.yaml").read_text()


def test_what_must_be_shipped():
    assert set(constructs()) >= {"purchase_intent", "relevance", "satisfaction", "agreement", "likelihood_to_recommend", "value_for_money", "uniqueness", "believability", "trust"}
    for name in ("purchase_intent", "satisfaction"): assert load_construct(name).sets(scale_points=7)
    for name in constructs():
        construct = load_construct(name)
        assert "?" in construct.question and construct.locale == "en"
        assert all(one.provenance == "written for ssr_nb" and one.version >= 1 for one in construct.reference_sets)
        texts, grades, _ = read_ladder(ROOT / f"reference_sets/ladders/{name}.yaml")
        assert not set(texts) & {anchor for one in construct.reference_sets for anchor in one.anchors}
        kinds = [one["kind"] for one in yaml.safe_load((ROOT / f"reference_sets/ladders/{name}.yaml").read_text())["answers"]]
        assert {"plain", "negation", "hedge", "irony", "mixed"} <= set(kinds) and np.bincount(grades)[1:].min() >= 8


def test_there_is_a_bad_set_of_each_kind(): assert {bad["fails"] for bad in BAD} == set(CHECKS)


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad["id"])
def test_bad_sets_fail_the_check_they_are_bad_at(bad, minilm):
    construct = load_construct(bad["construct"])
    wrong = ReferenceSet(bad["id"], construct.name, bad["anchors"])
    texts, grades, _ = read_ladder(ROOT / f"reference_sets/ladders/{construct.name}.yaml")
    found = check_sets([wrong, *construct.reference_sets], texts, grades, minilm)[0]
    assert bad["fails"] in found.failures


def test_duplicate_of_another_wording_is_too_alike(minilm):
    construct = load_construct("trust")
    first = construct.reference_sets[0]
    echo = replace(first, id="echo", anchors=(*first.anchors[:-1], first.anchors[0].replace(".", "!")))
    texts, grades, _ = read_ladder(ROOT / "reference_sets/ladders/trust.yaml")
    assert any("say the same" in sentence for sentence in check_sets([echo, *construct.reference_sets[1:]], texts, grades, minilm)[0].failures["statements"])


def test_ladders_are_checked(tmp_path):
    with pytest.raises(InputError, match="does not exist"): read_ladder(tmp_path / "none.yaml")
    (tmp_path / "short.yaml").write_text("answers:\n- {grade: 1, text: no}\n")
    with pytest.raises(InputError, match="1 answers of 1 grades"): read_ladder(tmp_path / "short.yaml")


def test_the_gate_as_a_command(tmp_path):
    done = command("anchors", "check", "trust", "--json")
    assert done.returncode == 0 and '"passed": true' in done.stdout
    own = yaml.safe_load((ROOT / "reference_sets/trust.yaml").read_text())
    own["reference_sets"][0]["anchors"].reverse()
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(own))
    done = command("anchors", "check", tmp_path / "mine.yaml")
    assert done.returncode == 1 and "FAIL" in done.stdout and "ladder" in done.stdout
