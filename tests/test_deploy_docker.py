"""Image and compose files on a real Docker engine: development, production behind TLS, scaling, memory limits, blue-green."""

import json
import re
import ssl
import subprocess
import threading

import httpx
import pytest

from docker_engine import DEPLOY, DOCKER, ROOT, Project, engine, eventually, example_values, free_port, images  # noqa: F401 (fixtures)
from ssr_nb.service.settings import DEVELOPMENT_SECRETS

KEY = "0123456789abcdef" * 3
SURVEY = {"concepts": [{"name": "Oat drink", "description": "A drink made of oats, unsweetened, one litre."}], "constructs": ["purchase_intent"], "cohort_size": 60, "llm_model": "gpt-4o", "embedding_model": "minilm", "seed": 1}
PORTS = ("API_PORT", "POSTGRES_PORT", "REDIS_PORT", "FLOWER_PORT", "PROMETHEUS_PORT", "ALERTMANAGER_PORT", "GRAFANA_PORT", "HTTP_PORT", "HTTPS_PORT")


def values(images, network: str, **more) -> dict[str, str]:  # noqa: F811
    "The example's values on free ports, with the model server as the model, and without Grafana, which no stand-in stands for."
    return example_values() | images | {name: str(free_port()) for name in PORTS} | {"COMPOSE_PROFILES": "", "SSR_NETWORK": network, "OPENAI_BASE_URL": "http://model:8080/v1", "RATE_LIMIT_ENABLED": "false", "TESTS": str(ROOT / "tests"), "CELERY_WORKER_CONCURRENCY": "1", **more}


def production_values(images, network: str, **more) -> dict[str, str]:  # noqa: F811
    return values(images, network, API_KEYS=KEY, OPENAI_API_KEY="sk-test-of-production", GOOGLE_API_KEY="", POSTGRES_PASSWORD="a-password-of-production", REDIS_PASSWORD="another-password", FLOWER_BASIC_AUTH="admin:a-password",
                  GRAFANA_ADMIN_PASSWORD="a-password", ALERT_WEBHOOK_CRITICAL="http://model:8080/alerts", TLS_SELF_SIGNED="true", NGINX_BIND="127.0.0.1", MODEL_NETWORK="outside", WORKER_STOP_GRACE="15s", **more)


def through_tls(project: Project) -> httpx.Client:
    "A client that trusts nothing but the certificate that nginx made for this trial."
    certificate = project.compose("exec", "-T", "nginx", "cat", "/etc/nginx/certificates/fullchain.pem").stdout
    trust = ssl.create_default_context(cadata=certificate)
    return httpx.Client(base_url=f"https://localhost:{project.values['HTTPS_PORT']}", headers={"X-API-Key": KEY}, verify=trust, timeout=30)


def completed(client: httpx.Client, ids: list[str]) -> bool:
    found = {one: client.get(f"/api/v1/surveys/{one}").json()["status"] for one in ids}
    assert not {"failed", "cancelled", "incomplete"} & set(found.values()), found
    return set(found.values()) == {"completed"}


def post(client: httpx.Client, seed: int) -> str:
    reply = client.post("/api/v1/surveys", json=SURVEY | {"seed": seed}, headers={"Idempotency-Key": f"survey-{seed}"})
    assert reply.status_code == 202, reply.text
    return reply.json()["id"]


def test_the_image(engine, images):  # noqa: F811
    [image] = engine.inspect(images["SSR_IMAGE"])
    print(f"\nssr-api: {image['Size'] / 1e6:.0f} MB")
    assert image["Config"]["User"] == "10001:10001" and "/health/live" in " ".join(image["Config"]["Healthcheck"]["Test"])
    assert image["Config"]["Labels"]["org.opencontainers.image.title"] == "ssr-api"
    look = "import json, os, importlib.util; print(json.dumps([os.getuid(), [one['name'] for one in json.load(open('/opt/ssr/sbom.cdx.json'))['components']], bool(importlib.util.find_spec('xllamacpp')), sorted(os.listdir('/'))]))"
    user, components, chat, root = json.loads(engine.run("run", "--rm", "--network", "none", images["SSR_IMAGE"], "python", "-c", look).stdout)
    assert user == 10001 and {"fastapi", "celery", "ssr_nb"} <= {name.replace("-", "_") for name in components} and not chat and not {"work", "build"} & set(root)
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements/image.lock").read_text(), re.MULTILINE))
    assert {name.lower().replace("_", "-").replace(".", "-") for name in components} <= locked | {"ssr-nb", "pip"}, "what is in the image was in the lock"
    done = engine.run("run", "--rm", "--read-only", "--network", "none", images["SSR_IMAGE"], "ssr", "anchors", "check")
    assert "purchase_intent" in done.stdout, "the wheel alone has its reference sets and its embedder, and needs no network"


