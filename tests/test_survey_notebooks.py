"""The survey notebooks price_ladder, tracking, segments and sensitivity as jobs, with truths planted in the model that answers."""

import re
from hashlib import blake2b

import numpy as np
import pandas as pd
import pytest

from ssr_nb import price_ladder, segmentation, sensitivity, tracking
from ssr_nb.analyses import derived, save_analysis
from ssr_nb.core import InputError
from ssr_nb.jobs import run_notebook
from ssr_nb.personas import Panel
from ssr_nb.prompts import Concept
from ssr_nb.survey import Survey
from ssr_nb.verify import compare, results_of, verify

SAID = ["No way, I would never buy this, it is disgusting.", "I probably would not buy it.", "I might buy it or I might not.", "I would probably buy it.", "I would definitely buy this, I love it."]


def uniform(*parts): return int(blake2b("\n".join(map(str, parts)).encode(), digest_size=6).hexdigest(), 16) / 2**48
def drawn(body): return uniform(body["messages"], body.get("seed"))
def say(place): return SAID[min(4, max(0, int(place)))]
def text(body): return str(body["messages"])


def job(name, said=None, **parameters):
    "A run that is whole, verifies, and whose tables follow from what it recorded."
    run = run_notebook(name, {"llm_model": "stand-in", **parameters} if not parameters.get("run") else parameters, progress=False)
    assert run.manifest["status"] == "complete", run.manifest["error"]
    found = verify(run, embed_again=False)
    assert found.equal, str(found)
    module = {"price_ladder": price_ladder, "tracking": tracking, "segments": segmentation, "sensitivity": sensitivity}[run.manifest["analysis"]["name"]]
    tables = module.recompute(run, results_of(run))
    assert sorted(tables) == run.manifest["analysis"]["tables"]
    for table, frame in tables.items(): assert compare(table, run.table(table), frame) == [], table
    report = (run.folder / "report.html").read_text()
    for words in said or (): assert words in report, words
    return run


# price ladder

def pays(body, number):
    "A 5 from who would pay the price shown, else a 1: everybody up to something between 0 and 20."
    price = float(re.search(r"at \$(\d+)", text(body))[1])
    return "5" if 20 * uniform(re.sub(r"\$\d+", "", text(body)), "worth") >= price else "1"


def test_a_ladder_finds_the_best_price_that_was_planted(hosted, server):
    server.answer = pays
    run = job("price_ladder", ["Demand falls with the price", "Revenue is highest at about", "Profit is highest at about", "weighted by 0, 0, 0, 0, 1"], method="dlr", prices="4,7,10,13,16", cohort_size=60, unit_cost=2.0, would_buy="0 0 0 0 1")
    optimum, demand = run.table("optimum"), run.table("demand")
    assert ((demand["low"] <= 1 - demand["price"] / 20) & (1 - demand["price"] / 20 <= demand["high"])).sum() >= 4
    revenue, profit = (optimum[(optimum["measure"] == measure) & optimum["effective_n"].isna()].iloc[0] for measure in ("revenue", "profit"))
    assert revenue["low"] <= 10 <= revenue["high"] and profit["low"] <= 11 <= profit["high"] and optimum["reported"].all()
    assert run.table("trend")["verdict"].tolist() == ["falls"] and len(run.table("answers")) == 5 * 60 and run.table("concepts")["concept"].tolist()[0] == "Everwarm Mug at $4"


def test_a_model_that_does_not_read_the_price_has_no_best_price(hosted, server):
    server.answer = lambda body, number: say(5 * drawn(body))
    run = job("price_ladder", ["No best price is reported", "no best price"], prices="10,20,30", cohort_size=30)
    assert run.table("trend")["verdict"].isin(["flat", "rising"]).all() and not run.table("optimum")["reported"].any()
    assert "Revenue is highest at about" not in (run.folder / "report.html").read_text()


def test_a_ladder_is_refused_before_it_is_asked(hosted, server):
    run = run_notebook("price_ladder", {"llm_model": "stand-in", "would_buy": "0 1"}, progress=False)
    assert run.manifest["status"] == "failed" and "2 weights for a scale of 5" in run.manifest["error"] and server.requests == 0


