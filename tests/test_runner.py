"""The runner against a server that does everything wrong: nothing invented, nothing lost, nothing asked twice, no limit passed."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict

import numpy as np
import pandas as pd
import pytest

from conftest import ROOT, interruptible
from model_server import PASSING_FAULTS, model_server
from ssr_nb.core import InputError, Settings, SSRError
from ssr_nb.limits import Limits
from ssr_nb.personas import Panel
from ssr_nb.pricing import count_tokens, own_price
from ssr_nb.survey import Concept, Survey

MUG = Concept("Mug", "A mug that keeps coffee hot for eight hours.", "$24")
STATUS = {None: "ok", "slow": "ok", "no-usage": "ok", "wrong-usage": "ok", "refusal": "refusal", "openai-refusal": "refusal", "bare-rating": "numeric", "empty-answer": "empty",
          "content-filter": "filtered", "prompt-filter": "filtered", "length": "truncated"}  # what the server sent -> what must be recorded; all else is no answer
HASTY = Limits(timeout=4, pause=.02, attempts=5, patience=20)


def settings_for(server, folder, cache=None, **more): return Settings(runs=folder / "runs", cache=cache or folder / "cache", openai_base_url=server.url, **more)


def survey(n=10, **options): return Survey([MUG], Panel.us_adults(n, seed=1), llm_model="gpt-4o", **{"samples": 2, **options})


def delivered(server):
    "What reached the client of each request: (messages, seed) -> faults that came with an answer."
    found = defaultdict(list)
    for one in server.sent:
        if one.fault in STATUS: found[(one.key, one.seed) if one.key else one.number].append(one)  # a prompt that was refused is not read
    return found


def test_two_thousand_answers_with_every_fault_at_once(tmp_path):
    with model_server(faults=PASSING_FAULTS, seed=3, numbered=True, delay=.01) as server:
        server.retry_after = .05
        settings = settings_for(server, tmp_path)
        results = survey(1000).run(progress=False, settings=settings, limits=Limits(timeout=4, pause=.02, attempts=2, patience=20))
        answers, sent = results.answers, delivered(server)
        assert len(answers) == 2000 and set(PASSING_FAULTS) <= set(server.counts())
        assert all(len(ones) == 1 for ones in sent.values())  # an answer that came whole is never asked for again
        told = {one.text.strip(): one for ones in sent.values() for one in ones if one.text}
        for row in answers.itertuples():
            if row.status != "error" and row.text: assert STATUS[told[row.text].fault] == row.status
        assert answers.loc[answers["status"] == "ok", "text"].is_unique
        expected = Counter(STATUS[ones[0].fault] for ones in sent.values())
        recorded = Counter(answers["status"])
        failed = recorded.pop("error")
        assert recorded == expected and failed == 2000 - len(sent) > 0
        assert results.manifest["status"] == "incomplete" and any(f"{failed} of 2000 answers failed" in warning for warning in results.manifest["warnings"])
        assert answers.loc[answers["status"] == "error", "cause"].str.contains("attempt").all() and results.manifest["retried"] > 0
        server.faults = {}
        again = survey(1000).run(progress=False, settings=settings, limits=HASTY)
        assert all(len(ones) == 1 for ones in delivered(server).values())
        assert again.manifest["status"] == "complete" and "error" not in set(again.answers["status"])
        kept = answers[answers["status"] != "error"]
        assert again.answers.loc[kept.index, "text"].fillna("").tolist() == kept["text"].fillna("").tolist()


def test_an_outage_is_waited_through(tmp_path):
    with model_server(burst=(30, 60)) as server:
        results = survey(60).run(progress=False, settings=settings_for(server, tmp_path), limits=Limits(pause=.02, attempts=2))
        assert results.manifest["status"] == "complete" and results.statuses()["ok"] == 120


def test_an_outage_without_end_leaves_an_incomplete_run(tmp_path):
    with model_server(burst=(20, 10**9)) as server:
        results = survey(60).run(progress=False, settings=settings_for(server, tmp_path), limits=Limits(pause=.02, attempts=2, patience=.5))
        assert results.manifest["status"] == "incomplete" and results.statuses()["error"] > 80
        assert server.requests < 120  # the breaker keeps it from asking on and on


def test_too_many_requests_slow_it_down_and_are_counted(tmp_path):
    with model_server(fail=lambda number: "429-retry-after" if number % 7 == 0 else None) as server:
        results = survey(100).run(progress=False, settings=settings_for(server, tmp_path), limits=HASTY)
        assert results.manifest["status"] == "complete" and results.manifest["retried"] == server.counts()["429-retry-after"] > 20


def test_requests_per_minute_are_kept(tmp_path):
    with model_server() as server:
        began = time.monotonic()
        survey(10).run(progress=False, settings=settings_for(server, tmp_path), limits=Limits(requests_per_minute=600))
        assert time.monotonic() - began >= (20 - 1 - 10) / 10  # a second's worth at once, the rest spaced


@pytest.mark.parametrize("fault, error, said", [
    ("401", SSRError, "set OPENAI_API_KEY to a key"), ("403", SSRError, "set OPENAI_API_KEY"), ("quota", SSRError, "no credit left .* set OPENAI_API_KEY"), ("402", SSRError, "no credit left"),
    ("404", InputError, "unknown to"), ("400", InputError, "refused the request"), ("unsupported-parameter", InputError, "temperature"),
])
def test_what_cannot_be_mended_ends_in_one_sentence_after_one_call(tmp_path, fault, error, said):
    with model_server(fail=lambda number: fault) as server:
        with pytest.raises(error, match=said) as told: survey().run(progress=False, settings=settings_for(server, tmp_path))
        assert server.requests == 1 and "\n" not in str(told.value)


def test_a_server_that_is_not_there_is_named(tmp_path):
    settings = Settings(runs=tmp_path, cache=tmp_path, openai_base_url="http://127.0.0.1:9/v1")
    with pytest.raises(SSRError, match="no connection to http://127.0.0.1:9/v1.*OPENAI_BASE_URL"): survey().run(progress=False, settings=settings, limits=Limits(pause=.01))


def spend(survey, server, folder, most, mode="live"):
    results = survey.run(progress=False, settings=settings_for(server, folder, folder.parent / "cache"), max_cost_usd=most, limits=HASTY, mode=mode)
    price = own_price("gpt-4o", survey.llm_price)
    billed = sum(price.cost(row.prompt_tokens, row.completion_tokens, batch=mode == "batch") for row in results.calls.itertuples())
    assert np.isclose(billed, results.manifest["cost_usd"]) and billed + results.manifest["possible_usd"] <= most
    return results


def test_the_limit_is_never_passed_over_fifty_random_prices_and_limits(tmp_path):
    draw = random.Random(7)
    stopped = 0
    with model_server(faults={"cut": .05, "500": .05, "429": .05, "no-usage": .05, "slow": .02}, seed=5) as server:
        for case in range(50):
            price = {"input_usd": 10 ** draw.uniform(-1, 2), "output_usd": 10 ** draw.uniform(-1, 2.5)}
            asked = survey(draw.randint(3, 15), llm_price=price, seed=case, max_tokens=draw.choice([20, 150]))
            whole = 2 * len(asked.panel) * own_price("m", price).cost(120, 15)
            results = spend(asked, server, tmp_path / str(case), whole * draw.uniform(.05, 4))
            stopped += any("max_cost_usd" in warning for warning in results.manifest["warnings"])
            assert results.answers.loc[results.answers["status"] == "error", "text"].isna().all()
    assert 10 < stopped < 45


def test_a_higher_limit_goes_on_where_the_lower_one_stopped(tmp_path):
    asked = survey(20, llm_price={"input_usd": 2.5, "output_usd": 10})
    with model_server() as server:
        first = spend(asked, server, tmp_path, .008)
        assert first.manifest["status"] == "incomplete" and "higher limit" in first.manifest["warnings"][-1]
        answered = server.requests
        second = spend(asked, server, tmp_path, 1.0)
        assert second.manifest["status"] == "complete" and server.requests == 40 > answered > 0


def test_a_limit_without_a_price_is_refused(tmp_path):
    with model_server() as server, pytest.raises(InputError, match="llm_price"):
        Survey([MUG], Panel.us_adults(2), llm_model="my-own-model").run(progress=False, settings=settings_for(server, tmp_path), max_cost_usd=1.0)


def simulated(draw, case):
    "A survey as researchers make them: some concepts and methods, answers of one to three sentences."
    words = draw.uniform(22, 45)  # the model's habit
    def said(body, number):
        if "whole number" in body["messages"][-1]["content"]: return "4"
        return " ".join(["word"] * max(3, round(draw.gauss(words, words / 3))))
    concepts = [Concept(f"Concept {n}", " ".join(["A product that does something useful."] * draw.randint(2, 25))) for n in range(draw.randint(1, 2))]
    return said, Survey(concepts, Panel.us_adults(draw.randint(10, 25), seed=case), llm_model=draw.choice(["gpt-4o", "gpt-4.1-mini"]), samples=draw.randint(1, 2), seed=case, method=draw.choice(["ssr", "ssr", "ssr,flr"]))


def test_the_estimate_holds_in_ninety_of_a_hundred_surveys(tmp_path):
    draw, held = random.Random(11), 0
    with model_server() as server:
        for case in range(100):
            factor = draw.uniform(.95, 1.05)  # what the model's own tokenizer makes of a token of ours
            server.count = lambda text: round(count_tokens(text) * factor)
            server.answer, asked = simulated(draw, case)
            settings = settings_for(server, tmp_path / str(case), tmp_path / "cache")
            found = asked.estimate(settings=settings)
            cost = asked.run(progress=False, settings=settings).manifest["cost_usd"]
            held += found.usd[0] <= cost <= found.usd[1]
            assert found.usd[1] <= 2 * found.usd[0]
    assert held >= 90, held


def test_a_pilot_is_paid_once_and_narrows_the_range(tmp_path):
    with model_server() as server:
        settings, asked = settings_for(server, tmp_path), survey(20)
        before, after = asked.estimate(settings=settings), asked.estimate(pilot=8, settings=settings)
        assert server.requests == 8 == after.pilot and after.usd[1] / after.usd[0] < before.usd[1] / before.usd[0]
        results = asked.run(progress=False, settings=settings)
        assert server.requests == 40 and results.manifest["journalled"] == 8


def test_the_guides_survey_costs_at_most_a_quarter(tmp_path):
    found = Survey([MUG], Panel.us_adults(200, seed=1), llm_model="gpt-4o", embedding_model="text-embedding-3-small", samples=1).estimate(settings=Settings(cache=tmp_path))
    assert found.calls == (200, 200) and found.usd[1] <= .25 and found.batch_usd[1] < .6 * found.usd[1] and found.cached_usd is not None


def test_an_answer_of_an_earlier_run_is_taken_only_where_that_is_on(tmp_path):
    with model_server() as server:
        for caching, asked in ((True, 20), (True, 20), (False, 40), (True, 40)):
            results = survey().run(progress=False, settings=settings_for(server, tmp_path, llm_caching=caching))
            results.save(tmp_path / "runs")
            assert server.requests == asked
        saved = results.manifest["costs"][0]
        assert saved["from_cache"] == 20 and saved["calls"] == 0 and saved["cost_usd"] == 0 and saved["saved_by_cache_usd"] > 0
        survey(seed=1).run(progress=False, settings=settings_for(server, tmp_path, llm_caching=True))
        assert server.requests == 60  # another seed is another draw


def test_what_failed_or_was_filtered_is_never_cached(tmp_path):
    with model_server(fail=lambda number: "content-filter" if number % 2 else None) as server:
        for name in ("one", "two"):
            survey().run(progress=False, settings=settings_for(server, tmp_path, llm_caching=True)).save(tmp_path / "runs")
        assert server.requests == 20 + 10


def test_a_model_that_reasons(tmp_path):
    with model_server() as server:
        settings = settings_for(server, tmp_path)
        for refused, said in (({}, "llm_temperature"), ({"llm_temperature": None}, "max_reasoning_tokens")):
            with pytest.raises(InputError, match=said): Survey([MUG], Panel.us_adults(2), llm_model="gpt-6-luna", **refused).run(progress=False, settings=settings)
        assert server.requests == 0
        results = Survey([MUG], Panel.us_adults(5), llm_model="gpt-6-luna", llm_temperature=None, max_reasoning_tokens=2000).run(progress=False, settings=settings)
    row = results.manifest["costs"][0]
    assert results.statuses()["ok"] == 10 and row["reasoning_tokens"] > 0 and row["completion_tokens"] > row["reasoning_tokens"] and row["cost_usd"] > 0


def test_a_batch_costs_half_and_survives_its_process(tmp_path):
    code = ("import sys\nfrom pathlib import Path\nsys.path[:0] = sys.argv[3:]\nfrom test_runner import survey\nfrom ssr_nb.core import Settings\n"
            "survey(20).run(progress=False, settings=Settings(Path(sys.argv[1]) / 'runs', Path(sys.argv[1]) / 'cache', openai_base_url=sys.argv[2]), mode='batch')")
    with model_server(batch_seconds=4) as server:
        ordering = subprocess.Popen([sys.executable, "-c", code, tmp_path, server.url, str(ROOT / "tests")])
        while not server.batches: time.sleep(.05)
        ordering.kill()
        ordering.wait()
        results = survey(20).run(progress=False, settings=settings_for(server, tmp_path), mode="batch")
        assert len(server.batches) == 1 and results.manifest["status"] == "complete" and results.statuses()["ok"] == 40
    row = results.manifest["costs"][0]
    assert set(results.calls["mode"]) == {"batch"} and np.isclose(row["saved_by_batch_usd"], row["cost_usd"])


@pytest.mark.parametrize("outcome", ["expired", "failed"])
def test_a_batch_that_ends_badly_leaves_rows_with_a_cause(tmp_path, outcome):
    with model_server(batch_seconds=.2, batch_outcome=outcome) as server:
        first = survey().run(progress=False, settings=settings_for(server, tmp_path), mode="batch", limits=HASTY)
        failed = first.answers[first.answers["status"] == "error"]
        assert 0 < len(failed) and failed["cause"].str.contains("batch").all() and first.manifest["status"] == "incomplete"
        server.batch_outcome = "completed"
        second = survey().run(progress=False, settings=settings_for(server, tmp_path), mode="batch", limits=HASTY)
        assert second.manifest["status"] == "complete" and second.manifest["journalled"] == 20 - len(failed)


def test_a_batch_keeps_the_limit(tmp_path):
    with model_server(batch_seconds=.1) as server:
        results = spend(survey(20, llm_price={"input_usd": 2.5, "output_usd": 10}), server, tmp_path, .01, mode="batch")
        assert 0 < results.statuses()["ok"] < 40 and results.manifest["status"] == "incomplete"


def test_all_methods_in_one_run_and_one_table(tmp_path):
    with model_server() as server:
        results = survey(6, samples=1, method=["ssr", "dlr", "flr"], ask_why=True, constructs=["purchase_intent", "trust"]).run(progress=False, settings=settings_for(server, tmp_path))
        assert server.requests == 2 * 6 * (1 + 1 + 1 + 1)  # in words, for a number, the expert, why
    summary = results.summary()
    assert summary.groupby("construct")["method"].apply(list).tolist() == [["ssr", "dlr", "flr"]] * 2
    assert (summary.query("method != 'flr'")["mean"] > 3.5).all() and results.answers.query("method != 'dlr'")["why"].notna().all()
    dlr = np.array(summary.query("method == 'dlr'")["pmf"].tolist())
    assert set(results.ratings.query("method == 'flr'")[["p1", "p2", "p3", "p4", "p5"]].to_numpy().ravel()) == {0.0, 1.0} and np.isclose(dlr.sum(axis=1), 1).all()
    spoken = results.answers.query("method == 'ssr'")["call_key"].tolist()
    assert spoken == results.answers.query("method == 'flr'")["call_key"].tolist()
    from ssr_nb.verify import verify
    assert verify(results.save(tmp_path / "runs")).equal


def test_an_answer_that_cannot_be_scored_is_replaced_and_counted(tmp_path):
    with model_server(fail=lambda number: "bare-rating" if number % 4 == 0 else None) as server:
        results = survey(10, replacements=2).run(progress=False, settings=settings_for(server, tmp_path))
    replaced = results.answers["replaced"].sum()
    assert replaced >= 5 == results.manifest["replaced"] - replaced + 5 and any("asked for again" in warning for warning in results.manifest["warnings"])
    from ssr_nb.verify import verify
    assert verify(results.save(tmp_path / "runs")).equal


def test_an_image_is_sent_kept_and_verified(tmp_path):
    from PIL import Image as pillow
    pillow.linear_gradient("L").resize((1500, 900)).convert("RGB").save(tmp_path / "mug.png")
    pd.DataFrame([{"name": "Mug", "description": "A mug", "image": "mug.png"}]).to_csv(tmp_path / "concepts.csv", index=False)
    from ssr_nb.store import open_run
    from ssr_nb.survey import read_concepts
    from ssr_nb.verify import verify
    with model_server() as server:
        results = Survey(read_concepts(tmp_path / "concepts.csv"), Panel.us_adults(3), llm_model="gpt-4o").run(progress=False, settings=settings_for(server, tmp_path))
        assert "data:image/jpeg;base64," in server.asked[0]
    assert not results.calls["request"].str.contains("base64").any()  # the journal keeps its hash
    run = results.save(tmp_path / "runs")
    assert [path.suffix for path in (run.folder / "inputs/images").iterdir()] == [".jpg"] and verify(open_run(run.folder)).equal
    with pytest.raises(InputError, match="reads none"): Survey(read_concepts(tmp_path / "concepts.csv"), Panel.us_adults(3)).preview()


def test_one_interruption_waits_for_what_is_on_its_way(tmp_path):
    code = ("import sys\nfrom pathlib import Path\nsys.path[:0] = sys.argv[3:]\nfrom test_runner import survey\nfrom ssr_nb.core import Settings\n"
            "survey(200).run(progress=False, settings=Settings(Path(sys.argv[1]) / 'runs', Path(sys.argv[1]) / 'cache', openai_base_url=sys.argv[2]))")
    with model_server(delay=.3) as server:
        asking = subprocess.Popen([sys.executable, "-c", code, tmp_path, server.url, str(ROOT / "tests")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible)
        while server.requests < 25: time.sleep(.02)
        asking.send_signal(signal.SIGINT)
        out, error = asking.communicate(timeout=30)
        assert asking.returncode != 0 and "waiting for the answers on their way" in out and "every answer so far is kept" in error
        asked = server.requests
        server.delay = 0
        results = survey(200).run(progress=False, settings=settings_for(server, tmp_path))
        assert results.manifest["journalled"] == asked < 400 == server.requests  # nothing that was sent was lost


@pytest.mark.parametrize("fault", ["wrong-size", "nan", "zero", "fewer", "shuffled", "500", "429-retry-after", "cut", "invalid-json"])
def test_broken_vectors_are_asked_for_again(tmp_path, monkeypatch, fault):
    from ssr_nb.provider_openai import OpenAIEmbedder
    with model_server(fail=lambda number: fault if number == 1 else None) as server:
        settings = settings_for(server, tmp_path)
        texts = ["I would buy it.", "Never.", "Perhaps."]
        embedder = OpenAIEmbedder("text-embedding-3-small", settings, limits=Limits(pause=.01))
        first = embedder.embed(texts)
        assert first.shape == (3, 1536) and np.isfinite(first).all() and server.requests == (1 if fault == "shuffled" else 2)
        assert np.allclose(first, OpenAIEmbedder("text-embedding-3-small", settings).embed(texts)) and server.requests <= 2
        server.fail = lambda number: None
        fresh = OpenAIEmbedder("text-embedding-3-small", settings_for(server, tmp_path / "other")).embed(texts)
        assert np.allclose(first, fresh)


def test_vectors_that_stay_broken_end_in_one_sentence(tmp_path):
    from ssr_nb.provider_openai import OpenAIEmbedder
    with model_server(fail=lambda number: "nan") as server, pytest.raises(SSRError, match="non-finite vector for 'I would buy it.'"):
        OpenAIEmbedder("text-embedding-3-small", settings_for(server, tmp_path), limits=Limits(pause=.01, attempts=2)).embed(["I would buy it."])


@pytest.mark.live
@pytest.mark.skipif(not os.environ.get("OPENAI_API_KEY") or bool(os.environ.get("OPENAI_BASE_URL")), reason="OPENAI_API_KEY is not set: no paid API is asked")
@pytest.mark.parametrize("llm_model, more", [("gpt-4o", {}), ("gpt-6-luna", {"llm_temperature": None, "max_reasoning_tokens": 2000})])
def test_openai_for_real(tmp_path, llm_model, more):
    asked = Survey([MUG], Panel.us_adults(2), llm_model=llm_model, embedding_model="text-embedding-3-small", method="ssr,dlr,flr", samples=1, **more)
    results = asked.run(progress=False, settings=Settings(tmp_path, tmp_path, has_openai_key=True), max_cost_usd=.10)
    assert results.manifest["status"] == "complete" and 0 < results.manifest["cost_usd"] < .10
