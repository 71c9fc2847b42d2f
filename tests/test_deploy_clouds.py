"""What is sent to AWS and Google Cloud, against their own descriptions of their interfaces; the scripts against a stand-in of AWS."""

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from conftest import ROOT

ECS, CLOUD_RUN = ROOT / "deploy/ecs", ROOT / "deploy/cloudrun"
FARGATE = {256: (512, 1024, 2048), 512: range(1024, 4097, 1024), 1024: range(2048, 8193, 1024), 2048: range(4096, 16385, 1024), 4096: range(8192, 30721, 1024), 8192: range(16384, 61441, 4096), 16384: range(32768, 122881, 8192)}  # CPU -> memory in MiB
VARIABLES = {"AWS_ACCOUNT": "123456789012", "REGION": "eu-central-1", "IMAGE_TAG": "0.1.0", "TARGET_GROUP_ARN": "arn:aws:elasticloadbalancing:eu-central-1:123456789012:targetgroup/ssr-api/0123456789abcdef", "LOAD_BALANCER": "app/ssr/0123456789abcdef"}
TASKS = {"task-definition.json": "ssr-api", "task-definition-worker.json": "ssr-worker", "task-definition-beat.json": "ssr-beat", "task-definition-migrate.json": "ssr-migrate"}
SERVICES = {"service.json": "ssr-api", "service-worker.json": "ssr-worker", "service-beat.json": "ssr-beat"}
REQUESTS = {**{name: ("ecs", "RegisterTaskDefinition", {}) for name in TASKS}, **{name: ("ecs", "CreateService", {}) for name in SERVICES},
            "scaling-target.json": ("application-autoscaling", "RegisterScalableTarget", {}), "scaling-policy.json": ("application-autoscaling", "PutScalingPolicy", {}),
            "rds.json": ("rds", "CreateDBInstance", {}), "elasticache.json": ("elasticache", "CreateReplicationGroup", {}), "target-group.json": ("elbv2", "CreateTargetGroup", {}), "alarm.json": ("cloudwatch", "PutMetricAlarm", {})}
FIVE = {"OPENAI_API_KEY", "GOOGLE_API_KEY", "DATABASE_URL", "REDIS_URL", "API_KEYS"}
DOCUMENTS = {"service.yaml": "Service", "worker-pool.yaml": "WorkerPool", "beat-pool.yaml": "WorkerPool", "migrate-job.yaml": "Job"}


def filled(name: str) -> dict:
    "A file of deploy/ecs as it is sent."
    return json.loads(subprocess.run(["sh", ECS / "fill.sh", ECS / name], env={**VARIABLES, "PATH": "/usr/bin:/bin"}, check=True, capture_output=True, text=True).stdout)


def check_enumerations(value, shape, where: str = "") -> None:
    "botocore's validator looks at types and ranges; this at the words that are allowed."
    if shape.type_name == "structure":
        for name, member in value.items(): check_enumerations(member, shape.members[name], f"{where}.{name}")
    elif shape.type_name == "list":
        for member in value: check_enumerations(member, shape.member, where)
    elif shape.type_name == "map":
        for member in value.values(): check_enumerations(member, shape.value, where)
    elif shape.type_name == "string" and shape.enum: assert value in shape.enum, f"{where} is {value!r}: choose one of {shape.enum}"


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_to_aws(name):
    session = pytest.importorskip("botocore.session", reason="SKIP: botocore is not installed (extra deploy)")
    from botocore.validate import ParamValidator
    service, operation, _ = REQUESTS[name]
    shape = session.get_session().get_service_model(service).operation_model(operation).input_shape
    report = ParamValidator().validate(filled(name), shape)
    assert not report.has_errors(), report.generate_report()
    check_enumerations(filled(name), shape)
    with pytest.raises(AssertionError):
        wrong = ParamValidator().validate({**filled(name), "Colour": "green"}, shape)
        assert not wrong.has_errors()


