"""What the documentation promises, against thousands of requests that nobody would write: no server error, no status or document that is not documented, nothing malformed accepted."""

import os
from collections import Counter

import pytest
import redis

from service_app import Service
from ssr_nb.service.database import make_engine
from ssr_nb.service.settings import ServiceSettings

SHARE = float(os.environ.get("SOAK", "1"))  # of the long form
LEFT_OUT = {"positive_data_acceptance": "a request can fit the schema and still name a construct that is not there"}


@pytest.fixture
def service(database, redis_url, server, tmp_path, monkeypatch):
    for name, value in {"DATABASE_URL": database, "REDIS_URL": redis_url, "OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "test", "SSR_RUNS": str(tmp_path / "runs"), "RATE_LIMIT_ENABLED": "false", "LOG_LEVEL": "ERROR"}.items(): monkeypatch.setenv(name, value)
    redis.Redis.from_url(redis_url).set("ssr:health:workers", "seen")  # as if a worker lived: without one, /health is 503
    monkeypatch.setattr("ssr_nb.service.routes_surveys.OPEN", ("running",))  # nobody works here: the events of a survey that waits would go on for ever
    yield Service(ServiceSettings.from_environment())
    make_engine.cache_clear()


def explore(service: Service, examples: int, phases: tuple[str, ...], seed: int = 1) -> tuple[Counter, Counter, list[str]]:
    "How many requests each operation got, the statuses that came back, and what did not hold."
    import schemathesis
    from schemathesis.config import SchemathesisConfig
    from schemathesis.engine import events, from_schema
    config = SchemathesisConfig.from_dict({
        "seed": seed, "headers": {"X-API-Key": service.key("fuzz")}, "generation": {"max-examples": examples}, "continue-on-failure": True,
        "checks": {name: {"enabled": False} for name in LEFT_OUT}, "phases": {name: {"enabled": name in phases} for name in ("examples", "coverage", "fuzzing", "stateful")}})
    calls, statuses, wrong = Counter(), Counter(), []
    for event in from_schema(schemathesis.openapi.from_asgi("/openapi.json", service.app, config=config)).execute():
        if isinstance(event, (events.NonFatalError, events.FatalError)): wrong.append(f"{event}")
        if not isinstance(event, events.ScenarioFinished): continue
        for case_id, one in event.recorder.interactions.items():
            case = event.recorder.cases[case_id].value
            calls[f"{case.method} {case.path}"] += 1
            statuses[one.response.status_code if one.response else None] += 1
        for checks in event.recorder.checks.values():
            for check in checks:
                if check.failure_info: wrong.append(f"{event.label} {check.name}: {check.failure_info.failure.title} {check.failure_info.failure.message[:400]} {check.failure_info.code_sample[:600]}")
    return calls, statuses, wrong


def test_the_documentation_holds(service):
    calls, statuses, wrong = explore(service, 8, ("examples", "fuzzing", "stateful"))
    assert not wrong, "\n\n".join(dict.fromkeys(wrong))
    print(f"\n{calls.total()} requests: {dict(statuses)}")
    assert calls.total() >= 200 and statuses[202] > 0 and not statuses[500]


@pytest.mark.soak
@pytest.mark.parametrize("seed", (1, 2))
def test_the_documentation_holds_for_long(service, seed):
    calls, statuses, wrong = explore(service, max(5, round(100 * SHARE)), ("examples", "coverage", "fuzzing", "stateful"), seed)
    assert not wrong, "\n\n".join(dict.fromkeys(wrong))
    print(f"\n{calls.total()} requests: {dict(statuses)}")
    assert calls.total() >= 5_000 * min(SHARE, 1) and not statuses[500]