def test_how_a_price_is_shown():
    mug = Concept("Mug", "It keeps warm.", price="$9")
    shown = lambda **how: [one.shown() for one in price_ladder.priced_concepts(mug, [9.5, 1200], **how)]
    assert shown() == ["Mug at $9.50. It keeps warm.", "Mug at $1,200. It keeps warm."]
    assert shown(price_format="{price} € a month", price_position="end")[0] == "Mug at 9.50 € a month. It keeps warm. Price: 9.50 € a month."
    assert price_ladder.priced_concepts(Concept("Mug", "Yours for {price}."), [3], "£{price}", "text")[0].content() == {"name": "Mug at £3", "description": "Yours for £3.", "price": None}
    for wrong, said in (({"price_format": "dollars"}, "price_format"), ({"price_position": "below"}, "price_position"), ({"price_position": "text"}, "has no '{price}'")):
        with pytest.raises(InputError, match=said): shown(**wrong)
    for wrong in (["8"], ["8", "8"], ["0", "8"], ["8", "$9"], []):
        with pytest.raises(InputError, match="prices are"): price_ladder.read_prices(wrong)


# segments

def by_age(body, number):
    age = int(re.search(r"(\d+)-year-old", text(body))[1])
    return say(2.4 * drawn(body) + (2.6 if "Everwarm Mug" in text(body) and age < 45 else 0))


def test_segments_find_the_age_group_that_was_planted(hosted, server):
    server.answer = by_age
    run = job("segments", ["higher than the rest", "fewer than 18"], cohort_size=120, attributes="age_group,gender", minimum_size=18)
    frame = run.table("segments").set_index(["concept", "segment"])
    assert set(frame[frame["status"].isin(["higher", "lower"])].index.get_level_values("concept")) == {"Everwarm Mug"}
    assert frame.loc[("Everwarm Mug", "25-34"), "status"] == "higher" and frame.loc[("Everwarm Mug", "65+"), "status"] == "lower"
    assert (frame.loc[frame["respondents"] < 18, "status"] == "too small").all() and frame["p"].isna().eq(frame["status"] == "too small").all() and any("fewer than 18" in one for one in run.manifest["warnings"])


def test_attributes_that_cannot_segment_are_refused_before_anything_is_asked(hosted, server):
    run = run_notebook("segments", {"llm_model": "stand-in", "attributes": "age"}, progress=False)
    assert run.manifest["status"] == "failed" and "such as age_group" in run.manifest["error"] and server.requests == 0
    for wrong, said in ((["shoe"], "no column"), ([], "give a list"), ("gender", "give a list")):
        with pytest.raises(InputError, match=said): segmentation.check_attributes(Panel.us_adults(50, seed=1).frame, wrong)


def test_a_segment_against_the_rest_counts_weights():
    values, mine, generator = np.random.default_rng(2).normal(size=30), np.arange(30) < 12, np.random.default_rng(3)
    weights = np.ones(30)
    weights[0] = 3.0
    found, copied = segmentation.against_rest(values, weights, mine), np.r_[values[[0, 0]], values]
    assert np.isclose(found["value"], copied[:14].mean()) and np.isclose(found["difference"], copied[:14].mean() - values[12:].mean())
    turned = segmentation.against_rest(values, weights, ~mine)
    assert np.isclose(turned["difference"], -found["difference"]) and np.isclose(turned["low"], -found["high"]) and np.isclose(turned["p"], found["p"])
    assert np.isnan(segmentation.against_rest(values, weights, np.arange(30) < 1)["p"]) and segmentation.against_rest(np.r_[np.ones(9), np.zeros(9)], np.ones(18), np.arange(18) < 9)["p"] == 0
    covered = [abs(segmentation.against_rest(generator.exponential(size=60), np.ones(60), np.arange(60) < 20)["p"]) > .05 for _ in range(600)]
    assert .92 < np.mean(covered) < .98


# tracking

def waves(server, shift=0.0): server.answer = lambda body, number: say(3 * drawn(body) + (shift if "Parcel Club" in text(body) else 0))


