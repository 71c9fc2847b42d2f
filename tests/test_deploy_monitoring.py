"""Rules, alerts, routes, dashboards and runbooks: each name in them exists, each alert fires and stays quiet as it should."""

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from conftest import ROOT

DEPLOY = ROOT / "deploy"
PROMETHEUS, GRAFANA, RUNBOOKS, ALERTMANAGER = DEPLOY / "prometheus", DEPLOY / "grafana", DEPLOY / "docs/runbooks", DEPLOY / "alertmanager"
PROMTOOL, AMTOOL = shutil.which("promtool"), shutil.which("amtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="SKIP: no promtool on this machine (apt: prometheus)")
needs_amtool = pytest.mark.skipif(AMTOOL is None, reason="SKIP: no amtool on this machine (apt: prometheus-alertmanager)")
EXPORTERS = {  # metric -> labels, of the exporters that the compose files and the overlays run
    "up": {"job", "instance"}, "ALERTS": {"alertname", "alertstate"}, "process_start_time_seconds": set(), "process_cpu_seconds_total": set(), "process_resident_memory_bytes": set(),
    "pg_up": set(), "pg_stat_activity_count": {"state", "datname"}, "pg_settings_max_connections": set(), "pg_database_size_bytes": {"datname"},
    "redis_up": set(), "redis_memory_used_bytes": set(), "redis_memory_max_bytes": set(), "redis_rdb_last_save_timestamp_seconds": set(), "redis_commands_processed_total": set(), "redis_connected_clients": set(),
    "nginx_connections_active": set(), "kube_cronjob_status_last_successful_time": {"cronjob"}, "ssr_backup_last_success_timestamp_seconds": {"kind"}, "ssr_certificate_expiry_timestamp_seconds": set(),
    "node_cpu_seconds_total": {"mode", "cpu"}, "node_memory_MemAvailable_bytes": set(), "node_memory_MemTotal_bytes": set(), "node_filesystem_avail_bytes": {"mountpoint", "fstype"}, "node_filesystem_size_bytes": {"mountpoint", "fstype"},
    "node_disk_read_bytes_total": {"device"}, "node_disk_written_bytes_total": {"device"}, "node_network_receive_bytes_total": {"device"}, "node_network_transmit_bytes_total": {"device"},
}
OF_TARGETS = {"job", "instance"}
WORDS = {"and", "or", "unless", "on", "by", "ignoring", "without", "group_left", "group_right", "bool", "offset", "inf", "nan"}


def read(path: Path) -> dict: return yaml.safe_load(path.read_text())


def rules(name: str) -> list[dict]: return [rule for group in read(PROMETHEUS / name)["groups"] for rule in group["rules"]]


def dashboards() -> dict[str, dict]: return {path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}


def panels() -> list[tuple[str, str, str]]:
    "Dashboard, panel and query of each line that Grafana draws."
    return [(name, panel["title"], target["expr"]) for name, board in dashboards().items() for panel in board["panels"] for target in panel["targets"]]


def queries() -> list[str]:
    return [rule["expr"] for name in ("recording.yml", "alerts.yml") for rule in rules(name)] + [query for _, _, query in panels()]


def used(query: str) -> list[tuple[str, dict[str, tuple[str, str]]]]:
    "Metrics that a query names, with what it wants of their labels: label -> (operator, value)."
    found = []
    strings: list[str] = []
    def keep(match):
        strings.append(match[0][1:-1])
        return f'"{len(strings) - 1}"'
    text = re.sub(r'"(?:[^"\\]|\\.)*"', keep, query)
    text = re.sub(r"\[[^\]]*\]", "", text)
    text = re.sub(r"\b(by|on|ignoring|without|group_left|group_right)\s*\([^)]*\)", "", text)
    for name, braces in re.findall(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?!\s*\(|[a-zA-Z0-9_:])\s*(\{[^}]*\})?", text):
        if name in WORDS or re.search(rf'"{name}"', text): continue
        matchers = {label: (operator, strings[int(place)].replace("\\\\", "\\")) for label, operator, place in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"(\d+)"', braces)}
        found.append((name, matchers))
    return found


@pytest.fixture
def metrics(database, redis_url) -> dict[str, dict[str, set[str]]]:
    "Metrics of the service, as it serves them -> label -> values that are there from the start."
    from ssr_nb.service import telemetry
    from ssr_nb.service.gauges import Gauges
    from ssr_nb.service.settings import ServiceSettings
    known: dict[str, dict[str, set[str]]] = {}
    labelled = {name: set(metric._labelnames) for metric in vars(telemetry).values() if hasattr(metric, "_labelnames") for name in (metric._name, f"{metric._name}_total")}
    for family in telemetry.REGISTRY.collect():
        names = {family.name + suffix for suffix in {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))}
        for name in names: known[name] = {label: set() for label in labelled.get(family.name, set()) | ({"le"} if name.endswith("_bucket") else set())}
        for sample in family.samples:
            for label, value in sample.labels.items(): known.setdefault(sample.name, {}).setdefault(label, set()).add(value)
    for family in Gauges(ServiceSettings(database_url=database, redis_url=redis_url)).collect():
        known[family.name] = {label: {sample.labels[label] for sample in family.samples} for label in family._labelnames}
    assert {"ssr_surveys_total", "ssr_queue_depth", "ssr_up", "ssr_surveys_open", "ssr_budget_left_dollars"} <= set(known)
    return known


def test_every_metric_and_label_exists(metrics):
    recorded = {rule["record"] for rule in rules("recording.yml")}
    fixed = {name: labels for name, labels in metrics.items() if name in ("ssr_surveys_total", "ssr_answers_total", "celery_task_total", "llm_tokens_consumed_total", "ssr_audit_skipped_total", "ssr_cache_hits_total", "ssr_queue_depth", "ssr_up", "ssr_surveys_open")}
    seen = set()
    adapter = re.search(r"seriesQuery: (\S+)", (DEPLOY / "k8s/prometheus-adapter.yaml").read_text())[1]
    scaled = next(found for found in yaml.safe_load_all((DEPLOY / "k8s/autoscaling.yaml").read_text()) if found["kind"] == "ScaledObject")["spec"]["triggers"][0]["metadata"]["query"]
    for query in [*queries(), scaled, adapter.partition("{")[0]]:
        for name, matchers in used(query):
            seen.add(name)
            if name in recorded: continue
            assert name in metrics or name in EXPORTERS, f"{name} is measured by nobody: {query}"
            labels = set(metrics[name]) if name in metrics else EXPORTERS[name]
            assert set(matchers) <= labels | OF_TARGETS, f"{name} has no label {set(matchers) - labels}: {query}"
            for label, (operator, value) in matchers.items():
                if operator == "=" and label == "le": assert value in metrics[name]["le"], f"{name} has no bucket {value}"
                if name in fixed and operator in ("=", "=~", "!="):
                    for one in value.split("|"): assert one in fixed[name][label], f"{name} has no {label} {one!r}: {query}"
    assert recorded <= seen, f"nobody uses {recorded - seen}"
    assert set(EXPORTERS) <= seen, f"not needed: {set(EXPORTERS) - seen}"
    guide = {"ssr_surveys_total", "ssr_survey_duration_seconds_bucket", "ssr_responses_generated_total", "llm_requests_total", "llm_request_duration_seconds_bucket", "llm_tokens_consumed_total", "llm_cost_dollars_total", "http_requests_total", "http_request_duration_seconds_bucket", "celery_task_total"}
    assert guide <= seen, "a metric of the guide is on no dashboard"


def test_queries_are_promql():
    parser = pytest.importorskip("promql_parser", reason="SKIP: promql-parser is not installed (extra deploy)")
    for query in queries(): parser.parse(query.replace("$__rate_interval", "1m"))


def test_ratios_are_sums_of_sums():
    "The guide's expressions compare each series for itself with a figure that depends on the traffic."
    by_name = {rule["record"]: rule["expr"] for rule in rules("recording.yml")}
    alerts = {rule["alert"]: rule for rule in rules("alerts.yml")}
    for name in ("ssr:http_errors:ratio_rate5m", "ssr:llm_errors:ratio_rate5m"): assert re.fullmatch(r"sum.*\(rate\(.*\)\) / sum.*\(rate\(.*\)\)", by_name[name])
    assert alerts["HighErrorRate"]["expr"].endswith("> 0.05") and (alerts["HighErrorRate"]["for"], alerts["HighErrorRate"]["labels"]["severity"]) == ("5m", "critical")
    assert "> 0.1" in alerts["LLMAPIFailure"]["expr"] and (alerts["LLMAPIFailure"]["for"], alerts["LLMAPIFailure"]["labels"]["severity"]) == ("2m", "critical")
    assert by_name["ssr:llm_cost_dollars:increase1h"] == "sum(increase(llm_cost_dollars_total[1h]))" and alerts["HighCost"]["expr"].endswith("> 500") and alerts["HighCost"]["labels"]["severity"] == "warning"


def test_every_alert_has_a_page_that_is_linked_and_a_test_each_way():
    alerts = [rule for rule in rules("alerts.yml")]
    names = [rule["alert"] for rule in alerts]
    assert len(set(names)) == len(names) >= 25
    fires, quiet = set(), set()
    for path in (PROMETHEUS / "tests").glob("*.yml"):
        for test in read(path)["tests"]:
            for check in test["alert_rule_test"]: (fires if check["exp_alerts"] else quiet).add(check["alertname"])
    for rule in alerts:
        name = rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning", "none") and rule["annotations"]["summary"], name
        page = ROOT / rule["annotations"]["runbook_url"]
        assert page == RUNBOOKS / f"{name}.md" and page.read_text().startswith(f"# {name}\n\n> "), name
        text = page.read_text()
        assert f"Severity: {rule['labels']['severity']}." in text and "\n## Look\n" in text and "\n## Do\n" in text, name
        assert f"[{name}]({name}.md) | {rule['labels']['severity']} |" in (RUNBOOKS / "README.md").read_text()
    assert fires == set(names), f"never seen to fire: {set(names) - fires}"
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == {*names, "README"}
    untested = set(names) - quiet - {"Watchdog", "ApiDown", "WorkersDown"} - {"HighCost", "SlowRequests", "ErrorBudgetBurnsFast", "DiskAlmostFull", "RestartLoop"}
    assert not untested, f"never seen to stay quiet: {untested}"


def test_links_of_the_runbooks_lead_somewhere():
    for page in RUNBOOKS.glob("*.md"):
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()): assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_runbooks_queries_run(database):
    import sqlalchemy as sa

    from ssr_nb.service.database import make_engine
    found = [(page.stem, query) for page in sorted(RUNBOOKS.glob("*.md")) for query in re.findall(r"`(SELECT [^`]+)`", page.read_text()) if "PID" not in query]
    assert len(found) >= 8
    engine = make_engine(database)
    try:
        with engine.connect() as connection:
            for page, query in found:
                try: connection.execute(sa.text(query.replace(":", r"\:"))).all()
                except sa.exc.DBAPIError as error: pytest.fail(f"{page}: {query}: {error.orig}")
    finally: engine.dispose()


