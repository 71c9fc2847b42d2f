"Keys, budgets, rate limits, guards of the API, and pictures from elsewhere: on a real PostgreSQL and a real Valkey."
import asyncio
import bisect
import hmac
import io
import ipaddress
import json
import re
import ssl
import subprocess
import sys
import threading
import time
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Annotated

import pytest
import sqlalchemy as sa
from hypothesis import given, strategies as st

from ssr_nb.core import InputError, SSRError
from ssr_nb.service import keys as keys_module
from ssr_nb.service.database import AuditRow, CallRow, KeyRow, SurveyRow, make_engine, now, transaction
from ssr_nb.service.keys import SCOPES, Caller, NotAllowed, NotAuthenticated, OverBudget, authenticate, caller_of, check_budget, create_key, key_hash, key_id, list_keys, month_start, revoke_key, rotate_key
from ssr_nb.service.pictures import fetch_picture, is_public
from ssr_nb.service.problems import Problem, field_path, problem_of
from ssr_nb.service.rates import RateLimits, address_group
from ssr_nb.service.settings import ServiceSettings

NOTHING = ServiceSettings()


@pytest.fixture
def engine(database):
    engine = make_engine(database)
    yield engine
    engine.dispose()


def made(engine, scopes=("surveys:read",), owner="team", **more):
    with transaction(engine) as session: return create_key(session, "test", owner, scopes, **more)


def change(engine, id: str, **values):
    with transaction(engine) as session: session.execute(sa.update(KeyRow).where(KeyRow.id == id).values(**values))


def who(engine, text, settings=NOTHING) -> Caller:
    with transaction(engine) as session: return authenticate(session, text, settings)


# keys

@given(st.text(max_size=80))
def test_only_what_has_the_form_of_a_key_has_an_id(text): assert (key_id(text) is not None) == bool(re.fullmatch(r"ssr_[0-9a-f]{8}_[A-Za-z0-9_-]{43}", text, re.A) and not text.endswith("\n"))


@given(st.from_regex(r"\A[0-9a-f]{8}\Z"), st.from_regex(r"\A[A-Za-z0-9_-]{43}\Z"))
def test_the_id_of_a_key_is_found(id, rest):
    assert key_id(f"ssr_{id}_{rest}") == id
    for wrong in (f" ssr_{id}_{rest}", f"ssr_{id}_{rest}\n", f"ssr_{id}_{rest}x", f"ssr_{id[:-1]}_{rest}", f"SSR_{id}_{rest}", f"ssr_{id}_{rest[:-1]}é"): assert key_id(wrong) is None


def test_a_key_is_stored_as_its_hash_alone(engine):
    row, text = made(engine)
    assert re.fullmatch(r"ssr_[0-9a-f]{8}_[A-Za-z0-9_-]{43}", text) and row.id == text[4:12] and row.hash == key_hash(text)
    with engine.connect() as connection: stored = str(connection.execute(sa.text("SELECT api_keys::text FROM api_keys")).all())
    assert row.hash in stored and text[13:] not in stored
    assert len({made(engine)[1] for _ in range(20)}) == 20


@pytest.mark.parametrize("change_, said", [({"scopes": []}, "scopes"), ({"scopes": ["all"]}, "scope 'all'"), ({"name": " "}, "name"), ({"owner": ""}, "owner"), ({"expires": timedelta(seconds=-1)}, "has passed"), ({"expires": datetime(2999, 1, 1)}, "time zone"),
                                         ({"budget_usd": -1}, "budget_usd"), ({"budget_usd": float("nan")}, "budget_usd"), ({"budget_usd": True}, "budget_usd")])
def test_what_a_key_cannot_be(engine, change_, said):
    with pytest.raises(InputError, match=said), transaction(engine) as session: create_key(session, **{"name": "n", "owner": "o", "scopes": ["costs"], **change_})


def test_an_id_that_is_taken_is_not_taken_again(engine, monkeypatch):
    tokens = iter(["0000000a", "0000000a", "0000000b"])
    monkeypatch.setattr(keys_module.secrets, "token_hex", lambda size: next(tokens))
    assert [made(engine)[0].id for _ in range(2)] == ["0000000a", "0000000b"]


def test_no_key_but_the_right_one_is_let_in(engine):
    row, text = made(engine, owner="right")
    assert who(engine, text) == Caller(row.id, "right", frozenset({"surveys:read"}), None)
    other = made(engine)[1]
    for wrong in (None, "", "x", text.upper(), text + "x", text[:-1], f"ssr_{row.id}_{other[13:]}", f"ssr_{other[4:12]}_{text[13:]}", f"ssr_ffffffff_{text[13:]}", row.hash, row.id, text.replace("_", "-"), "' OR 1=1 --", "\x00", "é" * 56):
        with pytest.raises(NotAuthenticated): who(engine, wrong)


@pytest.mark.parametrize("values, said", [({"revoked_at": now()}, "revoked"), ({"expires_at": now()}, "expired")])
def test_a_key_that_has_ended_is_not_let_in(engine, values, said):
    row, text = made(engine)
    change(engine, row.id, **values)
    with pytest.raises(NotAuthenticated, match=said): who(engine, text)


def test_ends_in_the_future_do_not_matter_yet(engine):
    row, text = made(engine, expires=timedelta(hours=1))
    change(engine, row.id, revoked_at=now() + timedelta(hours=1))
    assert who(engine, text).owner == "team"


def test_every_key_is_compared_in_constant_time_known_or_not(engine, monkeypatch):
    compared = []
    monkeypatch.setattr(keys_module.hmac, "compare_digest", lambda a, b, real=hmac.compare_digest: compared.append((len(a), len(b))) or real(a, b))
    settings = ServiceSettings(api_keys=("k" * 32, "l" * 40))
    _, text = made(engine)
    for given_ in (text, f"ssr_ffffffff_{text[13:]}", "not a key"):
        compared.clear()
        try: who(engine, given_, settings)
        except NotAuthenticated: pass
        assert compared == [(64, 64)] * 3


