"""The stand-in server, asked by the real SDKs: what each makes of every reply and every fault."""

import asyncio
import io
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

from model_server import EVERY_FAULT, STANCES, model_server

genai = pytest.importorskip("google.genai")
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class Aiohttp")
MUG = [{"role": "user", "content": "Everwarm Mug"}]
KINDS = ["429", "429-retry-after", "quota", "401", "402", "403", "404", "400", "500", "503", "529", "unsupported-parameter"]


def with_openai(use, timeout=5.0, key="x", **options):
    "What `use(client, server)` returns, and the server after it."
    async def run(server):
        async with openai.AsyncOpenAI(base_url=server.url, api_key=key, max_retries=0, timeout=timeout) as client: return await use(client, server)
    with model_server(**options) as server: return asyncio.run(run(server)), server


def with_google(use, timeout=5000, key="x", aiohttp=False, **options):
    "The same with google-genai, over httpx or aiohttp."
    from google.genai.types import HttpOptions, HttpRetryOptions
    async def run(server):
        quick = {"verify": False}  # certificates are slow to load, and not needed here
        transport = {} if aiohttp else {"transport": httpx.AsyncHTTPTransport(**quick)}
        client = genai.Client(api_key=key, http_options=HttpOptions(base_url=server.google_url, timeout=timeout, client_args=quick, async_client_args={**quick, **transport}, retry_options=HttpRetryOptions(attempts=1))).aio
        try: return await use(client, server)
        finally: await client.aclose()
    with model_server(**options) as server: return asyncio.run(run(server)), server


def chat(model="stand-in", messages=MUG, **parameters):
    async def use(client, server): return await client.chat.completions.create(model=model, messages=messages, **parameters)
    return use


def generate(model="gemini-2.0-flash", contents="Everwarm Mug", **config):
    async def use(client, server): return await client.models.generate_content(model=model, contents=contents, config=config)
    return use


def failure(call, *arguments, **options):
    with pytest.raises(Exception) as caught: call(*arguments, **options)
    return caught.value


# OpenAI: chats

def test_openai_answers_by_what_is_shown_and_records_it():
    async def use(client, server): return [(await chat(messages=[{"role": "user", "content": f"The {word}"}], seed=seed)(client, server)).choices[0].message.content for word in STANCES for seed in (0, 1)]
    answers, server = with_openai(use)
    assert answers == [answer for stances in STANCES.values() for answer in stances]
    assert json.loads(server.asked[1]) == [[{"role": "user", "content": "The Mug"}], 1] and server.requests == 6
    assert [(one.number, one.endpoint, one.fault, one.seed, one.text) for one in server.sent[:2]] == [(1, "chat", None, 0, answers[0]), (2, "chat", None, 1, answers[1])]
    assert len({(one.key, one.seed) for one in server.sent}) == 6 and server.sent[0].key == server.sent[1].key and server.counts() == {"ok": 6}