def test_development(engine, images, tmp_path):  # noqa: F811
    project = Project(engine, "ssr-test-dev", (DEPLOY / "docker-compose.yml", DOCKER / "tests.yml"), values(images, "ssr-test-dev"), tmp_path)
    try:
        project.up()
        ports, key = project.values, {"X-API-Key": "development-key"}
        with httpx.Client(base_url=f"http://127.0.0.1:{ports['API_PORT']}", headers=key, timeout=30) as client:
            assert client.get("/health").json()["status"] == "ok" and client.get("/docs").status_code == 200
            survey = post(client, 1)
            eventually(lambda: completed(client, [survey]), 180, "the survey")
            assert client.get(f"/api/v1/surveys/{survey}/results").json()["summaries"]
        assert httpx.get(f"http://127.0.0.1:{ports['FLOWER_PORT']}/", auth=("admin", "admin")).status_code == 200
        def every_target(): return {one["labels"]["job"]: one["health"] for one in httpx.get(f"http://127.0.0.1:{ports['PROMETHEUS_PORT']}/api/v1/targets").json()["data"]["activeTargets"]}
        eventually(lambda: every_target() == dict.fromkeys(("prometheus", "api", "worker", "flower"), "up"), 120, "every target up")
        assert project.compose("exec", "-T", "postgres", "psql", "-U", "ssr", "-Atc", "SELECT COUNT(*) FROM surveys;").stdout.strip() == "1"
        for one in project.containers():
            assert one["HostConfig"]["LogConfig"]["Config"].get("max-size") == "10m" or one["Config"]["Labels"]["com.docker.compose.service"] == "model", "logs go round"
            assert {bound["HostIp"] for bindings in (one["NetworkSettings"]["Ports"] or {}).values() for bound in bindings or []} <= {"127.0.0.1"}, "nothing is open to the network"
    finally: project.down()


@pytest.fixture(scope="module")
def production(engine, images, tmp_path_factory):  # noqa: F811
    project = Project(engine, "ssr-test-production", (DEPLOY / "docker-compose.production.yml", DOCKER / "tests.yml"), production_values(images, "ssr-test-production"), tmp_path_factory.mktemp("production"))
    try:
        project.up()
        yield project
    finally: project.down()


def test_production_as_it_comes_up(production):
    assert (len(production.containers("api")), len(production.containers("celery-worker")), len(production.containers("migrate"))) == (3, 5, 1)
    [migrated] = production.containers("migrate")
    assert migrated["State"]["ExitCode"] == 0 and all(migrated["State"]["FinishedAt"] < one["State"]["StartedAt"] for one in production.containers("api")), "migrations run once, before anything starts"
    for service in ("api", "celery-worker"):
        for one in production.containers(service):
            host = one["HostConfig"]
            assert (host["NanoCpus"], host["Memory"], host["ReadonlyRootfs"], host["CapDrop"], host["RestartPolicy"]["Name"]) == (2_000_000_000, 4 << 30, True, ["ALL"], "unless-stopped")
    [network] = production.engine.inspect("ssr-test-production-backend")
    assert network["Internal"]
    for service in ("postgres", "redis", "pgbouncer"):
        [one] = production.containers(service)
        assert list(one["NetworkSettings"]["Networks"]) == ["ssr-test-production-backend"] and not one["HostConfig"]["PortBindings"], "the database is kept in"
    with through_tls(production) as client:
        assert client.get("/health").json()["status"] == "ok"
        assert client.get("/metrics").status_code == 404 and client.get("/api/v1/surveys", headers={"X-API-Key": "wrong"}).status_code == 401
        survey = post(client, 1)
        eventually(lambda: completed(client, [survey]), 180, "the survey")
        assert client.get(f"/api/v1/surveys/{survey}/results").json()["summaries"]
    targets = f"http://127.0.0.1:{production.values['PROMETHEUS_PORT']}/api/v1/targets"
    def jobs(): return sorted((one["labels"]["job"], one["health"]) for one in httpx.get(targets).json()["data"]["activeTargets"])
    wanted = sorted([("api", "up")] * 3 + [("worker", "up")] * 5 + [(name, "up") for name in ("prometheus", "flower", "alertmanager", "postgres", "redis", "nginx", "node")])
    eventually(lambda: jobs() == wanted, 120, "every target up")


def test_production_refuses_the_values_of_development(production):
    for name, value in (("API_KEYS", "development-key"), ("POSTGRES_PASSWORD", "development-password"), ("REDIS_PASSWORD", "development-password"), ("OPENAI_API_KEY", "sk-your-key-here")):
        assert value in DEVELOPMENT_SECRETS and example_values()[name] == value
        refused = production.compose("run", "--rm", "--no-deps", "--pull", "never", "-T", "api", "python", "-c", "from ssr_nb.service.api import create_app; create_app()", check=False, more={name: value})
        assert refused.returncode != 0 and "ENV is production and" in refused.stderr + refused.stdout, (name, refused.stderr[-500:])
    empty = production.compose("config", "--quiet", check=False, more={"GRAFANA_ADMIN_PASSWORD": "", "FLOWER_BASIC_AUTH": ""})
    assert empty.returncode != 0 and "FLOWER_BASIC_AUTH" in empty.stderr


