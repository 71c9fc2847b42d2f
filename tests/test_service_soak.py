"""The service under load and under faults: three API processes, two workers, real PostgreSQL and Redis, a model server that answers everybody differently."""

import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from model_server import model_server
from ssr_nb.client import Client
from ssr_nb.core import SSRError
from ssr_nb.personas import Panel
from ssr_nb.service.database import make_engine
from ssr_nb.service.supervisor import Supervisor
from ssr_nb.survey import Survey, read_concepts

pytestmark = pytest.mark.soak
SHARE = float(os.environ.get("SOAK", "1"))


@pytest.fixture
def models():
    with model_server(delay=.2, numbered=True) as server: yield server


@pytest.fixture
def service(tmp_path_factory, models, monkeypatch):
    folder = tmp_path_factory.mktemp("service")
    environment = {**os.environ, "OPENAI_BASE_URL": models.url, "OPENAI_API_KEY": "test", "RATE_LIMIT_ENABLED": "false", "CELERY_WORKER_CONCURRENCY": "2", "LOG_LEVEL": "WARNING", "DATABASE_URL": "", "REDIS_URL": ""}
    with Supervisor(folder, api=3, workers=2, own_ports=True, flower=False, durable=True, environment=environment) as running: yield running


def survey(seed: int) -> Survey:
    return Survey(read_concepts("demo_concepts.csv")[:1], Panel.us_adults(200, seed=seed), samples=1, llm_model="gpt-4o", embedding_model="text-embedding-3-small", seed=seed)


def post_all(service, count: int, first: int = 0) -> list[str]:
    "Post surveys through all replicas, as clients that try again would."
    clients = [Client(url, service.first_key, patience=600) for url in service.api_urls]
    with ThreadPoolExecutor(4) as pool: return [posted["id"] for posted in pool.map(lambda seed: clients[seed % len(clients)].post(survey(seed), name=f"survey {seed}"), range(first, first + count))]


def wait_for_all(engine, ids: list[str], patience: float) -> dict[str, str]:
    until = time.monotonic() + patience
    while time.monotonic() < until:
        try:
            with engine.connect() as connection: found = dict(connection.execute(sa.text("SELECT id, status FROM surveys")).all())
        except sa.exc.OperationalError: found = {}
        if found and not {"queued", "running"} & set(found.values()): break
        time.sleep(1)
    return {one: found.get(one, "lost") for one in ids}


def counts(engine) -> dict[str, int]:
    queries = {"answers": "SELECT count(*) FROM answers", "ratings": "SELECT count(*) FROM ratings", "calls": "SELECT count(*) FROM llm_requests WHERE status = 'success'", "keys": "SELECT count(DISTINCT (survey_id, key)) FROM llm_requests",
               "errors": "SELECT count(*) FROM llm_requests WHERE status = 'error'", "surveys": "SELECT count(*) FROM surveys", "whole": "SELECT count(*) FROM (SELECT survey_id FROM answers GROUP BY survey_id HAVING count(*) = 200) AS whole",
               "texts": "SELECT count(DISTINCT text) FROM llm_requests"}
    with engine.connect() as connection: return {name: connection.scalar(sa.text(query)) for name, query in queries.items()}


def answered(models) -> int:
    "Chats that the model server answered whole."
    return sum(one.endpoint == "chat" and one.fault is None for one in models.sent)


def test_the_whole_day_of_the_guide(service, models):
    n = max(5, round(500 * SHARE))
    started = time.monotonic()
    ids = post_all(service, n)
    engine = make_engine(service.settings.database_url)
    statuses = wait_for_all(engine, ids, 3600)
    print(f"\n{n} surveys of 200 answers in {time.monotonic() - started:.0f} s; the model server's thread took {models.cpu_seconds():.0f} s of CPU")
    assert set(statuses.values()) == {"completed"} and len(set(ids)) == n
    assert counts(engine) == {"answers": 200 * n, "ratings": 200 * n, "calls": 200 * n, "keys": 200 * n, "errors": 0, "surveys": n, "whole": n, "texts": 200 * n}
    assert answered(models) == 200 * n


def test_faults_lose_nothing_and_double_nothing(service, models):
    early, late, kills = max(6, round(60 * SHARE)), max(2, round(10 * SHARE)), max(3, round(20 * SHARE))
    engine, chance, over = make_engine(service.settings.database_url), random.Random(7), threading.Event()
    problems, hits = [], []  # hits: whether a worker was at work when it was killed

    def read_along():
        "A client that looks at the service all the time, and tries again what passes."
        client = Client(service.api_urls[1], service.first_key, patience=120)
        while not over.is_set():
            try: list(client.surveys())
            except Exception as error: problems.append(repr(error))
            time.sleep(.2)

    def at_work(worker) -> bool:
        "Whether a process of this worker has a part of a survey in its hands, while models are asked."
        try:
            with engine.connect() as connection: holders = connection.scalars(sa.text("SELECT worker FROM chunks WHERE status = 'running'")).all()
        except sa.exc.OperationalError: return False
        return models.at_once > 0 and any(int(holder.split(":")[1]) in service.pids(worker) for holder in holders)

    def kill(name, when=lambda name: True, patience=60) -> bool:
        "Kill a part when it is worth it, or at the end of the patience; whether it was."
        until = time.monotonic() + patience
        while not over.wait(.1):
            if not (worth := when(name)) and time.monotonic() < until: continue
            try: service.kill(name)
            except SSRError: continue  # the supervisor has not started it again yet
            return worth
        return False

    def break_things() -> list[str]:
        "All the faults, one after another; the ids of surveys that were posted into the outage of the models."
        for number in range(kills):
            over.wait(chance.uniform(.5, 3))
            hits.append(kill(f"worker-{1 + number % 2}", at_work))
            if number == kills // 4: kill("api-1")
            if number == kills // 2: service.restart("valkey")
            if number == 3 * kills // 4: service.restart("postgres")
        models.fail = lambda number: "429"
        posted = post_all(service, late, first=early)
        over.wait(max(15, 180 * SHARE))
        models.fail = lambda number: None
        return posted

    reader, pool = threading.Thread(target=read_along), ThreadPoolExecutor()
    reader.start()
    try:
        posting, breaking = pool.submit(post_all, service, early), pool.submit(break_things)
        ids = posting.result() + breaking.result()
        statuses = wait_for_all(engine, ids, 1800)
    finally: over.set()
    reader.join()
    n = early + late
    assert set(statuses.values()) == {"completed"} and len(set(ids)) == n and problems == []
    found = counts(engine)
    assert (found["surveys"], found["whole"], found["answers"], found["keys"], found["errors"]) == (n, n, 200 * n, 200 * n, 0)
    twice = answered(models) - 200 * n
    most = kills * 2 * models.most_at_once  # what a worker had on its way when it was killed: on the way to us, or to the disk
    print(f"\n{kills} kills, {sum(hits)} of a worker at work: {twice} of {200 * n} answers were asked twice (at most {models.most_at_once} at once)")
    assert 0 <= twice <= most and any(hits)
