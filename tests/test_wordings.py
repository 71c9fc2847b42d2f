"""Wordings: the same question in other words, and a survey that asks in them."""

import json
import re

from pathlib import Path

import numpy as np
import pytest
import yaml

from conftest import ROOT, command
from ssr_nb import comparisons
from ssr_nb.core import InputError
from ssr_nb.experiments import compare
from ssr_nb.personas import Panel
from ssr_nb.scales import constructs, load_construct, read_construct
from ssr_nb.survey import Survey


@pytest.mark.parametrize("name", constructs())
def test_every_shipped_construct_has_at_least_eight_paraphrases(name):
    construct = load_construct(name)
    told = construct.questions(9)
    assert told[0] == construct.question and len({re.sub(r"\W+", " ", one).lower() for one in told}) == len(told)
    for one in told:
        assert "?" in one and one == " ".join(one.split()) and not re.search(r'["{}]', one)  # it stands between quotes in a transcript, and in a template
        assert not re.search(r"\d|\b(scales?|rat(e|es|ed|ing|ings)|scor(e|es|ing)|points?|numbers?|percent|out of|stars?)\b", one, re.IGNORECASE), one
        assert not re.search(r"\b(great|amazing|love|hate|terrible|awful|obviously|surely)\b", one, re.IGNORECASE), one
        assert ("statement" if name == "agreement" else "product") in one


def test_own_constructs_keep_their_own_wordings(tmp_path):
    content = yaml.safe_load((ROOT / "reference_sets/trust.yaml").read_text())
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({**content, "wordings": ["Do you trust it?"]}))
    own = read_construct(tmp_path / "own.yaml")
    assert own.questions(2) == [content["question"], "Do you trust it?"]
    with pytest.raises(InputError, match="2 wording"): own.questions(3)
    for wrong in ("Do you trust it?", [content["question"]], [" "]):
        (tmp_path / "wrong.yaml").write_text(yaml.safe_dump({**content, "wordings": wrong}))
        with pytest.raises(InputError, match="wordings"): read_construct(tmp_path / "wrong.yaml")


def test_a_survey_asks_in_every_wording(hosted, server, concepts):
    results = Survey(concepts[:2], Panel.us_adults(5, seed=1), [load_construct("purchase_intent")], llm_model="stand-in", samples=1, wordings=7).run(progress=False)
    assert len(server.asked) == 2 * 7 * 5 == len(results.ratings) and results.ratings.groupby("wording").size().tolist() == [10] * 7
    for number, question in enumerate(load_construct("purchase_intent").questions(7)): assert sum(question in asked for asked in server.asked) == 10, number
    comparison = comparisons.compare_concepts(results)
    assert comparison.frame["wordings"].tolist() == [7] and comparison.frame["respondents"].tolist() == [5]
    ratings = results.ratings.assign(weight=results.survey.panel.weights[results.ratings["respondent"]])
    assert compare(ratings).frame["effect"][0] == comparison.frame["effect"][0]
    assert comparisons.questions(results).frame["wording"].tolist() == load_construct("purchase_intent").questions(7)
    sources = comparisons.components(results, by_set=True).frame.set_index("source")
    assert sources.loc["reference_set", "levels"] == 6 and np.isclose(sources["share"].sum(), 1)


def test_sets_of_a_survey_rate_as_they_do_alone(hosted, concepts):
    one = Survey(concepts, Panel.us_adults(4, seed=1), llm_model="stand-in", samples=2, reference_sets=["purchase_intent_everyday_3"]).run(progress=False)
    assert comparisons.components(one, by_set=True).frame["source"].tolist() == comparisons.components(one).frame["source"].tolist()
    rated, alone = comparisons.components(one, by_set=True).frame["variance"], comparisons.components(one).frame["variance"]
    assert np.allclose(rated, alone)


def test_more_wordings_than_there_are_is_one_sentence(concepts):
    with pytest.raises(InputError, match="40 are wanted"): Survey(concepts, Panel.us_adults(2), ["trust"], wordings=40)


def test_the_comparison_as_a_job(server, tmp_path):
    environment = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "test", "SSR_RUNS": str(tmp_path / "runs")}
    done = command("run", "concept_comparison", "-p", "llm_model", "stand-in", "-p", "cohort_size", "6", "-p", "wordings", "7", "--json", env=environment)
    assert done.returncode == 0, done.stderr
    folder = Path(json.loads(done.stdout)["folder"])
    report = (folder / "report.html").read_text()
    assert json.loads((folder / "run.json").read_text())["answers"] == 3 * 7 * 6 and report.count("<svg") == 2 and "What cannot be concluded" in report and "p (Holm)" in report
    assert load_construct("purchase_intent").questions(7)[6] in report
    assert command("runs", "verify", folder, env=environment).returncode == 0
