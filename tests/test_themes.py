"""Reasons and themes: planted ones are found, chance makes no drivers, and small samples are told in a sentence."""

import json
from dataclasses import replace
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest

import model_answers
from conftest import ROOT, command
from model_server import model_server
from ssr_nb.analyses import derived, save_analysis
from ssr_nb.core import InputError
from ssr_nb.experiments import holm
from ssr_nb.interview import rate_answers
from ssr_nb.jobs import find_notebook, read_parameters
from ssr_nb.rating import load_embedder
from ssr_nb.reasons import bare_verdict, centred, characteristic_words, group, stop_words, terms, words
from ssr_nb.store import list_runs, open_run
from ssr_nb.themes import FEWEST_SENTENCES, STANCES, check_embedding, check_source, cluster_answers, conclusions, crossed, find_themes, mention_difference, plot_themes, recompute, stances
from ssr_nb.verify import results_of, verify

PLANTED = {"price": ["The {} is far too expensive.", "I can't justify the price of a {}.", "That costs more money than I can spend.", "The price is too high for me.", "I would wait until the {} is on sale.", "That is a lot of money for a {}."],
           "gift": ["It would make a nice gift for my sister.", "I'd give the {} to my mother for her birthday.", "A perfect present for a friend.", "My brother would be happy to find the {} under the Christmas tree.", "I could give it to my parents as a gift.", "It would be a lovely birthday present."],
           "waste": ["I worry about all the plastic waste.", "The {} creates too much rubbish.", "The packaging can't be recycled.", "It is bad for the environment.", "We have enough plastic in the sea already.", "The {} should come without plastic packaging."]}
NOUNS = {"Everwarm Mug": ("mug", 3.6), "Parcel Club": ("box", 3.0), "Fish Paste": ("toothpaste", 2.2)}


def planted(respondents=60, seed=0, effect=-.6):
    generator, rows = np.random.default_rng(seed), []
    for respondent in range(respondents):
        for concept, (noun, liked) in NOUNS.items():
            theme = generator.choice(list(PLANTED))
            rows.append((len(rows), respondent, concept, f"{generator.choice(PLANTED[theme]).format(noun)} I would buy it.", liked + effect * (theme == "price") + generator.normal(0, .4), theme))
    return pd.DataFrame(rows, columns=["answer_id", "respondent", "concept", "text", "mean", "planted"])


def stored_vectors(centres=4, texts=60, seed=0, spread=.35):
    "Random vectors about random centres, by text."
    generator = np.random.default_rng(seed)
    middle = generator.normal(size=(centres, 24))
    middle /= np.linalg.norm(middle, axis=1, keepdims=True)
    known = {f"Reason number {place} concerns matter{place % centres}.": middle[place % centres] + spread * generator.normal(size=24) / np.sqrt(24) for place in range(texts)}
    return known, lambda asked: np.array([known[text] for text in asked])


def said(known, respondents=50, concepts=("A",), seed=0, rating=None):
    generator = np.random.default_rng(seed)
    texts = list(known)
    rows = [(respondent, concept, texts[generator.integers(len(texts))], generator.normal(3, .5)) for respondent in range(respondents) for concept in concepts]
    return pd.DataFrame(rows, columns=["respondent", "concept", "text", "mean"]).assign(answer_id=range(len(rows)))


@pytest.fixture(scope="module")
def embed(): return load_embedder("minilm").embed


@pytest.fixture(scope="module")
def example(): return results_of(list_runs(ROOT / "runs/example")[0])


@pytest.fixture(scope="module")
def talkative(example):
    "The example's survey with answers that give reasons."
    generator, answers = np.random.default_rng(3), example.answers.copy()
    themes = generator.choice(list(PLANTED), len(answers))
    answers["text"] = [f"{generator.choice(PLANTED[theme]).format(NOUNS[concept][0])} {generator.choice(['I would buy it.', 'No, I would not buy it.'])}" for theme, concept in zip(themes, answers["concept"])]
    answers.loc[[0, 40], ["text", "status"]] = [["As an AI language model I cannot have preferences. The price is secret.", "refusal"], ["", "empty"]]
    answers.loc[~answers.index.isin([0, 40]), "status"] = "ok"
    rated, texts, vectors = rate_answers(example.survey, answers, load_embedder("minilm").embed)
    return replace(example, answers=answers, rated=rated)