def test_keys_of_the_environment_may_do_everything(engine):
    settings = ServiceSettings(api_keys=("k" * 32, "schlüssel-" * 4))
    for text in settings.api_keys:
        caller = who(engine, text, settings)
        assert caller.owner == "bootstrap" and caller.scopes == frozenset(SCOPES) and caller.sees is None and caller.key_id.startswith("bootstrap-") and text not in caller.key_id
        with transaction(engine) as session: assert caller_of(session, caller.key_id, settings) == caller
        with pytest.raises(NotAuthenticated), transaction(engine) as session: caller_of(session, caller.key_id, NOTHING)
    with pytest.raises(NotAuthenticated): who(engine, "k" * 31, settings)


def test_scopes():
    reader = Caller("a", "o", frozenset({"surveys:read", "costs"}))
    reader.need()
    reader.need("surveys:read", "costs")
    with pytest.raises(NotAllowed, match="surveys:write"): reader.need("surveys:read", "surveys:write")
    assert reader.sees == "o"
    Caller("a", "o", frozenset({"admin"})).need(*SCOPES)


def test_last_use_is_noted_once_a_minute_and_waits_for_nobody(engine):
    row, text = made(engine)
    def last():
        with engine.connect() as connection: return connection.scalar(sa.select(KeyRow.last_used_at).where(KeyRow.id == row.id))
    who(engine, text)
    first = last()
    who(engine, text)
    assert first and last() == first
    change(engine, row.id, last_used_at=now() - timedelta(minutes=2))
    with transaction(engine) as session:
        session.get(KeyRow, row.id, with_for_update=True)
        with ThreadPoolExecutor() as pool: assert pool.submit(who, engine, text).result(timeout=10).owner == "team"  # while the row is held
    assert last() < first
    who(engine, text)
    assert last() > first


def test_revoking_ends_at_once_and_listing_hides_what_has_ended(engine):
    kept, gone, expired = made(engine, owner="a")[0], made(engine, owner="a"), made(engine, owner="b")[0]
    change(engine, expired.id, expires_at=now())
    with transaction(engine) as session: first = revoke_key(session, gone[0].id).revoked_at
    with transaction(engine) as session: assert revoke_key(session, gone[0].id).revoked_at == first
    with pytest.raises(NotAuthenticated): who(engine, gone[1])
    with transaction(engine) as session:
        assert [row.id for row in list_keys(session)] == [kept.id] and [row.id for row in list_keys(session, "a", ended=True)] == [kept.id, gone[0].id] and len(list_keys(session, ended=True)) == 3
        with pytest.raises(InputError, match="unknown"): revoke_key(session, "ffffffff")


def test_rotation_hands_everything_over(engine):
    row, text = made(engine, scopes=["costs", "ratings"], expires=timedelta(days=10), budget_usd=5.0)
    change(engine, row.id, created_at=now() - timedelta(days=9), expires_at=now() + timedelta(days=1))
    with transaction(engine) as session: new, new_text = rotate_key(session, row.id, timedelta(hours=2))
    assert (new.name, new.owner, new.scopes, new.budget_usd) == (row.name, row.owner, row.scopes, 5.0) and timedelta(days=9.9) < new.expires_at - now() < timedelta(days=10.1)
    assert who(engine, text).key_id == row.id and who(engine, new_text).key_id == new.id
    with transaction(engine) as session: assert caller_of(session, row.id, NOTHING).key_id == new.id
    with pytest.raises(InputError, match="rotated already"), transaction(engine) as session: rotate_key(session, row.id)
    change(engine, row.id, revoked_at=now())
    with pytest.raises(NotAuthenticated): who(engine, text)
    with transaction(engine) as session:
        last, _ = rotate_key(session, new.id, timedelta(0))
        with pytest.raises(InputError, match="grace"): rotate_key(session, last.id, timedelta(-1))
    with pytest.raises(NotAuthenticated): who(engine, new_text)
    with pytest.raises(InputError, match="has ended"), transaction(engine) as session: rotate_key(session, row.id)
    with transaction(engine) as session: assert caller_of(session, row.id, NOTHING).key_id == last.id


# budgets

def survey(session, key: str, status="queued", most=None, calls=(), **more) -> str:
    row = SurveyRow(owner="team", key_id=key, status=status, request={}, specification={}, queue="ssr.small", total=1, max_cost_usd=most, elicitation_hash="", fingerprint="", **more)
    session.add(row)
    session.flush()
    for number, (cost, when) in enumerate(calls): session.add(CallRow(survey_id=row.id, key=str(number), status="success", provider="p", llm_model="m", request="{}", cost=cost, created_at=when))
    session.flush()
    return row.id


@pytest.fixture
def budget(engine):
    row, _ = made(engine, scopes=["surveys:write"], budget_usd=10.0)
    return Caller(row.id, "team", frozenset(row.scopes), 10.0)


def fits(engine, caller, most) -> bool:
    try:
        with transaction(engine) as session: check_budget(session, caller, most)
    except OverBudget: return False
    return True


def left(engine, caller) -> float:
    "What still fits, to the cent."
    return (bisect.bisect_right(range(1101), 0, key=lambda cents: not fits(engine, caller, cents / 100)) - 1) / 100


def test_a_budget_wants_to_know_the_most(engine, budget):
    for wrong in (None, -1, float("inf"), "5"):
        with pytest.raises(InputError, match="max_cost_usd"), transaction(engine) as session: check_budget(session, budget, wrong)
    with transaction(engine) as session: check_budget(session, Caller("x", "o", frozenset()), None)  # no budget, no question
    assert fits(engine, budget, 10.0) and not fits(engine, budget, 10.01)


