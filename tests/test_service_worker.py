"""Real Celery workers on a real PostgreSQL and Redis: small surveys beside large ones, workers that are killed, messages that are lost."""

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta

import pytest
import redis as redis_client
import sqlalchemy as sa

from ssr_nb.personas import Panel
from ssr_nb.service import surveys, timetables
from ssr_nb.service.database import ChunkRow, ScheduleRunRow, SurveyRow, make_engine, now, transaction
from ssr_nb.service.processes import kill_process, start_process
from ssr_nb.service.queues import QUEUES, celery_app, send
from ssr_nb.service.settings import ServiceSettings
from ssr_nb.store import list_runs
from ssr_nb.survey import Survey, read_concepts


@pytest.fixture
def settings(database, redis_url, server, tmp_path, monkeypatch):
    values = {"DATABASE_URL": database, "REDIS_URL": redis_url, "OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "test", "SSR_RUNS": str(tmp_path / "runs"), "CHUNK_ANSWERS": "25", "CELERY_WORKER_CONCURRENCY": "1", "LOG_FORMAT": "json",
              "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for name, value in values.items(): monkeypatch.setenv(name, value)
    return ServiceSettings.from_environment()


@pytest.fixture
def engine(settings): return make_engine(settings.database_url)


@pytest.fixture
def start(tmp_path, settings):
    "Starts a worker or the clock; all of them end with the test."
    running = []

    def begin(what: str) -> subprocess.Popen:
        celery = [sys.executable, "-m", "celery", "-A", "ssr_nb.service.worker", what]
        more = ["-Q", ",".join(QUEUES), "-n", f"w{len(running)}@%h", "--without-gossip", "--without-mingle"] if what == "worker" else ["--pidfile=", "--schedule", str(tmp_path / "beat")]
        running.append(start_process([*celery, *more], tmp_path / f"{what}-{len(running)}.log", dict(os.environ)))
        return running[-1]

    yield begin
    for process in running: kill_process(process)


def post(engine, settings, people: int, seed: int = 1, **options) -> SurveyRow:
    wanted = Survey(read_concepts("demo_concepts.csv")[:1], Panel.us_adults(people, seed=seed), samples=1, llm_model="gpt-4o", embedding_model="minilm", seed=seed)
    with transaction(engine) as session: row = surveys.create(session, wanted, {}, owner="team", settings=settings, **options)
    surveys.enqueue(settings, row)
    return row


def wait(engine, rows, until=("completed",), seconds=60) -> list[SurveyRow]:
    ending = time.monotonic() + seconds
    while time.monotonic() < ending:
        with transaction(engine) as session: found = [session.get(SurveyRow, row.id) for row in rows]
        if all(row.status in until for row in found): return found
        time.sleep(.1)
    raise AssertionError([(row.status, row.error) for row in found])


def test_a_small_survey_is_done_while_a_huge_one_goes_on(engine, settings, server, start):
    server.delay = .02
    huge = post(engine, settings, 2000)
    start("worker")
    while server.requests < 60: time.sleep(.05)
    small = post(engine, settings, 20, seed=2)
    wait(engine, [small])
    with transaction(engine) as session: assert session.get(SurveyRow, huge.id).status == "running" and surveys.progress(session, huge)["done"] < 1000
    with transaction(engine) as session: surveys.cancel(session, session.get(SurveyRow, huge.id))


def test_a_killed_worker_and_lost_messages_cost_no_answer(engine, settings, server, start):
    server.delay = .05
    first = start("worker")
    rows = [post(engine, settings, 60, seed=seed) for seed in range(3)]
    while server.requests < 40: time.sleep(.02)
    os.killpg(first.pid, signal.SIGKILL)
    with redis_client.Redis.from_url(settings.redis_url) as redis: redis.flushall()
    start("worker"), start("beat")
    wait(engine, rows, seconds=150)
    answered = sum(one.endpoint == "chat" and one.fault is None for one in server.sent)
    with engine.connect() as connection: assert connection.scalar(sa.text("SELECT count(*) FROM answers")) == 180
    assert 180 <= answered <= 180 + 2 * server.most_at_once


def test_the_last_chunk_is_not_forgotten(engine, settings, start):
    row = post(engine, settings, 20)
    assert len(surveys.advance(engine, settings, row.id)) == 1
    with redis_client.Redis.from_url(settings.redis_url) as redis: redis.flushall()
    with engine.begin() as connection: connection.execute(sa.update(ChunkRow).values(lease_until=now() - timedelta(seconds=1)))
    start("worker"), start("beat")
    wait(engine, [row])


def test_a_schedule_fires_once_and_its_survey_is_asked(engine, settings, server, start):
    request = {"concepts": [{"name": "Mug", "description": "A mug."}], "cohort_size": 5, "samples": 1, "llm_model": "gpt-4o"}
    with transaction(engine) as session:
        schedule = timetables.add_schedule(session, settings, owner="team", name="each-minute", cron="* * * * *", survey=request)
        schedule.until = now().replace(second=0, microsecond=0) - timedelta(minutes=1)
    timetables.fire(engine, settings), timetables.fire(engine, settings)
    start("worker")
    ending = time.monotonic() + 60
    while time.monotonic() < ending:
        with transaction(engine) as session:
            runs, found = session.scalars(sa.select(ScheduleRunRow)).all(), session.scalars(sa.select(SurveyRow)).all()
        if found and found[0].status == "completed": break
        time.sleep(.2)
    assert [run.status for run in runs] == ["completed"] and [(row.name, row.status, row.schedule_id) for row in found] == [("each-minute", "completed", schedule.id)]


def test_the_report_is_made_by_a_worker_and_kept(engine, settings, server, start):
    from ssr_nb.service.records import report_html
    start("worker")
    [row] = wait(engine, [post(engine, settings, 12)])
    ending, html = time.monotonic() + 90, None
    while html is None and time.monotonic() < ending:
        with transaction(engine) as session: html = report_html(session, settings, row)
        time.sleep(.3)
    assert html and "<svg" in html and "How the concepts stand" in html and row.fingerprint in html


def test_a_scheduled_notebook_is_a_recorded_run_once(engine, settings, server, start):
    with transaction(engine) as session:
        schedule = timetables.add_schedule(session, settings, owner="team", name="nightly", cron="* * * * *", notebook="concept_test", parameters={"cohort_size": 4, "samples": 1, "llm_model": "gpt-4o"})
        schedule.until = now().replace(second=0, microsecond=0) - timedelta(minutes=1)
    [(schedule_id, due)] = timetables.fire(engine, settings)
    timetables.run_due_time(engine, settings, schedule_id, due)
    with engine.begin() as connection: connection.execute(sa.update(ScheduleRunRow).values(status="queued", lease_until=None))  # as if the worker had died before it could say so
    timetables.run_due_time(engine, settings, schedule_id, due)
    with transaction(engine) as session: [run] = session.scalars(sa.select(ScheduleRunRow)).all()
    runs = list_runs(settings.library.runs)
    assert run.status == "completed" and [one.run_id for one in runs] == [run.run_id]
    assert runs[0].manifest["schedule"] == {"name": "nightly", "due": due.isoformat()} and server.requests == 12


def test_a_worker_has_the_processes_and_limits_that_the_environment_says(engine, settings, start, monkeypatch):
    for name, value in {"CELERY_WORKER_CONCURRENCY": "3", "CELERY_MAX_TASKS_PER_CHILD": "7", "TASK_SECONDS": "123"}.items(): monkeypatch.setenv(name, value)
    told = ServiceSettings.from_environment()
    start("worker")
    inspect, stats, ending = celery_app(told).control.inspect(timeout=1), None, time.monotonic() + 30
    while not stats and time.monotonic() < ending: stats = inspect.stats()
    [pool] = [one["pool"] for one in stats.values()]
    assert (pool["max-concurrency"], pool["max-tasks-per-child"], len(pool["processes"])) == (3, 7, 3)
    assert pool["timeouts"] == [123, 183]


def test_old_surveys_go_where_retention_is_set(engine, settings, server, start, monkeypatch):
    row = post(engine, settings, 3)
    monkeypatch.setenv("DATA_RETENTION_DAYS", "30")
    start("worker")
    wait(engine, [row])
    with engine.begin() as connection: connection.execute(sa.update(SurveyRow).values(finished_at=now() - timedelta(days=31)))
    send(settings, "ssr.retain")
    ending = time.monotonic() + 30
    while time.monotonic() < ending:
        with transaction(engine) as session:
            if surveys.find(session, None, row.id) is None: return
        time.sleep(.1)
    raise AssertionError("it is still there")