@needs_promtool
@pytest.mark.system
def test_rules_and_their_tests():
    subprocess.run([PROMTOOL, "check", "rules", PROMETHEUS / "recording.yml", PROMETHEUS / "alerts.yml"], check=True, capture_output=True)
    done = subprocess.run([PROMTOOL, "test", "rules", *sorted((PROMETHEUS / "tests").glob("*.yml"))], capture_output=True, text=True, cwd=PROMETHEUS / "tests")
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
@pytest.mark.system
def test_a_worse_rule_is_noticed(tmp_path):
    "The tests of the rules are sharp: the guide's own expressions do not pass them."
    shutil.copytree(PROMETHEUS, tmp_path / "prometheus")
    alerts = tmp_path / "prometheus/alerts.yml"
    alerts.write_text(alerts.read_text().replace("expr: ssr:http_errors:ratio_rate5m > 0.05", 'expr: rate(http_requests_total{status=~"5.."}[5m]) > 0.05'))
    tests = tmp_path / "prometheus/tests/alerts_test.yml"
    told = read(tests)
    tests.write_text(yaml.safe_dump(told | {"tests": [test for test in told["tests"] if "HighErrorRate" in str(test)]}))
    done = subprocess.run([PROMTOOL, "test", "rules", tests.name], capture_output=True, text=True, cwd=tests.parent)
    assert done.returncode == 1 and "HighErrorRate" in done.stdout + done.stderr


