"""The schema of the service: up and down with data, from several processes at once, and the version before on the schema after."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from ssr_nb.personas import Panel
from ssr_nb.service import surveys
from ssr_nb.service.database import Base, SurveyRow, current, downgrade, make_engine, revisions, transaction, upgrade
from ssr_nb.service.servers import Postgres
from ssr_nb.service.settings import ServiceSettings
from ssr_nb.survey import Survey, read_concepts

VERSIONS = Path(__file__).parent.parent / "ssr_nb/service/migrations/versions"
DEBIAN = Path("/usr/lib/postgresql/15/bin")


def as_server_15(monkeypatch):
    if not (DEBIAN / "initdb").exists(): pytest.skip("SKIP: no PostgreSQL 15 here (apt-get install postgresql-15)")
    monkeypatch.setenv("PG_BINDIR", str(DEBIAN))


@pytest.fixture(params=[pytest.param("18", id="PostgreSQL 18"), pytest.param("15", id="PostgreSQL 15")])
def url(request, postgres, monkeypatch):
    "An empty database on either version."
    if request.param == "18":
        yield postgres.database(name := f"schema_{id(request):x}")
        make_engine.cache_clear()
        return postgres.drop(name)
    as_server_15(monkeypatch)
    with Postgres() as server: yield server.database("schema")


@pytest.fixture
def service(url, redis_url, server, monkeypatch):
    for name, value in {"DATABASE_URL": url, "REDIS_URL": redis_url, "OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "test"}.items(): monkeypatch.setenv(name, value)
    monkeypatch.setattr(surveys, "send", lambda *message, **options: True)
    return ServiceSettings.from_environment()


def complete(settings) -> SurveyRow:
    "A survey from its post to its end."
    engine = make_engine(settings.database_url)
    wanted = Survey(read_concepts("demo_concepts.csv")[:1], Panel.us_adults(5, seed=1), samples=1, llm_model="gpt-4o")
    with transaction(engine) as session: row = surveys.create(session, wanted, {}, owner="team", settings=settings)
    while handed := surveys.advance(engine, settings, row.id):
        for chunk in handed: surveys.work(engine, settings, row.id, *chunk, "one")
    with transaction(engine) as session: return session.get(SurveyRow, row.id)


def test_up_and_down_with_data(service):
    url = service.database_url
    upgrade(url)
    assert current(url) == revisions()[-1]
    row = complete(service)
    assert row.status == "completed"
    with make_engine(url).connect() as connection: assert compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), Base.metadata) == []
    downgrade(url, "0001")
    with make_engine(url).connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM answers")) == 5 and connection.scalar(sa.text("SELECT status FROM surveys")) == "completed"
        assert connection.scalar(sa.text("SELECT SUM(cost) FROM llm_requests WHERE created_at > NOW() - INTERVAL '1 day'")) > 0
    upgrade(url)
    make_engine(url).dispose()
    assert complete(service).status == "completed"
    downgrade(url, "base")
    with make_engine(url).connect() as connection: assert sa.inspect(connection).get_table_names() == ["alembic_version"]


def test_several_processes_upgrade_at_once(url):
    command = [sys.executable, "-c", "import os; from ssr_nb.service.database import upgrade; upgrade(os.environ['AT'])"]
    running = [subprocess.Popen(command, env={**os.environ, "AT": url}, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[1] for process in running] == [""] * 4 and [process.returncode for process in running] == [0] * 4
    assert current(url) == revisions()[-1]


def test_this_version_works_on_the_schema_of_the_next(service):
    "What the next version may do to a schema: add, with nothing that this version would have to know."
    upgrade(service.database_url)
    with make_engine(service.database_url).begin() as connection:
        for table in sa.inspect(connection).get_table_names():
            connection.execute(sa.text(f'ALTER TABLE "{table}" ADD COLUMN of_the_next_version text, ADD COLUMN counted_by_the_next integer NOT NULL DEFAULT 0'))
        connection.execute(sa.text("CREATE TABLE of_the_next (survey_id text REFERENCES surveys (id) ON DELETE CASCADE)"))
        connection.execute(sa.text("CREATE INDEX of_the_next_version ON answers (status)"))
    row = complete(service)
    assert row.status == "completed"
    with transaction(make_engine(service.database_url)) as session: surveys.delete(session, session.get(SurveyRow, row.id))


@pytest.mark.parametrize("path", sorted(VERSIONS.glob("[0-9]*.py"))[1:], ids=lambda path: path.stem)
def test_migrations_only_add(path):
    "The version before keeps running beside the one after: nothing is removed, renamed or newly demanded."
    body = next(node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef) and node.name == "upgrade")
    for call in (node for node in ast.walk(body) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name) and node.func.value.id == "op"):
        assert call.func.attr in ("create_table", "add_column", "create_index", "create_foreign_key", "create_unique_constraint"), f"{call.func.attr} in {path.name}"
        if call.func.attr != "add_column": continue
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.args[1].keywords}
        assert options.get("nullable") != "False" or "server_default" in options, f"{ast.unparse(call)}: the version before does not fill it"


def test_the_folder_of_migrations_is_in_the_package():
    import tomllib
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    assert {"ssr_nb.service", "ssr_nb.service.migrations", "ssr_nb.service.migrations.versions"} <= set(project["tool"]["setuptools"]["packages"])
