"""The client against the whole service: API, worker, clock, PostgreSQL and Redis under one supervisor."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import command
from model_server import model_server
from ssr_nb.client import Client, request_of
from ssr_nb.core import InputError, SSRError, Settings
from ssr_nb.jobs import run_notebook
from ssr_nb.limits import Limits, Unavailable
from ssr_nb.personas import Panel
from ssr_nb.service.supervisor import Supervisor
from ssr_nb.store import FILES, open_run
from ssr_nb.survey import Survey, read_concepts
from ssr_nb.verify import compare, verify


@pytest.fixture(scope="module")
def models():
    with model_server() as server: yield server


@pytest.fixture(scope="module")
def service(models, tmp_path_factory):
    environment = {**os.environ, "OPENAI_BASE_URL": models.url, "OPENAI_API_KEY": "test", "RATE_LIMIT_ENABLED": "false", "CHUNK_ANSWERS": "20", "DATABASE_URL": "", "REDIS_URL": ""}
    with Supervisor(tmp_path_factory.mktemp("service"), flower=False, durable=False, environment=environment) as running: yield running


@pytest.fixture
def client(service):
    with Client(service.api_urls[0], service.first_key) as one: yield one


@pytest.fixture
def here(models, tmp_path, monkeypatch):
    for name, value in {"OPENAI_BASE_URL": models.url, "OPENAI_API_KEY": "test", "SSR_RUNS": str(tmp_path / "runs")}.items(): monkeypatch.setenv(name, value)
    models.faults, models.fail = {}, lambda number: None
    return Settings.from_environment()


def survey(people=20, **changes) -> Survey:
    return Survey(**{"concepts": read_concepts("demo_concepts.csv")[:2], "panel": Panel.us_adults(people, seed=3), "samples": 1, "llm_model": "gpt-4o", "seed": 3, **changes})


@pytest.mark.parametrize("changes", [{}, {"method": "ssr,flr", "ask_why": True, "constructs": ["purchase_intent", "relevance"]}], ids=["plain", "followed up"])
def test_a_survey_runs_there_as_it_runs_here(client, service, here, tmp_path, changes, capsys):
    wanted = survey(**changes)
    there, local = wanted.run(on=client, progress=True), wanted.run(progress=False, settings=here)
    assert there.manifest["fingerprint"] == local.manifest["fingerprint"] and there.manifest["status"] == "complete"
    tables = local.tables()
    for name, table in there.tables().items():
        if name == "calls": continue  # seconds and moments differ
        assert compare(name, tables[name], table) == [], name
    assert "answers" in capsys.readouterr().err  # the bar


def test_notebook_command_line_and_service_agree(client, here, tmp_path):
    parameters = {"cohort_size": 12, "samples": 1, "llm_model": "gpt-4o", "seed": 3}
    notebook = run_notebook("concept_test", parameters, here, progress=False)
    said = command("run", "concept_test", *(part for name, value in parameters.items() for part in ("-p", name, value)), "--runs", tmp_path / "typed", "--json")
    assert said.returncode == 0, said.stderr
    typed = open_run(json.loads(said.stdout)["run_id"], tmp_path / "typed")
    posted = client.post(Survey(read_concepts("demo_concepts.csv"), Panel.us_adults(12, seed=3), samples=1, llm_model="gpt-4o", seed=3))
    client.wait(posted["id"], progress=False)
    there = client.record(posted["id"], tmp_path / "there")
    assert len({run.manifest["fingerprint"] for run in (notebook, typed, there)}) == 1
    for name in FILES:
        if name == "calls": continue  # seconds and moments differ
        for other in (typed, there): assert compare(name, notebook.table(name), other.table(name)) == [], name
    texts = [set(run.table("calls")[["key", "request", "text"]].itertuples(index=False, name=None)) for run in (notebook, typed, there)]
    assert texts[0] == texts[1] == texts[2]


def test_ids_of_request_and_survey_stand_in_the_worker_s_log(client, service, here):
    posted = client.request("POST", "/surveys", json=request_of(survey(2, seed=77)), headers={"X-Request-ID": "asked-by-hand"}).json()
    client.wait(posted["id"], progress=False)
    lines = [json.loads(line) for line in (service.folder / "logs/worker-1.log").read_text().splitlines() if posted["id"] in line and line.startswith("{")]
    assert any(line["request_id"] == "asked-by-hand" and line["survey_id"] == posted["id"] for line in lines)


def test_exactly_sixty_calls_a_minute_pass_over_three_replicas(service, tmp_path):
    import httpx
    shared = {"DATABASE_URL": service.settings.database_url.replace("+psycopg", ""), "REDIS_URL": service.settings.redis_url, "RATE_LIMIT_ENABLED": "true"}
    with Supervisor(tmp_path / "three", api=3, workers=0, own_ports=True, beat=False, flower=False, environment={**service.environment, **shared}) as three, httpx.Client(headers={"X-API-Key": service.first_key}) as http:
        with ThreadPoolExecutor(20) as pool: answers = list(pool.map(lambda number: http.get(f"{three.api_urls[number % 3]}/api/v1/surveys"), range(100)))
    assert sorted(answer.status_code for answer in answers) == [200] * 60 + [429] * 40
    refused = [answer for answer in answers if answer.status_code == 429]
    assert all(1 <= int(answer.headers["Retry-After"]) <= 60 and answer.headers["X-RateLimit-Remaining"] == "0" and answer.headers["content-type"] == "application/problem+json" for answer in refused)


def test_people_of_ones_own_are_asked_as_they_are(client, here):
    import pandas as pd
    frame = pd.DataFrame({"job": ["nurse", "farmer", None], "age": [34, 61, 50], "share": [1.0, 2.5, .5]})
    wanted = survey(panel=Panel.from_frame(frame, ["job", "age"], weight="share"))
    found = wanted.run(on=client, progress=False)
    assert found.survey.panel.hash == wanted.panel.hash and found.manifest["fingerprint"] == wanted.run(progress=False, settings=here).manifest["fingerprint"]


def test_the_record_of_the_service_verifies_and_is_saved_as_a_run(client, here, tmp_path):
    posted = client.post(survey(), name="verified", metadata={"project": "spring"}, max_cost_usd=1.0)
    ended = client.wait(posted["id"], progress=False)
    assert ended["status"] == "completed" and ended["metadata"] == {"project": "spring"} and 0 < ended["cost_usd"] <= 1.0
    run = client.record(posted["id"], tmp_path / "fetched")
    assert verify(run).equal and run.run_id == posted["id"]
    kept = client.results(posted["id"]).save(tmp_path / "kept")
    assert verify(kept).equal
    assert "<svg" in client.report(posted["id"])
    assert any(one["id"] == posted["id"] for one in client.surveys(name="verified"))


def test_posting_again_posts_once(client, here):
    first = client.post(survey(3), idempotency_key="the same")
    again = client.post(survey(3), idempotency_key="the same")
    assert first["id"] == again["id"]
    with pytest.raises(InputError, match="another body"): client.post(survey(4), idempotency_key="the same")


def test_errors_are_sentences(client, service, here, tmp_path):
    with pytest.raises(InputError, match="llm_model is 'gemini-2.0-flash'"): client.post(survey(llm_model="gemini-2.0-flash"))
    with pytest.raises(InputError, match="is unknown"): client.survey("0" * 8 + "-0000-0000-0000-" + "0" * 12)
    with pytest.raises(SSRError, match="key is not known"): Client(service.api_urls[0], "ssr_wrong").survey("x")
    with pytest.raises(InputError, match="mode is given together with on"): survey().run(on=client, mode="batch")
    with pytest.raises(InputError, match="limits is given together with on"): survey().run(on=client, limits=Limits(attempts=1))
    with pytest.raises(Unavailable, match="no connection"): Client("http://127.0.0.1:1", "key", patience=.3).survey("x")
    with pytest.raises(InputError, match="address"): Client("localhost", "key")
    with pytest.raises(InputError, match="llm_temperature"): client.post({**request_of(survey()), "temperature": .5})


def test_a_failed_survey_says_why(client, models, here):
    models.fail = lambda number: "401"
    try:
        with pytest.raises(SSRError, match="was refused"): survey(seed=99).run(on=client, progress=False)
    finally: models.fail = lambda number: None


def test_costs_estimates_ratings_and_reference_sets(client, here):
    estimate = client.estimate(survey())
    assert estimate["calls"] == [40, 40] and 0 < estimate["usd"][0] < estimate["usd"][1]
    rated = client.rate(["I would definitely buy this, I love it!", "I would definitely not buy this."], "purchase_intent")
    first, second = rated["ratings"]
    assert first["mean"] > second["mean"]
    assert client.costs()["total_usd"] > 0


def test_a_part_that_dies_is_back_and_nobody_notices(client, service, here):
    service.kill("api-1"), service.kill("worker-1")
    assert survey(10, seed=5).run(on=client, progress=False).manifest["status"] == "complete"
