"""Surveys of the service, without Celery: every fault at the seams between workers, database and Redis."""

import threading
import time
from datetime import timedelta

import pytest
import redis as redis_client
import sqlalchemy as sa

from ssr_nb.core import SSRError
from ssr_nb.exports import unpack
from ssr_nb.limits import Limits
from ssr_nb.personas import Panel
from ssr_nb.service import journal, records, surveys
from ssr_nb.service.database import ANSWERS, OPEN, RATINGS, CallRow, ChunkRow, SurveyRow, make_engine, now, sessions, transaction
from ssr_nb.service.queues import JOBS, QUEUES
from ssr_nb.service.settings import ServiceSettings
from ssr_nb.survey import Survey, read_concepts
from ssr_nb.verify import compare, verify


@pytest.fixture
def environment(database, redis_url, server, tmp_path, monkeypatch):
    for name, value in {"DATABASE_URL": database, "REDIS_URL": redis_url, "OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "test", "SSR_RUNS": str(tmp_path / "runs"), "CHUNK_ANSWERS": "10"}.items(): monkeypatch.setenv(name, value)
    monkeypatch.setattr(surveys, "Limits", lambda: Limits(pause=.01, patience=1.0))


@pytest.fixture
def settings(environment): return ServiceSettings.from_environment()


@pytest.fixture
def engine(settings): return make_engine(settings.database_url)


@pytest.fixture
def sent(monkeypatch):
    "What is sent to the workers, in place of sending it."
    messages = []
    monkeypatch.setattr(surveys, "send", lambda settings, task, *arguments, queue: messages.append((task, *arguments)))
    return messages


def survey(people=20, **changes) -> Survey:
    return Survey(**{"concepts": read_concepts("demo_concepts.csv")[:2], "panel": Panel.us_adults(people, seed=3), "samples": 1, "llm_model": "gpt-4o", "embedding_model": "minilm", "seed": 3, **changes})


def post(engine, settings, wanted=None, **options) -> SurveyRow:
    with transaction(engine) as session: return surveys.create(session, wanted or survey(), {}, **{"owner": "team", "settings": settings, **options})


def drive(engine, settings, row, worker="one") -> SurveyRow:
    "Do what is handed out until nothing is."
    while handed := surveys.advance(engine, settings, row.id):
        for stage, number in handed: surveys.work(engine, settings, row.id, stage, number, worker)
    return again(engine, row)


def again(engine, row) -> SurveyRow:
    with transaction(engine) as session: return session.get(SurveyRow, row.id)


def ready_now(engine) -> None:
    "As if the waiting time of chunks that were put back had passed."
    with engine.begin() as connection: connection.execute(sa.update(ChunkRow).values(lease_until=None).where(ChunkRow.status == "waiting"))


def scalar(engine, query, **values):
    with engine.connect() as connection: return connection.execute(sa.text(query), values).scalar()


@pytest.mark.parametrize("changes", [{}, {"method": "ssr,flr,dlr", "ask_why": True}, {"replacements": 2, "constructs": ["purchase_intent", "relevance"]}], ids=["plain", "followed up", "replaced"])
def test_the_service_finds_what_the_notebook_finds(engine, settings, server, sent, tmp_path, changes):
    wanted = survey(**changes)
    if "replacements" in changes: server.faults = {"bare-rating": .2}
    here = wanted.run(progress=False, settings=settings.library)
    server.fail = lambda number: None
    with engine.begin() as connection: before = connection.scalar(sa.select(sa.func.count()).select_from(CallRow))
    assert before == 0
    answers = {row["key"]: row for row in here.calls.to_dict("records")}
    server.answer, asked = None, server.requests
    row = post(engine, settings, wanted)
    replay_calls(engine, row, answers)  # the very same answers: those of the local run
    row = drive(engine, settings, row)
    assert row.status == "completed", row.error
    assert server.requests == asked  # nothing was asked again
    assert row.fingerprint == here.manifest["fingerprint"] and row.elicitation_hash == here.manifest["elicitation_hash"]
    there, local = records.results(engine, settings, row), here
    for name, table in local.tables().items():
        if name != "calls": assert compare(name, table, there.tables()[name]) == [], name
    assert scalar(engine, "SELECT COUNT(*) FROM answers WHERE survey_id = :id", id=row.id) == len(local.answers)
    archive = tmp_path / "run.zip"
    archive.write_bytes(records.record_archive(engine, settings, row))
    verified = verify(unpack(archive, tmp_path / "elsewhere"))
    assert verified.equal, str(verified)
    progress = surveys.progress(transaction(engine).__enter__(), row)
    assert progress["done"] == progress["total"] == len(answers) or "replacements" in changes


def replay_calls(engine, row, answers) -> None:
    with engine.begin() as connection:
        for one in answers.values():
            values = {name: one[name] for name in one if name not in ("cost_usd", "created_at", "counted")}
            connection.execute(sa.insert(CallRow).values(survey_id=row.id, status="success", cost=one["cost_usd"], counted=bool(one["counted"]), created_at=now(), **values))


def test_a_chunk_is_claimed_once_and_by_others_when_its_worker_is_silent(engine, settings, sent):
    row = post(engine, settings)
    stage, number = surveys.advance(engine, settings, row.id)[0]
    claims = [None] * 8
    def take(place): claims[place] = surveys.claim(engine, row.id, stage, number, f"worker {place}")
    threads = [threading.Thread(target=take, args=(place,)) for place in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert sum(claim is not None for claim in claims) == 1
    with engine.begin() as connection: connection.execute(sa.update(ChunkRow).values(lease_until=now() - timedelta(seconds=1)).where(ChunkRow.number == number))
    later = surveys.claim(engine, row.id, stage, number, "late")
    assert later.worker == "late" and later.attempts == 2


def test_no_more_chunks_than_the_window_are_handed_out(engine, settings, sent):
    row = post(engine, settings, survey(60))
    assert len(surveys.advance(engine, settings, row.id)) == surveys.WINDOW and surveys.advance(engine, settings, row.id) == []
    limited = post(engine, settings, survey(60), max_cost_usd=5.0)
    assert len(surveys.advance(engine, settings, limited.id)) == 1


def test_what_was_answered_is_not_asked_again_after_a_fault(engine, settings, server, sent):
    server.fail = lambda number: "503" if number > 15 else None
    row = post(engine, settings)
    drive(engine, settings, row)
    found = again(engine, row)
    assert found.status == "running" and 0 < scalar(engine, "SELECT COUNT(*) FROM llm_requests WHERE status = 'success'") < 40
    assert scalar(engine, "SELECT COUNT(*) FROM llm_requests WHERE status = 'error'") == 0
    assert scalar(engine, "SELECT COUNT(*) FROM chunks WHERE status = 'waiting' AND lease_until > now()") > 0  # tried again later
    server.fail = lambda number: None
    ready_now(engine)
    found = drive(engine, settings, row, "two")
    assert found.status == "completed" and found.error is None
    answered = [one.key for one in server.sent if one.fault is None and one.endpoint == "chat"]
    assert len(answered) == 40


def test_the_last_attempt_records_the_failures(engine, settings, server, sent, monkeypatch):
    server.fail = lambda number: "500" if number % 3 == 0 else None
    row = post(engine, settings, survey(5))
    with engine.begin() as connection: connection.execute(sa.update(ChunkRow).values(attempts=surveys.MOST_ATTEMPTS - 1))
    monkeypatch.setattr(surveys, "Limits", lambda: Limits(attempts=1))
    row = drive(engine, settings, row)
    assert row.status == "incomplete" and row.manifest["status"] == "incomplete"
    failed = scalar(engine, "SELECT COUNT(*) FROM answers WHERE status = 'error' AND cause LIKE '500%'")
    assert failed == scalar(engine, "SELECT COUNT(*) FROM llm_requests WHERE status = 'error'") > 0
    server.fail = lambda number: None
    with transaction(engine) as session: assert surveys.retry(session, session.get(SurveyRow, row.id), settings)
    asked = server.requests
    row = drive(engine, settings, row)
    assert row.status == "completed" and server.requests == asked + failed
    with transaction(engine) as session: assert not surveys.retry(session, session.get(SurveyRow, row.id), settings)


@pytest.mark.parametrize("fault, told", [("401", "was refused"), ("quota", "no credit"), ("404", "is unknown")])
def test_what_cannot_pass_ends_the_survey_with_one_sentence(engine, settings, server, sent, fault, told):
    server.fail = lambda number: fault
    row = drive(engine, settings, post(engine, settings))
    assert row.status == "failed" and told in row.error
    with pytest.raises(SSRError, match="has no results"): records.results(engine, settings, row)


def test_another_provider_in_the_worker_is_not_asked(engine, settings, server, sent, monkeypatch):
    row = post(engine, settings)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url.replace("/v1", "/other"))
    row = drive(engine, ServiceSettings.from_environment(), row)
    assert row.status == "failed" and "same OPENAI_BASE_URL" in row.error and server.requests == 0


def test_a_survey_ends_once(engine, settings, server, sent):
    row = post(engine, settings, survey(10))
    while True:
        handed = surveys.advance(engine, settings, row.id)
        if handed[0][1] == surveys.FINISH: break
        for stage, number in handed: surveys.work(engine, settings, row.id, stage, number, "one")
    finishers = [surveys.Work(engine, settings, row.id) for _ in range(3)]
    threads = [threading.Thread(target=surveys._finish, args=(one,)) for one in finishers]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    row = again(engine, row)
    assert row.status == "completed"
    assert scalar(engine, "SELECT COUNT(*) FROM answers") == 20 == scalar(engine, "SELECT COUNT(*) FROM ratings")


def test_cancel_stops_asking_and_keeps_what_was_answered(engine, settings, server, sent, monkeypatch):
    monkeypatch.setattr(surveys, "HEARTBEAT", .1)
    server.delay = .05
    monkeypatch.setattr(surveys, "Limits", lambda: Limits(concurrency=1, most_concurrency=1))
    row = post(engine, settings, survey(50))
    working = threading.Thread(target=drive, args=(engine, settings, row))
    working.start()
    while scalar(engine, "SELECT COUNT(*) FROM llm_requests") < 5: time.sleep(.02)
    with transaction(engine) as session: assert surveys.cancel(session, session.get(SurveyRow, row.id))
    working.join()
    kept = scalar(engine, "SELECT COUNT(*) FROM llm_requests")
    row = again(engine, row)
    assert row.status == "cancelled" and 5 <= kept < 60 and row.cost_usd == pytest.approx(scalar(engine, "SELECT SUM(cost) FROM llm_requests"))
    with transaction(engine) as session: assert not surveys.cancel(session, session.get(SurveyRow, row.id))
    server.delay, asked = 0.0, server.requests
    with transaction(engine) as session: assert surveys.retry(session, session.get(SurveyRow, row.id), settings)
    assert drive(engine, settings, row).status == "completed" and server.requests == asked + 100 - kept


def test_deleting_keeps_what_it_cost(engine, settings, server, sent):
    row = drive(engine, settings, post(engine, settings, name="secret launch"))
    spent = scalar(engine, "SELECT SUM(cost) FROM llm_requests WHERE created_at > NOW() - INTERVAL '1 day'")
    with transaction(engine) as session: surveys.delete(session, session.get(SurveyRow, row.id))
    with transaction(engine) as session: assert surveys.find(session, None, row.id) is None
    assert scalar(engine, "SELECT SUM(cost) FROM llm_requests WHERE created_at > NOW() - INTERVAL '1 day'") == pytest.approx(spent) and spent > 0
    assert scalar(engine, "SELECT COUNT(*) FROM answers") == 0 and scalar(engine, "SELECT COUNT(*) FROM llm_requests WHERE text IS NOT NULL OR request <> ''") == 0
    left = scalar(engine, "SELECT string_agg(row_to_json(surveys)::text, '') FROM surveys")
    assert "secret launch" not in left and row.manifest["fingerprint"] in left


def test_answers_that_come_after_a_deletion_are_not_kept(engine, settings, server, sent, monkeypatch):
    monkeypatch.setattr(surveys, "HEARTBEAT", .1)
    server.delay = .3
    row = post(engine, settings)
    working = threading.Thread(target=drive, args=(engine, settings, row))
    working.start()
    while not server.requests: time.sleep(.01)
    with transaction(engine) as session: surveys.delete(session, session.get(SurveyRow, row.id))
    working.join()
    assert scalar(engine, "SELECT COUNT(*) FROM llm_requests") > 0 == scalar(engine, "SELECT COUNT(*) FROM llm_requests WHERE text IS NOT NULL OR request <> ''")
    assert again(engine, row).cost_usd == pytest.approx(scalar(engine, "SELECT SUM(cost) FROM llm_requests"))


def test_retention_removes_old_surveys_alone(engine, settings, server, sent):
    old, young, running = (post(engine, settings, survey(3)) for _ in range(3))
    for row in (old, young): drive(engine, settings, row)
    with engine.begin() as connection: connection.execute(sa.update(SurveyRow).where(SurveyRow.id == old.id).values(finished_at=now() - timedelta(days=31)))
    with transaction(engine) as session: assert surveys.retain(session, 30)["surveys"] == 1
    with transaction(engine) as session: assert [surveys.find(session, "team", row.id) is None for row in (old, young, running)] == [True, False, False]


def test_the_limit_is_never_passed(engine, settings, server, sent):
    whole = drive(engine, settings, post(engine, settings))
    row = post(engine, settings, survey(20, seed=9), max_cost_usd=whole.cost_usd / 3)
    row = drive(engine, settings, row)
    assert row.status == "incomplete" and 0 < row.cost_usd <= whole.cost_usd / 3
    assert "Stopped at max_cost_usd" in row.manifest["warnings"][-1]


def test_answers_of_the_same_owner_are_taken_where_caching_is_on(engine, settings, server, sent, monkeypatch):
    monkeypatch.setenv("ENABLE_LLM_CACHING", "true")
    caching = ServiceSettings.from_environment()
    drive(engine, caching, post(engine, caching))
    asked = server.requests
    again_ = drive(engine, caching, post(engine, caching))
    assert again_.status == "completed" and server.requests == asked and again_.cost_usd == 0.0
    drive(engine, caching, post(engine, caching, owner="others"))
    assert server.requests == asked + 40


def test_the_sweep_sends_again_what_went_missing_and_nothing_else(engine, settings, server, sent):
    with redis_client.Redis.from_url(settings.redis_url) as redis:
        row = post(engine, settings)
        assert surveys.sweep(engine, settings, redis) == 0  # just posted: its message is on its way
        with engine.begin() as connection: connection.execute(sa.update(SurveyRow).values(created_at=now() - timedelta(minutes=1)))
        assert surveys.sweep(engine, settings, redis) == 1 and sent.pop() == ("ssr.advance", row.id)
        handed = surveys.advance(engine, settings, row.id)
        redis.rpush(QUEUES[0], *("message" for _ in handed))
        past(engine)
        assert surveys.sweep(engine, settings, redis) == 0  # they wait in the queue
        redis.flushdb()
        redis.rpush(JOBS, "another task"), redis.hset("unacked", "tag", "the sweep itself")
        assert surveys.sweep(engine, settings, redis) == len(handed) == len(sent)
        surveys.claim(engine, row.id, *handed[0], "one")
        redis.rpush(QUEUES[0], *("message" for _ in handed))
        assert surveys.sweep(engine, settings, redis) == 0
        past(engine)
        assert surveys.sweep(engine, settings, redis) == 1 and sent[-1] == ("ssr.ask", row.id, *handed[0])  # its worker has died
        redis.flushdb()


def past(engine) -> None:
    with engine.begin() as connection: connection.execute(sa.update(ChunkRow).values(lease_until=now() - timedelta(seconds=1)).where(ChunkRow.status.in_(("queued", "running"))))


def test_a_stuck_survey_is_taken_from_whoever_has_it(engine, settings, server, sent):
    row = post(engine, settings)
    for stage, number in surveys.advance(engine, settings, row.id): surveys.claim(engine, row.id, stage, number, "stuck")
    with transaction(engine) as session: assert surveys.requeue(session, settings, timedelta(hours=1)) == []
    with sessions(engine)() as session: assert surveys.requeue(session, settings) == [row.id]
    assert drive(engine, settings, row).status == "completed"


def test_answers_wait_for_a_database_that_restarts(postgres, engine, settings, server, sent, monkeypatch):
    server.delay = .05
    row = post(engine, settings)
    working = threading.Thread(target=drive, args=(engine, settings, row))
    working.start()
    while server.requests < 12: time.sleep(.01)
    postgres.restart()
    working.join()
    for _ in range(5):
        ready_now(engine), past(engine)
        with engine.begin() as connection: connection.execute(sa.update(ChunkRow).values(status="waiting").where(ChunkRow.status.in_(("queued", "running"))))
        row = drive(engine, settings, row)
        if row.status not in OPEN: break
    answered = [one.key for one in server.sent if one.fault is None and one.endpoint == "chat"]
    assert row.status == "completed" and len(answered) == 40


def test_ratings_in_sql_are_those_of_the_results(engine, settings, server, sent):
    row = drive(engine, settings, post(engine, settings))
    found = records.results(engine, settings, row).ratings
    with engine.connect() as connection: rows = connection.execute(sa.select(ANSWERS.c.text, RATINGS.c.mean, RATINGS.c.pmf).join(RATINGS, (ANSWERS.c.survey_id == RATINGS.c.survey_id) & (ANSWERS.c.answer_id == RATINGS.c.answer_id)).order_by(ANSWERS.c.answer_id)).all()
    assert [one.text for one in rows] == found["text"].tolist() and [one.mean for one in rows] == pytest.approx(found["mean"].tolist())


def test_a_reply_with_a_nul_is_kept(engine, settings, server, sent):
    server.answer = lambda body, number: "I would \x00 buy it."
    assert drive(engine, settings, post(engine, settings, survey(2))).status == "completed"
    assert "\ufffd" in scalar(engine, "SELECT text FROM answers LIMIT 1")


def test_a_deleted_survey_stops_its_workers(engine, settings, server, sent):
    row = post(engine, settings)
    handed = surveys.advance(engine, settings, row.id)
    with engine.begin() as connection: connection.execute(sa.delete(SurveyRow))
    assert not any(surveys.work(engine, settings, row.id, stage, number, "one") for stage, number in handed)
    with pytest.raises(SSRError, match="deleted"):
        journal.CallLog(engine, row.id)._write([journal.CallLog(engine, row.id)._row(*failing())])


def failing():
    from ssr_nb.calls import Request
    return Request("http://x", "m", {"prompt": "p"}, {}), "error"