CASES = [
    ("open: what it may still cost", dict(status="queued", most=4.0), 6.0),
    ("open, in part spent", dict(status="running", most=4.0, calls=[(1.0, 0)]), 6.0),
    ("open, spent last month", dict(status="running", most=4.0, calls=[(3.0, -40)]), 9.0),
    ("ended", dict(status="completed", most=4.0, calls=[(1.0, 0), (.5, 0)], cost_usd=1.5), 8.5),
    ("ended, embeddings included", dict(status="completed", most=4.0, calls=[(1.0, 0)], cost_usd=1.25), 8.75),
    ("ended without a sum", dict(status="failed", most=4.0, calls=[(1.0, 0), (None, 0)]), 9.0),
    ("begun last month, ended in this", dict(status="completed", most=9.0, calls=[(5.0, -40), (1.0, 0)], cost_usd=6.0, created_at=-40), 9.0),
    ("all of it last month", dict(status="completed", calls=[(5.0, -40)], cost_usd=5.0, created_at=-40, finished_at=-40, possible_usd=3.0), 10.0),
    ("cut off calls", dict(status="cancelled", most=4.0, calls=[(1.0, 0)], cost_usd=1.0, possible_usd=.5), 8.5),
    ("open, cut off calls", dict(status="running", most=4.0, calls=[(1.0, 0)], possible_usd=.5), 6.0),
    ("open, over its limit", dict(status="running", most=1.0, calls=[(2.0, 0)]), 8.0),
    ("deleted: the cost stays", dict(status="completed", calls=[(2.0, 0)], cost_usd=2.0, deleted_at=0), 8.0),
]


@pytest.mark.parametrize("case, fields, expected", CASES, ids=[case for case, *_ in CASES])
def test_what_counts_against_a_budget(engine, budget, case, fields, expected):
    when = lambda days: now() + timedelta(days=days)  # noqa: E731
    fields = {name: when(value) if name.endswith("_at") else value for name, value in fields.items()} | {"calls": [(cost, when(days)) for cost, days in fields.get("calls", ())]}
    with transaction(engine) as session:
        survey(session, budget.key_id, **fields)
        survey(session, "another", status="queued", most=100.0, calls=[(50.0, now())])
    assert left(engine, budget) == expected


def test_an_open_survey_without_limit_leaves_nothing_certain(engine, budget):
    with transaction(engine) as session: id = survey(session, budget.key_id, "running")
    with pytest.raises(OverBudget, match=id), transaction(engine) as session: check_budget(session, budget, .01)


def test_the_month_begins_at_midnight_utc():
    start = month_start()
    assert start.tzinfo == timezone.utc and (start.day, start.hour, start.minute, start.second, start.microsecond) == (1, 0, 0, 0, 0)


def test_two_posts_at_once_cannot_both_take_the_last_dollar(engine, budget):
    ready = threading.Barrier(8)
    def post(_):
        ready.wait()
        try:
            with transaction(engine) as session:
                check_budget(session, budget, 3.0)
                time.sleep(.02)
                survey(session, budget.key_id, most=3.0)
            return True
        except OverBudget: return False
    with ThreadPoolExecutor(8) as pool: assert sum(pool.map(post, range(8))) == 3


def test_a_rotated_key_shares_the_budget_also_at_once(engine, budget):
    with transaction(engine) as session: new, _ = rotate_key(session, budget.key_id)
    with transaction(engine) as session: last, _ = rotate_key(session, new.id)
    callers = [budget, Caller(new.id, "team", frozenset(), 10.0), Caller(last.id, "team", frozenset(), 10.0)]
    ready = threading.Barrier(6)
    def post(number):
        ready.wait()
        try:
            with transaction(engine) as session:
                check_budget(session, callers[number % 3], 4.0)
                survey(session, callers[number % 3].key_id, most=4.0)
            return True
        except OverBudget: return False
    with ThreadPoolExecutor(6) as pool: assert sum(pool.map(post, range(6))) == 2
    assert [left(engine, one) for one in callers] == [2.0] * 3


def test_who_gives_up_takes_nothing(engine, budget):
    with pytest.raises(RuntimeError), transaction(engine) as session:
        check_budget(session, budget, 10.0)
        survey(session, budget.key_id, most=10.0)
        raise RuntimeError
    assert left(engine, budget) == 10.0


# rate limits

def limits(redis_url, **more) -> RateLimits: return RateLimits(ServiceSettings(redis_url=redis_url, **more))