# reasons

@pytest.mark.parametrize("sentence, verdict", [("I would definitely buy it.", True), ("No, I don’t think I'd ever want one!", True), ("It's not for me.", True), ("Great product, I love it", True), ("…", True), ("", True),
                                               ("It leaks.", False), ("I would buy it for $12.", False), ("My purse is empty.", False), ("I would buy it, but it is too dear", False)])
def test_verdicts_are_told_from_reasons(sentence, verdict):
    assert bare_verdict(sentence) is verdict


def test_further_words_and_other_languages():
    assert not bare_verdict("I love the Everwarm Mug.") and bare_verdict("I love the Everwarm Mug.", ("Everwarm", "MUG"))
    assert not bare_verdict("I would buy it.", language="de") and not stop_words("de")
    assert words("Don't, the mug’s LID!") == ["not", "the", "mug", "lid"]
    assert terms("It is not very heavy and it never leaks at all, but the lid is loose", stop_words("en")) == ["not heavy", "not leaks", "lid", "loose"]
    assert terms("not the and of it is a mug", stop_words("en")) == ["mug"]  # a negation does not reach so far


def test_words_that_all_themes_share_name_none():
    texts = ["the lid leaks badly", "the lid leaks again", "the lid smells odd", "the lid smells foul"]
    assert characteristic_words(texts, np.array([0, 0, 1, 1]), stop_words("en"), most=1) == [["leaks"], ["smells"]]
    assert characteristic_words(["it is", "that was"], np.array([0, 1]), stop_words("en")) == [[], []]
    assert characteristic_words(["apple", "pear"], np.array([0, 1])) == [["apple"], ["pear"]]  # said once, for want of anything better


def test_centring_takes_the_concept_out_and_keeps_equal_sentences_together():
    generator = np.random.default_rng(0)
    reasons, subjects = np.eye(12)[:3], 1.2 * np.eye(12)[3:6]
    vectors = np.array([reasons[r] + subjects[c] + .05 * generator.normal(size=12) for c in range(3) for r in range(3) for _ in range(10)])
    truth, concept = np.tile(np.repeat(range(3), 10), 3), np.repeat(range(3), 30)
    pairs = np.column_stack([np.arange(90), concept])
    def same(labels, wanted): return (pd.crosstab(labels, wanted) > 0).sum(axis=1).max() == 1
    assert same(group(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), 3)[0], concept)
    assert same(group(centred(vectors, pairs), 3)[0], truth)
    both = np.vstack([pairs, [0, 1]])  # the first sentence is said of a second concept too
    assert centred(vectors, both).shape == vectors.shape and np.allclose(np.linalg.norm(centred(vectors, both), axis=1), 1)
    labels, numbers = group(centred(vectors, pairs))
    assert numbers.loc[numbers["chosen"], "number"].item() == 3 and same(labels, truth)


# differences

def test_differences_are_those_of_a_regression():
    generator = np.random.default_rng(1)
    who, concept, weight = np.repeat(np.arange(40), 3), np.tile(["a", "b", "c"], 40), np.repeat(generator.uniform(.5, 2, 40), 3)
    mentioned, rating = generator.random(120) < .4, generator.normal(3, 1, 120)
    design = np.column_stack([mentioned, *(concept == one for one in "abc")]).astype(float)
    root = np.sqrt(weight)[:, None]
    wanted = np.linalg.lstsq(design * root, rating * root[:, 0], rcond=None)[0][0]
    found = mention_difference(rating, mentioned, who, concept, weight)
    assert np.isclose(found["difference"], wanted) and np.isclose(found["mean_with"] - found["mean_without"], wanted)
    assert np.isclose(mentioned @ weight / weight.sum() * found["mean_with"] + ~mentioned @ weight / weight.sum() * found["mean_without"], rating @ weight / weight.sum())
    shuffled = generator.permutation(120)
    again = mention_difference(rating[shuffled], mentioned[shuffled], who[shuffled], concept[shuffled], weight[shuffled])
    assert all(np.isclose(again[name], found[name]) for name in found)
    assert not np.isclose(mention_difference(rating, mentioned, who, concept, np.ones(120))["difference"], wanted)


