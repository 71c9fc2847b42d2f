"""Google's models by both of its SDKs, asked at the stand-in server."""

import asyncio
import io
import os

import numpy as np
import pytest
from PIL import Image as pillow

from model_server import model_server
from ssr_nb.batches import BatchElicitation
from ssr_nb.calls import Journal, Reply, Request
from ssr_nb.core import InputError, Settings, SSRError
from ssr_nb.embedders import VectorCache
from ssr_nb.images import read_image
from ssr_nb.limits import Limits, TransientError
from ssr_nb.llms import load_llm
from ssr_nb.provider_gemini import Gemini, GeminiEmbedder, LegacyGemini, LegacyGeminiEmbedder
from ssr_nb.runner import Elicitation

NAME = "gemini-2.0-flash"
BOTH = pytest.mark.parametrize("kind", [Gemini, LegacyGemini])
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Inheritance class:DeprecationWarning")


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    for variable in ("GOOGLE_API_KEY", "GEMINI_API_KEY", "GOOGLE_GEMINI_BASE_URL"): monkeypatch.delenv(variable, raising=False)


def request(index=0, text="Would you buy the Mug?", **given):
    messages = [{"role": "system", "content": "You are Dana, 41."}, {"role": "user", "content": text}]
    return Request("x", NAME, {"messages": messages}, {"temperature": .5, "max_tokens": 100, **given.pop("parameters", {})}, index, **{"seed": index, **given})


def ask(llm, *requests):
    async def once():
        async with llm: return await asyncio.gather(*map(llm.ask, requests or [request()]))
    replies = asyncio.run(once())
    return replies if requests else replies[0]


def embedder(kind, server, tmp_path, **options):
    return kind(settings=Settings(google_base_url=server.google_url), cache=VectorCache(tmp_path / "vectors.sqlite"), limits=Limits(attempts=2, pause=.001), **options)


@BOTH
def test_a_chat(server, kind):
    reply = ask(kind(NAME, server.google_url))
    assert "buy this" in reply.text or "what I need" in reply.text
    assert reply.finish_reason == "stop" and reply.prompt_tokens > 0 and reply.completion_tokens > 0 and not reply.counted
    assert NAME in reply.served_model and reply.mode == "live"


def test_a_seed_is_sent_and_the_older_sdk_has_none(server):
    ask(Gemini(NAME, server.google_url), request(1), request(2))
    ask(LegacyGemini(NAME, server.google_url), request(3))
    assert sorted((one.seed for one in server.sent), key=str) == [1, 2, None]


@BOTH
def test_a_picture_and_an_earlier_answer(kind):
    file = io.BytesIO()
    pillow.new("RGB", (8, 8), "teal").save(file, "PNG")
    picture, seen = read_image(file.getvalue()), []
    messages = [{"role": "user", "content": "Look at this.", "images": [picture.hash]}, {"role": "assistant", "content": "Nice."}, {"role": "user", "content": "Would you buy it?"}]
    with model_server(answer=lambda body, number: seen.append(body) or "Yes.") as server:
        assert ask(kind(NAME, server.google_url), Request("x", NAME, {"messages": messages}, {"max_tokens": 100}, images={picture.hash: picture}))[0].text == "Yes."
    first, second, third = seen[0]["contents"]
    assert (first["role"], second["role"], third["role"]) == ("user", "model", "user")
    assert picture.media_type in first["parts"][1]["inlineData"].values() and seen[0]["generationConfig"]["maxOutputTokens"] == 100


@BOTH
@pytest.mark.parametrize("fault, error, said", [("401", SSRError, "set GOOGLE_API_KEY to a key"), ("403", SSRError, "set GOOGLE_API_KEY to a key"), ("402", SSRError, "GOOGLE_API_KEY.*another account"), ("quota", SSRError, "GOOGLE_API_KEY.*another account"),
                                                ("404", InputError, "is unknown to"), ("400", InputError, "refused the request"), ("429", TransientError, "429"), ("500", TransientError, "500"), ("503", TransientError, "503"),
                                                ("cut", TransientError, "was cut"), ("cut-before", TransientError, "was cut"), ("invalid-json", TransientError, "not what the protocol says"), ("empty-choices", TransientError, "no candidates")])