def test_every_file_for_aws_is_checked():
    policies = {"execution-role-policy.json", "task-trust-policy.json"}
    assert {path.name for path in ECS.glob("*.json")} == {*REQUESTS, *policies}
    for name in policies: assert filled(name)["Version"] == "2012-10-17"


@pytest.mark.parametrize("name", TASKS)
def test_tasks_fit_fargate_and_hold_no_secret(name):
    task = filled(name)
    [container] = task["containerDefinitions"]
    assert task["family"] == TASKS[name] and task["networkMode"] == "awsvpc" and task["requiresCompatibilities"] == ["FARGATE"]
    assert int(task["memory"]) in FARGATE[int(task["cpu"])], f"Fargate has no {task['cpu']} CPU with {task['memory']} MiB"
    assert {secret["name"] for secret in container["secrets"]} == FIVE and all(secret["valueFrom"].startswith("arn:aws:secretsmanager:eu-central-1:123456789012:secret:ssr/") for secret in container["secrets"])
    assert not FIVE & {variable["name"] for variable in container["environment"]}
    assert container["image"] == "123456789012.dkr.ecr.eu-central-1.amazonaws.com/ssr-api:0.1.0"
    assert container["logConfiguration"]["options"] == {"awslogs-group": f"/ecs/{task['family']}", "awslogs-region": "eu-central-1", "awslogs-stream-prefix": "ssr"}
    assert container["readonlyRootFilesystem"] and container["user"].split(":")[0] != "0" and container["linuxParameters"]["capabilities"] == {"drop": ["ALL"]}
    assert {mount["sourceVolume"] for mount in container["mountPoints"]} == {volume["name"] for volume in task["volumes"]} and container["stopTimeout"] <= 120


def test_the_guides_api_task():
    task = filled("task-definition.json")
    assert (task["cpu"], task["memory"], task["containerDefinitions"][0]["name"], task["containerDefinitions"][0]["portMappings"]) == ("2048", "4096", "ssr-api", [{"containerPort": 8000, "protocol": "tcp"}])
    service = filled("service.json")
    assert (service["cluster"], service["serviceName"], service["taskDefinition"], service["desiredCount"], service["launchType"]) == ("ssr-cluster", "ssr-api", "ssr-api", 3, "FARGATE")


@pytest.mark.parametrize("name", SERVICES)
def test_services_run_tasks_that_exist(name):
    service = filled(name)
    task = next(filled(file) for file, family in TASKS.items() if family == service["taskDefinition"])
    for balancer in service.get("loadBalancers", []):
        container = next(one for one in task["containerDefinitions"] if one["name"] == balancer["containerName"])
        assert balancer["containerPort"] in {port["containerPort"] for port in container["portMappings"]}
    if name == "service-beat.json": assert (service["desiredCount"], service["deploymentConfiguration"]["maximumPercent"]) == (1, 100), "never two beats"


def environment_of(name: str) -> dict[str, str]: return {variable["name"]: variable["value"] for variable in filled(name)["containerDefinitions"][0]["environment"]}


def cloud_run(name: str) -> dict: return yaml.safe_load((CLOUD_RUN / name).read_text().replace("${PROJECT_ID}", "my-project").replace("${IMAGE_TAG}", "0.1.0"))


def containers_of(document: dict) -> list[dict]:
    spec = document["spec"]["template"]["spec"]
    return spec["containers"] if "containers" in spec else spec["template"]["spec"]["containers"]


SECRETS = {"OPENAI_API_KEY": "sk-1", "GOOGLE_API_KEY": "AI1", "DATABASE_URL": "postgresql://ssr:secret@db/ssr", "REDIS_URL": "redis://:secret@redis/0", "API_KEYS": "k" * 40}


