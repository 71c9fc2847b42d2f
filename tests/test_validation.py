"""Validation against people: texts with ratings, and panels with published counts, as jobs and by hand."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from conftest import command
from ssr_nb.core import InputError
from ssr_nb.jobs import run_notebook, shortfall
from ssr_nb.panel_validation import NO_PERSONA, PERSONAS, item_constructs, item_survey, matched, read_people, scale_labels, two_arms, validate_panel
from ssr_nb.personas import Panel
from ssr_nb.rating_validation import MAJORITY, ONE_PERSON, TRAINED, read_rating_validation, read_texts, trained, validate_rating
from ssr_nb.store import connect, list_runs, open_run
from ssr_nb.survey import read_inputs
from ssr_nb.verify import results_of, verify

LABELS = "1=I hate it. | 2=I dislike it. | 3=It is okay. | 4=I like it. | 5=I love it. | N/A=I have never tried it."
SAID = {1: ["Dreadful. I want my money back.", "I hated every bite."], 2: ["Rather bland and cold.", "I was a bit let down."], 3: ["It was okay.", "Neither good nor bad."],
        4: ["Quite tasty, I was content.", "We liked it."], 5: ["Perfect! The best lunch of my life.", "I loved everything about it."]}


@pytest.fixture
def lunch(tmp_path):
    "A file of texts that people rated, with counts of raters and two texts a visitor."
    rows = pd.DataFrame([(text, stars, f"visitor {number}") for number in range(3) for stars, texts in SAID.items() for text in texts], columns=["text", "stars", "visitor"])
    rows[[f"n{r}" for r in range(1, 6)]] = np.array([3 * (rows["stars"] == r) + (abs(rows["stars"] - r) == 1) for r in range(1, 6)]).T
    rows.loc[len(rows)] = ["4/5", 4, "visitor 9", 0, 0, 0, 1, 0]
    rows.loc[len(rows)] = ["No stars here.", np.nan, "visitor 9", 0, 0, 0, 0, 0]
    rows.to_csv(tmp_path / "lunch.csv", index=False)
    return tmp_path / "lunch.csv"


@pytest.fixture
def people(tmp_path):
    "A survey that people answered: three things, which the stand-in model has opinions on, and a fourth."
    folder, generator = tmp_path / "people", np.random.default_rng(0)
    folder.mkdir()
    liking = {"Mug": [.02, .05, .13, .4, .4], "Club": [.1, .2, .4, .2, .1], "Fish": [.5, .3, .1, .06, .04], "Ring": [.2, .2, .2, .2, .2]}
    pd.DataFrame([(f"thing_{name}", f"How much do you like the {name}?", 5, LABELS) for name in liking], columns=["item_id", "question_text", "scale_points", "scale_labels"]).to_csv(folder / "things.items.csv", index=False)
    rows = [(f"thing_{name}", variable, level, 300, *generator.multinomial(300, p)) for name, p in liking.items() for variable, level in (("all", "all"), ("gender", "Female"), ("gender", "Male"), ("age", "18-44"), ("age", "> 44"), ("region", "Atlantis"))]
    pd.DataFrame(rows, columns=["item_id", "group_var", "group_level", "n", "c1", "c2", "c3", "c4", "c5"]).to_csv(folder / "things.marginals.csv", index=False)
    pd.DataFrame({"respondent": range(60), **{f"thing_{name}": [*generator.choice(5, 59, p=p) + 1, "N/A"] for name, p in liking.items()}}).to_csv(folder / "things.respondents.csv", index=False)
    return folder


# texts

def test_texts_are_read_with_their_people(lunch):
    texts = read_texts(lunch, "text", "stars", pmf_columns=[f"n{r}" for r in range(1, 6)], cluster_column="visitor")
    assert len(texts) == 31 and texts["human"].dtype == int and texts["counts"].iloc[0].tolist() == [3, 1, 0, 0, 0] and texts["cluster"].nunique() == 4
    assert len(read_texts(lunch, "text", "stars", most_texts=7, seed=1)) == 7 and read_texts(lunch, "text", "stars", most_texts=7, seed=1).equals(read_texts(lunch, "text", "stars", most_texts=7, seed=1))


@pytest.mark.parametrize("given, said", [
    ({"text_column": "body"}, "column 'body' is not in 'lunch.csv'"), ({"rating_column": "text"}, "give numbers"), ({"scale_points": 4}, "from 1 to 4"), ({"pmf_columns": ["n1", "n2"]}, "2 columns"), ({"construct": "lunchness"}, "construct 'lunchness' is unknown"),
    ({"point_rule": "best"}, "point_rule 'best'"), ({"ssr_temperatures": ["warm"]}, "ssr_temperatures"), ({"ssr_epsilons": [-1]}, "ssr_epsilons"), ({"ssr_temperatures": []}, "ssr_temperatures is empty"), ({"embedding_models": []}, "embedding_models is empty"),
    ({"embedding_models": ["word2vec"]}, "word2vec"), ({"reference_sets": ["none_such"]}, "none_such"), ({"rater": "oracle"}, "oracle"), ({"most_texts": 0}, "most_texts is 0"), ({"file": "gone.csv"}, "does not exist")])
def test_what_cannot_be_validated_is_one_sentence(lunch, given, said):
    with pytest.raises(InputError, match=said) as raised: validate_rating(**{"file": lunch, "text_column": "text", "rating_column": "stars", "construct": "satisfaction", **given})
    assert "\n" not in str(raised.value)


def test_a_validation_by_hand_is_recorded_read_back_and_verified(lunch, tmp_path):
    validation = validate_rating(lunch, "text", "stars", "satisfaction", ssr_temperatures=["1", "0.5"], pmf_columns=[f"n{r}" for r in range(1, 6)], cluster_column="visitor", trained_baseline=True, resamples=50)
    value = validation.agreement.set_index(["source", "measure"])["value"]
    assert value[validation.name, "spearman"] > .8 > value[MAJORITY, "exact"] and np.isnan(value[MAJORITY, "spearman"]) and {TRAINED, ONE_PERSON} <= set(value.index.get_level_values(0))
    assert (validation.agreement["n"][validation.agreement["source"] == validation.name] == 30).all() and validation.statuses["numeric"] == 1
    assert len(validation.comparison) == 2 * (1 + len(validation.rated["minilm"].reference_sets)) and validation.comparison["reference_sets"].iloc[0] == "all"
    run = validation.save(tmp_path / "runs")
    assert verify(run).equal and read_rating_validation(run).headline().equals(validation.headline()) and shortfall(run) is None
    assert connect(tmp_path / "runs").execute("SELECT status, method FROM runs").fetchall() == [("complete", "ssr")]
    table = run.table("predictions")
    table.loc[3, "mean"] += 1e-9
    table.to_parquet(run.folder / "predictions.parquet")
    again = verify(open_run(run.folder))
    assert not again.equal and any("predictions.mean in row 3" in line for line in again.differences)


def test_without_counts_or_clusters_there_is_no_ks(lunch, tmp_path):
    validation = validate_rating(lunch, "text", "stars", "satisfaction", resamples=20)
    assert "ks_similarity" not in set(validation.agreement["measure"]) and ONE_PERSON not in set(validation.agreement["source"])
    assert verify(validation.save(tmp_path / "runs")).equal


def test_the_trained_yardstick_never_sees_the_text_that_it_rates():
    generator = np.random.default_rng(0)
    human = generator.integers(1, 6, 300)
    noise = [" ".join(generator.choice(list("abcdefgh"), 6)) + f" own{i}" for i in range(300)]
    telling = [f"{text} word{rating}" for text, rating in zip(noise, human)]
    points = np.arange(1, 6)
    assert abs(np.corrcoef(trained(noise, human, 5, np.arange(300)) @ points, human)[0, 1]) < .2 and np.corrcoef(trained(telling, human, 5, np.arange(300)) @ points, human)[0, 1] > .9
    paired = trained([text for text in noise[:150] for _ in (0, 1)], np.repeat(human[:150], 2), 5, np.repeat(np.arange(150), 2))
    assert abs(np.corrcoef(paired @ points, np.repeat(human[:150], 2))[0, 1]) < .3
    assert np.allclose(trained(["", "!"], np.array([1, 5]), 5, np.arange(2)).sum(axis=1), 1)


def test_a_rating_is_validated_as_a_job(lunch, tmp_path):
    done = command("run", "validate_rating", "-p", "file", lunch, "-p", "rating_column", "stars", "-p", "pmf_columns", "n1,n2,n3,n4,n5", "-p", "ssr_temperatures", "1,0.5", "-p", "resamples", "50", "--json", env={"SSR_RUNS": str(tmp_path / "runs")})
    assert done.returncode == 0, done.stderr
    run = open_run(json.loads(done.stdout)["folder"])
    assert run.manifest["kind"] == "rating_validation" and run.manifest["parameters"]["ssr_temperatures"] == ["1", "0.5"] and len(run.manifest["headline"]) == 5 and len(run.manifest["fingerprint"]) == 64
    report = (run.folder / "report.html").read_text()
    assert report.count("<svg") == report.count("<svg aria-label=") == 3 and "balanced accuracy" in report and str(tmp_path) not in json.dumps(run.manifest["source"])
    assert verify(run).equal and command("runs", "verify", run.folder).returncode == 0
    done = command("run", "validate_rating", "-p", "file", lunch, "-p", "rating_column", "text", env={"SSR_RUNS": str(tmp_path / "runs")})
    assert done.returncode == 1 and "give numbers" in done.stderr and "Traceback" not in done.stderr


# panels

@pytest.mark.parametrize("text", ["", "good | bad", "1=a", "1=a | 3=c", "0=a | 1=b", "1=a | 2= "])
def test_labels_name_every_point(text):
    with pytest.raises(InputError, match="scale_labels"): scale_labels(text)


def test_people_are_read_and_items_become_constructs(people):
    found = read_people(people)
    assert found.scale_points == 5 and len(found.items) == 4 and found.ratings.isna().sum().sum() == 4 and read_people(people, "things", most_items=2).items.shape[0] == 2
    built = item_constructs(found)
    assert built[0].question == "How much do you like the Mug?" and built[0].sets(5)[0].anchors == scale_labels(LABELS) and len({one.sets(5)[0].id for one in built}) == 4
    assert len(item_constructs(found, "satisfaction")[0].sets(5)) == len(item_constructs(found, "satisfaction")[1].sets(5)) > 1


def test_folders_that_are_no_survey_are_one_sentence(people, tmp_path):
    with pytest.raises(InputError, match="does not exist"): read_people(tmp_path / "gone")
    with pytest.raises(InputError, match="no file of items"): read_people(tmp_path)
    for kind in ("items", "marginals"): (people / f"more.{kind}.csv").write_text("item_id\n1\n")
    with pytest.raises(InputError, match="2 files of items"): read_people(people)
    with pytest.raises(InputError, match="no column 'question_text'"): read_people(people, "more")
    for kind in ("items", "marginals"): (people / f"more.{kind}.csv").unlink()
    frame = pd.read_csv(people / "things.items.csv")
    for change, said in ((frame.assign(scale_labels=[LABELS, *["1=a | 2=b"] * 3]), "scales of 2 and 5 points"), (pd.concat([frame, frame]), "is there twice"), (frame.assign(item_id=["x", *frame["item_id"][1:]]), "no row of item 'x'")):
        change.to_csv(people / "things.items.csv", index=False)
        with pytest.raises(InputError, match=said): read_people(people)


def test_levels_are_matched_by_words_and_by_what_they_span():
    rows = pd.DataFrame({"age": ["18", "44", "45", "99", None], "income": ["under $25,000", "$25,000-$49,999", "$50,000-$99,999", "$150,000 or more", None], "gender": ["female", "male", "male", "female", None]})
    assert matched(rows, "age", ["18-44", "> 44"]).tolist() == ["18-44", "18-44", "> 44", "> 44", None]
    assert matched(rows, "income", ["$0 - $24,999", "$25,000 - $49,999", "$50,000 - $74,999", "$150,000+"]).tolist() == ["$0 - $24,999", "$25,000 - $49,999", None, "$150,000+", None]
    assert matched(rows, "gender", ["Female", "Male"]).tolist() == ["Female", "Male", "Male", "Female", None] and matched(rows, "shoe", ["any"]) is None


def test_an_arm_without_personas_says_nothing_about_anyone(people):
    from ssr_nb.panel_validation import ITEM_PROMPTS
    from ssr_nb.prompts import Concept
    panel = two_arms(Panel.us_adults(3, seed=1))
    assert panel.personas[3:] == [{}] * 3 and panel.personas[:3] == [{name: str(value) for name, value in one.items()} for one in Panel.us_adults(3, seed=1).personas] and len(two_arms(panel, False)) == 6
    for form in ("chat", "transcript"):
        asked = json.dumps(ITEM_PROMPTS[form].render({}, Concept("survey", "x"), item_constructs(read_people(people))[0]))
        assert "a person" in asked and "How much do you like the Mug?" in asked and "survey. x" not in asked


def test_a_panel_is_compared_with_people(people, hosted):
    found = read_people(people)
    results = item_survey(found, Panel.us_adults(12, seed=1), "stand-in", samples=1).run(progress=False, settings=hosted)
    assert len(results.answers) == 4 * 24
    validation = validate_panel(results, found, ["gender", "age", "region"], splits=50, resamples=50)
    value = validation.fidelity.set_index(["source", "measure"])["value"]
    assert value[PERSONAS, "r"] > .8 and {PERSONAS, NO_PERSONA} < set(value.index.get_level_values(0)) and set(validation.segments["group_var"]) <= {"gender", "age"}
    assert any("region" in warning for warning in validation.manifest["warnings"]) and any("weak anchors" in warning for warning in validation.manifest["warnings"])
    run = validation.save()
    assert {"fidelity", "segments", "contrasts", "item_means", "people_marginals"} <= {name.removesuffix(".parquet") for name in run.manifest["files"]} and verify(run, embed_again=False).equal
    changed = run.table("people_marginals").assign(c1=lambda frame: frame["c1"] + 5)
    changed.to_parquet(run.folder / "people_marginals.parquet", index=False)
    told = verify(run, embed_again=False).differences
    assert any("people_marginals.parquet was changed" in line for line in told) and any(line.startswith("fidelity.value") for line in told)
    survey, _ = read_inputs(run)
    assert survey.panel.hash == results.survey.panel.hash and results_of(run).summary(by="arm")["segment"].nunique() == 2
    again = validate_panel(results_of(run), found, ["gender"], splits=50, resamples=50)
    assert np.allclose(again.means[PERSONAS], validation.means[PERSONAS], atol=1e-12)
    with pytest.raises(InputError, match="segment 'shoe'"): validate_panel(results, found, ["shoe"])


def test_a_panel_is_validated_as_a_job_by_several_methods(people, hosted, tmp_path):
    run = run_notebook("validate_panel", {"folder": str(people), "llm_model": "stand-in", "cohort_size": 6, "method": "ssr,dlr", "segments": ["gender"], "splits": 50, "resamples": 50}, hosted, progress=False)
    assert run.manifest["status"] == "complete", run.manifest["error"]
    assert run.manifest["kind"] == "panel_validation" and {row["source"] for row in run.manifest["headline"]} >= {f"{arm}, {method}" for arm in (PERSONAS, NO_PERSONA) for method in ("ssr", "dlr")}
    report = (run.folder / "report.html").read_text()
    assert "half of the people" in report and report.count('role="img"') == 3 and verify(run, embed_again=False).equal and shortfall(run) is None
    without = run_notebook("validate_panel", {"folder": str(people), "llm_model": "stand-in", "cohort_size": 5, "baseline": False, "segments": [], "splits": 20, "resamples": 20}, hosted, progress=False)
    assert without.manifest["status"] == "complete" and without.manifest["answers"] == 20 and NO_PERSONA not in {row["source"] for row in without.manifest["headline"]}
    assert [one.manifest["status"] for one in list_runs(tmp_path / "runs")] == ["complete"] * 2


# people's own answers, where the folder is at hand

DATA = Path(os.environ.get("SSR_HUMAN_DATA", "nowhere"))


@pytest.mark.soak
@pytest.mark.skipif(not (DATA / "food_world_cup.items.dev.csv").exists(), reason="SSR_HUMAN_DATA names no folder of people's answers")
def test_ceilings_of_people_s_own_answers():
    from ssr_nb.fidelity import HALF, fidelity
    found = read_people(DATA, "food_world_cup")
    flat = found.marginals[["item_id", "group_var", "group_level"]].assign(**{f"p{r}": .2 for r in range(1, 6)})
    value = fidelity(found.marginals, {"flat": flat}, ratings=found.ratings, splits=500, resamples=50).set_index(["source", "measure"])["value"]
    assert value[HALF, "r"] == pytest.approx(.97, abs=.01) and value[HALF, "ks_similarity"] == pytest.approx(.945, abs=.01)


@pytest.mark.soak
@pytest.mark.skipif(not (DATA / "restaurant_cebab.dev.csv").exists(), reason="SSR_HUMAN_DATA names no folder of people's answers")
def test_yardsticks_of_people_s_own_reviews():
    validation = validate_rating(DATA / "restaurant_cebab.dev.csv", "text", "rating", "satisfaction", pmf_columns=[f"n{r}" for r in range(1, 6)], cluster_column="original_id", trained_baseline=True, resamples=100)
    value = validation.agreement.set_index(["source", "measure"])["value"]
    assert value[ONE_PERSON, "spearman"] == pytest.approx(.82, abs=.02) and value[TRAINED, "spearman"] == pytest.approx(.81, abs=.02) and value[validation.name, "spearman"] > .6
