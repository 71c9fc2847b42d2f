"""Surveys against a model behind a real HTTP server: whole, failing, resumed."""

import asyncio

import numpy as np
import pytest

from conftest import ROOT
from model_server import model_server
from ssr_nb.core import InputError, Settings, SSRError
from ssr_nb.interview import plan
from ssr_nb.limits import Limits
from ssr_nb.personas import Panel
from ssr_nb.prompts import PROMPTS
from ssr_nb.scales import Construct, load_construct
from ssr_nb.survey import Concept, Survey, read_concepts


def survey(concepts, **options):
    return Survey(concepts, Panel.us_adults(6, seed=1), llm_model="stand-in", **options)


def test_whole_path(hosted, server, concepts):
    results = survey(concepts).run(progress=False)
    assert len(server.asked) == 3 * 6 * 2 == len(results.answers)
    assert results.manifest["status"] == "complete" and results.statuses()["ok"] == 36
    summary = results.summary().set_index("concept")
    assert summary["rank"].to_dict() == {"Everwarm Mug": 1, "Parcel Club": 2, "Fish Paste": 3}
    assert (summary["mean_low"] <= summary["mean"]).all() and (summary["mean"] <= summary["mean_high"]).all()
    for row in summary.itertuples():
        assert np.isclose(sum(row.pmf), 1) and np.isclose(row.top_2_box, row.pmf[3] + row.pmf[4])
        assert np.isclose(row.mean, np.dot(row.pmf, [1, 2, 3, 4, 5]))


def test_equal_personas_are_separate_draws(hosted, server):
    import pandas as pd
    twins = Panel.from_frame(pd.DataFrame({"age": [40, 40]}), ["age"])
    Survey([Concept("Mug", "Keeps coffee hot")], twins, llm_model="stand-in", samples=3).run(progress=False)
    assert len(server.asked) == 6 and len(set(server.asked)) == 6  # the same messages, six different seeds


def test_only_named_columns_reach_a_model(hosted, server):
    import pandas as pd
    panel = Panel.from_frame(pd.DataFrame({"name": ["Secretia Smith"], "age": [40], "iban": ["GB00SECRET"]}), ["age"])
    Survey([Concept("Mug", "Keeps coffee hot")], panel, llm_model="stand-in").run(progress=False)
    assert all("40-year-old" in asked and "Secret" not in asked and "SECRET" not in asked for asked in server.asked)


@pytest.mark.parametrize("embedding_model, faults, said", [("gemini-embedding-001", {}, "set GOOGLE_API_KEY"), ("text-embedding-3-small", {"embeddings:401": 1.0}, "set OPENAI_API_KEY"), ("text-embedding-3-small", {"embeddings:404": 1.0}, "is unknown")])
def test_an_embedding_model_that_cannot_be_asked_is_found_out_before_an_answer_is_paid_for(tmp_path, monkeypatch, concepts, embedding_model, faults, said):
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    with model_server(faults=faults) as server:
        asked = survey(concepts, embedding_model=embedding_model)
        settings = Settings(runs=tmp_path, cache=tmp_path / "cache", openai_base_url=server.url)
        assert asked.estimate(settings=settings).calls == (36, 36)
        with pytest.raises(SSRError, match=said): asked.run(progress=False, settings=settings, limits=Limits(attempts=1))
        assert not server.asked


def test_given_settings_hold_for_the_embedding_model_too(server, tmp_path, monkeypatch, concepts):
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9")  # nobody is there
    monkeypatch.setenv("SSR_CACHE", str(tmp_path / "elsewhere"))
    settings = Settings(runs=tmp_path / "runs", cache=tmp_path / "cache", openai_base_url=server.url)
    results = survey(concepts, embedding_model="text-embedding-3-small").run(progress=False, settings=settings)
    assert results.statuses()["ok"] == 36
    assert (tmp_path / "cache" / "vectors.sqlite").is_file() and not (tmp_path / "elsewhere").exists()


def test_failures_are_rows_with_a_cause_and_a_second_run_asks_only_for_them(tmp_path, monkeypatch, concepts):
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    with model_server(fail=lambda number: 500 if number % 4 == 0 else None) as server:
        settings = Settings(runs=tmp_path, cache=tmp_path / "cache", openai_base_url=server.url)
        first = survey(concepts).run(progress=False, settings=settings, limits=Limits(attempts=1))
        failed = first.answers[first.answers["status"] == "error"]
        assert len(failed) == 9 and failed["text"].isna().all() and failed["cause"].str.contains("500").all()
        assert first.manifest["status"] == "incomplete" and "9 of 36" in first.manifest["warnings"][0]
        assert first.ratings.loc[failed.index, "mean"].isna().all()
        answered = len(server.asked)
        server.fail = lambda number: None
        second = survey(concepts).run(progress=False, settings=settings)
        assert len(server.asked) == answered + 9 == 36
    assert second.manifest["status"] == "complete" and second.manifest["journalled"] == 27
    kept = first.answers[first.answers["status"] == "ok"]
    assert second.answers.loc[kept.index, "text"].tolist() == kept["text"].tolist()