@pytest.mark.parametrize("name", [*TASKS, *DOCUMENTS])
def test_the_service_starts_with_the_settings_of_the_clouds(name):
    from ssr_nb.service.settings import ServiceSettings
    given = environment_of(name) if name in TASKS else {variable["name"]: variable["value"] for variable in containers_of(cloud_run(name))[0]["env"] if "value" in variable}
    settings = ServiceSettings.from_environment(given | SECRETS)
    assert settings.env == "production"
    with pytest.raises(Exception, match="DATABASE_URL"): ServiceSettings.from_environment(given | SECRETS | {"DATABASE_URL": ""})
    read = " ".join(path.read_text() for path in (ROOT / "ssr_nb").rglob("*.py"))
    assert not [variable for variable in given if variable not in ("HOME", "FORWARDED_ALLOW_IPS") and variable not in read and variable.lower() not in read]


def test_all_clouds_start_the_same_commands():
    cluster = {one["metadata"]["name"]: one["spec"]["template"]["spec"]["containers"][0]["command"] for path in ("deployment.yaml", "workers.yaml", "migration.yaml") for one in yaml.safe_load_all((ROOT / "deploy/k8s" / path).read_text()) if "template" in one["spec"]}
    on_ecs = {family: filled(name)["containerDefinitions"][0]["command"] for name, family in TASKS.items()}
    assert on_ecs == {"ssr-api": cluster["ssr-api-stable"], "ssr-worker": cluster["celery-worker"], "ssr-beat": cluster["celery-beat"], "ssr-migrate": cluster["ssr-migrate"]}
    on_cloud_run = {name: containers_of(cloud_run(name))[0]["command"] + containers_of(cloud_run(name))[0]["args"] for name in DOCUMENTS}
    assert on_cloud_run["worker-pool.yaml"] == cluster["celery-worker"] and on_cloud_run["beat-pool.yaml"] == cluster["celery-beat"] and on_cloud_run["migrate-job.yaml"] == cluster["ssr-migrate"]
    assert on_cloud_run["service.yaml"][:-1] == cluster["ssr-api-stable"][:-1] and int(on_cloud_run["service.yaml"][-1]) < 10, "Cloud Run waits ten seconds"


def described(file: str) -> dict:
    "The types of one of Google's interfaces, out of the documents inside google-api-python-client."
    spec = importlib.util.find_spec("googleapiclient")
    if spec is None: pytest.skip("SKIP: google-api-python-client is not installed (extra deploy)")
    return json.loads((Path(spec.origin).parent / "discovery_cache/documents" / file).read_text())["schemas"]


def json_schema(types: dict, name: str) -> dict:
    "A JSON schema that refuses what the interface does not know."
    def convert(found: dict) -> dict:
        if "$ref" in found: return {"$ref": f"#/$defs/{found['$ref']}"}
        kind = found.get("type")
        made: dict = {"any": {}}.get(kind, {"type": kind})
        if kind == "array": made["items"] = convert(found["items"])
        if "properties" in found: made |= {"properties": {key: convert(value) for key, value in found["properties"].items()}, "additionalProperties": False}
        elif "additionalProperties" in found: made["additionalProperties"] = convert(found["additionalProperties"])
        if "enum" in found: made["enum"] = found["enum"]
        return made
    return {"$ref": f"#/$defs/{name}", "$defs": {key: convert(value) for key, value in types.items()}}


def check(types: dict, name: str, value: dict) -> None:
    import jsonschema
    jsonschema.Draft202012Validator(json_schema(types, name)).validate(value)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_requests_to_cloud_run(name):
    import jsonschema
    types, document = described("run.v1.json"), cloud_run(name)
    assert document["kind"] == DOCUMENTS[name]
    check(types, DOCUMENTS[name], document)
    with pytest.raises(jsonschema.ValidationError): check(types, DOCUMENTS[name], document | {"colour": "green"})
    known = set(re.findall(r"`((?:run\.googleapis|autoscaling\.knative)\.\w+/[\w-]+)`", json.dumps(types)))
    annotations = {*document["metadata"].get("annotations", {}), *document["spec"]["template"]["metadata"].get("annotations", {})}
    assert annotations <= known, annotations - known