def test_differences_that_cannot_be_tested():
    ones = np.ones(20)
    everyone = mention_difference(np.arange(20.), np.ones(20, bool), np.arange(20), ones, ones)
    assert all(np.isnan(value) for value in everyone.values())
    few = mention_difference(np.arange(20.), np.arange(20) < 4, np.arange(20), ones, ones)
    assert np.isclose(few["difference"], -10) and np.isnan(few["p"]) and np.isnan(few["difference_low"])
    apart = mention_difference(np.arange(20.), np.arange(20) < 10, np.arange(20), np.arange(20) < 10, ones)  # each concept wholly on one side
    assert all(np.isnan(value) for value in apart.values())
    constant = mention_difference(3 * ones, np.arange(20) < 10, np.arange(20), ones, ones)
    assert constant["difference"] == 0 and constant["p"] == 1


@pytest.mark.parametrize("mentioning, respondents, answers", [(.5, 60, 3), (.15, 60, 2), (.12, 60, 1)])
def test_intervals_cover_and_respond_to_clusters(mentioning, respondents, answers):
    generator, covered, tested = np.random.default_rng(11), 0, 0
    for _ in range(800):
        who, concept = np.repeat(np.arange(respondents), answers), np.tile(np.arange(answers), respondents)
        talks = generator.normal(0, 1, respondents)[who] + generator.normal(0, 1, len(who)) > np.sqrt(2) * np.array({.5: 0, .15: 1.036, .12: 1.175}[mentioning])
        rating = 3 + .5 * generator.normal(size=respondents)[who] + .4 * generator.normal(size=len(who)) + .3 * concept + .25 * talks
        found = mention_difference(rating, talks, who, concept, np.repeat(generator.choice([.5, 1., 2.], respondents), answers))
        if np.isnan(found["p"]): continue
        covered, tested = covered + (found["difference_low"] <= .25 <= found["difference_high"]), tested + 1
    assert tested > 500 and .93 <= covered / tested <= .985


def test_chance_makes_no_drivers():
    "Themes from stored random vectors, ratings that know nothing of them: at most about one survey in twenty shows any driver."
    false = []
    for seed in range(20):
        known, embed = stored_vectors(seed=seed)
        rows = said(known, respondents=50, concepts=("A", "B"), seed=seed)
        found = cluster_answers(rows, embed, number=4)
        generator = np.random.default_rng(100 + seed)
        who, concept, weight = (found.answers[name].to_numpy() for name in ("respondent", "concept", "weight"))
        mentions = [found.answers["answer_id"].isin(found.mentions.loc[found.mentions["theme"] == theme, "answer_id"]).to_numpy() for theme in found.themes["theme"]]
        for _ in range(100):
            rating = 3 + .4 * generator.normal(size=50)[who] + .5 * generator.normal(size=len(who))
            false.append(np.nanmin(holm(np.array([mention_difference(rating, one, who, concept, weight)["p"] for one in mentions]))) <= .05)
    assert .01 <= np.mean(false) <= .06


def test_stances_are_thirds_and_part_no_equals():
    generator = np.random.default_rng(0)
    thirds = stances(generator.random(300), np.ones(300))
    assert [int((thirds == one).sum()) for one in STANCES] == [100, 100, 100]
    assert set(stances(np.full(9, 3.), np.ones(9))) == {"middle third"} and len(stances(np.empty(0), np.empty(0))) == 0
    assert list(stances(np.array([1., 2, 3]), np.array([1., 1, 100]))) == ["lowest third", "lowest third", "middle third"]


# themes