def test_exactly_60_of_100_pass_over_three_processes(redis_url):
    program = ("import sys\nfrom concurrent.futures import ThreadPoolExecutor\nfrom ssr_nb.service.rates import RateLimits\nfrom ssr_nb.service.settings import ServiceSettings\n"
               "rates = RateLimits(ServiceSettings(redis_url=sys.argv[1]))\nprint('ready', flush=True)\nsys.stdin.readline()\nwith ThreadPoolExecutor(8) as pool: print(sum(one.allowed for one in pool.map(rates.of_key, ['k'] * int(sys.argv[2]))))")
    replicas = [subprocess.Popen([sys.executable, "-c", program, redis_url, str(calls)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for calls in (34, 33, 33)]
    for replica in replicas: assert replica.stdout.readline() == "ready\n"
    for replica in replicas:
        replica.stdin.write("\n")
        replica.stdin.flush()
    passed = [int(replica.communicate(timeout=60)[0]) for replica in replicas]
    assert sum(passed) == 60, passed


def test_the_hour_counts_too_and_the_tighter_limit_is_told(redis_url):
    rates = limits(redis_url, rate_limit_per_minute=5, rate_limit_per_hour=3)
    told = [rates.of_key("k") for _ in range(4)]
    assert [(one.allowed, one.limit, one.remaining) for one in told] == [(True, 3, 2), (True, 3, 1), (True, 3, 0), (False, 3, 0)]
    assert 3500 < int(told[-1].headers["Retry-After"]) <= 3600 and "Retry-After" not in told[0].headers


def test_who_waits_as_long_as_told_is_let_in(redis_url, monkeypatch):
    import limits.storage.redis as storage
    rates, ahead, real = limits_of_three(redis_url), [0.0], time.time
    monkeypatch.setattr(storage.time, "time", lambda: real() + ahead[0])
    assert [rates.of_key("k").allowed for _ in range(4)] == [True, True, True, False]
    wait = int(rates.of_key("k").headers["Retry-After"])
    ahead[0] = wait + .1
    assert rates.of_key("k").allowed


def limits_of_three(redis_url): return limits(redis_url, rate_limit_per_minute=3)


def test_keys_addresses_and_switches(redis_url):
    rates = limits(redis_url, rate_limit_per_minute=1)
    assert rates.of_key("a").allowed and rates.of_key("b").allowed and rates.of_stranger("1.2.3.4").allowed and not rates.of_stranger("::ffff:1.2.3.4").allowed
    assert rates.of_stranger("2001:db8::1").allowed and not rates.of_stranger("2001:db8::ffff:2").allowed and rates.of_stranger("2001:db8:0:1::1").allowed
    off = limits(redis_url, rate_limit_enabled=False, rate_limit_per_minute=1)
    assert off.of_key("a") is None and not off.of_stranger("1.2.3.4").allowed


@given(st.ip_addresses())
def test_addresses_of_one_customer_are_one(address):
    group = address_group(str(address))
    assert address in ipaddress.ip_network(group) or (address.version == 6 and address.ipv4_mapped and group == str(address.ipv4_mapped))
    assert address_group(None) == "unknown" and address_group("testclient") == "testclient"


# guards

@pytest.fixture
def service(database, redis_url):
    "A small app behind the guards; `service(**settings)` makes a client of it."
    from fastapi import APIRouter, Depends, FastAPI
    from fastapi.responses import HTMLResponse, StreamingResponse
    from fastapi.testclient import TestClient
    from pydantic import BaseModel
    from ssr_nb.service.guards import add_guards, require

    class Body(BaseModel):
        name: str

    made_settings = []

    def make(**more):
        settings = ServiceSettings(**{"database_url": database, "redis_url": redis_url, "rate_limit_per_minute": 1000, "rate_limit_per_hour": 10_000, "max_body_bytes": 1000, **more})
        made_settings.append(settings)
        app, outer, inner = FastAPI(), APIRouter(prefix="/api/v1"), APIRouter(prefix="/surveys")
        @inner.get("/estimate")
        def estimate(): return 1
        @inner.get("/{survey_id}", responses={404: {}})
        def one(survey_id: str, caller: Annotated[Caller, Depends(require("surveys:read"))]):
            if survey_id == "none": raise Problem(404, "there is no such survey: list them with GET /api/v1/surveys")
            return {"owner": caller.owner}
        @inner.post("", status_code=202)
        def post(body: Body, caller: Annotated[Caller, Depends(require("surveys:write"))]): return {"got": len(body.name)}
        @inner.get("/{survey_id}/events")
        def events(survey_id: str, caller: Annotated[Caller, Depends(require("surveys:read"))]):
            def stream():
                for number in range(3): yield f"data: {number}\n\n"
            return StreamingResponse(stream(), media_type="text/event-stream")
        @inner.get("/{survey_id}/report")
        def report(survey_id: str): return HTMLResponse("<html><script>alert(1)</script></html>")
        @outer.get("/raise/{what}")
        def fail(what: str):
            import redis
            raise {"input": InputError("samples is 0: give a whole number of at least 1"), "state": SSRError("it is not ready: wait"), "database": sa.exc.OperationalError("SELECT password", {}, Exception("gone")), "pool": sa.exc.TimeoutError("pool"),
                   "redis": redis.ConnectionError("redis://:pw@x"), "bug": ZeroDivisionError("the-secret-of-the-house"), "budget": OverBudget("no dollars are left: wait")}[what]
        @outer.get("/breaks")
        def breaks():
            def stream():
                yield "one"
                raise RuntimeError("mid")
            return StreamingResponse(stream())
        @outer.get("/version")
        def version(): return "1"
        @app.get("/health")
        def health(): return {"status": "ok"}
        outer.include_router(inner)
        app.include_router(outer)
        add_guards(app, settings)
        return TestClient(app, raise_server_exceptions=False)
    yield make
    for settings in made_settings: make_engine(settings.database_url).dispose()


@pytest.fixture
def key(engine): return {"X-API-Key": made(engine, scopes=["surveys:read", "surveys:write"])[1]}


def rows(engine) -> list:
    with engine.connect() as connection: return connection.execute(sa.select(AuditRow).order_by(AuditRow.id)).all()


def test_every_route_is_closed_without_a_key_that_holds(service, engine):
    client = service()
    revoked, expired, out_of_scope = (made(engine, scopes=["costs"]) for _ in range(3))
    change(engine, revoked[0].id, revoked_at=now())
    change(engine, expired[0].id, expires_at=now())
    routes = [(method.upper(), path.replace("{survey_id}", "7").replace("{what}", "bug")) for path, operations in client.app.openapi()["paths"].items() for method in operations]
    routes += [("GET", "/api/v1/nowhere"), ("GET", "/wp-admin"), ("DELETE", "/api/v1/surveys/7"), ("GET", "/docs/"), ("GET", "//health"), ("GET", "/api/v1/version/"), ("GET", "/static-offline-docs/../api/v1/surveys/7")]
    assert len(routes) > 10
    for method, path in routes:
        for text in (None, "", "wrong", f"ssr_ffffffff_{'x' * 43}", revoked[1], expired[1]):
            answer = client.request(method, path, headers={} if text is None else {"X-API-Key": text})
            if path in ("/health", "/api/v1/version"): assert answer.status_code == 200
            else: assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json") and "ApiKey" in answer.headers["www-authenticate"], (method, path, text)
    for method, path in (("GET", "/api/v1/surveys/7"), ("GET", "/api/v1/surveys/7/events")): assert client.request(method, path, headers={"X-API-Key": out_of_scope[1]}).status_code == 403
    assert client.post("/api/v1/surveys", json={"name": "x"}, headers={"X-API-Key": out_of_scope[1]}).status_code == 403


def test_a_stranger_is_refused_before_the_body_is_read(service, engine):
    client = service()
    client.get("/health")

    async def ask():
        said = []
        async def receive(): raise AssertionError("the body was read")
        async def send(message): said.append(message)
        scope = {"type": "http", "method": "POST", "path": "/api/v1/surveys", "raw_path": b"/api/v1/surveys", "query_string": b"", "headers": [(b"content-length", b"5")], "client": ("9.9.9.9", 1), "server": ("x", 80), "scheme": "http", "http_version": "1.1", "root_path": ""}
        await client.app(scope, receive, send)
        return said
    assert asyncio.run(ask())[0]["status"] == 401
    assert client.post("/api/v1/surveys", content=b"{", headers={"content-type": "application/json"}).status_code == 401
    assert [row.client for row in rows(engine)] == ["9.9.9.9", "testclient"]


def test_probing_does_not_fill_the_database_nor_hinder_others(service, engine, key):
    client = service(rate_limit_per_minute=5)
    told = [client.get(f"/api/v1/surveys/{number}", headers={"X-API-Key": f"ssr_ffffffff_{'x' * 43}"}) for number in range(40)]
    assert [answer.status_code for answer in told] == [401] * 5 + [429] * 35 and int(told[-1].headers["Retry-After"]) >= 1 and len(rows(engine)) == 5
    assert client.get("/api/v1/surveys/7", headers=key).status_code == 200 and len(rows(engine)) == 6  # from the same address
    quiet = service(rate_limit_per_minute=5, rate_limit_enabled=False)
    assert [quiet.get("/api/v1/surveys/1").status_code for _ in range(20)] == [401] * 20 and len(rows(engine)) == 6


def test_a_key_has_its_limit_and_every_response_tells_it(service, engine, key):
    client = service(rate_limit_per_minute=3)
    answers = [client.get("/api/v1/surveys/7", headers=key), client.get("/api/v1/surveys/none", headers=key), client.get("/api/v1/raise/bug", headers=key), client.get("/api/v1/surveys/7", headers=key)]
    assert [answer.status_code for answer in answers] == [200, 404, 500, 429] and [answer.headers["X-RateLimit-Remaining"] for answer in answers] == ["2", "1", "0", "0"]
    assert abs(int(answers[0].headers["X-RateLimit-Reset"]) - time.time() - 60) < 5 and answers[0].headers["X-RateLimit-Limit"] == "3" and 1 <= int(answers[3].headers["Retry-After"]) <= 60
    assert [row.status for row in rows(engine)] == [200, 404, 500, 429]
    off = service(rate_limit_enabled=False)
    assert "X-RateLimit-Limit" not in off.get("/api/v1/surveys/7", headers=key).headers and "X-RateLimit-Limit" not in client.get("/health").headers


def test_the_audit_log_has_every_call_and_nothing_secret(service, engine, key, caplog):
    client = service()
    caplog.set_level("INFO")
    text = key["X-API-Key"]
    client.get("/api/v1/surveys/7?api_key=query-secret", headers=key | {"X-Request-ID": "mine-1", "User-Agent": "agent-secret"})
    client.post("/api/v1/surveys", json={"name": "body-secret"}, headers=key)
    client.post("/api/v1/surveys", json={"nam": "body-secret"}, headers=key)
    client.post("/api/v1/surveys", content="{", headers=key | {"content-type": "application/json"})
    client.get(f"/api/v1/surveys/{text}", headers=key)
    client.get("/api/v1/surveys/a%00b%F0%9F%98%80", headers=key)
    client.get("/api/v1/surveys/" + "x" * 900, headers=key)
    client.get("/health")
    client.get("/docs")
    found = rows(engine)
    assert [(row.method, row.status) for row in found] == [("GET", 200), ("POST", 202), ("POST", 422), ("POST", 422), ("GET", 200), ("GET", 200), ("GET", 200)]
    assert found[0].request_id == "mine-1" and found[0].owner == "team" and found[0].key_id == text[4:12] and found[0].client == "testclient" and found[0].seconds > 0
    said = str(found) + str([record.__dict__ for record in caplog.records if not record.name.startswith("httpx")])  # httpx is the client here
    assert not any(secret in said for secret in ("query-secret", "body-secret", "agent-secret", text[13:])) and len(found[-1].path) <= 500
    line = next(record for record in caplog.records if record.name == "ssr_nb.service.http")
    assert line.getMessage() == "GET /api/v1/surveys/{survey_id} 200" and line.owner == "team" and line.status == 200


@pytest.mark.parametrize("given_, kept", [("abc-1.2:3_x", True), ("x" * 100, True), ("x" * 101, False), ("", False), ("has space", False), ("a\tb", False), ("-begins", False), ("ü", False), ("'; DROP TABLE", False), (f"ssr_0123abcd_{'k' * 43}", False)])
def test_request_ids_are_taken_if_sane(service, given_, kept):
    answer = service().get("/health", headers={"X-Request-ID": given_.encode()})
    assert (answer.headers["X-Request-ID"] == given_) == kept and re.fullmatch(r"[A-Za-z0-9._:-]{1,100}", answer.headers["X-Request-ID"])


@pytest.mark.parametrize("what, status, kind", [("input", 422, "invalid-input"), ("state", 409, "conflict"), ("budget", 402, "over-budget"), ("database", 503, "unavailable"), ("pool", 503, "unavailable"), ("redis", 503, "unavailable"), ("bug", 500, "internal-error")])
def test_errors_become_problems_that_show_nothing_of_the_inside(service, key, caplog, what, status, kind):
    answer = service().get(f"/api/v1/raise/{what}", headers=key | {"X-Request-ID": "find-me"})
    told = answer.json()
    assert (answer.status_code, told["status"], told["type"], told["instance"]) == (status, status, f"urn:ssr:problem:{kind}", "urn:ssr:request:find-me") and answer.headers["content-type"] == "application/problem+json"
    assert not any(inside in answer.text for inside in ("password", "pw@", "secret", "Traceback", "ZeroDivision", "SELECT")) and answer.headers["X-Content-Type-Options"] == "nosniff"
    assert ("Retry-After" in answer.headers) == (status == 503)
    if what == "input": assert told["errors"] == [{"field": "samples", "message": "is 0: give a whole number of at least 1"}]
    if what == "bug": assert "the-secret-of-the-house" in caplog.text  # for the operators


def test_a_response_that_breaks_off_does_not_look_whole(service, key, caplog):
    from ssr_nb.service.telemetry import request_id
    with pytest.raises(RuntimeError, match="mid"): asyncio.run(_stream(service(), "/api/v1/breaks", key))
    assert "broke off" in caplog.text and request_id.get() is None


async def _stream(client, path, headers):
    said = []
    done = asyncio.Event()
    body = iter([{"type": "http.request", "body": b""}])
    async def receive():
        for message in body: return message
        await done.wait()
    async def send(message): said.append(message)
    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()], "client": ("9.9.9.9", 1), "server": ("x", 80), "scheme": "http", "http_version": "1.1", "root_path": ""}
    try: await client.app(scope, receive, send)
    finally: done.set()
    return said


