"""Every route of the API on real servers: keys, fields, pages, files, examples."""

import io
import json
import re
from datetime import timedelta

import pandas as pd
import pytest
import sqlalchemy as sa

from service_app import Service
from ssr_nb.exports import unpack
from ssr_nb.service.database import CallRow, make_engine, now, transaction
from ssr_nb.service.guards import OPEN_PATHS
from ssr_nb.service.keys import create_key, key_id, revoke_key
from ssr_nb.service.schemas import EXAMPLE
from ssr_nb.service.settings import ServiceSettings
from ssr_nb.verify import verify

API = "/api/v1"
HOSTED = {**EXAMPLE, "llm_model": "gpt-4o"}


@pytest.fixture
def service(database, redis_url, server, tmp_path, monkeypatch):
    for name, value in {"DATABASE_URL": database, "REDIS_URL": redis_url, "OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "test", "SSR_RUNS": str(tmp_path / "runs"), "CHUNK_ANSWERS": "10", "RATE_LIMIT_ENABLED": "false"}.items(): monkeypatch.setenv(name, value)
    yield Service(ServiceSettings.from_environment())
    make_engine.cache_clear()


@pytest.fixture
def client(service):
    with service.client() as client: yield client


def posted(client, **changes) -> dict:
    response = client.post(f"{API}/surveys", json={**HOSTED, **changes})
    assert response.status_code == 202, response.text
    return response.json()


def test_from_post_to_deletion(service, client, tmp_path):
    survey = posted(client)
    base = f"{API}/surveys/{survey['id']}"
    assert (survey["status"], survey["total"], survey["done"], survey["metadata"], survey["links"]["self"]) == ("queued", 10, 0, {"project": "spring"}, base)
    for name in ("results", "answers", "report", "record"):
        waiting = client.get(f"{base}/{name}")
        assert waiting.status_code == 409 and "wait" in waiting.json()["detail"] and waiting.headers["Retry-After"]
    service.work_off()

    with client.stream("GET", f"{base}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = list(response.iter_lines())
    assert "event: end" in lines and json.loads(next(line for line in lines if line.startswith("data:"))[5:]) == {"status": "completed", "total": 10, "done": 10, "failed": 0, "cost_usd": pytest.approx(client.get(base).json()["cost_usd"]), "eta_seconds": None}

    found = client.get(f"{base}/results").json()
    assert found["survey"]["status"] == "completed" and found["survey"]["cost_usd"] > 0
    assert {row["concept"] for row in found["summaries"]} == {"Solar backpack", "Plain backpack"} and [row["rank"] for row in found["summaries"]] == [1, 1]  # the stand-in model says the same of both
    assert all(row["mean_low"] <= row["mean"] <= row["mean_high"] and abs(sum(row["pmf"]) - 1) < 1e-9 for row in found["summaries"])
    assert sum(found["statuses"].values()) == 10 and found["findings"] and found["manifest"]["fingerprint"] == survey["fingerprint"]
    by = client.get(f"{base}/results", params={"by": "region"}).json()["summaries"]
    assert {row["segment"] for row in by} <= {"South", "West"} and sum(row["n_answers"] for row in by) == 10
    assert client.get(f"{base}/results", params={"by": "shoe size"}).status_code == 422

    first = client.get(f"{base}/answers", params={"limit": 6}).json()
    second = client.get(f"{base}/answers", params={"limit": 6, "cursor": first["next_cursor"]}).json()
    rows = first["answers"] + second["answers"]
    assert second["next_cursor"] is None and [row["answer_id"] for row in rows] == list(range(10))
    text, binary = client.get(f"{base}/answers", params={"format": "csv"}), client.get(f"{base}/answers", params={"format": "parquet"})
    as_csv, as_parquet = pd.read_csv(io.StringIO(text.text)), pd.read_parquet(io.BytesIO(binary.content))
    assert text.headers["content-type"].startswith("text/csv") and f"{survey['id']}.csv" in text.headers["content-disposition"]
    for frame in (as_csv, as_parquet):
        assert frame["text"].tolist() == [row["text"] for row in rows] and frame["p5"].tolist() == pytest.approx([row["pmf"][4] for row in rows], nan_ok=True) and len(frame) == 10
    assert client.get(f"{base}/answers", params={"format": "csv", "limit": 5}).status_code == 422

    waiting = client.get(f"{base}/report")
    assert waiting.status_code == 202 and waiting.headers["Retry-After"]
    service.work_off()
    report = client.get(f"{base}/report")
    assert report.status_code == 200 and "Solar backpack" in report.text and not re.search(r"(src|href)=[\"']https?://", report.text)

    archive = tmp_path / "record.zip"
    archive.write_bytes(client.get(f"{base}/record").content)
    run = unpack(archive, tmp_path / "verified")
    assert run.run_id == survey["id"] and verify(run).equal

    assert client.post(f"{base}/cancel").status_code == 409 and client.post(f"{base}/retry").status_code == 409
    assert client.delete(base).status_code == 204 and client.delete(base).status_code == 404
    for name in ("", "/results", "/answers", "/report", "/record", "/events"): assert client.get(base + name).status_code == 404
    costs = client.get(f"{API}/costs", params={"by": "survey"}).json()
    assert [(row["group"], row["calls"]) for row in costs["costs"]] == [(survey["id"], 10)] and costs["total_usd"] == pytest.approx(found["survey"]["cost_usd"])


def operations(app) -> list[tuple[str, str, dict]]:
    return [(path, method.upper(), said) for path, found in app.openapi()["paths"].items() for method, said in found.items()]


def call(client, path: str, method: str, said: dict, **options):
    "A request with the documentation's example as its body."
    if body := said.get("requestBody"): options["json"] = examples(client.app, body)[0]
    return client.request(method, path.format(survey_id="00000000-0000-4000-8000-000000000000", schedule_id="none"), **options)


def examples(app, body: dict) -> list[dict]:
    schema = body["content"]["application/json"]["schema"]
    if "$ref" in schema and not schema.get("examples"): schema = app.openapi()["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema.get("examples") or [{"surveys": ["00000000-0000-4000-8000-000000000000", "00000000-0000-4000-8000-000000000001"]}]


def test_no_route_answers_a_key_that_does_not_hold(service, client):
    with transaction(service.engine) as session:
        revoked = create_key(session, "revoked", "team", ["surveys:read"])[1]
        expired = create_key(session, "expired", "team", ["surveys:read"], expires=timedelta(seconds=60))[1]
        revoke_key(session, key_id(revoked))
        session.execute(sa.text("UPDATE api_keys SET expires_at = :past WHERE id = :id"), {"past": now() - timedelta(seconds=1), "id": key_id(expired)})
    narrow, other = service.key(scopes=["evaluation"]), service.key(scopes=["costs"])
    seen = 0
    for path, method, said in operations(service.app):
        if not said.get("security"):
            assert path in OPEN_PATHS
            continue
        seen += 1
        for key in (None, "", "wrong", f"{revoked[:-1]}{'a' if revoked[-1] != 'a' else 'b'}", revoked, expired):
            refused = call(client, path, method, said, headers={"X-API-Key": key or ""})
            assert refused.status_code == 401 and refused.headers["content-type"] == "application/problem+json" and refused.headers["WWW-Authenticate"], (path, method, key)
        if (path, method) == (f"{API}/reference-sets", "GET"): continue  # any key that holds may see the shipped anchors
        limited = call(client, path, method, said, headers={"X-API-Key": other if "evaluation" in path else narrow})
        assert limited.status_code == 403 and "scope" in limited.json()["detail"], (path, method, limited.text)
    assert seen >= 20
    assert {route.path for route in service.app.routes if getattr(route, "methods", None)} - {path for path, *_ in operations(service.app)} <= OPEN_PATHS


def test_another_owner_sees_nothing(service, client):
    survey = posted(client)
    with service.client("stranger") as stranger, service.client("staff", ["admin"]) as staff:
        for path, method, said in operations(service.app):
            if "{survey_id}" not in path: continue
            assert stranger.request(method, path.format(survey_id=survey["id"])).status_code == 404, path
        assert stranger.get(f"{API}/surveys").json()["surveys"] == [] and [one["id"] for one in staff.get(f"{API}/surveys").json()["surveys"]] == [survey["id"]]
        assert stranger.post(f"{API}/surveys/compare", json={"surveys": [survey["id"], "00000000-0000-4000-8000-000000000000"]}).status_code == 404
        assert staff.get(f"{API}/surveys/{survey['id']}").json()["owner"] == "team"


def test_the_examples_of_the_documentation_run_as_shown(service, client, monkeypatch):
    "With the embedded models alone, as on a fresh machine."
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"): monkeypatch.delenv(name)
    alone, seen = Service(ServiceSettings.from_environment()), 0
    with alone.client("examples") as fresh:
        ids = []
        for path, method, said in operations(alone.app):
            if not (body := said.get("requestBody")) or path.endswith("compare"): continue
            for example in examples(alone.app, body):
                answered = fresh.request(method, path, json=example)
                assert answered.status_code < 300, (path, answered.text)
                seen += 1
                if path == f"{API}/surveys": ids.append(answered.json()["id"])
        alone.work_off()
        for survey_id in ids: assert fresh.get(f"{API}/surveys/{survey_id}").json()["status"] == "completed"
        assert seen >= 9 and fresh.post(f"{API}/surveys/compare", json={"surveys": ids}).status_code == 200


def test_the_same_post_twice_is_one_survey(service, client):
    first = client.post(f"{API}/surveys", json=HOSTED, headers={"Idempotency-Key": "a"})
    again = client.post(f"{API}/surveys", json=HOSTED, headers={"Idempotency-Key": "a"})
    assert (first.status_code, again.status_code) == (202, 202) and first.json() == again.json()
    assert "Idempotency-Replayed" not in first.headers and again.headers["Idempotency-Replayed"] == "true" and first.headers["Location"] == again.headers["Location"]
    other = client.post(f"{API}/surveys", json={**HOSTED, "seed": 2}, headers={"Idempotency-Key": "a"})
    assert other.status_code == 422 and other.json()["errors"][0]["field"] == "Idempotency-Key"
    with service.client("stranger") as stranger: assert stranger.post(f"{API}/surveys", json=HOSTED, headers={"Idempotency-Key": "a"}).json()["id"] != first.json()["id"]
    client.delete(f"{API}/surveys/{first.json()['id']}")
    assert client.post(f"{API}/surveys", json=HOSTED, headers={"Idempotency-Key": "a"}).status_code == 409


def test_the_same_post_at_the_same_moment_is_one_survey(service, client):
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(6) as pool: answered = list(pool.map(lambda _: client.post(f"{API}/surveys", json=HOSTED, headers={"Idempotency-Key": "b"}), range(6)))
    assert {one.status_code for one in answered} == {202} and len({one.json()["id"] for one in answered}) == 1


def test_pages_neither_repeat_nor_skip(service, client):
    ids = [posted(client, name=f"survey {number}", constructs=["uniqueness"] if number % 2 else ["purchase_intent"])["id"] for number in range(7)]
    seen, cursor = [], None
    while True:
        page = client.get(f"{API}/surveys", params={"limit": 3, **({"cursor": cursor} if cursor else {})}).json()
        seen += [one["id"] for one in page["surveys"]]
        if len(seen) == 3: posted(client, name="in between")
        if not (cursor := page["next_cursor"]): break
    assert seen == ids[::-1]
    def names(**filters): return [one["name"] for one in client.get(f"{API}/surveys", params=filters).json()["surveys"]]
    assert names(construct="uniqueness") == ["survey 5", "survey 3", "survey 1"] and names(name="VEY 4") == ["survey 4"] and names(name="%") == [] and names(status="completed") == []
    middle = client.get(f"{API}/surveys/{ids[3]}").json()["created_at"]
    assert names(created_after=middle) == ["in between", "survey 6", "survey 5", "survey 4"] and names(created_before=middle) == ["survey 2", "survey 1", "survey 0"]
    for wrong in ({"cursor": "x"}, {"cursor": ""}, {"limit": 0}, {"stauts": "queued"}, {"status": "done"}, {"created_after": "2026-01-01T00:00:00"}, {"created_after": "yesterday"}):
        refused = client.get(f"{API}/surveys", params=wrong)
        assert refused.status_code == 422 and next(iter(wrong)) in refused.text, wrong


def test_a_cancelled_survey_goes_on_when_it_is_retried(service, client):
    survey = posted(client)
    base = f"{API}/surveys/{survey['id']}"
    assert [client.post(f"{base}/cancel").json()["status"] for _ in range(2)] == ["cancelled", "cancelled"]
    assert "retry" in client.get(f"{base}/results").json()["detail"]
    assert client.post(f"{base}/retry").json()["status"] == "queued"
    service.work_off()
    assert client.get(base).json()["status"] == "completed"


def test_compare(service, client):
    ids = [posted(client, ssr_temperature=temperature, wordings=wordings)["id"] for temperature, wordings in ((1.0, 1), (0.5, 6))]
    service.work_off()
    found = client.post(f"{API}/surveys/compare", json={"surveys": ids}).json()
    differing = {row["what"]: (row[ids[0]], row[ids[1]]) for row in found["differences"]}
    assert differing["ssr_temperature"] == (1.0, 0.5) and "llm_model" not in differing
    assert [row["survey_id"] for row in found["results"]] == ids * 2 and {row["survey_id"] for row in found["concepts"]} == {ids[1]} and found["concepts"][0]["wordings"] == 6
    assert client.post(f"{API}/surveys/compare", json={"surveys": [ids[0], ids[0]]}).status_code == 422


def test_budgets_hold(service):
    with service.client(budget_usd=1.0) as client:
        assert client.post(f"{API}/surveys", json=HOSTED).status_code == 422
        assert client.post(f"{API}/surveys", json={**HOSTED, "max_cost_usd": 0.7}).status_code == 202
        refused = client.post(f"{API}/surveys", json={**HOSTED, "max_cost_usd": 0.7})
        assert refused.status_code == 402 and "0.30" in refused.json()["detail"]
        paid = client.post(f"{API}/ratings", json={"texts": ["Good."], "embedding_model": "text-embedding-3-small"})
        assert paid.status_code == 422 and "budget" in paid.json()["detail"]
        assert client.post(f"{API}/schedules", json={"name": "weekly", "cron": "0 6 * * mon", "survey": HOSTED}).status_code == 422


def test_ratings_are_those_of_the_library(client):
    from ssr_nb.rating import Rater
    texts = ["I would buy it today.", "Never.", "7", ""]
    found = client.post(f"{API}/ratings", json={"texts": texts, "construct": "purchase_intent", "ssr_temperature": 0.5}).json()
    rated = Rater("purchase_intent", ssr_temperature=.5).rate(texts)
    assert [one["status"] for one in found["ratings"]] == ["ok", "ok", "numeric", "empty"] and found["ratings"][2]["mean"] is None and found["ratings"][3]["pmf"] == [None] * 5
    assert [one["mean"] for one in found["ratings"][:2]] == pytest.approx(rated.mean[:2].tolist()) and found["cost_usd"] == 0
    hosted = client.post(f"{API}/ratings", json={"texts": texts[:2], "embedding_model": "text-embedding-3-small"}).json()
    assert hosted["cost_usd"] > 0


def test_metrics_are_those_of_the_library(client, service):
    from ssr_nb.fidelity import test_retest as retest
    rows = examples(service.app, service.app.openapi()["paths"][f"{API}/evaluation/metrics"]["post"]["requestBody"])
    distributions = client.post(f"{API}/evaluation/metrics", json=rows[0]).json()
    assert {row["source"] for row in distributions["measures"]} == {"panel", "pooled people", "uniform", "half of the people"}
    texts = client.post(f"{API}/evaluation/metrics", json=rows[1]).json()
    assert texts["measures"][0]["measure"] == "spearman" and sum(map(sum, texts["confusion"])) == len(rows[1]["human"])
    given = {"first": [1, 2, 3, 4, 5, None], "second": [1.5, 2, 3, 4.5, 5, 2]}
    found = client.post(f"{API}/evaluation/test-retest", json=given).json()["measures"]
    assert [row["value"] for row in found] == pytest.approx(retest([1, 2, 3, 4, 5], [1.5, 2, 3, 4.5, 5]).value.tolist())
    ragged = client.post(f"{API}/evaluation/metrics", json={"human": [1, 2], "pmf": [[.5, .5], [1, 0, 0]]})
    assert ragged.status_code == 422 and "points" in ragged.json()["detail"]


def test_only_anchors_that_pass_the_gate_are_stored(service, client):
    example = examples(service.app, service.app.openapi()["paths"][f"{API}/reference-sets"]["post"]["requestBody"])[0]
    stored = client.post(f"{API}/reference-sets", json=example)
    assert stored.status_code == 201 and stored.json()["name"].startswith("purchase_intent@") and client.post(f"{API}/reference-sets", json=example).json() == stored.json()
    upside_down = {**example, "reference_sets": [{**example["reference_sets"][0], "anchors": example["reference_sets"][0]["anchors"][::-1]}]}
    refused = client.post(f"{API}/reference-sets", json=upside_down)
    assert refused.status_code == 422 and refused.json()["errors"][0]["field"] == "reference_sets[0]" and "ladder" in refused.json()["errors"][0]["message"]
    own = {**example, "construct": "appetite", "question": "How hungry does this make you?"}
    assert "ladder is missing" in client.post(f"{API}/reference-sets", json=own).json()["detail"]
    from ssr_nb.anchors import read_ladder
    from ssr_nb.core import shipped
    texts, grades, _ = read_ladder(shipped("reference_sets") / "ladders" / "purchase_intent.yaml")
    ladder = [{"text": text, "grade": int(grade)} for text, grade in zip(texts, grades)]
    assert client.post(f"{API}/reference-sets", json={**own, "ladder": ladder}).status_code == 201
    listed = client.get(f"{API}/reference-sets").json()["constructs"]
    assert [one["shipped"] for one in listed] == [True] * 9 + [False] * 2 and listed[9]["name"] == stored.json()["name"]
    for name in ("appetite", stored.json()["name"]):
        survey = posted(client, constructs=[name])
        service.work_off()
        sets = client.get(f"{API}/surveys/{survey['id']}/results").json()["manifest"]["reference_sets"]
        assert [one["id"] for one in sets] == ["purchase_intent_team_1"] and sets[0]["construct"] == name.partition("@")[0]
        assert client.post(f"{API}/ratings", json={"texts": ["Yes!"], "construct": name}).status_code == 200
    with service.client("stranger") as stranger:
        assert stranger.post(f"{API}/surveys", json={**HOSTED, "constructs": ["appetite"]}).status_code == 422 and stranger.post(f"{API}/surveys", json={**HOSTED, "constructs": [stored.json()["name"]]}).status_code == 422


def test_panel_preview(client):
    from ssr_nb.personas import Panel
    found = client.get(f"{API}/panels/preview", params={"cohort_size": 50, "seed": 3, "age_range": "65-", "regions": ["South", "West"]}).json()
    panel = Panel.us_adults(50, seed=3, age_range=(65, None), regions=["South", "West"])
    assert found["hash"] == panel.hash and len(found["personas"]) == 5 and {row["level"] for row in found["margins"] if row["attribute"] == "region"} == {"South", "West"}
    assert client.get(f"{API}/panels/preview", params={"age_range": "34-18"}).status_code == 422 and client.get(f"{API}/panels/preview", params={"gender": "x"}).status_code == 422


def test_schedules(service, client):
    made = client.post(f"{API}/schedules", json={"name": "weekly", "cron": "0 6 * * mon", "timezone": "Europe/Berlin", "survey": HOSTED})
    assert made.status_code == 201 and made.json()["next_due"] and made.json()["survey"]["concepts"] == HOSTED["concepts"]
    for wrong in ({"cron": "0 6 * * 1"}, {"cron": "0 0 31 feb *"}, {"timezone": "Mars/Olympus"}, {"survey": {**HOSTED, "llm_model": "gemini-2.5-flash-lite"}}, {"survey": None}, {"name": "weekly"}):
        assert client.post(f"{API}/schedules", json={"name": "another", "cron": "0 6 * * mon", "survey": HOSTED, **wrong}).status_code == 422, wrong
    notebook = {"name": "nightly", "cron": "0 2 * * *", "notebook": "concept_test", "parameters": {}}
    assert client.post(f"{API}/schedules", json=notebook).status_code == 403
    with service.client("staff", ["admin"]) as staff, service.client("stranger") as stranger:
        assert staff.post(f"{API}/schedules", json=notebook).status_code == 201
        assert [one["name"] for one in staff.get(f"{API}/schedules").json()["schedules"]] == ["nightly", "weekly"] and stranger.get(f"{API}/schedules").json()["schedules"] == []
        first = staff.get(f"{API}/schedules", params={"limit": 1}).json()
        assert [one["name"] for one in staff.get(f"{API}/schedules", params={"cursor": first["next_cursor"]}).json()["schedules"]] == ["weekly"]
        assert stranger.delete(f"{API}/schedules/{made.json()['id']}").status_code == 404
    assert client.delete(f"{API}/schedules/{made.json()['id']}").status_code == 204 and client.delete(f"{API}/schedules/{made.json()['id']}").status_code == 404


def test_health_says_what_is_down(service, client, postgres, valkey):
    assert client.get("/health/live").json() == {"status": "ok", "parts": {}}
    assert client.get("/health/ready").json() == {"status": "ok", "parts": {"database": "ok", "redis": "ok", "models": "ok"}}
    whole = client.get("/health")
    assert whole.status_code == 503 and "worker" in whole.json()["parts"]["workers"]
    valkey.stop()
    try:
        down = client.get("/health/ready")
        assert down.status_code == 503 and down.json()["parts"] == {"database": "ok", "redis": "does not answer", "models": "ok"} and client.get("/health/live").status_code == 200
    finally: valkey.start()
    assert client.get("/health/ready").status_code == 200 or valkey.url != service.settings.redis_url


def test_documentation_names_no_outside_address(client):
    page = client.get("/docs").text
    assert "swagger-ui" in page and not re.search(r"(src|href)=[\"']https?://", page)
    for address in re.findall(r"(?:src|href)=[\"']([^\"']+)", page): assert client.get(address).status_code == 200
    document = client.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["ApiKey"]["name"] == "X-API-Key" and "HTTPValidationError" not in json.dumps(document)
    version = client.get(f"{API}/version").json()
    assert "gpt-4o" in version["llm_models"] and "gemini-2.5-flash-lite" not in version["llm_models"]
    assert b"http_requests_total" in client.get("/metrics").content


def test_a_replica_that_is_behind_hides_no_survey(service, client, postgres, monkeypatch):
    "A replica without any rows: lists come from it, and a survey that was just posted is found all the same."
    from ssr_nb.service.database import upgrade
    behind = postgres.database("behind")
    upgrade(behind)
    monkeypatch.setenv("DATABASE_REPLICA_URL", behind)
    replicated = Service(ServiceSettings.from_environment())
    with replicated.client() as reader:
        survey = posted(reader)
        assert reader.get(f"{API}/surveys/{survey['id']}").status_code == 200 and reader.get(f"{API}/surveys").json()["surveys"] == []
        replicated.work_off()
        assert len(reader.get(f"{API}/surveys/{survey['id']}/results").json()["summaries"]) == 2 and len(reader.get(f"{API}/surveys/{survey['id']}/answers").json()["answers"]) == 10


def test_costs_by_every_group(service, client):
    survey = posted(client)
    service.work_off()
    with service.client("stranger") as stranger: assert stranger.get(f"{API}/costs").json()["costs"] == []
    with service.engine.connect() as connection: spent = connection.scalar(sa.select(sa.func.sum(CallRow.cost)))
    groups = {by: client.get(f"{API}/costs", params={"by": by}).json() for by in ("day", "model", "key", "owner", "survey")}
    assert all(found["total_usd"] == pytest.approx(spent) and found["costs"][0]["calls"] == 10 for found in groups.values())
    assert (groups["model"]["costs"][0]["group"], groups["owner"]["costs"][0]["group"], groups["survey"]["costs"][0]["group"]) == ("gpt-4o", "team", survey["id"])
    assert client.get(f"{API}/costs", params={"since": "2020-01-01T00:00:00Z", "until": "2020-02-01T00:00:00Z"}).json()["total_usd"] == 0
