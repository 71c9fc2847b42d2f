"""The documents of deploy/: what is computed is up to date, what is named exists, and what is shown to be typed was typed."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from conftest import ROOT
from model_server import model_server

DEPLOY = ROOT / "deploy"
DOCS = DEPLOY / "docs"
SSR = Path(sys.executable).with_name("ssr")
PLAIN = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL", "OPENAI_API_KEY", "GOOGLE_API_KEY", "OPENAI_BASE_URL", "GOOGLE_GEMINI_BASE_URL", "ENV", "API_KEYS", "SSR_RUNS")}


def document(name: str) -> str: return (DOCS / name).read_text()


def blocks(name: str, language: str) -> list[str]: return re.findall(rf"^```{language}\n(.*?)^```$", document(name), re.S | re.M)


def plain(url: str) -> str: return url.replace("+psycopg", "")


@pytest.fixture(scope="module")
def made():
    spec = importlib.util.spec_from_file_location("make_documents", DOCS / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def models():
    with model_server() as server: yield server


@pytest.fixture(scope="module")
def service(models, tmp_path_factory):
    from ssr_nb.service.supervisor import Supervisor
    environment = PLAIN | {"OPENAI_BASE_URL": models.url, "OPENAI_API_KEY": "test", "RATE_LIMIT_PER_MINUTE": "600"}
    with Supervisor(tmp_path_factory.mktemp("service"), flower=False, durable=False, environment=environment) as running: yield running


# ---- the user guide, typed as it stands

@pytest.fixture(scope="module")
def typed(service, tmp_path_factory):
    "What each bash block of the user guide said, in one shell; a block that fails stops it."
    if missing := [name for name in ("curl", "jq") if not shutil.which(name)]: pytest.skip(f"SKIP: {missing[0]} is missing, and the user guide is typed with it")
    folder, said = tmp_path_factory.mktemp("typed"), blocks("USER_GUIDE.md", "bash")
    script = "\n".join(["set -euo pipefail", *(f"{block}\necho '<<< {number}'" for number, block in enumerate(said)), 'echo "$SURVEY" "$SSR_API_KEY"'])
    environment = PLAIN | {"SSR_URL": service.api_urls[0], "DATABASE_URL": plain(service.settings.database_url), "PATH": f"{SSR.parent}:{os.environ['PATH']}"}
    ran = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=150)
    parts = re.split(r"<<< \d+\n", ran.stdout)
    assert ran.returncode == 0, f"{ran.stderr}\nin:\n{said[len(parts) - 1] if len(parts) <= len(said) else ''}\nsaid:\n{parts[-1]}"
    survey, key = parts.pop().split()
    return dict(zip(said, parts, strict=True)), folder, survey, key


def test_the_user_guide_runs_as_it_stands(typed, service):
    said, folder, survey, key = typed
    def of(word) -> str: return next(output for block, output in said.items() if word in block)
    assert json.loads(of("/version"))["api"] == "v1"
    assert "posted once" in of("Idempotency-Key") and "event: end" in of("--no-buffer") and '"completed"' in of("--no-buffer")
    assert len(re.findall('"rank"', of("summaries"))) == 2 and '"segment": "South"' in of("summaries") and "answer_id,concept" in of("summaries")
    assert "equal" in of("ssr runs verify") and (folder / "report.html").read_text().count("<svg") > 0
    assert "price" in of("compare") and "Backpacks, cheaper" in of("compare")
    assert "purchase_intent@" in of("anchors.json") and '"next_due"' in of("schedule.json") and '"cancelled"\n"queued"' not in of("cancel") and of("cancel").split() == ["cancelled", "queued"]
    assert 0 < json.loads(of("by=survey").partition("\n}")[0] + "}")["total_usd"] < 1
    assert json.loads(of('"temperature": 0.5}'))["status"] == 422 and "llm_temperature" in of('"temperature": 0.5}')
    import pandas as pd
    table = pd.read_parquet(folder / "answers.parquet")
    assert len(table) == len(pd.read_csv(folder / "answers.csv")) == 40 and set(table["status"]) <= {"ok", "uninformative"}


def test_the_user_guides_python_runs_as_it_stands(typed, service):
    _, folder, _, key = typed
    program = "\n".join(blocks("USER_GUIDE.md", "python"))
    ran = subprocess.run([sys.executable, "-c", program], cwd=folder, env=PLAIN | {"SSR_URL": service.api_urls[0], "SSR_API_KEY": key}, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert "Solar backpack" in ran.stdout and "completed 40 of 40" in ran.stdout and list((folder / "runs").glob("*/run.json"))


# ---- what is computed

def test_computed_parts_are_up_to_date(made):
    for file, text in made.documents().items(): assert file.read_text() == text, f"{file.name} is out of date: run python deploy/docs/make.py"


def test_make_says_what_is_out_of_date(made, tmp_path, monkeypatch, capsys):
    copied = tmp_path / "deploy"
    shutil.copytree(DEPLOY, copied, ignore=shutil.ignore_patterns(".env", "__pycache__"))
    monkeypatch.setattr(made, "HERE", copied / "docs")

    def ends(*more) -> int | str:
        monkeypatch.setattr(sys, "argv", ["make.py", *more])
        with pytest.raises(SystemExit) as ended: made.main()
        return ended.value.code
    reference = copied / "docs/API_REFERENCE.md"
    reference.write_text(document("API_REFERENCE.md").replace("`cohort_size`", "`cohort`"))
    (copied / "docs/TECHNICAL.md").write_text(document("TECHNICAL.md").replace("<!-- end metrics -->", ""))
    assert "TECHNICAL.md has 0 places for 'metrics'" in ends("--check")
    (copied / "docs/TECHNICAL.md").write_text(document("TECHNICAL.md"))
    assert ends("--check") == 1 and "API_REFERENCE.md is out of date" in capsys.readouterr().out and "`cohort`" in reference.read_text()
    assert ends() == 0 and reference.read_text() == document("API_REFERENCE.md") and ends("--check") == 0


def test_the_sums_are_those_of_the_rows(made):
    "Against the guide: its sums of 12 vCPU, 24 GB and of 50 vCPU, 136 GB, 500 GB are not those of its rows; its $191, $822 and $520 are."
    def last(text): return re.findall(r"\*\*([\d,$.]+)(?: vCPU| GB)?\*\*", text)
    assert last(made.resources(made.MINIMUM)) == ["10", "20", "100"] and last(made.resources(made.RECOMMENDED)) == ["46", "116", "1,000"]
    assert last(made.infrastructure()) == ["$191", "$822", "$520"]


def test_the_table_of_costs_is_tokens_times_prices(made):
    found = made.estimates()
    assert set(found) == set(made.MODELS) and all(one["calls"] == (200, 200) for one in found.values())
    for model in ("gpt-4o", "gpt-4o-mini"):
        one, price = found[model], found[model]["price"]
        lowest = (one["prompt_tokens"] * price["input_usd"] + one["completion_tokens"][0] * price["output_usd"]) / 1e6
        assert one["usd"][0] <= lowest * 1.1 and one["usd"][1] >= lowest and one["usd"][1] < 2 * one["usd"][0]
    assert found["gpt-4o"]["usd"][0] > 10 * found["gpt-4o-mini"]["usd"][0]


def test_the_reference_names_every_address_with_its_scope(made):
    text, application = document("API_REFERENCE.md"), made.app()
    needs = made.scopes(application)
    for path, operations in application.openapi()["paths"].items():
        for method, said in operations.items():
            heading = f"### {method.upper()} {path}\n"
            assert text.count(heading) == 1, heading
            part = text.partition(heading)[2].partition("\n### ")[0]
            for name in [one["name"] for one in said.get("parameters", ())] + [status for status in said["responses"]]: assert f"`{name}`" in part, (heading, name)
            assert all(f"`{scope}`" in part for scope in needs[method.upper(), path] or ()) and "```sh\ncurl" in part
    assert needs["POST", "/api/v1/surveys"] == ("surveys:write",) and needs["GET", "/health"] is None and needs["GET", "/api/v1/reference-sets"] == ()
    for name in application.openapi()["components"]["schemas"]["SurveyRequest"]["properties"]: assert f"| `{name}` |" in text, name
    for block in blocks("API_REFERENCE.md", "sh"): assert subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True).stderr == ""


# ---- what is named

PAGES = [*sorted(DOCS.glob("*.md")), DEPLOY / "README.md"]
OURS = [page for page in PAGES if page.name not in ("BACKUP.md", "API_REFERENCE.md")]


def slugs(text: str) -> set[str]: return {re.sub(r"[^\w -]", "", re.sub(r"[`*]", "", title).lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M), re.M)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for address, place in re.findall(r"\]\(([^)#\s:]*)(?:#([^)\s]*))?\)", page.read_text()):
        target = (page.parent / address).resolve() if address else page
        assert target.exists(), f"{page.name} links to {address}, which does not exist"
        if place: assert place in slugs(target.read_text()), f"{page.name} links to #{place} of {target.name}, which has no such heading"


@pytest.mark.parametrize("page", OURS, ids=lambda page: page.name)
def test_every_file_that_is_named_exists(page):
    named = {one.rstrip("./") for one in re.findall(r"(?<![\w./:-])(?:deploy|tests|nbs|ssr_nb|requirements|reference_sets)/[\w./-]+", page.read_text())} - {"deploy/.env"}
    assert not (missing := {one for one in named if not (ROOT / one).exists()}), f"{page.name} names {sorted(missing)}"


@pytest.mark.parametrize("page", OURS, ids=lambda page: page.name)
def test_every_variable_that_is_named_is_read_by_something(page):
    text = page.read_text()
    files = [*(ROOT / "ssr_nb").glob("*.py"), *(ROOT / "ssr_nb/service").glob("*.py"), DEPLOY / ".env.example", DEPLOY / "Dockerfile", *DEPLOY.glob("*.yml"), *DEPLOY.glob("*/*.sh"), *DEPLOY.glob("*/*.yaml")]
    known = set(re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b", "\n".join(file.read_text() for file in files)))
    known |= set(re.findall(r"^(?:export )?([A-Z][A-Z0-9_]*)=", text, re.M)) | {"SSR_URL", "SSR_KEY", "ID_SECRET", "REQUEST_ID", "API_REFERENCE", "USER_GUIDE"}  # set in the page itself; what stands for something
    assert not (missing := set(re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b", text)) - known), f"{page.name} names {sorted(missing)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_metric_that_is_named_exists(page, made):
    known = set(re.findall(r"`(\w+)`", made.metrics())) | {f"{name}_bucket" for name in re.findall(r"`(\w+_seconds)`", made.metrics())}
    known |= set(re.findall(r"\b(?:ssr|http|llm|celery|pg|redis|node)[_:][\w:]+", "\n".join(file.read_text() for file in (*DEPLOY.glob("prometheus/*.yml"), DEPLOY / "k8s/prometheus-adapter.yaml"))))
    endings = r"(?:_total|_bucket|_seconds|_depth|_dollars|_open|_per_second)"
    named = set(re.findall(rf"\b(?:ssr|llm|http|celery)_\w*{endings}\b|\bssr_up\b|\bssr:[\w:]+\w", page.read_text())) - {"eta_seconds"}
    assert named <= known, f"{page.name} names {sorted(named - known)}"


def test_each_row_of_the_table_names_a_test_and_files():
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]*`tests/[^|]+) \|$", (DEPLOY / "README.md").read_text(), re.M)
    assert len(rows) == 13
    for section, files, tests in rows:
        assert re.findall(r"`(deploy/[^`]+)`", files) and re.findall(r"`(tests/test_\w+\.py)`", tests), section
    told = {name for _, _, tests in rows for name in re.findall(r"tests/(test_deploy_\w+\.py)", tests)}
    assert told == {file.name for file in (ROOT / "tests").glob("test_deploy_*.py")}, "a test file of deploy/ is missing in deploy/README.md, or named there and gone"


# ---- what is asked of the database

def queries(page: str) -> list[str]:
    text = document(page)
    return [one.strip() for block in re.findall(r"^```sql\n(.*?)^```$", text, re.S | re.M) for one in block.split(";") if one.strip()] + [one for one in re.findall(r"`(SELECT [^`]+)`", text) if "PID" not in one]


@pytest.mark.parametrize("page", ["TROUBLESHOOTING.md", "DEPLOYMENT.md", "TECHNICAL.md"])
def test_the_queries_run(page, database):
    asked = queries(page)
    assert len(asked) >= 3
    with psycopg.connect(plain(database)) as connection:
        for query in asked: connection.execute(query).fetchall()
        if page == "TROUBLESHOOTING.md": assert "SELECT SUM(cost) FROM llm_requests WHERE created_at > NOW() - INTERVAL '1 day'" in asked
        if page == "DEPLOYMENT.md": assert "SELECT COUNT(*) FROM surveys" in asked


# ---- the cases of TROUBLESHOOTING.md

BODY = {"concepts": [{"name": "Mug", "description": "A mug that keeps coffee hot.", "price": "$12"}], "llm_model": "gpt-4o-mini", "samples": 1}


@pytest.fixture
def here(database, redis_url, server, tmp_path, monkeypatch):
    "Makes the service in this process, with some settings."
    from service_app import Service
    from ssr_nb.service.database import make_engine
    from ssr_nb.service.settings import ServiceSettings

    def start(**more):
        for name, value in {"DATABASE_URL": plain(database), "REDIS_URL": redis_url, "OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "test", "SSR_RUNS": str(tmp_path / "runs"), "RATE_LIMIT_ENABLED": "false", **more}.items(): monkeypatch.setenv(name, value)
        return Service(ServiceSettings.from_environment())
    yield start
    make_engine.cache_clear()


def run(service, client, **changes) -> dict:
    posted = client.post("/api/v1/surveys", json={**BODY, **changes})
    assert posted.status_code == 202, posted.text
    service.work_off()
    ended = client.get(f"/api/v1/surveys/{posted.json()['id']}").json()
    assert ended["status"] == "completed"
    return ended


def test_high_costs_a_smaller_cohort_and_the_sum(here, database):
    service = here()
    with service.client() as client:
        large, small = run(service, client, cohort_size=200), run(service, client, cohort_size=50)
        cooler = run(service, client, cohort_size=50, llm_temperature=0.1)
        refused = client.post("/api/v1/surveys", json={**BODY, "temperature": 0.5})
        told = client.get("/api/v1/costs").json()["total_usd"]
    assert (large["done"], small["done"]) == (200, 50) and .22 < small["cost_usd"] / large["cost_usd"] < .28
    assert .9 < cooler["cost_usd"] / small["cost_usd"] < 1.1  # a lower temperature saves nothing
    assert refused.status_code == 422 and "llm_temperature" in refused.text
    with psycopg.connect(plain(database)) as connection:
        total = connection.execute("SELECT SUM(cost) FROM llm_requests WHERE created_at > NOW() - INTERVAL '1 day'").fetchone()[0]
        by_survey = connection.execute(next(one for one in queries("TROUBLESHOOTING.md") if "LIMIT 10" in one and "s.cost" in one)).fetchall()
    assert total == pytest.approx(large["cost_usd"] + small["cost_usd"] + cooler["cost_usd"]) == pytest.approx(told) and total > 0
    assert [row[3] for row in by_survey] == [200, 50, 50] and sum(row[4] for row in by_survey) == pytest.approx(total)


def test_high_costs_caching(here, server, database):
    cached = here(ENABLE_LLM_CACHING="true")
    with cached.client("team") as client:
        first = run(cached, client, cohort_size=20)
        asked = server.requests
        again = run(cached, client, cohort_size=20)
        assert server.requests == asked and again["cost_usd"] == 0 < first["cost_usd"] and again["done"] == 20
        other = run(cached, client, cohort_size=20, llm_temperature=0.7)  # another request altogether
        assert server.requests == asked + 20 and other["cost_usd"] > 0
    with psycopg.connect(plain(database)) as connection:
        assert connection.execute("SELECT sum(cost), count(*) FROM llm_requests WHERE mode = 'cache'").fetchone() == (0, 20)
    fresh = here(ENABLE_LLM_CACHING="false")
    with fresh.client("team") as client: assert run(fresh, client, cohort_size=20)["cost_usd"] > 0


def test_slow_surveys_more_workers_have_more_calls_in_flight(tmp_path):
    "What the model server sees at once, with one process and after more workers came: counted, not timed."
    from ssr_nb.client import Client
    from ssr_nb.service.supervisor import Supervisor
    with model_server(delay=.25) as models:
        shared = PLAIN | {"OPENAI_BASE_URL": models.url, "OPENAI_API_KEY": "test", "CHUNK_ANSWERS": "5", "RATE_LIMIT_ENABLED": "false"}
        with Supervisor(tmp_path / "one", flower=False, durable=False, environment=shared | {"CELERY_WORKER_CONCURRENCY": "1"}) as one, Client(one.api_urls[0], one.first_key) as client:
            def most(**body):
                models.most_at_once = 0
                assert client.wait(client.post({**BODY, **body})["id"], progress=False)["status"] == "completed"
                return models.most_at_once
            assert most(cohort_size=30) <= 5
            servers = {"DATABASE_URL": plain(one.settings.database_url), "REDIS_URL": one.settings.redis_url}
            with Supervisor(tmp_path / "more", workers=1, beat=False, flower=False, environment=shared | servers | {"CELERY_WORKER_CONCURRENCY": "3"}):
                assert most(cohort_size=120) > 5
                assert most(cohort_size=30, max_cost_usd=1.0) <= 5  # one part at a time, since a limit is never passed


# ---- every block of commands: how it is proved

PROOFS = {
    "DEPLOYMENT.md": {
        "settings: development values work at once; put your model key in": "typed", "start everything, and wait until it is healthy": "compose", "see that it works": "service", "secrets of their own, once": "typed",
        "build both images, then start: 3 API replicas behind nginx, 5 workers, backups, monitoring": "compose", "a key for each team; API_KEYS is for emergencies": "compose", "more replicas, more workers; nginx finds them by itself": "compose",
        "what would be applied, in which order; then without --dry-run": "script", "see it": "parsed", "AWS: build, push, migrate, roll out": "script", "Google Cloud: build, migrate, roll out": "script",
        "the same for a survey of yours; it asks no model": "estimate", "the first time: what is shared, and blue": "compose", "1. the schema, then green beside blue": "compose",
        "a tenth, a quarter, a half, all; a step follows only if the canary fails no more often than stable and is as fast": "script", "both side by side, at any time": "script", "the rules and their tests": "promtool", "logs: of the API, of the workers, of one request, errors": "compose",
        "the firewall of a server that carries databases: 443 for everyone, PostgreSQL and Redis for those who need them": "script", "what is known about the code, the image and the manifests; what cannot be looked up is said to be skipped, never passed": "script", "what a replica bears": "script",
        "a backup now": "compose", "a drill: restored beside the live database, compared row by row, dropped again; nothing is interrupted": "script"},
    "TROUBLESHOOTING.md": {"every part of the service, and what is wrong with it": "service", "settings, schema, keys, workers, the clock; exit code 1 if something is missing": "service", "what each container takes, and which one was killed": "compose"},
    "TECHNICAL.md": {"what runs, what waits, what is stuck": "service"},
}  # "parsed": kubectl, shown by test_deploy_kubernetes.py
COMPOSE = Path(sys.executable).with_name("docker-compose")


def titled(page: str) -> dict[str, str]: return {block.partition("\n")[0].removeprefix("# "): block for block in blocks(page, "bash")}


def of(kind: str): return [pytest.param(block, id=f"{page} {title}"[:60]) for page, kinds in PROOFS.items() for title, block in titled(page).items() if kinds.get(title) == kind]


@pytest.mark.parametrize("page", PROOFS)
def test_every_block_has_a_proof_and_is_shell(page):
    assert all(block.startswith("# ") for block in blocks(page, "bash")) and len(titled(page)) == len(blocks(page, "bash"))
    assert set(titled(page)) == set(PROOFS[page]), set(titled(page)) ^ set(PROOFS[page])
    for title, block in titled(page).items(): assert subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True).stderr == "", title


def test_typed_blocks_make_settings_that_production_takes(tmp_path):
    for title, kind in PROOFS["DEPLOYMENT.md"].items():
        if kind != "typed": continue
        folder = tmp_path / str(len(title))
        (folder / "deploy").mkdir(parents=True)
        shutil.copy(DEPLOY / ".env.example", folder / "deploy")
        subprocess.run(["bash", "-euc", titled("DEPLOYMENT.md")[title]], cwd=folder, check=True)
        values = dict(line.split("=", 1) for line in (folder / "deploy/.env").read_text().splitlines() if line and not line.startswith("#"))
        if "secrets" not in title: continue
        from ssr_nb.core import SSRError
        from ssr_nb.service.settings import ServiceSettings
        assert (folder / "deploy/.env").stat().st_mode & 0o077 == 0 and len({values[name] for name in ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "API_KEYS", "GRAFANA_ADMIN_PASSWORD")}) == 4
        urls = {"DATABASE_URL": f"postgresql://ssr:{values['POSTGRES_PASSWORD']}@postgres:5432/ssr", "REDIS_URL": f"redis://:{values['REDIS_PASSWORD']}@redis:6379/0", "ENV": "production"}
        with pytest.raises(SSRError, match="OPENAI_API_KEY has the development value"): ServiceSettings.from_environment(values | urls)  # what is set by hand
        ServiceSettings.from_environment(values | urls | {"OPENAI_API_KEY": "sk-" + "x" * 40, "GOOGLE_API_KEY": ""})


@pytest.mark.parametrize("block", of("compose"))
def test_compose_knows_files_projects_and_services(block, tmp_path):
    "Each command with its verb replaced by `config`; the images of `docker build` are held by test_deploy_docker.py."
    import shlex
    if not COMPOSE.exists(): pytest.skip("SKIP: docker-compose is not installed (extra deploy)")
    settings = tmp_path / "settings"
    settings.write_text((DEPLOY / ".env.example").read_text() + "ALERT_WEBHOOK_CRITICAL=http://example.com\nFLOWER_BASIC_AUTH=a:b\nGRAFANA_ADMIN_PASSWORD=x\n")
    lines = [line for line in block.replace("\\\n", " ").splitlines() if re.search(r"\bdocker\b|deploy/scripts", line)]
    assert lines
    for line in lines:
        for script in re.findall(r"deploy/scripts/\w+\.sh", line): assert os.access(ROOT / script, os.X_OK), script
        for file in re.findall(r"docker build -f (\S+)", line): assert (ROOT / file).exists(), file
        for command in re.findall(r"((?:[A-Z_]+=\S+ )*)docker compose ([^|)]+)", line):
            words, given, verb = shlex.split(command[1]), [], None
            while words and verb is None:
                if words[0] in ("-f", "-p"): given += [words.pop(0), words.pop(0)]
                else: verb = words.pop(0)
            assert verb in ("up", "ps", "exec", "run", "down", "logs"), line
            environment = PLAIN | dict(one.split("=", 1) for one in command[0].split())
            found = subprocess.run([COMPOSE, "--env-file", settings, *given, "--profile", "*", "config", "--services"], cwd=ROOT, env=environment, capture_output=True, text=True)
            assert found.returncode == 0, f"{line}: {found.stderr}"
            services = set(found.stdout.split())
            options = {"--scale", "--since", "--tail"}
            named, scaled = [], [value.partition("=")[0] for place, value in enumerate(words) if place and words[place - 1] == "--scale"]
            for place, word in enumerate(words):
                if word.startswith("-") or place and words[place - 1] in options: continue
                named.append(word)
                if verb in ("exec", "run"): break
            assert {*named, *scaled} <= services, f"{line}: {sorted({*named, *scaled} - services)} is no service of {given}"


@pytest.mark.parametrize("block", of("script"))
def test_scripts_take_these_options(block):
    "As it stands where it says --dry-run or --help, else with --help."
    for line in block.replace("\\\n", " ").splitlines():
        if line.startswith("#"): continue
        script = re.search(r"deploy/\w+/\w+\.sh", line)[0]
        assert os.access(ROOT / script, os.X_OK), f"{script} is missing, or cannot be executed"
        if "apply.sh" in line and not shutil.which("kubectl"): pytest.skip("SKIP: kubectl is missing")
        harmless = line if re.search(r"--(dry-run|help)\b", line) else f"{line} --help"
        ran = subprocess.run(["bash", "-c", harmless], cwd=ROOT, env=PLAIN, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0 and ran.stdout, f"{harmless}: {ran.stdout}{ran.stderr}"


@pytest.mark.parametrize("block", of("promtool"))
def test_rules_pass(block):
    "The rules; their tests are long, and run in test_deploy_monitoring.py."
    if not shutil.which("promtool"): pytest.skip("SKIP: promtool is missing (apt: prometheus)")
    check, tests = [line for line in block.splitlines() if not line.startswith("#")]
    ran = subprocess.run(["bash", "-euc", check], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0 and "SUCCESS" in ran.stdout + ran.stderr, ran.stdout + ran.stderr
    assert "deploy/prometheus/tests/*.yml" in tests and list(DEPLOY.glob("prometheus/tests/*.yml"))


@pytest.mark.parametrize("block", of("estimate"))
def test_the_estimate_of_the_command_is_that_of_the_table(block, made, tmp_path):
    ran = subprocess.run(["bash", "-euc", block.replace("ssr estimate", "ssr estimate --json")], cwd=ROOT, env=PLAIN | {"OPENAI_API_KEY": "none", "SSR_RUNS": str(tmp_path), "PATH": f"{SSR.parent}:{os.environ['PATH']}"}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    told, shown = json.loads(ran.stdout), made.estimates()["gpt-4o"]
    assert told["usd"] == pytest.approx(list(shown["usd"])) and told["prompt_tokens"] == shown["prompt_tokens"] and told["calls"] == [200, 200]


@pytest.mark.parametrize("block", of("service"))
def test_commands_answer_on_a_running_service(block, service):
    "Its own address and key in the place of those of the quick start; `ssr doctor --production` finds that this is none."
    environment = PLAIN | {"SSR_URL": service.api_urls[0], "DATABASE_URL": plain(service.settings.database_url), "REDIS_URL": service.settings.redis_url, "PATH": f"{SSR.parent}:{os.environ['PATH']}"}
    for line in block.splitlines():
        if line.startswith("#"): continue
        typed_here = line.replace("http://localhost:8000", service.api_urls[0]).replace("development-key", service.first_key)
        ran = subprocess.run(["bash", "-c", typed_here], env=environment, capture_output=True, text=True, timeout=60)
        if "doctor" in line: assert ran.returncode == 1 and "ENV is not production" in ran.stdout and "workers" in ran.stdout, ran.stdout + ran.stderr
        else: assert ran.returncode == 0 and ran.stdout, f"{line}: {ran.stderr}"
