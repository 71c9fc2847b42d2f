"""Models: the embedded one for real, and servers that refuse."""

import asyncio

import pytest

from model_server import model_server
from ssr_nb.calls import Request
from ssr_nb.core import InputError, Settings, SSRError
from ssr_nb.limits import TransientError
from ssr_nb.llms import load_llm
from ssr_nb.provider_local import model_path
from ssr_nb.provider_openai import OpenAICompatible
from ssr_nb.personas import Panel
from ssr_nb.survey import Concept, Survey

CACHE = Settings.from_environment().cache


def ask(llm, **options):
    async def once():
        async with llm: return await llm.ask(Request(llm.provider, llm.name, {"messages": [{"role": "user", "content": "Mug"}]}, {"max_tokens": 20, "temperature": .5}, **options))
    return asyncio.run(once())


@pytest.mark.parametrize("status, error, said", [(401, SSRError, "set OPENAI_API_KEY"), (403, SSRError, "set OPENAI_API_KEY"), (404, InputError, "is unknown to"), (400, InputError, "refused the request"),
                                                 (429, TransientError, "429"), (500, TransientError, "500"), (503, TransientError, "503")])
def test_what_a_server_refuses(status, error, said):
    with model_server(fail=lambda number: status) as server, pytest.raises(error, match=said): ask(OpenAICompatible("m", server.url, api_key="x"))


def test_a_server_that_is_not_there():
    with pytest.raises(TransientError, match="no connection"): ask(OpenAICompatible("m", "http://127.0.0.1:9/v1", api_key="x"))


def test_a_hung_server():
    with model_server(delay=5) as server, pytest.raises(TransientError, match="no answer in time"): ask(OpenAICompatible("m", server.url, api_key="x", timeout=.3))


@pytest.mark.parametrize("name, said", [("gpt-4o", "set OPENAI_API_KEY"), ("smollm2-135m", "ssr models pull smollm2-135m"), ("nowhere.gguf", "is no file")])
def test_what_is_missing_is_said(tmp_path, monkeypatch, name, said):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match=said): ask(load_llm(name, Settings(cache=tmp_path)))


def test_any_gguf_by_its_path_and_the_embedded_model_for_real(tmp_path):
    path = str(model_path("gemma-3-270m", CACHE))
    results = Survey([Concept("Everwarm", "A mug that keeps coffee hot.", "$19")], Panel.us_adults(3, seed=2), llm_model=path, prompt="transcript", samples=1, max_tokens=60).run(progress=False, settings=Settings(tmp_path, CACHE))
    assert results.manifest["embedded"] and results.manifest["cost_usd"] == 0 and "no evidence about consumers" in results.manifest["warnings"][0]
    assert results.calls["completion_tokens"].gt(0).all() and results.manifest["provider"].startswith("sha256:")
    assert not results.answers["text"].str.contains("Notices|Feels|Says").any()


def test_a_construct_without_examples_is_warned_about(tmp_path):
    results = Survey([Concept("Everwarm", "A mug that keeps coffee hot.")], Panel.us_adults(1), constructs=["trust"], samples=1, max_tokens=60).run(progress=False, settings=Settings(tmp_path, CACHE))
    assert any("no examples for trust" in warning for warning in results.manifest["warnings"])