def test_what_a_fault_means(kind, fault, error, said):
    with model_server(fail=lambda number: fault) as server, pytest.raises(error, match=said) as told: ask(kind(NAME, server.google_url))
    if error is TransientError:
        assert told.value.billed == (fault not in ("429", "500", "503")) and told.value.throttled == (fault == "429") and told.value.outage == (fault in ("500", "503", "cut", "cut-before"))


@BOTH
def test_when_to_come_again(kind):
    with model_server(fail=lambda number: "429-retry-after", retry_after=2.5) as server, pytest.raises(TransientError) as told: ask(kind(NAME, server.google_url))
    assert told.value.throttled and 2.5 <= told.value.retry_after <= 3


@BOTH
def test_a_server_that_hangs_or_is_not_there(kind):
    with model_server(fail=lambda number: "hang") as server, pytest.raises(TransientError, match="no answer in time") as told: ask(kind(NAME, server.google_url, timeout=.3))
    assert told.value.billed
    with pytest.raises(TransientError, match="no connection") as told: ask(kind(NAME, "http://127.0.0.1:9"))
    assert told.value.unreachable and not told.value.billed


def test_the_same_without_aiohttp(monkeypatch):
    "A plain installation has httpx only."
    from google.genai import _api_client
    monkeypatch.setattr(_api_client, "has_aiohttp", False)
    for fault, said, billed in (("cut", "was cut", True), ("hang", "no answer in time", True), ("503", "503", False), ("invalid-json", "not what", True)):
        with model_server(fail=lambda number: fault) as server, pytest.raises(TransientError, match=said) as told: ask(Gemini(NAME, server.google_url, timeout=.3))
        assert told.value.billed == billed
    with pytest.raises(TransientError, match="no connection") as told: ask(Gemini(NAME, "http://127.0.0.1:9"))
    assert told.value.unreachable
    with model_server() as server: assert ask(Gemini(NAME, server.google_url)).finish_reason == "stop"


@BOTH
@pytest.mark.parametrize("fault, finished", [("content-filter", "content_filter"), ("prompt-filter", "content_filter"), ("length", "length"), ("empty-answer", "stop")])
def test_answers_that_are_not_whole(kind, fault, finished):
    with model_server(fail=lambda number: fault) as server: reply = ask(kind(NAME, server.google_url))
    assert reply.finish_reason == finished and (reply.text == "") == (fault != "length")


@BOTH
@pytest.mark.parametrize("fault", ["no-usage", "wrong-usage"])
def test_usage_that_cannot_be_is_counted(kind, fault):
    with model_server(fail=lambda number: fault) as server: reply = ask(kind(NAME, server.google_url))
    assert reply.counted and reply.prompt_tokens > 10 and reply.completion_tokens > 3 and reply.reasoning_tokens == 0


@pytest.mark.parametrize("name, given, sent", [("gemini-2.5-flash", {"max_reasoning_tokens": 1000}, 1000), ("gemini-2.5-flash", {"max_reasoning_tokens": 0}, 0), ("gemini-3.8-flash", {"max_reasoning_tokens": 1000, "reasoning_effort": "low"}, "LOW")])
def test_hidden_thoughts_are_limited_and_charged(name, given, sent):
    bodies = []
    with model_server(answer=lambda body, number: bodies.append(body) or "I might buy it.") as server: reply = ask(Gemini(name, server.google_url), request(parameters=given))[0]
    config = bodies[0]["generationConfig"]
    assert list(config["thinkingConfig"].values()) == [sent] and config["maxOutputTokens"] == 100 + given["max_reasoning_tokens"]
    if sent: assert reply.text and reply.reasoning_tokens > 0 and reply.completion_tokens > reply.reasoning_tokens


@BOTH
def test_the_key_comes_from_the_environment(kind, monkeypatch):
    with model_server(key="right") as server:
        for wrong in (None, "wrong"):
            if wrong: monkeypatch.setenv("GOOGLE_API_KEY", wrong)
            with pytest.raises(SSRError, match="set GOOGLE_API_KEY") as told: ask(kind(NAME, server.google_url))
            assert "wrong" not in str(told.value)
        monkeypatch.setenv("GOOGLE_API_KEY", "right")
        assert ask(kind(NAME, server.google_url)).text


@BOTH
def test_a_second_event_loop_and_many_calls(server, kind):
    llm = kind(NAME, server.google_url)
    for _ in range(2): assert all(reply.text for reply in ask(llm, *map(request, range(30))))
    assert server.requests == 60