def test_waves_find_what_changed_and_only_that(hosted, server):
    waves(server)
    first = job("tracking", ["first wave", "nothing to compare"], cohort_size=20)
    second = job("tracking", ["asking again may do", "Nothing is known to differ"], cohort_size=20)
    waves(server, 2)
    third = job("tracking", ["more than asking again would move it"], cohort_size=20, baseline="latest")
    assert [run.manifest["seed"] for run in (first, second, third)] == [0, 1, 2] and len(first.table("changes")) == 0
    assert second.table("changes")["status"].tolist() == ["within noise"] * 3 and second.table("earlier")["run_id"].unique().tolist() == [first.run_id]
    assert third.table("changes").set_index("concept")["status"].to_dict() == {"Everwarm Mug": "within noise", "Parcel Club": "higher", "Fish Paste": "within noise"}
    assert third.table("earlier")["run_id"].unique().tolist() == [second.run_id]


@pytest.fixture
def survey(concepts): return Survey(concepts, Panel.us_adults(8, seed=1), llm_model="stand-in")


def test_only_the_same_question_to_the_same_people_is_a_wave(hosted, server, survey, concepts):
    from dataclasses import replace
    waves(server)
    ask = lambda **change: replace(survey, **change).run(progress=False)
    kept = {name: ask(**change).save() for name, change in {"same": {}, "seed": {"seed": 3}, "panel": {"panel": Panel.us_adults(8, seed=2)}, "samples": {"samples": 3}, "model": {"llm_model": "other"}, "temperature": {"ssr_temperature": .5}, "sets": {"reference_sets": ["purchase_intent_everyday_3"]},
                                                              "text": {"concepts": [replace(concepts[0], description="A better mug."), *concepts[1:]]}}.items()}
    now = ask(seed=9)
    alike = sorted(kept[name].run_id for name in ("same", "seed"))  # of runs in one second, chance decides which is called later
    assert [run.run_id for run in tracking.earlier_runs(now, hosted.runs)] == alike and [run.run_id for run in tracking.earlier_runs(now, hosted.runs, "latest")] == alike[-1:]
    assert tracking.next_seed(survey, hosted.runs) == 4
    named = tracking.earlier_runs(now, hosted.runs, f"{kept['model'].run_id}, {kept['text'].run_id}")
    assert [run.run_id for run in named] == sorted(kept[name].run_id for name in ("model", "text"))
    told = repr(tracking.conclusions(tracking.tracking(now, tracking.earlier_waves(now, named, "purchase_intent"), "purchase_intent")))
    assert "the language model (other before" in told and "what is shown of Everwarm Mug" in told and "Several things differ at once" in told
    for name, said in (("panel", "panel"), ("samples", "samples"), ("temperature", "ssr_temperature"), ("sets", "question or anchors")):
        with pytest.raises(InputError, match=f"differs in {said}"): tracking.earlier_runs(now, hosted.runs, kept[name].run_id)
    with pytest.raises(InputError, match="neither an id"): tracking.named_runs("nowhere", hosted.runs)
    save_analysis(derived(results_of(kept["same"])), "again", {}, {}, runs=hosted.runs)
    assert len(tracking.earlier_runs(now, hosted.runs)) == 2, "a run derived from another's answers is no wave"
    with pytest.raises(InputError, match="samples is 1"): tracking.tracking(ask(samples=1), tracking.earlier_waves(now, [], "purchase_intent"), "purchase_intent")


def made_up(run_id, value, respondents=30, noise=.05, seed=0):
    generator, people = np.random.default_rng(seed), np.repeat(np.arange(respondents), 2)
    return pd.DataFrame({"run_id": run_id, "seed": seed, "llm_model": "m", "served": "", "reworded": False, "concept": "a", "respondent": people, "weight": 1.0, "top_box": value + generator.normal(0, noise, 2 * respondents), "mean": 3.0})


def test_waves_that_drift_by_themselves_widen_the_yardstick():
    settings = {"construct": "purchase_intent", "measure": "top-2-box"}
    for levels, unsteady, status in (((.4, .4, .4, .4), False, "higher"), ((.3, .5, .35, .45), True, "within noise")):
        earlier = pd.concat([made_up(str(number), level, seed=number) for number, level in enumerate(levels)], ignore_index=True)
        found = tracking.compare_waves(made_up(tracking.THIS, .46, seed=9), earlier, settings).changes.iloc[0]
        assert bool(found["unsteady"]) == unsteady and found["status"] == status