@needs_promtool
@pytest.mark.system
@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus.kubernetes.yml"])
def test_configuration_of_prometheus(name, tmp_path):
    config = read(PROMETHEUS / name)
    for job in config["scrape_configs"]:  # Debian's Prometheus is built without the discovery of Kubernetes
        if job.pop("kubernetes_sd_configs", None): job["static_configs"] = [{"targets": ["127.0.0.1:1"]}]
    (tmp_path / name).write_text(yaml.safe_dump(config))
    for rule_file in config["rule_files"]: shutil.copy(PROMETHEUS / rule_file, tmp_path)
    done = subprocess.run([PROMTOOL, "check", "config", "--lint-fatal", tmp_path / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def relabel(labels: dict[str, str], configs: list[dict]) -> dict[str, str] | None:
    "What Prometheus makes of a target's labels; None: it is dropped."
    labels = dict(labels)
    for config in configs:
        value = config.get("separator", ";").join(labels.get(label, "") for label in config.get("source_labels", []))
        match = re.fullmatch(config.get("regex", "(.*)"), value)
        action = config.get("action", "replace")
        if action == "keep" and not match or action == "drop" and match: return None
        if action == "replace" and match: labels[config["target_label"]] = match.expand(re.sub(r"\$(\d)", r"\\\1", config.get("replacement", "$1")))
    return {name: value for name, value in labels.items() if not name.startswith("__") and value}


def test_prometheus_finds_the_pods_of_the_overlays():
    kubectl = shutil.which("kubectl")
    if kubectl is None: pytest.skip("SKIP: no kubectl on this machine, so overlays cannot be rendered")
    [job] = [job for job in read(PROMETHEUS / "prometheus.kubernetes.yml")["scrape_configs"] if "kubernetes_sd_configs" in job]
    found: dict[str, list[dict]] = {}
    for one in yaml.safe_load_all(subprocess.run([kubectl, "kustomize", DEPLOY / "kustomize/staging"], check=True, capture_output=True, text=True).stdout):
        if one["kind"] not in ("Deployment", "StatefulSet"): continue
        pod = one["spec"]["template"]
        for port in (port for container in pod["spec"]["containers"] for port in container.get("ports", [])):
            target = {"__meta_kubernetes_pod_phase": "Running", "__meta_kubernetes_namespace": "ssr-staging", "__meta_kubernetes_pod_name": one["metadata"]["name"] + "-x", "__meta_kubernetes_pod_container_port_name": port["name"],
                      **{f"__meta_kubernetes_pod_label_{label}": value for label, value in pod["metadata"]["labels"].items()}, "job": job["job_name"]}
            if (labels := relabel(target, job["relabel_configs"])) is not None: found.setdefault(labels["job"], []).append(labels)
            assert relabel(target | {"__meta_kubernetes_pod_phase": "Succeeded"}, job["relabel_configs"]) is None
    assert {name: len(targets) for name, targets in found.items()} == {"api": 2, "worker": 1, "flower": 1, "postgres": 1, "redis": 1}
    assert {target["track"] for target in found["api"]} == {"stable", "canary"} and all({"namespace", "pod"} <= set(target) for targets in found.values() for target in targets)


def test_both_configurations_know_the_same_jobs_and_rules():
    compose, kubernetes = read(PROMETHEUS / "prometheus.yml"), read(PROMETHEUS / "prometheus.kubernetes.yml")
    assert compose["rule_files"] == kubernetes["rule_files"] == ["recording.yml", "alerts.yml"]
    jobs = {job["job_name"]: job for job in compose["scrape_configs"]}
    assert set(jobs) == {"prometheus", "api", "worker", "flower", "alertmanager", "postgres", "redis", "nginx", "node"}
    assert (jobs["api"]["dns_sd_configs"][0]["port"], jobs["worker"]["dns_sd_configs"][0]["port"]) == (8000, 9808)
    named = {value for query in queries() for _, matchers in used(query) for label, (_, values) in matchers.items() if label == "job" for value in values.split("|")}
    assert named <= set(jobs)


def test_routes_name_alerts_and_receivers_that_exist():
    config = read(ALERTMANAGER / "alertmanager.yml")
    receivers = {receiver["name"] for receiver in config["receivers"]}
    assert {config["route"]["receiver"], *(route["receiver"] for route in config["route"]["routes"])} == receivers == {"critical", "warning", "heartbeat"}
    alerts = [rule["alert"] for rule in rules("alerts.yml")]
    for rule in config["inhibit_rules"]:
        for matcher in [*rule["source_matchers"], *rule["target_matchers"]]:
            label, operator, value = re.fullmatch(r'(\w+) (=~|=) "?([^"]+)"?', matcher).groups()
            if label == "alertname":
                for one in value.split("|"): assert [name for name in alerts if re.fullmatch(one, name)], f"no alert {one}"


@needs_amtool
@pytest.mark.system
@pytest.mark.parametrize("labels, receiver", [({"alertname": "HighErrorRate", "severity": "critical"}, "critical"), ({"alertname": "HighCost", "severity": "warning"}, "warning"), ({"alertname": "Watchdog", "severity": "none"}, "heartbeat")])
def test_alerts_go_where_they_should(labels, receiver):
    subprocess.run([AMTOOL, "check-config", ALERTMANAGER / "alertmanager.yml"], check=True, capture_output=True)
    done = subprocess.run([AMTOOL, "config", "routes", "test", f"--config.file={ALERTMANAGER / 'alertmanager.yml'}", *(f"{name}={value}" for name, value in labels.items())], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == receiver


def test_addresses_of_receivers_come_from_the_environment(tmp_path):
    given = {"CONFIGURATION": str(ALERTMANAGER / "alertmanager.yml"), "RENDERED": str(tmp_path / "out.yml"), "ALERTMANAGER": "echo", "PATH": "/usr/bin:/bin"}
    address = "https://hooks.example.com/a|b?x=1&y=2"
    done = subprocess.run(["sh", ALERTMANAGER / "start.sh", "--storage.path=/x"], env=given | {"ALERT_WEBHOOK_CRITICAL": address, "ALERT_WEBHOOK_HEARTBEAT": "https://beat.example.com/"}, check=True, capture_output=True, text=True)
    assert done.stdout.split() == [f"--config.file={tmp_path / 'out.yml'}", "--storage.path=/x"]
    urls = {receiver["name"]: receiver["webhook_configs"][0]["url"] for receiver in read(tmp_path / "out.yml")["receivers"]}
    assert urls == {"critical": address, "warning": address, "heartbeat": "https://beat.example.com/"} and (tmp_path / "out.yml").stat().st_mode & 0o077 == 0
    without = subprocess.run(["sh", ALERTMANAGER / "start.sh"], env=given, capture_output=True, text=True)
    assert without.returncode != 0 and "ALERT_WEBHOOK_CRITICAL" in without.stderr
    assert "ALERT_WEBHOOK_CRITICAL" in subprocess.run(["sh", ALERTMANAGER / "start.sh", "--help"], check=True, capture_output=True, text=True).stdout


def maker():
    spec = importlib.util.spec_from_file_location("make_dashboards", GRAFANA / "make_dashboards.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_dashboards_are_what_the_list_of_panels_makes():
    made = maker()
    assert set(made.PANELS) == set(dashboards()) == {"business", "performance", "infrastructure", "errors"}
    for name in made.PANELS: assert (GRAFANA / f"dashboards/{name}.json").read_text() == made.text(name), "run python deploy/grafana/make_dashboards.py"


def test_dashboards_are_whole():
    uids = [board["uid"] for board in dashboards().values()]
    assert len(set(uids)) == 4
    [source] = read(GRAFANA / "provisioning/datasources/prometheus.yml")["datasources"]
    for name, board in dashboards().items():
        ids, titles = [panel["id"] for panel in board["panels"]], [panel["title"] for panel in board["panels"]]
        assert len(set(ids)) == len(ids) >= 12 and len(set(titles)) == len(titles), name
        cells = [(x, y) for panel in board["panels"] for place in (panel["gridPos"],) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])]
        assert len(set(cells)) == len(cells) and max(x for x, _ in cells) <= 23, f"{name}: panels lie over each other"
        for panel in board["panels"]:
            assert panel["fieldConfig"]["defaults"]["unit"] and {target["datasource"]["uid"] for target in panel["targets"]} == {source["uid"]}, (name, panel["title"])
            for target in panel["targets"]:
                for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                    kept = re.findall(r"by \(([^)]*)\)", target["expr"])
                    recorded = target["expr"] in {rule["record"] for rule in rules("recording.yml")}
                    assert recorded or not kept or any(label in group.replace(" ", "").split(",") for group in kept), (name, panel["title"], label)


def test_provisioning_finds_the_dashboards():
    [provider] = read(GRAFANA / "provisioning/dashboards/ssr.yml")["providers"]
    generated = {entry["name"]: entry["files"] for entry in read(GRAFANA / "kustomization.yaml")["configMapGenerator"]}
    assert {Path(path).stem for path in generated["grafana-dashboards"]} == set(dashboards())
    monitoring = (DEPLOY / "kustomize/components/monitoring/monitoring.yaml").read_text()
    assert f"mountPath: {provider['options']['path']}}}" in monitoring and "mountPath: /etc/grafana/provisioning/datasources}" in monitoring and "mountPath: /etc/grafana/provisioning/dashboards}" in monitoring


def test_grafanas_own_types_read_the_dashboards_whole():
    pytest.importorskip("grafana_foundation_sdk", reason="SKIP: grafana-foundation-sdk is not installed (extra deploy)")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard
    def within(given, read, where):
        if isinstance(given, dict):
            for key, value in given.items():
                assert key in read, f"{where}/{key} means nothing to Grafana"
                within(value, read[key], f"{where}/{key}")
        elif isinstance(given, list):
            assert len(given) == len(read), where
            for place, (one, other) in enumerate(zip(given, read)): within(one, other, f"{where}/{place}")
        else: assert given == read, where
    for name, board in dashboards().items(): within(board, json.loads(JSONEncoder().encode(Dashboard.from_json(board))), name)