@BOTH
def test_many_calls_through_faults(kind, tmp_path):
    async def run(server):
        with Journal(tmp_path / "calls.sqlite") as journal:
            async with Elicitation(kind(NAME, server.google_url), journal, Limits(attempts=12, pause=.001)) as elicitation: return await elicitation.ask([request(number) for number in range(60)])
    faults = dict.fromkeys(("429", "429-retry-after", "500", "503", "cut", "cut-before", "invalid-json", "empty-choices"), .05)
    with model_server(faults=faults, seed=3, retry_after=.01) as server: outcomes = asyncio.run(run(server))
    assert all(outcome.reply and outcome.reply.text for outcome in outcomes) and server.requests > 60


def test_a_batch_that_outlives_its_process():
    requests = [request(number) for number in range(5)]

    async def order():
        async with Gemini(NAME, server.google_url) as llm:
            batch_id = await llm.submit(requests, "token")
            assert not (await llm.poll(batch_id)).ended
            return batch_id

    async def collect():
        async with Gemini(NAME, server.google_url) as llm:
            assert await llm.find_batch("another") is None
            batch_id = await llm.find_batch("token")
            while not (state := await llm.poll(batch_id)).ended: await asyncio.sleep(.05)
            return batch_id, state, await llm.fetch(batch_id, {one.key: one for one in requests[1:]})

    with model_server(batch_seconds=.3) as server:
        ordered = asyncio.run(order())
        found, state, replies = asyncio.run(collect())
    assert found == ordered and state.problem is None
    assert replies.keys() == {one.key for one in requests[1:]} and all(isinstance(reply, Reply) and reply.mode == "batch" and reply.finish_reason == "stop" for reply in replies.values())
    assert sorted(one.seed for one in server.sent if one.seed is not None) == [0, 1, 2, 3, 4]


def test_an_order_that_was_taken_and_not_noted(tmp_path, monkeypatch):
    monkeypatch.setattr(BatchElicitation, "first_look", .05)
    noted = Journal.update_batch

    async def run(server):
        with Journal(tmp_path / "calls.sqlite") as journal:
            async with BatchElicitation(Gemini(NAME, server.google_url), journal, Limits(pause=.001)) as elicitation: return await elicitation.ask([request(number) for number in range(5)])

    def die(*arguments): raise RuntimeError("the process dies here")
    with model_server(batch_seconds=.1) as server:
        monkeypatch.setattr(Journal, "update_batch", die)
        with pytest.raises(RuntimeError, match="dies here"): asyncio.run(run(server))
        monkeypatch.setattr(Journal, "update_batch", noted)
        outcomes = asyncio.run(run(server))
        assert len(server.batches) == 1 and all(outcome.reply.mode == "batch" for outcome in outcomes)


def test_a_batch_with_failures_and_one_that_fails():
    requests = [request(number) for number in range(6)]

    async def run(server):
        async with Gemini(NAME, server.google_url) as llm:
            batch_id = await llm.submit(requests, "token")
            while not (state := await llm.poll(batch_id)).ended: await asyncio.sleep(.02)
            return state, await llm.fetch(batch_id, {one.key: one for one in requests})

    with model_server(batch_seconds=.05, faults={"batch:500": .5}, seed=1) as server: state, replies = asyncio.run(run(server))
    causes = [reply for reply in replies.values() if isinstance(reply, str)]
    assert state.problem is None and len(replies) == 6 and 0 < len(causes) < 6 and all(causes)
    with model_server(batch_seconds=.05, batch_outcome="failed") as server: state, replies = asyncio.run(run(server))
    assert "failed" in state.problem and not any(isinstance(reply, Reply) for reply in replies.values())


def test_a_batch_that_is_not_there(server):
    async def look():
        async with Gemini(NAME, server.google_url) as llm: await llm.poll("batches/nowhere")
    with pytest.raises(InputError, match="batches/nowhere.*ordered it"): asyncio.run(look())


@pytest.mark.parametrize("kind", [GeminiEmbedder, LegacyGeminiEmbedder])
def test_embeddings(server, tmp_path, kind):
    texts = [f"I would buy number {number}." for number in range(100)] + ["I would never buy it."]
    found = embedder(kind, server, tmp_path)
    vectors = found.embed(texts)
    assert vectors.shape == (101, 3072) and server.requests == 2  # a hundred at once
    assert np.array_equal(vectors[:2], embedder(kind, server, tmp_path).embed(texts[:2])) and server.requests == 2  # kept
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[-1] and found.tokens > 400 and found.cost_usd > 0


