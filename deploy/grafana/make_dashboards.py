"""Write the four dashboards: `python deploy/grafana/make_dashboards.py`. A panel is a line here; the JSON beside it is what Grafana reads."""

import json
from pathlib import Path

USE = 'path!~"/health.*|/metrics"'  # requests that are use, not checks
PANELS = {  # title -> [(panel, unit, what it tells, kind, {legend: query})]
    "business": ("Business", [
        ("Surveys in 24 hours", "short", "Surveys that came to an end", "stat", {"": 'sum(increase(ssr_surveys_total{status=~"completed|incomplete|failed|cancelled"}[24h]))'}),
        ("Success rate in 24 hours", "percentunit", "Completed surveys of those that ended, cancelled ones left out", "stat", {"": 'sum(increase(ssr_surveys_total{status="completed"}[24h])) / sum(increase(ssr_surveys_total{status=~"completed|incomplete|failed"}[24h]))'}),
        ("Cost in 24 hours", "currencyUSD", "What calls to models have cost", "stat", {"": "sum(increase(llm_cost_dollars_total[24h]))"}),
        ("Cost per survey in 24 hours", "currencyUSD", "Cost divided by surveys that ended with results", "stat", {"": 'sum(increase(llm_cost_dollars_total[24h])) / sum(increase(ssr_surveys_total{status=~"completed|incomplete"}[24h]))'}),
        ("Surveys a day by outcome", "short", "", "timeseries", {"{{status}}": 'sum by (status) (increase(ssr_surveys_total{status=~"completed|incomplete|failed|cancelled"}[24h]))'}),
        ("Open surveys", "short", "Queued and running", "timeseries", {"{{status}}": "ssr:surveys_open:max"}),
        ("Answers", "cps", "Answers of models a second, by what they are good for", "timeseries", {"{{status}}": "sum by (status) (rate(ssr_answers_total[$__rate_interval]))"}),
        ("Cost an hour", "currencyUSD", "The alert HighCost fires at 500", "timeseries", {"dollars": "ssr:llm_cost_dollars:increase1h"}),
        ("Tokens", "cps", "Read and written a second", "timeseries", {"{{type}}": "sum by (type) (rate(llm_tokens_consumed_total[$__rate_interval]))"}),
        ("Budgets", "currencyUSD", "What an owner's keys may still spend this month", "timeseries", {"{{owner}}": "ssr:budget_left_dollars:min"}),
        ("Taken from a cache", "cps", "Vectors and answers that cost nothing", "timeseries", {"{{cache}}": "sum by (cache) (rate(ssr_cache_hits_total[$__rate_interval]))"}),
        ("Budget of errors left", "percentunit", "Of the 0.5 % of requests that may fail, measured over 6 hours", "timeseries", {"left": "1 - ssr:http_errors:ratio_rate6h / 0.005"}),
    ]),
    "performance": ("Performance", [
        ("Requests", "reqps", "Without health checks and scrapes", "stat", {"": "ssr:http_requests:rate5m"}),
        ("95 % of requests within", "s", "The service level is 1 second", "stat", {"": "ssr:http_request_duration_seconds:p95_5m"}),
        ("Messages that wait", "short", "In all queues; what workers have in hand left out", "stat", {"": 'sum(ssr:queue_depth:max{queue!="unacked"})'}),
        ("Surveys within 15 minutes", "percentunit", "Of those that ended in the last hour; the service level is 95 %", "stat", {"": "1 - ssr:surveys_late:ratio_rate1h"}),
        ("Response time", "s", "Of the API", "timeseries", {f"{share} %": f"histogram_quantile({share / 100}, sum by (le) (rate(http_request_duration_seconds_bucket[$__rate_interval])))" for share in (50, 95, 99)}),
        ("Throughput by route", "reqps", "", "timeseries", {"{{method}} {{path}}": f"sum by (method, path) (rate(http_requests_total{{{USE}}}[$__rate_interval])) > 0"}),
        ("Queue depth", "short", "Messages that wait, and those that workers have taken (unacked)", "timeseries", {"{{queue}}": "ssr:queue_depth:max"}),
        ("Tasks of the workers", "cps", "", "timeseries", {"{{status}}": "sum by (status) (rate(celery_task_total[$__rate_interval]))"}),
        ("Duration of surveys", "s", "From the order to the end", "timeseries", {f"{share} %": f"histogram_quantile({share / 100}, sum by (le) (rate(ssr_survey_duration_seconds_bucket[1h])))" for share in (50, 95)}),
        ("Calls to models", "s", "One call, its retries included", "timeseries", {f"{share} %": f"histogram_quantile({share / 100}, sum by (le) (rate(llm_request_duration_seconds_bucket[$__rate_interval])))" for share in (50, 95)}),
        ("Answers generated", "cps", "", "timeseries", {"answers": "sum(rate(ssr_responses_generated_total[$__rate_interval]))"}),
        ("Replicas", "short", "Processes that answer Prometheus", "timeseries", {"{{job}}": 'sum by (job) (up{job=~"api|worker"})'}),
    ]),
    "infrastructure": ("Infrastructure", [
        ("Targets away", "short", "", "stat", {"": "count(up == 0) or vector(0)"}),
        ("Newest dump", "s", "Age; the alert fires at 26 hours", "stat", {"": 'time() - ssr:backup_last_success:timestamp_seconds{kind="database"}'}),
        ("Connections of PostgreSQL", "percentunit", "Taken of max_connections", "stat", {"": "sum(pg_stat_activity_count) / max(pg_settings_max_connections)"}),
        ("Memory of Redis", "bytes", "", "stat", {"": "max(redis_memory_used_bytes)"}),
        ("CPU of the machines", "percentunit", "", "timeseries", {"{{instance}}": '1 - avg by (instance) (rate(node_cpu_seconds_total{mode="idle"}[$__rate_interval]))'}),
        ("Memory of the machines", "percentunit", "In use", "timeseries", {"{{instance}}": "1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes"}),
        ("Disk in use", "percentunit", "", "timeseries", {"{{instance}} {{mountpoint}}": '1 - node_filesystem_avail_bytes{fstype!~"tmpfs|ramfs|overlay|squashfs"} / node_filesystem_size_bytes{fstype!~"tmpfs|ramfs|overlay|squashfs"}'}),
        ("Disk traffic", "Bps", "", "timeseries", {"{{instance}} read": "sum by (instance) (rate(node_disk_read_bytes_total[$__rate_interval]))", "{{instance}} written": "sum by (instance) (rate(node_disk_written_bytes_total[$__rate_interval]))"}),
        ("Network", "Bps", "", "timeseries", {"{{instance}} in": 'sum by (instance) (rate(node_network_receive_bytes_total{device!="lo"}[$__rate_interval]))', "{{instance}} out": 'sum by (instance) (rate(node_network_transmit_bytes_total{device!="lo"}[$__rate_interval]))'}),
        ("CPU of the service", "short", "Cores of each process that answers Prometheus; the children of a worker count for themselves in the machine's panel", "timeseries", {"{{job}} {{instance}}": 'rate(process_cpu_seconds_total{job=~"api|worker"}[$__rate_interval])'}),
        ("Memory of the service", "bytes", "", "timeseries", {"{{job}} {{instance}}": 'process_resident_memory_bytes{job=~"api|worker"}'}),
        ("Connections by state", "short", "PostgreSQL", "timeseries", {"{{state}}": "sum by (state) (pg_stat_activity_count) > 0"}),
        ("Size of the databases", "bytes", "PostgreSQL", "timeseries", {"{{datname}}": 'max by (datname) (pg_database_size_bytes{datname!~"template.*"})'}),
        ("Commands", "ops", "Redis", "timeseries", {"commands": "sum(rate(redis_commands_processed_total[$__rate_interval]))"}),
        ("Clients", "short", "Redis and nginx", "timeseries", {"redis": "max(redis_connected_clients)", "nginx": "sum(nginx_connections_active)"}),
        ("Servers answer", "short", "1: the service reaches it", "timeseries", {"{{server}}": "max by (server) (ssr_up)"}),
    ]),
    "errors": ("Errors", [
        ("5xx", "percentunit", "Of requests in 5 minutes; the alert fires at 5 %", "stat", {"": "ssr:http_errors:ratio_rate5m"}),
        ("Calls to models that fail", "percentunit", "The worst model; the alert fires at 10 %", "stat", {"": "max(ssr:llm_errors:ratio_rate5m)"}),
        ("Tasks that fail", "percentunit", "", "stat", {"": 'sum(rate(celery_task_total{status="error"}[10m])) / sum(rate(celery_task_total{status=~"success|error"}[10m]))'}),
        ("Alerts", "short", "That fire now; the watchdog left out", "stat", {"": 'count(ALERTS{alertstate="firing",alertname!="Watchdog"}) or vector(0)'}),
        ("4xx and 5xx", "reqps", "", "timeseries", {"{{status}}": f'sum by (status) (rate(http_requests_total{{status=~"[45]..",{USE}}}[$__rate_interval])) > 0'}),
        ("Errors by route", "reqps", "", "timeseries", {"{{status}} {{method}} {{path}}": f'sum by (status, method, path) (rate(http_requests_total{{status=~"5..",{USE}}}[$__rate_interval])) > 0'}),
        ("Failures of models", "percentunit", "By model", "timeseries", {"{{model}}": "ssr:llm_errors:ratio_rate5m"}),
        ("Calls to models", "cps", "By model and status", "timeseries", {"{{model}} {{status}}": "sum by (model, status) (rate(llm_requests_total[$__rate_interval]))"}),
        ("Tasks that fail or are tried again", "cps", "", "timeseries", {"{{status}}": 'sum by (status) (rate(celery_task_total{status=~"error|retry"}[$__rate_interval]))'}),
        ("Answers that cannot be rated", "percentunit", "Of all answers, by cause", "timeseries", {"{{status}}": 'sum by (status) (rate(ssr_answers_total{status!="ok"}[$__rate_interval])) / on () group_left () sum(rate(ssr_answers_total[$__rate_interval]))'}),
        ("Refused calls", "reqps", "401: no key, 403: no right, 402: no budget, 429: too many", "timeseries", {"{{status}}": 'sum by (status) (rate(http_requests_total{status=~"401|402|403|429"}[$__rate_interval])) > 0'}),
        ("Surveys that failed", "short", "In an hour", "timeseries", {"{{status}}": 'sum by (status) (increase(ssr_surveys_total{status=~"failed|incomplete"}[1h]))'}),
        ("Burn of the error budget", "short", "1: the budget lasts exactly a month; the alerts fire at 14.4 and 6", "timeseries", {"1 h": "ssr:http_errors:ratio_rate1h / 0.005", "6 h": "ssr:http_errors:ratio_rate6h / 0.005"}),
        ("Calls without a row in the audit log", "cps", "", "timeseries", {"{{why}}": "sum by (why) (rate(ssr_audit_skipped_total[$__rate_interval]))"}),
    ]),
}
SOURCE = {"type": "prometheus", "uid": "prometheus"}