def test_events_pass_as_they_come_and_are_on_record_before_the_first(service, engine, key):
    client = service()
    said = asyncio.run(_stream(client, "/api/v1/surveys/7/events", key))
    assert [message.get("body") for message in said[1:4]] == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n"] and said[0]["status"] == 200 and len(rows(engine)) == 1


def test_servers_that_are_away_give_503(service, engine, database, key):
    for away in ({"database_url": "postgresql+psycopg://ssr:not-shown@127.0.0.1:9/x"}, {"redis_url": "redis://:not-shown@127.0.0.1:9/0"}):
        answer = service(**away).get("/api/v1/surveys/7", headers=key)
        assert answer.status_code == 503 and int(answer.headers["Retry-After"]) >= 1 and "not-shown" not in answer.text and service(**away).get("/health").status_code == 200


def test_calls_without_a_row_are_told_to_the_log(service, key, caplog):
    from ssr_nb.service import telemetry
    before = telemetry.AUDIT_SKIPPED.labels("database")._value.get()
    client = service(api_keys=("k" * 32,), database_url="postgresql+psycopg://ssr:not-shown@127.0.0.1:9/x", rate_limit_enabled=False)
    from ssr_nb.service.guards import Door
    door = Door._admit
    def admit(self, call, text, address):
        call.caller, call.audited = Caller("bootstrap-0", "bootstrap", frozenset(SCOPES)), True
    Door._admit = admit
    try: assert client.get("/api/v1/surveys/7", headers=key).status_code == 200
    finally: Door._admit = door
    assert telemetry.AUDIT_SKIPPED.labels("database")._value.get() == before + 1 and any("audit log" in record.message and record.owner == "bootstrap" for record in caplog.records) and "not-shown" not in caplog.text