def test_a_change_is_taken_over_who_is_in_every_wave():
    earlier = made_up("1", .4, noise=0)
    earlier.loc[earlier["respondent"] < 10, "top_box"] = .9
    now = made_up(tracking.THIS, .4, noise=0)
    found = tracking.compare_waves(now[now["respondent"] >= 10], earlier, {"construct": "purchase_intent", "measure": "top-2-box"}).changes.iloc[0]
    assert found["respondents"] == 20 and abs(found["change"]) < 1e-12 and found["status"] == "within noise"


# sensitivity

def by_model(body, number): return say(2 * drawn(body) + (3 if ("Everwarm Mug" in text(body)) != (body["model"] == "other") else .5))


def test_sensitivity_finds_the_model_that_turns_the_order(hosted, server):
    server.answer = by_model
    run = job("sensitivity", ["Not under: language model, other", "language model"], cohort_size=12, wordings=2, llm_models="other", ssr_temperatures=".5", ssr_epsilons=".01")
    ranking = run.table("ranking")
    assert ranking.loc[~ranking["same_best"], "factor"].tolist() == ["llm_model"] and ranking.groupby("factor").size().to_dict() == {"llm_model": 1, "reference_sets": 6, "ssr_epsilon": 1, "ssr_temperature": 1, "wording": 2}
    assert set(run.table("calls")["llm_model"]) == {"stand-in", "other"} and len(run.table("calls")) == 2 * 3 * 2 * 12
    asked = server.requests
    again = job("sensitivity", ["Nothing was asked and nothing paid"], run=run.run_id, ssr_temperatures=".5", ssr_epsilons=".01")
    assert server.requests == asked and again.manifest["parent"] == run.run_id and set(again.table("calls")["llm_model"]) == {"stand-in"} and again.table("calls")["cost_usd"].sum() == 0
    shared = lambda one: one.table("sensitivity").query("factor != 'llm_model'").reset_index(drop=True)
    assert compare("sensitivity", shared(run), shared(again)) == []


def test_parameters_of_a_new_survey_are_refused_beside_an_earlier_run(hosted, survey):
    run = survey.run(progress=False).save()
    failed = run_notebook("sensitivity", {"run": run.run_id, "cohort_size": 7}, progress=False)
    assert failed.manifest["status"] == "failed" and "leave cohort_size out" in failed.manifest["error"]


def test_other_models_are_checked_before_anything_is_paid(hosted, server, survey):
    for wrong, said in ((["stand-in"], "answers the survey itself"), (["other", "other"], "twice")):
        with pytest.raises(InputError, match=said): sensitivity.other_models(survey, wrong)
    with pytest.raises(InputError, match="limit needs a price"): sensitivity.other_models(survey, ["other"], max_cost_usd=1.0)
    assert server.requests == 0


def test_one_concept_has_no_order(hosted, concepts):
    results = Survey(concepts[:1], Panel.us_adults(8, seed=1), llm_model="stand-in").run(progress=False)
    found = sensitivity.sensitivity(results, sensitivity.no_variants(), "purchase_intent")
    assert found.variants["tau"].isna().all() and "order" not in repr(sensitivity.conclusions(found)) and sensitivity.tornado(found).svg
    with pytest.raises(InputError, match="no ratings by semantic similarity"): sensitivity.sensitivity(results, sensitivity.no_variants(), "trust")
    for wrong in (["a"], ["-1"]):
        with pytest.raises(InputError, match="ssr_temperatures are"): sensitivity.read_numbers("ssr_temperatures", wrong)


# a panel of one's own