def test_planted_themes_are_found(embed):
    from sklearn.metrics import adjusted_rand_score
    rows = planted()
    found = cluster_answers(rows, embed, number=3)
    reasons = found.mentions[found.mentions["theme"] > 0].merge(rows[["answer_id", "planted"]], on="answer_id")
    assert adjusted_rand_score(reasons["planted"], reasons["theme"]) > .75 and (found.mentions["theme"] == 0).sum() == len(rows)
    of = reasons.groupby("theme")["planted"].agg(lambda texts: texts.mode()[0])
    assert set(of) == set(PLANTED) and {name for name in of[found.themes.loc[found.themes["status"] == "with a lower rating", "theme"]]} == {"price"}
    price = found.themes.set_index("theme").loc[of[of == "price"].index[0]]
    assert price["difference_low"] < -.6 < price["difference_high"] and set(price["name"].split(", ")) & {"price", "money", "expensive"}
    assert list(found.themes["share"]) == sorted(found.themes["share"], reverse=True) and found.themes["p_holm"].ge(found.themes["p"]).all()
    assert found.themes[["share_low", "share", "share_high"]].apply(lambda row: row.is_monotonic_increasing, axis=1).all()
    assert set(found.quotes["sentence"]) <= set(found.mentions["sentence"]) and (found.quotes.groupby("theme").size() <= 3).all()


def test_the_order_of_rows_makes_no_difference(embed):
    rows = planted(40)
    found, again = (cluster_answers(frame, embed) for frame in (rows, rows.sample(frac=1, random_state=5)))
    for name, table in found.tables().items(): pd.testing.assert_frame_equal(table, again.tables()[name])
    assert found._repr_html_() == again._repr_html_() and plot_themes(found).svg == plot_themes(again).svg


def test_weights_matter_and_no_weight_is_no_voice():
    known, embed = stored_vectors()
    rows = said(known, 80)
    equal = cluster_answers(rows, embed, number=4)
    mine = set(equal.mentions.loc[equal.mentions["theme"] == 4, "respondent"])
    heavy = cluster_answers(rows.assign(weight=np.where(rows["respondent"].isin(mine), 3., 1.)), embed, number=4)
    n, m = len(rows), len(mine)
    assert np.isclose(equal.themes["share"].iloc[3], m / n) and np.isclose(heavy.themes["share"], 3 * m / (n + 2 * m)).any()
    silent = cluster_answers(rows.assign(weight=np.where(rows["respondent"] < 10, 0., 1.)), embed, number=4)
    assert silent.mentions["respondent"].min() == 10 and silent.answers["respondent"].nunique() == 70


def test_cuts_add_up():
    known, embed = stored_vectors()
    rows = said(known, 90, ("A", "B"))
    people = pd.DataFrame({"age": ["$50,000 or more", "under $25,000", "$25,000-$49,999"] * 30, "pet": ["cat", None] * 45})
    found = cluster_answers(rows, embed, number=3, people=people)
    for cut, order in (("age", ["under $25,000", "$25,000-$49,999", "$50,000 or more"]), ("pet", ["cat", "missing"]), ("concept", ["A", "B"]), ("stance", list(STANCES))):
        frame = found.by(cut)
        assert list(dict.fromkeys(frame["level"])) == order and len(frame) == 3 * len(order)
        if cut in ("age", "pet"): assert (frame.groupby("theme")["respondents"].sum().to_numpy() == found.themes["respondents"]).all() and (frame.groupby("level")["of"].first().sum() == 90)
        assert frame["difference"].isna().all() == (cut == "stance") and frame["share"].between(0, 1).all()
    assert found.by("pet")["p_holm"].ge(found.by("pet")["p"]).all()
    with pytest.raises(InputError, match="cut 'shoe' is unknown"): found.by("shoe")


def test_a_single_concept_is_compared_by_plain_means():
    known, embed = stored_vectors()
    rows = said(known, 90)
    found = cluster_answers(rows, embed, number=3)
    own = found.answers["answer_id"].isin(found.mentions.loc[found.mentions["theme"] == 1, "answer_id"])
    assert np.isclose(found.themes["mean_with"].iloc[0], found.answers.loc[own, "mean"].mean()) and np.isclose(found.themes["mean_without"].iloc[0], found.answers.loc[~own, "mean"].mean())


# little to go on

def frame(texts, mean=3.0): return pd.DataFrame({"answer_id": range(len(texts)), "respondent": range(len(texts)), "concept": "A", "text": texts, "mean": mean})