@pytest.mark.parametrize("file, name, document", [("sqladmin.v1.json", "DatabaseInstance", "cloud_sql.json"), ("redis.v1.json", "Instance", "memorystore.json")])
def test_requests_for_databases_of_google(file, name, document):
    import jsonschema
    value = json.loads((CLOUD_RUN / document).read_text())
    check(described(file), name, value)
    with pytest.raises(jsonschema.ValidationError): check(described(file), name, value | {"tiers": "x"})


@pytest.mark.parametrize("name", DOCUMENTS)
def test_cloud_run_takes_secrets_by_reference(name):
    [container] = containers_of(cloud_run(name))
    references = {variable["name"]: variable["valueFrom"]["secretKeyRef"]["name"] for variable in container["env"] if "valueFrom" in variable}
    made = dict(re.findall(r"([a-z-]+):([A-Z_]+)", re.search(r"for pair in (.*);", (CLOUD_RUN / "secrets.md").read_text())[1]))
    assert references == {variable: secret for secret, variable in made.items()} and set(references) == FIVE
    assert references["OPENAI_API_KEY"] == "openai-key" and references["DATABASE_URL"] == "db-url", "the guide's names"
    assert container["image"] == "gcr.io/my-project/ssr-api:0.1.0"


def test_the_guides_figures_for_cloud_run():
    template = cloud_run("service.yaml")["spec"]["template"]
    assert template["spec"]["containers"][0]["resources"]["limits"] == {"cpu": "2", "memory": "4Gi"} and template["spec"]["timeoutSeconds"] == 3600 and template["spec"]["containerConcurrency"] == 100
    assert {key.rpartition("/")[2]: value for key, value in template["metadata"]["annotations"].items() if "Scale" in key} == {"minScale": "1", "maxScale": "10"}


@pytest.mark.parametrize("script, needs", [(ECS / "deploy.sh", ["AWS_ACCOUNT", "REGION", "IMAGE_TAG", "TARGET_GROUP_ARN", "SUBNETS", "SECURITY_GROUPS"]), (CLOUD_RUN / "deploy.sh", ["PROJECT_ID", "IMAGE_TAG"])])
def test_scripts_tell_what_they_need_and_what_they_would_do(script, needs, tmp_path):
    given = {name: VARIABLES.get(name, "x-1") for name in needs} | {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    told = subprocess.run(["sh", script, "--help"], env={"PATH": "/usr/bin:/bin"}, check=True, capture_output=True, text=True).stdout
    assert all(name in told for name in needs) and "Exit codes" in told
    for name in needs:
        done = subprocess.run(["sh", script, "--dry-run"], env={key: value for key, value in given.items() if key != name}, capture_output=True, text=True)
        assert done.returncode == 2 and name in done.stderr
    plan = subprocess.run(["sh", script, "--dry-run"], env=given, check=True, capture_output=True, text=True).stdout.splitlines()
    assert all(line.startswith("+ ") for line in plan)
    migration = next(place for place, line in enumerate(plan) if "ssr-migrate" in line and ("run-task" in line or "execute" in line))
    rollout = next(place for place, line in enumerate(plan) if "create-service" in line or "services replace" in line)
    assert migration < rollout and not list(tmp_path.iterdir())
    assert subprocess.run(["sh", script, "--what"], env=given, capture_output=True).returncode == 2
    without = subprocess.run(["sh", script, "--dry-run", "--skip-image"], env=given, check=True, capture_output=True, text=True).stdout
    assert "push" not in without and "builds" not in without and "ssr-migrate" in without


def test_filling_in_stops_at_what_is_not_set():
    done = subprocess.run(["sh", ECS / "fill.sh", ECS / "task-definition.json"], env={"PATH": "/usr/bin:/bin", "REGION": "x"}, capture_output=True, text=True)
    assert done.returncode == 1 and "AWS_ACCOUNT" in done.stderr and not done.stdout


def test_links_of_the_pages_lead_somewhere():
    for page in [*ECS.glob("*.md"), *CLOUD_RUN.glob("*.md"), ROOT / "deploy/k8s/README.md"]:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()): assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.fixture(scope="module")