def test_bodies_are_limited_announced_or_not(service, engine, key):
    client = service()
    fine, large = json.dumps({"name": "x" * 900}).encode(), json.dumps({"name": "x" * 1000}).encode()
    parts = lambda body: (body[at:at + 100] for at in range(0, len(body), 100))  # noqa: E731
    headers = key | {"content-type": "application/json"}
    assert client.post("/api/v1/surveys", content=fine, headers=headers).json() == {"got": 900} and client.post("/api/v1/surveys", content=parts(fine), headers=headers).json() == {"got": 900}
    for body in (large, parts(large)):
        answer = client.post("/api/v1/surveys", content=body, headers=headers)
        assert answer.status_code == 413 and answer.json()["type"] == "urn:ssr:problem:too-large" and answer.headers["connection"] == "close" and answer.headers["X-Request-ID"]
    assert [row.status for row in rows(engine)] == [202, 202, 413, 413]


def test_only_named_pages_may_call_from_a_browser(service, key):
    client = service(cors_origins=("https://research.example.com",))
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key,content-type,idempotency-key"}
    allowed = client.options("/api/v1/surveys", headers=asked | {"Origin": "https://research.example.com"})
    assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == "https://research.example.com" and "access-control-allow-credentials" not in allowed.headers
    for origin in ("https://evil.example.com", "https://research.example.com.evil.com", "http://research.example.com", "null"):
        assert "access-control-allow-origin" not in client.options("/api/v1/surveys", headers=asked | {"Origin": origin}).headers
        assert "access-control-allow-origin" not in client.get("/api/v1/surveys/7", headers=key | {"Origin": origin}).headers
    refused = client.get("/api/v1/surveys/7", headers={"Origin": "https://research.example.com"})
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "https://research.example.com" and "Retry-After" in refused.headers["access-control-expose-headers"]
    assert service().options("/api/v1/surveys", headers=asked | {"Origin": "https://research.example.com"}).status_code == 401


def test_security_headers_are_on_every_response(service, key):
    client = service(env="production")
    for answer in (client.get("/health"), client.get("/api/v1/surveys/7"), client.get("/api/v1/surveys/7", headers=key), client.get("/nowhere", headers=key), client.get("/api/v1/raise/bug", headers=key), client.get("/docs")):
        assert answer.headers["X-Content-Type-Options"] == "nosniff" and answer.headers["X-Frame-Options"] == "DENY" and answer.headers["Cache-Control"] == "no-store" and answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Strict-Transport-Security"].startswith("max-age=31536000") and "default-src 'none'" in answer.headers["Content-Security-Policy"] and "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert "Strict-Transport-Security" not in service().get("/health").headers
    report = client.get("/api/v1/surveys/7/report", headers=key).headers["Content-Security-Policy"]
    assert "script-src" not in report and "style-src 'unsafe-inline'" in report and "http" not in report


def test_the_documentation_runs_its_own_script_and_no_other(service):
    from hashlib import sha256
    answer = service().get("/docs")
    script = re.search(r"<script>(.*?)</script>", answer.text, re.S)[1]
    policy = answer.headers["Content-Security-Policy"]
    assert f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" in policy and "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0] and int(answer.headers["content-length"]) == len(answer.content)


def test_metrics_have_templates_for_paths(service, key):
    from ssr_nb.service.telemetry import HTTP_REQUESTS, metrics_page
    HTTP_REQUESTS.clear()
    client = service()
    for path in ("/api/v1/surveys/7", "/api/v1/surveys/8?x=1", "/api/v1/surveys/estimate", "/api/v1/surveys/7/events", "/nowhere/at/all", "/health", "/docs"): client.get(path, headers=key)
    client.request("BREW", "/api/v1/surveys/7", headers=key)
    client.request("DELETE", "/api/v1/surveys/7", headers=key)
    lines = [line for line in metrics_page()[0].decode().splitlines() if line.startswith("http_requests_total{")]
    for method, path, status, count in (("GET", "/api/v1/surveys/{survey_id}", 200, 2), ("GET", "/api/v1/surveys/estimate", 200, 1), ("GET", "/api/v1/surveys/{survey_id}/events", 200, 1), ("GET", "unmatched", 404, 1), ("GET", "/health", 200, 1), ("OTHER", "/api/v1/surveys/{survey_id}", 405, 1),
                                        ("DELETE", "/api/v1/surveys/{survey_id}", 405, 1), ("POST", "/api/v1/surveys", 500, 0), ("POST", "/api/v1/surveys", 202, 0), ("GET", "/api/v1/surveys/{survey_id}", 404, 0)):
        assert f'http_requests_total{{method="{method}",path="{path}",status="{status}"}} {count}.0' in lines
    assert not any("/7" in line or "nowhere" in line for line in lines)