@pytest.mark.parametrize("texts, says", [([], "No answer in words was scored"), (["It leaks."], "of 1 sentence of 1 respondent 1 gives a reason"), (["I would buy it."] * 40, "none give a reason"), ([None, "", "4/5", "As an AI language model I cannot have preferences."], "No answer in words was scored"),
                                        (["It leaks."] * 60, "only 1 of these differ"), ([f"It leaks {place}." for place in range(FEWEST_SENTENCES - 1)], "19 give a reason")])
def test_too_little_is_said_in_a_sentence(texts, says):
    def never(asked): raise AssertionError("nothing needs to be embedded")
    found = cluster_answers(frame(texts), never)
    assert says in found.note and not len(found) and says in repr(found) and says in found._repr_html_() and says in repr(conclusions(found))
    assert plot_themes(found) is None and found.by("stance").empty and says in repr(crossed(found, "concept")) and says in repr(found.silhouettes())
    assert set(found.tables()) == {"themes", "theme_mentions", "theme_quotes", "theme_numbers", "theme_cuts"} and found.tables()["themes"].empty


def test_sentences_that_are_all_one_to_the_model():
    assert "too few of the sentences that give a reason differ" in cluster_answers(frame([f"It leaks {place}." for place in range(40)]), lambda texts: np.ones((len(texts), 4))).note


def test_more_themes_than_sentences_is_said_and_not_cut():
    known, embed = stored_vectors(texts=24)
    assert "40 different ones are needed for 20 themes" in cluster_answers(said(known, 90), embed, number=20).note
    with pytest.raises(InputError, match="number of themes is 1"): cluster_answers(said(known, 90), embed, number=1)


def test_everybody_rates_alike():
    known, embed = stored_vectors()
    found = cluster_answers(said(known, 60).assign(mean=3.0), embed, number=3)
    assert (found.themes["status"] == "not told apart").all() and np.allclose(found.themes["difference"], 0) and plot_themes(found) is not None


def test_markup_in_answers_stays_text():
    known, embed = stored_vectors()
    angry = {f"<script>alert({place})</script> & {text}": vector for place, (text, vector) in enumerate(known.items())}
    found = cluster_answers(said(angry, 60).assign(told="<b>"), lambda texts: np.array([angry[text] for text in texts]), number=3)
    for shown in (found._repr_html_(), conclusions(found)._repr_html_(), crossed(found, "stance")._repr_html_()): assert "<script" not in shown and "<b>" not in shown
    assert "<script" not in plot_themes(found).svg


# a survey's results

def test_the_example_gives_few_reasons(example):
    found = find_themes(example)
    assert found.note.startswith("No themes: of 132 sentences of 30 respondents 13 give a reason") and .5 < found.without_reason < 1
    assert set(found.mentions["answer_id"]) == set(example.ratings.loc[example.ratings["status"] == "ok", "answer_id"])


def test_results_with_reasons_and_their_record(talkative, tmp_path):
    found = find_themes(talkative, number=3, cuts=["stance", "concept", "gender"])
    assert len(found) == 3 and not found.note and found.mentions["answer_id"].isin([0, 40]).sum() == 0 and "secret" not in " ".join(found.mentions["sentence"])
    assert found.settings["embedding_model"] == "minilm" and set(found.tables()["theme_cuts"]["cut"]) == {"stance", "concept", "gender"} and "gender" in repr(crossed(found, "gender"))
    run = save_analysis(derived(talkative), "drivers", found.settings, found.tables(), found.stored(), runs=tmp_path / "runs")
    assert run.manifest["parent"] == talkative.manifest["run_id"]
    for name, table in recompute(open_run(run.run_id, tmp_path / "runs"), talkative).items():
        stored = run.table(name)
        assert len(stored) == len(table) and list(stored) == list(table)
        for column in table: assert (np.allclose(stored[column].astype(float), table[column].astype(float), atol=1e-12, equal_nan=True) if pd.api.types.is_float_dtype(table[column]) else list(stored[column]) == list(table[column])), (name, column)
    lost = SimpleNamespace(manifest=run.manifest, table=lambda name: run.table(name).iloc[1:])
    with pytest.raises(LookupError, match="has no vector"): recompute(lost, talkative)