def panel(number: int, title: str, unit: str, description: str, kind: str, queries: dict[str, str]) -> dict:
    "One panel: four small ones in the first row, two wide ones in each row after it."
    small = kind == "stat"
    x, y = ((number - 1) % 4 * 6, 0) if small else ((number - 5) % 2 * 12, 4 + (number - 5) // 2 * 8)
    targets = [{"refId": chr(65 + place), "datasource": SOURCE, "expr": query, "legendFormat": legend or "__auto", "instant": small, "range": not small, "editorMode": "code"} for place, (legend, query) in enumerate(queries.items())]
    custom = {} if small else {"custom": {"lineWidth": 1, "fillOpacity": 10, "showPoints": "auto", "spanNulls": False}}
    options = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "colorMode": "value", "graphMode": "none"} if small else {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True}, "tooltip": {"mode": "multi", "sort": "desc"}}
    return {"id": number, "type": kind, "title": title, "description": description, "datasource": SOURCE, "gridPos": {"h": 4 if small else 8, "w": 6 if small else 12, "x": x, "y": y},
            "fieldConfig": {"defaults": {"unit": unit, "min": 0, **custom} if unit != "percentunit" or small else {"unit": unit, **custom}, "overrides": []}, "options": options, "targets": targets}


def dashboard(name: str) -> dict:
    "A dashboard as Grafana's provisioning reads it."
    title, panels = PANELS[name]
    return {"uid": f"ssr-{name}", "title": title, "tags": ["ssr"], "timezone": "utc", "editable": False, "graphTooltip": 1, "schemaVersion": 39, "version": 1, "refresh": "30s", "time": {"from": "now-6h", "to": "now"},
            "annotations": {"list": []}, "templating": {"list": []}, "links": [{"title": "Dashboards", "type": "dashboards", "tags": ["ssr"], "asDropdown": False, "includeVars": False, "keepTime": True, "targetBlank": False, "icon": "external link", "tooltip": "", "url": ""}],
            "panels": [panel(number, *one) for number, one in enumerate(panels, 1)]}


def text(name: str) -> str: return json.dumps(dashboard(name), indent=1) + "\n"


if __name__ == "__main__":
    for name in PANELS: (Path(__file__).parent / "dashboards" / f"{name}.json").write_text(text(name))