@pytest.mark.parametrize("kind", [GeminiEmbedder, LegacyGeminiEmbedder])
@pytest.mark.parametrize("fault, error, said", [("401", SSRError, "embedding_model.*set GOOGLE_API_KEY"), ("404", InputError, "embedding_model.*is unknown"), ("cut", SSRError, "after 2 attempts"), ("fewer", SSRError, "vectors for"), ("wrong-size", SSRError, "dimensions")])
def test_embeddings_that_fail(tmp_path, kind, fault, error, said):
    with model_server(fail=lambda number: fault) as server, pytest.raises(error, match=said): embedder(kind, server, tmp_path).embed(["I would buy it.", "I would not."])


def test_a_model_that_takes_several_parts_gives_a_vector_for_each_text(server, tmp_path):
    assert len(embedder(GeminiEmbedder, server, tmp_path, model="gemini-embedding-2").embed(["one", "two", "three"])) == 3


def test_models_by_their_names(tmp_path, monkeypatch):
    settings = Settings(google_base_url="https://gateway.example.org", cache=tmp_path)
    new, old = load_llm(NAME, settings), load_llm(f"gemini-legacy:{NAME}", settings)
    assert type(new) is Gemini and type(old) is LegacyGemini and new.provider != old.provider and new.batches and not old.batches
    for name in (NAME, f"gemini-legacy:{NAME}"):
        unkeyed = load_llm(name, Settings())  # enough for a preview and an estimate
        with pytest.raises(InputError, match=f"llm_model '{NAME}' .*set GOOGLE_API_KEY"): ask(unkeyed)
        with pytest.raises(InputError, match="transcript"): load_llm(name, settings, "transcript")
    for refused in ({"max_reasoning_tokens": 10}, {"reasoning_effort": "low"}):
        with pytest.raises(InputError, match=f"write 'gemini:{NAME}'"): old.check(refused)
    with pytest.raises(InputError, match="thinks"): load_llm("gemini-legacy:gemini-2.5-pro", settings).check({})
    monkeypatch.setattr("ssr_nb.provider_gemini.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'ssr_nb\[gemini-legacy\]'"): load_llm(f"gemini-legacy:{NAME}", settings)
    with pytest.raises(InputError, match=r"pip install 'ssr_nb\[gemini-legacy\]'"): LegacyGeminiEmbedder(settings=settings)


@pytest.mark.parametrize("kind", [GeminiEmbedder, LegacyGeminiEmbedder])
def test_vectors_without_a_key(kind, tmp_path):
    with pytest.raises(InputError, match="embedding_model 'gemini-embedding-001' .*set GOOGLE_API_KEY"): kind(settings=Settings(cache=tmp_path)).embed(["one"])


def test_vertex_settings_do_not_lead_elsewhere(server, monkeypatch):
    for name, value in (("GOOGLE_GENAI_USE_VERTEXAI", "true"), ("GOOGLE_CLOUD_PROJECT", "p"), ("GEMINI_API_KEY", "other")): monkeypatch.setenv(name, value)
    assert ask(Gemini(NAME, server.google_url)).text and server.requests == 1


@pytest.mark.live
@pytest.mark.skipif(not os.environ.get("GOOGLE_API_KEY") or bool(os.environ.get("GOOGLE_GEMINI_BASE_URL")), reason="GOOGLE_API_KEY is not set: no paid API is asked")
@pytest.mark.parametrize("llm_model", ["gemini-2.5-flash-lite", "gemini-legacy:gemini-2.5-flash-lite"])
def test_google_for_real(tmp_path, llm_model):
    from ssr_nb.personas import Panel
    from ssr_nb.survey import Concept, Survey
    asked = Survey([Concept("Mug", "A mug that keeps coffee hot for eight hours.", "$24")], Panel.us_adults(2), llm_model=llm_model, embedding_model="gemini-embedding-001", method="ssr,dlr,flr", samples=1)
    results = asked.run(progress=False, settings=Settings(tmp_path, tmp_path, has_google_key=True), max_cost_usd=.10)
    assert results.manifest["status"] == "complete" and 0 < results.manifest["cost_usd"] < .10