def test_retries_are_counted(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    with model_server(fail=lambda number: 429 if number == 1 else None) as server:
        results = Survey([Concept("Mug", "x")], Panel.us_adults(1), llm_model="stand-in", samples=1).run(progress=False, settings=Settings(tmp_path, tmp_path, openai_base_url=server.url))
    assert results.calls["attempts"].tolist() == [2]


def test_a_refused_key_ends_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    with model_server(fail=lambda number: 401) as server, pytest.raises(Exception, match="set OPENAI_API_KEY"):
        survey([Concept("Mug", "x")]).run(progress=False, settings=Settings(tmp_path, tmp_path, openai_base_url=server.url))


def test_twice_in_a_running_loop(hosted, server, concepts):
    async def notebook():
        first = survey(concepts[:1]).run(progress=False)
        second = await survey(concepts[:1], seed=1).arun(progress=False)
        return first, second
    first, second = asyncio.run(notebook())
    assert len(first.answers) == len(second.answers) == 12
    assert first.manifest["fingerprint"] != second.manifest["fingerprint"]


def test_another_temperature_rates_the_same_answers(hosted, server, concepts):
    results = survey(concepts).run(progress=False)
    sharper = results.by_construct["purchase_intent"].at(ssr_temperature=.5)
    assert (sharper.peakedness > results.by_construct["purchase_intent"].peakedness).all() and len(server.asked) == 36


def test_the_fingerprint_follows_the_content(concepts):
    from ssr_nb.survey import elicitation_hash, fingerprint
    def of(one): return fingerprint(one, elicitation_hash(one, PROMPTS["chat"], "p"), "e")
    base = of(survey(concepts))
    assert base == of(survey(list(concepts)))
    intent = load_construct("purchase_intent")
    fewer = Construct(intent.name, intent.question, intent.label, intent.locale, intent.scale_labels, intent.reference_sets[:2])
    changed = [survey(concepts[:2]), survey(concepts, seed=1), survey(concepts, ssr_epsilon=.1), survey(concepts, constructs=[fewer]), survey(concepts, max_tokens=100)]
    assert len({base, *map(of, changed)}) == 6


def test_the_plan_does_not_depend_on_anything_but_the_survey(concepts):
    keys = [[ask.request.key for ask in plan(survey(concepts), PROMPTS["chat"], "p")] for _ in range(2)]
    assert keys[0] == keys[1] and len(set(keys[0])) == 36


@pytest.mark.parametrize("options, said", [
    ({"concepts": []}, "concepts is empty"), ({"panel": None}, "panel is a NoneType"), ({"constructs": ["purchase_intend"]}, "'purchase_intend' is unknown"), ({"constructs": "trust"}, "give a list"),
    ({"samples": 0}, "samples is 0"), ({"method": "magic"}, "method 'magic'"), ({"ssr_temperature": -1}, "ssr_temperature is -1"), ({"scale_points": 9}, "no reference set of 9 points"),
    ({"reference_sets": ["nope"]}, "reference set 'nope'"), ({"locale": "de"}, "the answers are in 'de'"), ({"concepts": [Concept("a", "x"), Concept("a", "y")]}, "there twice"),
])
def test_bad_input_names_field_value_and_mend(options, said):
    given = {"concepts": [Concept("Mug", "x")], "panel": Panel.us_adults(2), **options}
    with pytest.raises(InputError, match=said): Survey(**given)


def test_an_unknown_model_is_never_replaced(tmp_path):
    with pytest.raises(InputError, match="OPENAI_API_KEY"): survey([Concept("Mug", "x")]).run(progress=False, settings=Settings(tmp_path, tmp_path))


@pytest.mark.parametrize("content, said", [
    (b"name,description\ncaf\xe9,x\n", "not UTF-8"), (b"name,text\na,b\n", "no column 'description'"), (b"name,description\na,\n", "describe what is shown"), (b"name,description\n", "no row"),
    (b"", "no CSV table"), (b"name,description,colour\na,b,c\n", "unknown column 'colour'"),
])
def test_bad_concept_files(tmp_path, content, said):
    path = tmp_path / "concepts.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said): read_concepts(path)


def test_a_construct_of_ones_own_is_one_file(hosted, server, tmp_path):
    own = (ROOT / "reference_sets/trust.yaml").read_text(encoding="utf-8").replace("construct: trust", "construct: confidence")
    (tmp_path / "confidence.yaml").write_text(own, encoding="utf-8")
    results = Survey([Concept("Mug", "x")], Panel.us_adults(2), constructs=[tmp_path / "confidence.yaml", "trust"], llm_model="stand-in").run(progress=False)
    assert set(results.summary()["construct"]) == {"confidence", "trust"}