def test_websockets_are_closed(service):
    from starlette.websockets import WebSocketDisconnect
    with pytest.raises(WebSocketDisconnect), service().websocket_connect("/api/v1/surveys/7"): pass


def test_openapi_names_the_header(service):
    told = service().app.openapi()
    assert told["components"]["securitySchemes"]["ApiKey"]["name"] == "X-API-Key" and told["paths"]["/api/v1/surveys/{survey_id}"]["get"]["security"] == [{"ApiKey": []}]


def test_an_unknown_scope_is_a_mistake_of_the_route():
    from ssr_nb.service.guards import require
    with pytest.raises(InputError, match="scope"): require("surveys:reed")


# problems

@pytest.mark.parametrize("location, path", [(("body", "concepts", 0, "name"), "concepts[0].name"), (("query", "limit"), "limit"), (("header", "Idempotency-Key"), "Idempotency-Key"), (("body",), "body"), (("body", 2, 3), "[2][3]"), ((), "body"), (("body", "panel", "filters", "age_range", 1), "panel.filters.age_range[1]")])
def test_fields_are_written_as_people_write_them(location, path): assert field_path(location) == path


@given(st.lists(st.one_of(st.integers(0, 99), st.from_regex(r"\A[a-z_]{1,9}\Z")), min_size=1, max_size=6))
def test_field_paths_are_unambiguous(parts):
    path = field_path(("body", *parts))
    assert [int(number) if number else name for number, name in re.findall(r"\[(\d+)\]|([a-z_]+)", path)] == parts


@given(st.text(max_size=100))
def test_any_message_makes_a_document(text):
    for error in (InputError(text), SSRError(text), Problem(418, text)): assert json.loads(json.dumps(problem_of(error).document()))["detail"] == text


# pictures

def picture(kind="PNG", size=(40, 30)) -> bytes:
    from PIL import Image
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, kind)
    return file.getvalue()


@contextmanager
def pictures(context=None):
    "A server whose paths misbehave in different ways; `.asked` holds (path, Host)."
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        def do_GET(self):
            self.server.asked.append((self.path, self.headers["Host"]))
            name, _, rest = self.path.partition("?")[0].strip("/").partition("/")
            def answer(status=200, body=b"", **headers):
                self.send_response(status)
                for header, value in {"Content-Type": "image/png", "Content-Length": str(len(body)), "Connection": "close", **{key.replace("_", "-"): value for key, value in headers.items()}}.items():
                    if value is not None: self.send_header(header, value)
                self.end_headers()
                try: self.wfile.write(body)
                except OSError: pass
            if name == "fine": answer(body=picture())
            elif name == "jpeg": answer(body=picture("JPEG"), Content_Type="image/jpeg; charset=binary")
            elif name == "hops": answer(*((302,) if int(rest) else (200, picture())), **({"Location": f"/hops/{int(rest) - 1}"} if int(rest) else {}))
            elif name == "to": answer(307, Location=rest)
            elif name == "nowhere": answer(302)
            elif name == "status": answer(int(rest), picture())
            elif name == "html": answer(body=b"<html>", Content_Type="text/html")
            elif name == "untyped": answer(body=picture(), Content_Type=None)
            elif name == "lies": answer(body=b"<svg/>")
            elif name == "packed": answer(body=picture(), Content_Encoding="gzip")
            elif name == "announced": answer(body=b"x" * 3000)
            elif name == "endless":
                answer(Content_Length=None)
                try:
                    while True: self.wfile.write(b"x" * 1000)
                except OSError: self.server.asked.append(("closed", ""))
            elif name == "drip":
                try:
                    for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 1000:
                        self.wfile.write(bytes([byte]))
                        time.sleep(.05)
                except OSError: pass
            self.close_connection = True
        def log_message(self, *_): pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.daemon_threads = [], True
    if context: server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": .02}, daemon=True)
    thread.start()
    try: yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def elsewhere():
    with pictures() as server: yield server


def fetch(server, path, host="pictures.example.com", scheme="http", **more):
    options = {"resolver": lambda host, port: ["127.0.0.1"], "allowed": lambda address: True, "ports": None} | more
    return fetch_picture(f"{scheme}://{host}:{server.server_port}/{path}", **options)


def test_a_picture_is_fetched_from_the_address_that_was_checked(elsewhere):
    asked = []
    found = fetch(elsewhere, "fine?signature=abc", resolver=lambda host, port: asked.append((host, port)) or ["127.0.0.1"])
    assert (found.width, found.height, found.media_type, found.source) == (40, 30, "image/jpeg", "fine") and asked == [("pictures.example.com", elsewhere.server_port)]
    assert elsewhere.asked == [("/fine?signature=abc", f"pictures.example.com:{elsewhere.server_port}")]
    assert fetch(elsewhere, "jpeg").width == 40 and fetch(elsewhere, "hops/3").width == 40


def test_it_works_inside_a_running_loop(elsewhere):
    async def inside(): return fetch(elsewhere, "fine")
    assert asyncio.run(inside()).width == 40


def test_a_name_that_changes_its_mind_gains_nothing(elsewhere):
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])
    assert fetch(elsewhere, "fine", resolver=lambda host, port: next(answers), allowed=lambda address: address == "127.0.0.1").width == 40
    assert next(answers) == ["10.0.0.1"]  # it was asked once