def test_scaling_up_and_down_loses_nothing(production):
    with through_tls(production) as client:
        ids = [post(client, 10 + number) for number in range(6)]
        production.up("--no-recreate", "--scale", "api=5", "--scale", "celery-worker=7")
        assert (len(production.containers("api")), len(production.containers("celery-worker"))) == (5, 7)
        ids += [post(client, 20 + number) for number in range(6)]
        production.up("--no-recreate", "--scale", "api=2", "--scale", "celery-worker=2")
        eventually(lambda: completed(client, ids), 300, "every survey")
        counts = production.compose("exec", "-T", "postgres", "psql", "-U", "ssr", "-Atc", "SELECT count(*), count(DISTINCT (survey_id, respondent, sample)) FROM answers WHERE survey_id IN ('" + "','".join(ids) + "')").stdout.strip()
        assert counts == f"{2 * 60 * len(ids)}|{2 * 60 * len(ids)}"


def test_a_dump_of_the_stack(production):
    done = production.compose("exec", "-T", "backup", "/opt/ssr/scripts/backup.sh", "all")
    kept = production.compose("exec", "-T", "backup", "ls", "/backups").stdout.split()
    assert any(name.endswith(".sql.gz") for name in kept) and any(name.endswith(".rdb") for name in kept), (kept, done.stderr)
    query = f"http://127.0.0.1:{production.values['PROMETHEUS_PORT']}/api/v1/query?query=ssr_backup_last_success_timestamp_seconds"
    eventually(lambda: {one["metric"]["kind"] for one in httpx.get(query).json()["data"]["result"]} == {"database", "redis"}, 90, "the metric of the backups")


def test_a_container_that_takes_too_much_memory_is_restarted(engine, images, tmp_path):  # noqa: F811
    project = Project(engine, "ssr-test-hog", (DOCKER / "hog.yml",), production_values(images, "ssr-test-hog"), tmp_path)
    try:
        project.compose("up", "--detach", "--no-build", "--pull", "never")
        eventually(lambda: project.containers("hog")[0]["RestartCount"] >= 2, 120, "two restarts")
        assert project.containers("hog")[0]["HostConfig"]["Memory"] == 128 << 20
    finally: project.down()


def test_blue_to_green_under_load(engine, images, tmp_path):  # noqa: F811
    given = production_values(images, "ssr-test-colors", API_REPLICAS="2", WORKER_REPLICAS="1", LIVE_API="blue-api")
    shared = Project(engine, "ssr-test-shared", (DEPLOY / "docker-compose.shared.yml", DOCKER / "tests.yml"), given, tmp_path)
    blue, green = (Project(engine, f"ssr-test-{color}", (DEPLOY / "docker-compose.release.yml",), given | {"COLOR": color}, tmp_path) for color in ("blue", "green"))
    enter = f"docker exec -i {shared.name}-nginx-1"
    def switch(color): return subprocess.run([DEPLOY / "scripts/switch_lb.sh", color], env=engine.environment | {"NGINX_EXEC": enter}, capture_output=True, text=True)
    over, seen = threading.Event(), []
    try:
        shared.up()
        blue.up()
        with through_tls(shared) as client:
            survey = post(client, 1)
            made = client.post("/api/v1/schedules", json={"name": "every-minute", "cron": "* * * * *", "survey": SURVEY | {"cohort_size": 5}})
            assert made.status_code == 201, made.text
            refused = switch("green")
            assert refused.returncode == 1 and "blue-api stays live" in refused.stderr, "a colour that is not there is not switched to"
            def load():
                with through_tls(shared) as own:
                    while not over.is_set():
                        try: seen.append(own.get("/api/v1/surveys").status_code)
                        except httpx.HTTPError as error: seen.append(repr(error))
            loading = [threading.Thread(target=load) for _ in range(2)]
            for one in loading: one.start()
            green.up()
            done = switch("green")
            assert done.returncode == 0, done.stderr
            switched = len(seen)
            eventually(lambda: len(seen) > switched + 50, 60, "load on green")
            blue.down()
            eventually(lambda: completed(client, [survey]), 180, "a survey that was posted on blue, on green")
            after = post(client, 2)
            eventually(lambda: completed(client, [after]), 180, "a survey on green")
            over.set()
            for one in loading: one.join()
            print(f"\n{len(seen)} requests while blue was replaced by green")
            assert set(seen) == {200} and len(seen) > 100
            query = "SELECT (SELECT count(*) FROM schedule_runs), (SELECT count(*) FROM surveys WHERE schedule_id IS NOT NULL)"
            def fired(): return tuple(int(one) for one in shared.compose("exec", "-T", "postgres", "psql", "-U", "ssr", "-Atc", query).stdout.split("|"))
            due, surveys = eventually(lambda: fired() if fired()[1] else None, 120, "the schedule")
            assert due == surveys, "no schedule fires twice"
    finally:
        over.set()
        for project in (blue, green, shared): project.down()