def people(path, rows=24):
    pd.DataFrame({"customer": [f"C{number}" for number in range(rows)], "age": [20 + number for number in range(rows)], "gender": ["female", "male"] * (rows // 2), "member": ["gold", "none", "none"] * (rows // 3),
                  "weight": [3.0 if number < 6 else .5 for number in range(rows)]}).to_csv(path, index=False)
    return str(path)


def test_a_concept_test_with_a_panel_of_ones_own(hosted, server, tmp_path):
    server.answer = lambda body, number: say(4 if int(re.search(r"(\d+)-year-old", text(body))[1]) < 26 else 1)
    given = {"llm_model": "stand-in", "samples": 1, "panel_file": people(tmp_path / "people.csv"), "panel_attributes": ["age", "gender"], "panel_weight": "weight"}
    run = run_notebook("concept_test", given, progress=False)
    assert run.manifest["status"] == "complete", run.manifest["error"]
    assert verify(run, embed_again=False).equal and run.manifest["cohort_size"] == 24 and run.manifest["panel_source"] == "the file people.csv" and len(server.asked) == 3 * 24
    assert not any("C3" in asked or "gold" in asked for asked in server.asked), "only the named columns are told"
    results = results_of(run)
    high, low = (results.ratings.loc[results.ratings["respondent"].map(chosen), "mean"].mean() for chosen in (lambda one: one < 6, lambda one: one >= 6))
    assert np.isclose(results.summary()["mean"][0], (18 * high + 9 * low) / 27) and "by segment. Everwarm Mug, female" in (report := (run.folder / "report.html").read_text()) and "Everwarm Mug, gold" in report
    drawn = run_notebook("concept_test", {**given, "cohort_size": 9, "segments": ["member"], "seed": 3}, progress=False)
    assert drawn.manifest["cohort_size"] == 9 and drawn.manifest["panel_source"] == "the file people.csv; 9 of 24 drawn" and len(server.asked) == 3 * 24 + 3 * 9 and verify(drawn, embed_again=False).equal
    assert "Everwarm Mug, female" not in (drawn.folder / "report.html").read_text()


@pytest.mark.parametrize("given, said", [({"cohort_size": 25}, "has 24 respondents"), ({"target_demographics": {"gender": "female"}}, "leave one of them out"), ({"panel_attributes": ["age", "shoes"]}, "column 'shoes' is not in the panel"),
                                         ({"panel_file": None, "panel_weight": "weight"}, "there is no panel_file"), ({"panel_weight": "customer"}, "weight column 'customer' has a missing"), ({"segments": ["age"]}, "segment 'age' has 24 levels"),
                                         ({"panel_file": "nowhere.csv"}, "does not exist"), ({"panel_attributes": ["age", "age"]}, "is there twice"), ({"panel_attributes": ["weight"], "panel_weight": "weight"}, "a model is not told a weight"),
                                         ({"panel_file": None, "target_demographics": {"age": [18, 30]}}, "choose one of age_range")])
def test_parameters_of_a_panel_that_contradict_are_refused_before_anything_is_asked(hosted, server, tmp_path, given, said):
    from ssr_nb.personas import survey_panel
    from ssr_nb.reports import segment_columns
    given = {"panel_file": people(tmp_path / "people.csv")} | given
    with pytest.raises(InputError, match=said): segment_columns(survey_panel(**{name: value for name, value in given.items() if name != "segments"}), given.get("segments"))
    if "segments" in given:
        failed = run_notebook("concept_test", {"llm_model": "stand-in", **given}, progress=False)
        assert failed.manifest["status"] == "failed" and said in failed.manifest["error"] and server.requests == 0


def test_other_notebooks_take_a_panel_of_ones_own(hosted, server, tmp_path):
    file = people(tmp_path / "people.csv")
    run = job("segments", panel_file=file, panel_attributes="age,gender", attributes="gender,member", minimum_size=5)
    assert set(run.table("segments")["segment"]) == {"female", "male", "gold", "none"} and run.manifest["cohort_size"] == 24
    compared = run_notebook("concept_comparison", {"llm_model": "stand-in", "panel_file": file, "panel_attributes": ["age"], "cohort_size": 12, "wordings": 6}, progress=False)
    assert compared.manifest["status"] == "complete" and compared.manifest["cohort_size"] == 12, compared.manifest["error"]


def test_the_report_of_adults_is_as_it_was(hosted, server):
    from ssr_nb.jobs import read_parameters
    run = run_notebook("concept_test", {"llm_model": "stand-in", "cohort_size": 12, "samples": 1}, progress=False)
    report = (run.folder / "report.html").read_text()
    assert report.count("top-2 box by segment") == 2 and "under $25,000" in report and "representativeness (region)" in report and run.manifest["parameters"]["segments"] is None
    assert run.manifest["panel_hash"] == Panel.us_adults(12, seed=0).hash and read_parameters("concept_test")["cohort_size"].optional