@pytest.mark.parametrize("path, said", [("hops/4", "more than 3 times"), ("nowhere", "nowhere"), ("status/404", "status 404"), ("status/500", "status 500"), ("status/204", "status 204"), ("html", "text/html"), ("untyped", "nothing in particular"), ("lies", "no readable"), ("packed", "gzip"),
                                        ("announced", "more than 2,000 bytes"), ("endless", "more than 2,000 bytes"), ("drip", "within 1 seconds"), ("to/file:///etc/passwd", "scheme 'file'"), ("to/gopher://x/", "scheme"), ("to/http://user:word@host/", "user or password")])
def test_what_comes_back_must_be_a_picture(elsewhere, path, said):
    with pytest.raises(InputError, match=said) as error: fetch(elsewhere, path, most_bytes=2000, most_seconds=1)
    assert str(error.value).startswith("image ") and "word@" not in str(error.value)


@pytest.mark.parametrize("there", ["http://169.254.169.254/latest/meta-data/", "http://[::1]/", "http://localhost/", "//internal/x", "http://2130706433/", "http://[::ffff:10.0.0.1]/"])
def test_a_redirect_is_checked_as_the_first_address_was(elsewhere, there):
    from ssr_nb.service.pictures import resolve
    names = {"pictures.example.com": ["127.0.0.1"], "internal": ["10.0.0.7"]}
    with pytest.raises(InputError, match="public"): fetch(elsewhere, f"to/{there}", resolver=lambda host, port: names.get(host) or resolve(host, port), allowed=lambda address: address == "127.0.0.1" and len(elsewhere.asked) == 0 or is_public(address))
    assert len(elsewhere.asked) == 1


@pytest.mark.parametrize("url, said", [("ftp://example.com/x", "scheme"), ("http:///x", "host"), ("x.png", "scheme"), ("http://a:b@example.com/", "user or password"), ("http://example.com:22/", "port 22"), ("https://example.com:8443/", "port 8443"), ("http://" + "a" * 3000, "3,007 characters"),
                                       ("http://exa mple.com/", "InvalidURL|not known|cannot be fetched"), ("http://example.com:99999/", "cannot be fetched|port"), ("", "scheme"), ("http://xn--/", "."), ("http://\u2488.example/", ".")])
def test_addresses_that_are_refused_without_asking(url, said):
    with pytest.raises(InputError, match=said): fetch_picture(url, resolver=lambda host, port: [])
    with pytest.raises(InputError): fetch_picture(7)


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["93.184.216.34", "127.0.0.1"], ["::1"], ["fe80::1%lo"], ["169.254.169.254"], ["not an address"], []])
def test_every_address_of_a_name_must_be_public(addresses):
    with pytest.raises(InputError, match="public|not known"): fetch_picture("http://name.example/x.png", resolver=lambda host, port: addresses)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "2130706433", "0x7f.1", "0", "0.0.0.0", "[::]", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "localhost", "127.0.0.1.", "①②⑦.⓪.⓪.①"])
def test_no_spelling_of_this_machine_is_asked(elsewhere, host):
    with pytest.raises(InputError): fetch_picture(f"http://{host}:{elsewhere.server_port}/fine", ports=None)
    assert elsewhere.asked == []


PRIVATE = ["0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "::/96", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8", "2001:db8::/32", "2002::/16", "64:ff9b::/96", "100::/64"]


@given(st.sampled_from(PRIVATE).flatmap(lambda network: st.integers(0, ipaddress.ip_network(network).num_addresses - 1).map(lambda at: ipaddress.ip_network(network)[at])))
def test_no_address_of_a_special_network_is_public(address):
    assert not is_public(str(address))
    if address.version == 4: assert not any(map(is_public, (f"::ffff:{address}", f"::{address}", f"64:ff9b::{address}", str(ipaddress.IPv6Address(int(ipaddress.ip_address("2002::")) | int(address) << 80)))))


@given(st.ip_addresses())
def test_a_mapped_address_is_what_it_maps_and_public_ones_are_global(address):
    assert not is_public(str(address)) or (address.is_global or (address.version == 6 and address.ipv4_mapped)) and not address.is_multicast
    if address.version == 4: assert is_public(f"::ffff:{address}") == is_public(str(address))


@given(st.text(max_size=40))
def test_no_text_is_a_public_address_by_accident(text): assert not is_public(text) or ipaddress.ip_address(text)


def test_tls_is_checked_against_the_name_not_the_address(tmp_path):
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", tmp_path / "key", "-out", tmp_path / "cert", "-days", "1", "-subj", "/CN=pictures.example.com"], check=True, capture_output=True)
    context, names = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), []
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    context.sni_callback = lambda socket, name, context: names.append(name)
    with pictures(context) as server:
        with pytest.raises(InputError, match="cannot be fetched"): fetch(server, "fine", scheme="https")  # nobody vouches for this certificate
        assert names == ["pictures.example.com"] and server.asked == []


def test_proxies_of_the_environment_are_not_asked(elsewhere, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"): monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetch(elsewhere, "fine").width == 40


def data_url(data: bytes, kind="image/png") -> str: return f"data:{kind};base64,{b64encode(data).decode()}"


def test_pictures_inside_the_request():
    assert fetch_picture(data_url(picture())).width == 40 and fetch_picture(data_url(picture("WEBP"), "image/webp")).width == 40 and fetch_picture(data_url(picture()).rstrip("=").replace("data:", "DATA:").replace("+", "%2B")).width == 40
    for url, said in ((data_url(b"x"), "no readable"), (data_url(picture(), "text/html"), "text/html"), ("data:image/png,abc", "without base64"), ("data:image/svg+xml;base64,AAAA", "svg"), ("data:image/png;base64,@@@@", "cannot be read"), ("data:", "without base64"),
                      (data_url(b"x" * 3000), "more than 2,000 bytes")):
        with pytest.raises(InputError, match=re.escape(said)): fetch_picture(url, most_bytes=2000)


def test_a_wall_of_pixels_is_not_decoded():
    from PIL import Image
    file = io.BytesIO()
    Image.new("1", (6000, 6000)).save(file, "PNG")
    assert len(file.getvalue()) < 20_000
    with pytest.raises(InputError, match="36,000,000 pixels"): fetch_picture(data_url(file.getvalue()))