def test_reasons_from_why(talkative):
    asked = replace(talkative, survey=replace(talkative.survey, ask_why=True), answers=talkative.answers.assign(why=talkative.answers["text"], text="I would buy it."))
    found = find_themes(asked, number=3)
    assert found.settings["source"] == "why" and len(found) == 3
    assert "give a reason" in find_themes(asked, source="answer").note
    with pytest.raises(InputError, match="does not ask why"): find_themes(talkative, source="why")
    for wrong in ("text", "Why"):
        with pytest.raises(InputError, match="source"): check_source(wrong, True)


def test_numbers_are_no_words(talkative):
    numbers = replace(talkative, survey=replace(talkative.survey, method="dlr"), answers=talkative.answers.assign(method="dlr"), rated={(construct, "dlr"): rated for (construct, _), rated in talkative.rated.items()})
    assert "No answer in words was scored" in find_themes(numbers).note


def test_hosted_models_are_never_asked(talkative, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"): monkeypatch.delenv(name, raising=False)
    hosted = replace(talkative, survey=replace(talkative.survey, embedding_model="text-embedding-3-small"))
    assert find_themes(hosted, number=3).settings["embedding_model"] == "minilm"
    with pytest.raises(InputError): check_embedding("text-embedding-3-small")
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    assert find_themes(hosted, number=3).settings["embedding_model"] == "minilm"
    with pytest.raises(InputError, match="is hosted"): check_embedding("text-embedding-3-small")


def test_unknown_cuts_and_constructs(talkative):
    with pytest.raises(InputError, match="cut 'shoe'"): find_themes(talkative, cuts=["shoe"])
    with pytest.raises(InputError, match="construct 'trust'"): find_themes(talkative, construct="trust")


# the notebook

def test_every_parameter_of_the_notebook_is_documented():
    assert all(one.help for one in read_parameters(find_notebook("drivers")).values())


def test_drivers_asks_analyses_and_analyses_again(tmp_path, monkeypatch):
    monkeypatch.setattr(model_answers, "STANCES", {word: [f"{text.format(word.lower())} {verdict}" for texts in PLANTED.values() for text in texts] for word, verdict in (("Mug", "I would definitely buy it."), ("Club", "I might buy it."), ("Fish", "I would never buy it."))})
    with model_server() as server:
        settings = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "test", "SSR_RUNS": str(tmp_path / "runs")}
        done = command("run", "drivers", "-p", "llm_model", "stand-in", "-p", "cohort_size", "30", "--json", env=settings)
        assert done.returncode == 0, done.stderr
        first, asked = open_run(json.loads(done.stdout)["folder"]), server.requests
        assert first.manifest["analysis"]["name"] == "drivers" and len(first.table("themes")) >= 3 and asked
        report = (first.folder / "report.html").read_text()
        assert report.count("<svg") == 1 and "cannot be concluded" in report and "highest third" in report
        assert verify(first, embed_again=False).equal
        done = command("run", "drivers", "-p", "run", first.run_id, "-p", "attributes", "region", "--json", env=settings)
        assert done.returncode == 0, done.stderr
        second = open_run(json.loads(done.stdout)["folder"])
        assert server.requests == asked and second.manifest["parent"] == first.run_id and second.table("themes").equals(first.table("themes"))
        assert verify(second, embed_again=False).equal and command("runs", "verify", second.folder, env=settings).returncode == 0
        for given, says in ((("attributes", "shoe"), "shoe"), (("source", "why"), "does not ask why")):
            done = command("run", "drivers", "-p", "llm_model", "stand-in", "-p", *given, env=settings)
            assert done.returncode == 1 and says in done.stderr and "Traceback" not in done.stderr and server.requests == asked


def test_drivers_of_a_silent_run_is_a_sentence(tmp_path):
    run = list_runs(ROOT / "runs/example")[0]
    done = command("run", "drivers", "-p", "run", run.folder, "--json", env={"SSR_RUNS": str(tmp_path / "runs")})
    assert done.returncode == 0, done.stderr
    made = open_run(json.loads(done.stdout)["folder"])
    assert "No themes: of 132 sentences" in (made.folder / "report.html").read_text() and made.table("themes").empty and made.manifest["parent"] == run.run_id
    assert nbformat.read(made.folder / "notebook.ipynb", as_version=4).cells