def test_openai_completions_pictures_stop_and_tokens():
    async def use(client, server):
        picture = [{"role": "user", "content": [{"type": "text", "text": "Mug"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]
        return await client.completions.create(model="m", prompt="Fish", seed=0, stop=[" buy"]), await chat(messages=picture)(client, server), await chat(max_tokens=5)(client, server)
    (transcript, picture, short), _ = with_openai(use)
    assert transcript.choices[0].text == "I would never" and transcript.usage.prompt_tokens == 5
    assert picture.usage.prompt_tokens == 204
    assert short.choices[0].finish_reason == "length" and short.choices[0].message.content == "I would definitely" and short.usage.completion_tokens == 5


@pytest.mark.parametrize("asked, digit", [("Mug. Answer with one number from 1 to 5.", "5"), ("Club: a number, 1-5", "3"), ("Fish: a number between 1 and 7", "1"),
                                          ("Someone said 'No way'. Give the number (1 to 5).", "1"), ("They said: I love it. Which number, 1 to 5?", "5")])
def test_a_number_where_a_number_is_wanted(asked, digit):
    reply, _ = with_openai(chat(messages=[{"role": "system", "content": "You are 40."}, {"role": "user", "content": asked}]), numbered=True)
    assert reply.choices[0].message.content == digit


@pytest.mark.parametrize("name, form", [("Mug", "chat"), ("Club", "chat-prefix-first"), ("Fish", "transcript")])
def test_the_prompts_of_the_package_are_understood(name, form):
    from ssr_nb.prompts import PROMPTS, Concept
    from ssr_nb.scales import load_construct
    template, intent, persona = PROMPTS[form], load_construct("purchase_intent"), {"age": 40}
    async def use(client, server):
        async def ask(prompt):
            if "messages" in prompt: return (await chat(messages=prompt["messages"], seed=0)(client, server)).choices[0].message.content
            return (await client.completions.create(model="m", prompt=prompt["prompt"], seed=0)).choices[0].text
        said = await ask(template.render(persona, Concept(name, "New."), intent))
        return said, await ask(template.render_rating(persona, Concept(name, "New."), intent, 5)), await ask(template.render_expert(said, intent, 5))
    number = {"Mug": "5", "Club": "3", "Fish": "1"}[name]
    assert with_openai(use)[0] == (STANCES[name][0], number, number)


def test_openai_reasoning_models():
    refused = failure(with_openai, chat("gpt-5-mini", max_tokens=10))
    assert isinstance(refused, openai.BadRequestError) and (refused.code, refused.param) == ("unsupported_parameter", "max_tokens")
    refused = failure(with_openai, chat("o4-mini", temperature=.5))
    assert (refused.code, refused.param) == ("unsupported_value", "temperature") and "Only the default (1) value is supported" in refused.message
    reply, _ = with_openai(chat("gpt-6-luna", temperature=1, max_completion_tokens=500))
    hidden = reply.usage.completion_tokens_details.reasoning_tokens
    assert hidden % 64 == 0 < hidden < reply.usage.completion_tokens <= 500
    spent, _ = with_openai(chat("gpt-6-luna", max_completion_tokens=20))
    assert (spent.choices[0].message.content, spent.choices[0].finish_reason, spent.usage.completion_tokens) == ("", "length", 20)


def test_long_prompts_that_begin_alike_are_cached():
    async def use(client, server): return [(await chat(model, [{"role": "system", "content": "long " * 1200}, *MUG])(client, server)).usage.prompt_tokens_details.cached_tokens for model in ("a", "a", "b")]
    assert with_openai(use)[0] == [0, 1408, 0]


@pytest.mark.parametrize("fault, kind, code", [
    ("429", "RateLimitError", "rate_limit_exceeded"), ("429-retry-after", "RateLimitError", "rate_limit_exceeded"), ("quota", "RateLimitError", "insufficient_quota"), ("401", "AuthenticationError", "invalid_api_key"),
    ("402", "APIStatusError", "insufficient_balance"), ("403", "PermissionDeniedError", "unsupported_country_region_territory"), ("404", "NotFoundError", "model_not_found"), ("400", "BadRequestError", None),
    ("500", "InternalServerError", None), ("503", "InternalServerError", None), ("529", "InternalServerError", None), ("unsupported-parameter", "BadRequestError", "unsupported_parameter"), ("prompt-filter", "BadRequestError", "content_filter")])
def test_openai_refusals(fault, kind, code):
    error = failure(with_openai, chat(), fail=lambda number: fault)
    status = {"quota": 429, "unsupported-parameter": 400, "prompt-filter": 400}.get(fault) or int(fault[:3])
    assert type(error).__name__ == kind and (error.status_code, error.code) == (status, code) and error.request_id == "req_1"
    assert (error.response.headers.get("retry-after"), error.response.headers.get("retry-after-ms")) == (("1", "50") if fault == "429-retry-after" else (None, None))


@pytest.mark.parametrize("fault, kind, cause", [("hang", openai.APITimeoutError, "ReadTimeout"), ("cut-before", openai.APIConnectionError, "RemoteProtocolError"), ("cut", openai.APIConnectionError, "RemoteProtocolError")])
def test_openai_broken_connections(fault, kind, cause, capfd):
    error = failure(with_openai, chat(), timeout=.5, fail=lambda number: fault)
    assert type(error) is kind and type(error.__cause__).__name__ == cause and capfd.readouterr() == ("", "")


def test_openai_slow_and_what_is_no_json():
    async def use(client, server):
        started = time.perf_counter()
        await chat()(client, server)
        server.fail = lambda number: "invalid-json"
        return time.perf_counter() - started, await chat()(client, server), await asyncio.gather(chat()(client, server), return_exceptions=True)
    (seconds, page, [error]), server = with_openai(use, fail=lambda number: "slow")
    assert seconds >= .25 and "<html>" in page and isinstance(error, json.JSONDecodeError)  # the SDK returns the page as a string, and lets the decoder's error through
    assert server.counts() == {"slow": 1, "invalid-json": 2} and len(server.asked) == 1


@pytest.mark.parametrize("fault, finish, begins", [("content-filter", "content_filter", ""), ("length", "length", "I would def"), ("refusal", "stop", "I'm sorry, but as an AI"), ("bare-rating", "stop", "4/5"), ("empty-answer", "stop", ""), ("openai-refusal", "stop", None),
                                                   ("no-usage", "stop", "I would definitely"), ("wrong-usage", "stop", "I would definitely")])
def test_openai_content(fault, finish, begins):
    reply, server = with_openai(chat(seed=0), fail=lambda number: fault)
    assert server.counts() == {fault: 1} and len(server.asked) == 1
    [choice] = reply.choices
    assert choice.finish_reason == finish and (choice.message.content is None if begins is None else choice.message.content == "" if begins == "" else choice.message.content.startswith(begins))
    assert bool(choice.message.refusal) == (fault == "openai-refusal")
    assert reply.usage is None if fault == "no-usage" else (reply.usage.prompt_tokens < 0) == (fault == "wrong-usage")


def test_openai_without_choices():
    assert with_openai(chat(), fail=lambda number: "empty-choices")[0].choices == []


# OpenAI: embeddings

@pytest.mark.parametrize("fault", [None, "wrong-size", "nan", "zero", "fewer", "shuffled"])
@pytest.mark.parametrize("encoding", ["base64", "float"])
def test_openai_embeddings(fault, encoding):
    async def use(client, server):  # not naming the encoding is base64, too
        return await client.embeddings.create(model="text-embedding-3-small", input=["I would buy it", "I would buy this", "Trains are late"], **({"encoding_format": "float"} if encoding == "float" else {}))
    reply, server = with_openai(use, faults={fault: 1.0} if fault else {})
    vectors = np.array([entry.embedding for entry in reply.data])
    assert vectors.shape == {"wrong-size": (3, 768), "fewer": (2, 1536)}.get(fault, (3, 1536)) and server.counts() == {fault or "ok": 1} and reply.usage.prompt_tokens == 16
    assert [entry.index for entry in reply.data] == ([1, 2, 0] if fault == "shuffled" else [0, 1, 2][:len(vectors)])
    assert np.isnan(vectors[0]).all() == (fault == "nan") and (vectors[0] == 0).all() == (fault == "zero")
    if fault is None: assert np.allclose(np.linalg.norm(vectors, axis=1), 1) and vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + .3


def test_openai_embedding_sizes_and_limits():
    async def use(client, server): return [len((await client.embeddings.create(input="x", **options)).data[0].embedding) for options in ({"model": "text-embedding-3-large"}, {"model": "text-embedding-3-large", "dimensions": 64})]
    assert with_openai(use)[0] == [3072, 64]
    for given in ("", ["x", ""], ["x"] * 2049):
        async def wrong(client, server): await client.embeddings.create(model="text-embedding-3-small", input=given)
        assert isinstance(failure(with_openai, wrong), openai.BadRequestError)


# OpenAI: batches

def batch(lines=8, stop=None, **more):
    async def use(client, server):
        content = "\n".join(json.dumps({"custom_id": f"line {number}", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": MUG, "seed": number}, **more}) for number in range(lines))
        file = await client.files.create(file=("token.jsonl", io.BytesIO(content.encode())), purpose="batch")
        found = await client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"token": "t"})
        states = [found.status]
        while found.status in ("validating", "in_progress", "cancelling"):
            if found.status == stop: found = await client.batches.cancel(found.id)
            else: found = await client.batches.retrieve(found.id)
            if found.status != states[-1]: states.append(found.status)
            await asyncio.sleep(.01)
        assert [one.id async for one in client.batches.list(limit=1) if one.metadata["token"] == "t"] == [found.id]
        rows = [[json.loads(line) for line in (await client.files.content(name)).text.splitlines()] if name else [] for name in (found.output_file_id, found.error_file_id)]
        assert (await client.files.retrieve(file.id)).bytes == len(content) and (await client.files.delete(file.id)).deleted
        return found, states, *rows
    return use


def test_an_openai_batch():
    (found, states, output, errors), server = with_openai(batch(), batch_seconds=.3, faults={"500": .2, "429": .2, "refusal": .3}, seed=2)
    assert states == ["validating", "in_progress", "completed"] and found.request_counts.total == 8
    names = [row["custom_id"] for row in output + errors]
    assert sorted(names) == [f"line {number}" for number in range(8)] and [row["custom_id"] for row in output] != sorted(row["custom_id"] for row in output)
    lines = [one for one in server.sent if one.endpoint == "batch"]
    assert Counter(str(row["response"]["status_code"]) for row in errors) == {kind: count for kind, count in Counter(one.fault for one in lines).items() if kind in ("500", "429")} and errors
    assert sum("as an AI" in row["response"]["body"]["choices"][0]["message"]["content"] for row in output) == sum(one.fault == "refusal" for one in lines) > 0
    assert {one.seed for one in lines} >= {int(row["custom_id"][5:]) for row in output} and len(server.asked) == len(output) == found.request_counts.completed


@pytest.mark.parametrize("outcome, output, code", [("expired", 4, "batch_expired"), ("cancelled", 4, "batch_cancelled"), ("failed", 0, None)])
def test_openai_batches_that_end_otherwise(outcome, output, code):
    (found, states, done, errors), _ = with_openai(batch(), batch_seconds=.1, batch_outcome=outcome)
    assert found.status == outcome and len(done) == output and {row["error"]["code"] for row in errors} == ({code} if code else set())
    if outcome == "failed": assert "token limit" in found.errors.data[0].message and found.output_file_id is None


def test_an_openai_batch_is_cancelled_or_refused():
    (found, states, done, errors), _ = with_openai(batch(stop="in_progress"), batch_seconds=.3)
    assert states[-2:] == ["cancelling", "cancelled"] and len(done) + len(errors) == 8 and len(errors) > 0
    (found, *_), _ = with_openai(batch(2, custom_id="the same"), batch_seconds=.05)
    assert found.status == "failed" and found.errors.data[0].code == "duplicate_custom_id" and found.errors.data[0].line == 2
    async def unknown(client, server): await client.batches.retrieve("batch_0")
    assert isinstance(failure(with_openai, unknown), openai.NotFoundError)


# Google

def test_google_answers_and_counts():
    async def use(client, server):
        return (await generate(seed=1, system_instruction="You are 40.", max_output_tokens=500)(client, server), await generate("gemini-2.5-flash", max_output_tokens=20)(client, server),
                await client.models.count_tokens(model="gemini-2.0-flash", contents="Everwarm Mug"), [one.name async for one in await client.models.list()], await client.models.get(model="gemini-2.0-flash"))
    (reply, spent, counted, models, model), server = with_google(use)
    usage = reply.usage_metadata
    assert reply.text == STANCES["Mug"][1] and reply.candidates[0].finish_reason == "STOP" and (usage.prompt_token_count, usage.candidates_token_count, usage.total_token_count) == (14, 13, 27)
    assert spent.text is None and spent.candidates[0].finish_reason == "MAX_TOKENS" and spent.usage_metadata.thoughts_token_count == 20
    assert counted.total_tokens == 7 and "models/gemini-2.0-flash" in models and model.input_token_limit
    assert server.sent[0].seed == 1 and json.loads(server.asked[0])[1] == 1


@pytest.mark.parametrize("aiohttp", [False, True])
@pytest.mark.parametrize("fault", KINDS)
def test_google_refusals(fault, aiohttp):
    error = failure(with_google, generate(), fail=lambda number: fault, aiohttp=aiohttp)
    status = {"quota": 429, "unsupported-parameter": 400}.get(fault) or int(fault[:3])
    assert isinstance(error, genai.errors.ServerError if status >= 500 else genai.errors.ClientError) and error.code == status
    assert error.status == {429: "RESOURCE_EXHAUSTED", 401: "UNAUTHENTICATED", 402: "FAILED_PRECONDITION", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 400: "INVALID_ARGUMENT", 500: "INTERNAL", 503: "UNAVAILABLE", 529: "UNKNOWN"}[status]
    told = [detail.get("retryDelay") for detail in error.details["error"].get("details", []) if detail["@type"].endswith("RetryInfo")]
    assert told == (["0.05s"] if fault == "429-retry-after" else []) and ("billing" in error.message) == (fault in ("quota", "429-retry-after"))


@pytest.mark.parametrize("fault, aiohttp, kind", [("hang", False, "ReadTimeout"), ("hang", True, "TimeoutError"), ("cut-before", False, "RemoteProtocolError"), ("cut-before", True, "ServerDisconnectedError"), ("cut", False, "RemoteProtocolError"),
                                                  ("cut", True, "ClientPayloadError"), ("invalid-json", False, "JSONDecodeError"), ("invalid-json", True, "JSONDecodeError")])
def test_google_broken_connections(fault, aiohttp, kind):
    assert type(failure(with_google, generate(), timeout=500, aiohttp=aiohttp, fail=lambda number: fault)).__name__ == kind


@pytest.mark.parametrize("fault, finish, text, blocked", [("content-filter", None, None, "SAFETY"), ("prompt-filter", None, None, "PROHIBITED_CONTENT"), ("empty-choices", None, None, None), ("length", "MAX_TOKENS", "I would def", None), ("refusal", "STOP", "I'm sorry", None),
                                                          ("bare-rating", "STOP", "4/5", None), ("empty-answer", "STOP", None, None), ("no-usage", "STOP", "I would", None), ("wrong-usage", "STOP", "I would", None)])
def test_google_content(fault, finish, text, blocked):
    async def use(client, server): return [await generate(seed=0)(client, server) for _ in range(2)]
    (reply, second), _ = with_google(use, fail=lambda number: fault)
    assert (reply.candidates[0].finish_reason if reply.candidates else None) == finish and (reply.text is None if text is None else reply.text.startswith(text))
    assert (reply.prompt_feedback.block_reason if reply.prompt_feedback else None) == blocked
    assert reply.usage_metadata is None if fault == "no-usage" else (reply.usage_metadata.prompt_token_count < 0) == (fault == "wrong-usage")
    if fault == "content-filter": assert second.candidates[0].finish_reason == "SAFETY" and second.candidates[0].content is None and second.prompt_feedback is None


@pytest.mark.parametrize("fault", [None, "wrong-size", "nan", "zero", "fewer"])
def test_google_embeddings(fault):
    async def use(client, server): return await client.models.embed_content(model="gemini-embedding-001", contents=["I would buy it", "I would buy this"], config={"output_dimensionality": 64})
    reply, server = with_google(use, fail=lambda number: fault)
    vectors = np.array([entry.values for entry in reply.embeddings])
    assert vectors.shape == {"wrong-size": (2, 32), "fewer": (1, 64)}.get(fault, (2, 64)) and server.sent[0].endpoint == "embeddings"
    assert np.isnan(vectors[0]).all() == (fault == "nan") and (vectors[0] == 0).all() == (fault == "zero")
    if fault is None: assert np.allclose(np.linalg.norm(vectors, axis=1), .7)  # of fewer dimensions than the model's


def finished(**order):
    async def use(client, server):
        source = order["inlined"] if "inlined" in order else (await client.files.upload(file=io.BytesIO(order["file"]), config={"mime_type": "application/jsonl", "display_name": "token"})).name
        found = await client.batches.create(model="gemini-2.0-flash", src=source, config={"display_name": "token"})
        states = [found.state.value]
        while not found.done:
            if order.get("cancel"): await client.batches.cancel(name=found.name)
            await asyncio.sleep(.01)
            found = await client.batches.get(name=found.name)
            if found.state.value != states[-1]: states.append(found.state.value)
        assert [one.name async for one in await client.batches.list(config={"page_size": 1}) if one.display_name == "token"] == [found.name]
        replies = [json.loads(line) for line in (await client.files.download(file=found.dest.file_name)).splitlines()] if found.dest and found.dest.file_name else found.dest and found.dest.inlined_responses
        return states, replies
    return use


INLINED = [{"contents": [{"role": "user", "parts": [{"text": "Mug"}]}], "config": {"seed": seed, "system_instruction": "You are 40."}, "metadata": {"key": str(seed)}} for seed in range(4)]


@pytest.mark.parametrize("aiohttp", [False, True])
def test_a_google_batch(aiohttp):
    (states, replies), server = with_google(finished(inlined=INLINED), batch_seconds=.3, aiohttp=aiohttp, faults={"batch:500": .3}, seed=4)
    assert states == ["JOB_STATE_PENDING", "JOB_STATE_RUNNING", "JOB_STATE_SUCCEEDED"] and [reply.metadata["key"] for reply in replies] == ["0", "1", "2", "3"]
    assert [reply.response.text if reply.response else reply.error.code for reply in replies] == [500 if one.fault else one.text for one in server.sent if one.endpoint == "batch"] and 0 < server.counts()["500"] < 4
    lines = [{"key": str(seed), "request": {"contents": [{"parts": [{"text": "Fish"}]}], "generationConfig": {"seed": seed}}} for seed in range(6)]
    (_, rows), _ = with_google(finished(file="\n".join(map(json.dumps, lines)).encode()), batch_seconds=.1, aiohttp=aiohttp)
    assert {row["key"]: row["response"]["candidates"][0]["content"]["parts"][0]["text"] for row in rows} == {str(seed): STANCES["Fish"][seed % 2] for seed in range(6)} and [row["key"] for row in rows] != sorted(row["key"] for row in rows)


@pytest.mark.parametrize("outcome, state", [("expired", "JOB_STATE_EXPIRED"), ("failed", "JOB_STATE_FAILED"), ("cancel", "JOB_STATE_CANCELLED")])
def test_google_batches_that_end_otherwise(outcome, state):
    (states, replies), _ = with_google(finished(inlined=INLINED, cancel=outcome == "cancel"), batch_seconds=.1, batch_outcome="completed" if outcome == "cancel" else outcome)
    assert states[-1] == state and replies is None


# Google's former SDK

@pytest.fixture
def old(recwarn):
    return pytest.importorskip("google.generativeai")


def ask_old(old, use, key="x", **options):
    with model_server(**options) as server:
        old.configure(api_key=key, transport="rest", client_options={"api_endpoint": server.google_url})
        return use(old.GenerativeModel("gemini-2.0-flash", system_instruction="You are 40."))


def generate_old(model): return model.generate_content("Everwarm Mug", request_options={"retry": None, "timeout": .5})  # its own retries of a 503 last ten minutes


def test_the_former_sdk(old):
    reply = ask_old(old, generate_old)
    assert reply.text == STANCES["Mug"][0] and reply.candidates[0].finish_reason.name == "STOP" and reply.usage_metadata.candidates_token_count == 11
    assert ask_old(old, lambda model: model.count_tokens("Everwarm Mug")).total_tokens == 14
    assert np.shape(ask_old(old, lambda model: old.embed_content("models/gemini-embedding-001", "x"))["embedding"]) == (3072,)
    assert np.shape(ask_old(old, lambda model: old.embed_content("models/gemini-embedding-001", ["x", "y"], output_dimensionality=8))["embedding"]) == (2, 8)


@pytest.mark.parametrize("fault, kind", [("429", "TooManyRequests"), ("429-retry-after", "TooManyRequests"), ("quota", "TooManyRequests"), ("401", "Unauthorized"), ("402", "GoogleAPICallError"), ("403", "Forbidden"), ("404", "NotFound"), ("400", "BadRequest"), ("500", "InternalServerError"),
                                         ("503", "ServiceUnavailable"), ("529", "GoogleAPICallError"), ("hang", "ReadTimeout"), ("cut-before", "ConnectionError"), ("cut", "ChunkedEncodingError"), ("invalid-json", "ParseError"), ("wrong-key", "BadRequest")])
def test_the_former_sdk_and_faults(old, fault, kind):
    error = failure(ask_old, old, generate_old, fail=lambda number: fault)
    assert type(error).__name__ == kind
    if fault == "429-retry-after": assert error.details[1]["retryDelay"] == "0.05s"


@pytest.mark.parametrize("fault, finish", [("content-filter", None), ("empty-choices", None), ("empty-answer", "STOP"), ("length", "MAX_TOKENS")])
def test_the_former_sdk_and_content(old, fault, finish):
    reply = ask_old(old, generate_old, fail=lambda number: fault)
    assert [one.finish_reason.name for one in reply.candidates] == ([finish] if finish else []) and bool(reply.prompt_feedback.block_reason) == (fault == "content-filter")
    if fault != "length": assert isinstance(failure(lambda: reply.text), ValueError)


# The server itself

def ask_many(count, **options):
    async def use(client, server):
        at_once = asyncio.Semaphore(16)  # more would wait for the server on a busy machine, and time out unheard
        async def ask(number):
            async with at_once: return await chat(messages=[{"role": "user", "content": f"Mug {number}"}])(client, server)
        return await asyncio.gather(*map(ask, range(count)), return_exceptions=True)
    return with_openai(use, **options)


def test_faults_are_drawn_by_number_and_counted():
    counts = [ask_many(60, faults={"500": .2, "refusal": .2, "nan": .5, "embeddings:429": .5}, seed=seed)[1].counts() for seed in (1, 1, 2)]
    assert counts[0] == counts[1] != counts[2] and set(counts[0]) == {"ok", "500", "refusal"} and all(5 <= counts[0][kind] <= 20 for kind in ("500", "refusal"))


def test_every_fault_at_once(capfd):
    replies, server = ask_many(150, timeout=3, faults={name: .03 for name in EVERY_FAULT}, seed=1)
    assert len(replies) == len(server.sent) == server.requests == 150 and len(server.counts()) > 20
    assert capfd.readouterr() == ("", "")


def test_a_burst_an_answer_of_ones_own_and_numbers():
    replies, server = ask_many(10, burst=(3, 6), numbered=True, answer=lambda body, number: "Mine")
    assert [one.fault for one in server.sent] == [None, None, "503", "503", "503", *[None] * 5]
    assert {one.text for one in server.sent if not one.fault} == {f"Mine ({number})" for number in (1, 2, 6, 7, 8, 9, 10)}


def test_keys():
    with model_server(key="right") as server:
        async def use(key):
            async with openai.AsyncOpenAI(base_url=server.url, api_key=key, max_retries=0) as client: return await chat()(client, server)
        assert asyncio.run(use("right")).choices and isinstance(failure(asyncio.run, use("wrong")), openai.AuthenticationError)
        def google(key): return httpx.post(f"{server.google_url}/v1beta/models/m:generateContent", headers={"x-goog-api-key": key}, json={"contents": [{"parts": [{"text": "Mug"}]}]})
        assert google("right").status_code == 200
        assert google("wrong").status_code == 400 and google("wrong").json()["error"]["details"][0]["reason"] == "API_KEY_INVALID"


def test_what_makes_no_sense_is_refused():
    with model_server() as server:
        for path, body in (("chat/completions", b"no json"), ("chat/completions", b'{"model": "m"}'), ("embeddings", b"{}"), ("batches", b"[1]")): assert httpx.post(f"{server.url}/{path}", content=body).status_code == 400
        assert httpx.get(f"{server.url}/nowhere").status_code == httpx.get(f"{server.google_url}/v1beta/nowhere").status_code == 404


def test_it_closes_at_once_and_quietly_whoever_waits(capfd):
    import threading
    with model_server(fail=lambda number: "hang") as server:
        told = []
        clients = [threading.Thread(target=lambda: told.append(failure(httpx.post, f"{server.url}/chat/completions", json={"model": "m", "messages": MUG}, timeout=60))) for _ in range(5)]
        for client in clients: client.start()
        while server.requests < 5: time.sleep(.01)
    for client in clients: client.join()
    assert {type(error) for error in told} == {httpx.RemoteProtocolError} and capfd.readouterr() == ("", "")  # hung up on, not out of time


def test_as_a_process_of_its_own():
    process = subprocess.Popen([sys.executable, Path(__file__).with_name("model_server.py"), "--latency", ".01", "--faults", '{"500": 1}'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try: assert httpx.post(process.stdout.readline().strip() + "/chat/completions", json={"model": "m", "messages": MUG}).status_code == 500
    finally: process.terminate()
    assert process.communicate(timeout=60) == ("", "")
