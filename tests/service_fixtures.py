"""Real servers for the tests of the service: one PostgreSQL and one Valkey for each process of pytest, started when a test first asks."""
import pytest


@pytest.fixture(scope="session")
def postgres():
    "A PostgreSQL server; make a database of your own on it by `.database(name)`, or take the fixture `database`."
    from ssr_nb.service.servers import Postgres
    with Postgres() as server: yield server


@pytest.fixture(scope="session")
def valkey():
    from ssr_nb.service.servers import Valkey
    with Valkey() as server: yield server


@pytest.fixture(scope="session")
def migrated(postgres):
    "The name of a database with all tables, to copy."
    from ssr_nb.service.database import upgrade
    upgrade(postgres.database("migrated"))
    return "migrated"


@pytest.fixture
def database(postgres, migrated, request):
    "The URL of a database with all tables and no rows, for one test."
    name = f"test_{id(request):x}"
    if not postgres.running: postgres.start()
    yield postgres.database(name, template=migrated)
    if postgres.running: postgres.drop(name)


@pytest.fixture
def redis_url(valkey):
    "The URL of an empty Redis, for one test."
    import redis
    if not valkey.running: valkey.start()
    redis.Redis.from_url(valkey.url).flushall()
    yield valkey.url