def aws(tmp_path_factory):
    "The real command line of AWS against moto, which keeps what it is told; and a docker that takes everything."
    found = {name: shutil.which(name) or shutil.which(name, path=Path(sys.executable).parent) for name in ("aws", "moto_server")}
    if missing := [name for name, path in found.items() if path is None]: pytest.skip(f"SKIP: {', '.join(missing)} not installed (pip install awscli 'moto[server]')")
    folder = tmp_path_factory.mktemp("aws")
    (folder / "docker").write_text('#!/bin/sh\n[ "$1" = login ] && cat > /dev/null\necho "$*" >> "$DOCKER_LOG"\n')
    (folder / "docker").chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([found["moto_server"], "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "MOTO_IAM_LOAD_MANAGED_POLICIES": "true"})
    environment = {"PATH": f"{folder}:{Path(found['aws']).parent}:/usr/bin:/bin", "HOME": str(folder), "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "eu-central-1", "AWS_PAGER": "",
                   "DOCKER_LOG": str(folder / "docker.log"), **VARIABLES}
    try:
        until = time.monotonic() + 60
        while True:
            try: socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                assert server.poll() is None and time.monotonic() < until, "moto_server does not start"
                time.sleep(.2)
            else: break
        def ask(*command: str) -> str: return subprocess.run(["aws", *command, "--output", "text"], env=environment, check=True, capture_output=True, text=True).stdout.strip()
        network = ask("ec2", "create-vpc", "--cidr-block", "10.0.0.0/16", "--query", "Vpc.VpcId")
        subnets = [ask("ec2", "create-subnet", "--vpc-id", network, "--cidr-block", f"10.0.{n}.0/24", "--availability-zone", f"eu-central-1{zone}", "--query", "Subnet.SubnetId") for n, zone in enumerate("ab")]
        group = ask("ec2", "create-security-group", "--group-name", "ssr", "--description", "ssr", "--vpc-id", network, "--query", "GroupId")
        environment |= {"VPC": network, "SUBNETS": ",".join(subnets), "SECURITY_GROUPS": group, "DATABASE_SECURITY_GROUP": group, "REDIS_SECURITY_GROUP": group, "LOAD_BALANCER_SECURITY_GROUP": group, "REDIS_TOKEN": "t" * 40,
                        "CERTIFICATE_ARN": ask("acm", "request-certificate", "--domain-name", "ssr.example.com", "--query", "CertificateArn"), "ALARM_TOPIC": ask("sns", "create-topic", "--name", "ssr", "--query", "TopicArn"),
                        "OPENAI_API_KEY": "sk-1", "DATABASE_URL": "postgresql://x", "REDIS_URL": "redis://x"}
        yield environment
    finally:
        server.terminate()
        server.wait(10)


NOT_IN_MOTO = ("cache-parameter-group ",)  # these are held against botocore's description alone


def commands(page: str) -> list[str]: return [line for block in re.findall(r"```bash\n(.*?)```", (ECS / page).read_text(), re.S) for line in block.splitlines()]


def blocks(page: str) -> str: return "\n".join(["set -eu", *(line for line in commands(page) if not any(name in line for name in NOT_IN_MOTO))])


def test_options_of_the_pages_are_those_of_aws():
    session = pytest.importorskip("botocore.session", reason="SKIP: botocore is not installed (extra deploy)").get_session()
    from botocore import xform_name
    found = [match for page in ECS.glob("*.md") if page.name != "README.md" for line in commands(page.name) for match in re.findall(r"aws ([a-z0-9-]+) ([a-z0-9-]+)((?: [^|;]*)?)", line)]
    assert len(found) >= 30
    for service, operation, options in found:
        if operation == "wait": continue
        model = session.get_service_model(service)
        shape = model.operation_model(next(name for name in model.operation_names if xform_name(name, "-") == operation)).input_shape
        known = {xform_name(member, "-") for member in shape.members} | {"query", "output", "cli-input-json"}
        assert set(re.findall(r" --([a-z0-9-]+)", re.sub(r"'[^']*'", "''", options))) <= known, (service, operation)


@pytest.mark.system
@pytest.mark.parametrize("page, says", [("secrets.md", "ssr-execution"), ("rds.md", "rds.amazonaws.com"), ("elasticache.md", ""), ("alb.md", "targetgroup/ssr-api"), ("cloudwatch.md", "ssr-api-5xx")])
def test_the_pages_commands_run(aws, page, says):
    done = subprocess.run(["sh", "-c", blocks(page)], cwd=ECS, env=aws, capture_output=True, text=True)
    assert done.returncode == 0 and says in done.stdout, done.stderr


@pytest.mark.system
def test_the_script_rolls_out_and_can_be_repeated(aws, tmp_path):
    def ask(*command: str) -> str: return subprocess.run(["aws", *command, "--output", "text"], env=environment, check=True, capture_output=True, text=True).stdout.strip()
    environment = aws
    target = ask("elbv2", "create-target-group", "--cli-input-json", (ECS / "target-group.json").read_text().replace("ssr-api", "ssr-api-2"), "--vpc-id", aws["VPC"], "--query", "TargetGroups[0].TargetGroupArn")
    # moto runs no tasks: a stand-in says that the migration has ended well, or not
    (tmp_path / "aws").write_text(f"""#!/bin/sh
case "$*" in
  *"ecs run-task"*) echo arn:aws:ecs:eu-central-1:123456789012:task/ssr-cluster/1 ;;
  *"wait tasks-stopped"*|*"wait services-stable"*) ;;
  *"describe-tasks"*) echo "$MIGRATION" ;;
  *) exec {shutil.which("aws", path=aws["PATH"])} "$@" ;;
esac
""")
    (tmp_path / "aws").chmod(0o755)
    environment = aws | {"PATH": f"{tmp_path}:{aws['PATH']}", "TARGET_GROUP_ARN": target, "TMPDIR": str(tmp_path), "MIGRATION": "0"}
    refused = subprocess.run(["sh", ECS / "deploy.sh"], env=environment | {"MIGRATION": "1"}, capture_output=True, text=True)
    assert refused.returncode == 1 and "migration ended with exit code 1" in refused.stderr
    assert ask("ecs", "list-services", "--cluster", "ssr-cluster", "--query", "length(serviceArns)") == "0", "nothing was rolled out"
    for round in (1, 2):
        done = subprocess.run(["sh", ECS / "deploy.sh"], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert sorted(ask("ecs", "list-services", "--cluster", "ssr-cluster", "--query", "serviceArns[]").split()) == [f"arn:aws:ecs:eu-central-1:123456789012:service/ssr-cluster/{name}" for name in ("ssr-api", "ssr-beat", "ssr-worker")]
    assert ask("ecs", "describe-services", "--cluster", "ssr-cluster", "--services", "ssr-api", "--query", "services[0].[desiredCount,launchType]").split() == ["3", "FARGATE"]
    assert ask("logs", "describe-log-groups", "--log-group-name-prefix", "/ecs/ssr-", "--query", "logGroups[].retentionInDays").split() == ["30"] * 4
    pushed = Path(aws["DOCKER_LOG"]).read_text()
    assert "push 123456789012.dkr.ecr.eu-central-1.amazonaws.com/ssr-api:0.1.0" in pushed and "login --username AWS --password-stdin" in pushed
    assert not list(tmp_path.glob("tmp.*"))
