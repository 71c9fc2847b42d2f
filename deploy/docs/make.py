"""Write what is computed in these documents: `python deploy/docs/make.py`. With --check nothing is written, and the exit code is 1 if something is out of date.

Tables stand between `<!-- NAME: … -->` and `<!-- end NAME -->`; API_REFERENCE.md is made whole. A test holds that all of it is up to date."""

import argparse
import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

HERE = Path(__file__).parent
MODELS = {"gpt-4o": {}, "gpt-4o-mini": {}, "gpt-4.1-mini": {}, "gemini-2.0-flash": {}, "gemini-2.5-flash-lite": {}, "gemini-3.8-flash": {"max_reasoning_tokens": 500}}  # of the cost table, with what they need
SURVEYS_A_DAY, DAYS = 500, 30  # the guide's
ESTIMATE = {"cohort_size": 200, "samples": 1, "seed": 0}  # the guide's survey: 200 answers about one concept

# component, vCPU, GB of memory, GB of disk, how many, what for: the guide's rows, added up here
MINIMUM = (("API", 2, 4, 0, 1, "FastAPI"), ("Database", 2, 4, 100, 1, "PostgreSQL 15: surveys, answers, results"), ("Cache and queue", 1, 2, 0, 1, "Redis 7: messages, rate limits"),
           ("Workers", 1, 2, 0, 4, "ask models, rate, write reports"), ("Monitoring", 1, 2, 0, 1, "Prometheus, Grafana"))
RECOMMENDED = (("API", 4, 8, 0, 3, "behind a load balancer"), ("Database", 4, 16, 500, 2, "PostgreSQL 15: a primary and a replica"), ("Cache and queue", 2, 8, 0, 2, "Redis 7: a primary and a replica"),
               ("Workers", 2, 4, 0, 10, "ask models, rate, write reports"), ("Monitoring", 2, 4, 0, 1, "Prometheus, Grafana"))
# what the guide says that it costs, dollars a month, 2024
PRICES = {"Docker Compose on a VPS": (("Droplet, 8 vCPU, 16 GB", 96), ("Managed PostgreSQL", 60), ("Managed Redis", 35)),
          "AWS ECS with Fargate": (("3 API tasks (2 vCPU, 4 GB)", 150), ("10 workers (1 vCPU, 2 GB)", 250), ("RDS PostgreSQL (db.r5.large)", 180), ("ElastiCache (cache.r5.large)", 120), ("Application Load Balancer", 22), ("Data transfer", 50), ("EBS", 50)),
          "Google Cloud Run": (("API instances", 200), ("Cloud SQL", 180), ("Memorystore", 120), ("Load balancing", 20))}
WATCHING = (50, 100)  # monitoring and logs


def table(head: list[str], rows: list[list], numbers: str = "") -> str:
    "A Markdown table; `numbers` names the columns that are set to the right by their places."
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---:" if str(place) in numbers else "---" for place in range(len(head))], *cells))


def span(low: float, high: float, digits: int = 0, unit: str = "") -> str:
    told = [f"{unit}{one:,.{digits}f}" for one in (low, high)]
    return told[0] if told[0] == told[1] else "–".join(told)


def estimates() -> dict[str, dict]:
    "What `ssr estimate` says of the guide's survey, by model."
    from ssr_nb.core import Settings
    from ssr_nb.personas import Panel
    from ssr_nb.survey import Survey, read_concepts
    here = Settings(runs=Path("/nonexistent"), has_openai_key=True, has_google_key=True)  # nothing is asked: an estimate needs no key
    concepts, panel = read_concepts(HERE / "concept.csv"), Panel.us_adults(ESTIMATE["cohort_size"], seed=ESTIMATE["seed"])
    return {model: Survey(concepts, panel, samples=ESTIMATE["samples"], seed=ESTIMATE["seed"], llm_model=model, **more).estimate(settings=here).content() for model, more in MODELS.items()}


def llm_costs() -> str:
    rows = []
    for model, found in estimates().items():
        month = [usd * SURVEYS_A_DAY * DAYS for usd in found["usd"]]
        rows.append([f"`{model}`" + "".join(f", {name} {value}" for name, value in MODELS[model].items()), f"${found['price']['input_usd']:g}, ${found['price']['output_usd']:g}", f"{found['prompt_tokens']:,}", span(*found["completion_tokens"]), span(*found["usd"], 3, "$"), span(*month, 0, "$")])
    return table(["model", "$ a million tokens in, out", "tokens asked", "tokens answered", "a survey", f"a month of {SURVEYS_A_DAY} surveys a day"], rows, "2345") + f"\n\nPrices: {found['price']['source']}, the version in `requirements/service.lock`."


def resources(rows) -> str:
    def size(cpu, memory, disk): return [f"{cpu} vCPU", f"{memory} GB", f"{disk:,} GB" if disk else ""]
    total = [sum(row[column] * row[4] for row in rows) for column in (1, 2, 3)]
    return table(["component", "CPU", "memory", "disk", "how many", "what for"], [[row[0], *size(*row[1:4]), row[4], row[5]] for row in rows] + [["**together**", *(f"**{one}**" for one in size(*total)), "", ""]], "1234")


def defaults(value):
    "A compose file's values, with the defaults of its variables."
    if isinstance(value, dict): return {key: defaults(one) for key, one in value.items()}
    if isinstance(value, list): return [defaults(one) for one in value]
    return re.sub(r"\$\{\w+:-([^{}]*)\}", r"\1", value) if isinstance(value, str) else value


def ceilings() -> str:
    "What the containers of docker-compose.production.yml may take at most."
    def memory(text) -> float: return float(text[:-1]) * {"g": 1, "m": 1 / 1024}[text[-1].lower()]
    rows = []
    for file in ("docker-compose.release.yml", "docker-compose.shared.yml"):
        for name, service in defaults(yaml.safe_load((HERE.parent / file).read_text()))["services"].items():
            if limits := service.get("deploy", {}).get("resources", {}).get("limits"): rows.append([name, int(service["deploy"].get("replicas", 1)), float(limits["cpus"]), memory(limits["memory"])])
    small = [row for row in rows if row[2] < 1]
    shown = [[f"`{name}`", number, f"{number * cpus:g} vCPU", f"{number * size:g} GB"] for name, number, cpus, size in rows if cpus >= 1]
    shown.append([", ".join(f"`{row[0]}`" for row in small), len(small), f"{sum(row[1] * row[2] for row in small):g} vCPU", f"{sum(row[1] * row[3] for row in small):g} GB"])
    return table(["service", "containers", "at most", "memory"], [*shown, ["**together**", f"**{sum(row[1] for row in rows)}**", f"**{sum(row[1] * row[2] for row in rows):g} vCPU**", f"**{sum(row[1] * row[3] for row in rows):g} GB**"]], "123")


def infrastructure() -> str:
    rows = []
    for name, items in PRICES.items(): rows += [[name, what, f"${usd}"] for what, usd in items] + [["", "**together**", f"**${sum(usd for _, usd in items)}**"]]
    return table(["where", "what", "a month (2024)"], rows, "2")


def ownership() -> str:
    found = estimates()
    servers = [sum(usd for _, usd in items) for items in PRICES.values()]
    rows = []
    for model in ("gpt-4o", "gpt-4o-mini", "gemini-2.5-flash-lite"):
        low, high = ([round(usd * SURVEYS_A_DAY * DAYS) for usd in found[model]["usd"]][end] for end in (0, 1))
        total = (low + min(servers) + WATCHING[0], high + max(servers) + WATCHING[1])
        shares = sorted((low / (low + max(servers) + WATCHING[1]), high / (high + min(servers) + WATCHING[0])))
        rows.append([f"`{model}`", span(low, high, 0, "$"), span(min(servers), max(servers), 0, "$"), span(*WATCHING, 0, "$"), span(*total, 0, "$"), f"{shares[0]:.0%}–{shares[1]:.0%}"])
    return table(["model", "calls to the model", "servers", "monitoring, logs", "together a month", "share of the calls"], rows, "12345")


def metrics() -> str:
    "The metrics that the service itself counts or looks up."
    from ssr_nb.service import gauges, telemetry
    rows = [[f"`{one.name}{'_total' if one.type == 'counter' else ''}`", ", ".join(f"`{label}`" for label in getattr(telemetry, name)._labelnames), one.type, one.documentation]
            for name in dir(telemetry) if name.isupper() and hasattr(metric := getattr(telemetry, name), "_labelnames") and hasattr(metric, "describe") for one in metric.describe()]
    source = Path(gauges.__file__).read_text()
    rows += [[f"`{name}`", f"`{label}`", "gauge", told] for name, told, label in re.findall(r'GaugeMetricFamily\("(\w+)", "([^"]+)", labels=\["(\w+)"\]\)', source)]
    return table(["metric", "labels", "kind", "what"], sorted(rows))


def tables() -> str:
    from ssr_nb.service.database import Base
    told = {mapper.local_table.name: (mapper.class_.__doc__ or "").strip() for mapper in Base.registry.mappers} | {"answers": "An answer in words with its status, as in a run folder.", "ratings": "The distribution of an answer.",
                                                                                                              "summaries": "One concept on one construct.", "findings": "What one check found."}
    return table(["table", "a row is", "key"], [[f"`{name}`", told[name], ", ".join(f"`{column.name}`" for column in one.primary_key)] for name, one in sorted(Base.metadata.tables.items())])


# ---- the reference of the API

def app():
    "The API, asked for its description alone: no server is needed."
    from ssr_nb.service.api import create_app
    from ssr_nb.service.settings import ServiceSettings
    handlers, level = list(logging.getLogger().handlers), logging.getLogger().level
    made = create_app(ServiceSettings(database_url="postgresql+psycopg://nobody@127.0.0.1:1/none", redis_url="redis://127.0.0.1:1/0"))
    logging.getLogger().handlers, logging.getLogger().level = handlers, level
    return made


def scopes(application) -> dict[tuple[str, str], tuple[str, ...] | None]:
    "Method and path -> the scopes that a key needs; None where no key is asked for."
    def needed(dependant) -> Iterator[tuple[str, ...]]:
        for one in dependant.dependencies:
            if getattr(one.call, "__qualname__", "") == "require.<locals>.caller": yield next(cell.cell_contents for cell in one.call.__closure__ if isinstance(cell.cell_contents, tuple))
            yield from needed(one)
    found = {}
    for path, route in routes(application):
        for method in route.methods: found[method, path] = next(needed(route.dependant), None)
    return found


def routes(application) -> Iterator[tuple[str, object]]:
    "Every route with its whole path, however its routers are nested."
    from fastapi.routing import APIRoute
    def walk(items):
        for one in items:
            if isinstance(one, APIRoute): yield one.path, one
            elif hasattr(one, "effective_route_contexts"):
                for each in one.effective_route_contexts(): yield each.path, each
    return walk(application.routes)


def reference_of(schema: Mapping) -> str: return schema["$ref"].rpartition("/")[2]


def anchor(title: str) -> str: return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def kind(schema: Mapping) -> str:
    "A type and its limits, as people read them."
    if "$ref" in schema: return f"[{reference_of(schema)}](#{anchor(reference_of(schema))})" if reference_of(schema) != "JsonValue" else "any JSON"
    if "const" in schema: return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema: return ", ".join(f"`{one}`" for one in schema["enum"])
    if options := schema.get("anyOf") or schema.get("oneOf"): return " or ".join(dict.fromkeys(kind(one) for one in options))
    name = schema.get("type", "any JSON")
    if name == "array": return f"list of {count(schema, 'minItems', 'maxItems')}{kind(schema.get('items', {}))}"
    if name == "object":
        inner = schema.get("additionalProperties")
        return "object" if not isinstance(inner, Mapping) or not inner else f"object of {kind(inner)}"
    told = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "null": "null"}.get(name, name)
    if schema.get("format") == "date-time": return "time"
    if schema.get("format") == "binary": return "bytes"
    if name == "string" and (limits := count(schema, "minLength", "maxLength", " characters")): told += f" of {limits.strip()}"
    if name in ("integer", "number") and ("minimum" in schema or "maximum" in schema): told += f", {number(schema['minimum'])} to {number(schema['maximum'])}" if "maximum" in schema else f" from {number(schema['minimum'])}"
    return told


def number(value: float) -> str: return f"{int(value):,}" if value == int(value) else f"{value:g}"


def count(schema: Mapping, low: str, high: str, unit: str = "") -> str:
    least, most = schema.get(low), schema.get(high)
    if most is None: return f"at least {least}{unit} " if least else ""
    return f"{least}{unit} " if least == most else f"{least or 0} to {most:,}{unit} "


def fields(schema: Mapping, request: bool) -> str:
    rows = []
    for name, one in schema["properties"].items():
        default = "**required**" if name in schema.get("required", ()) else f"`{json.dumps(one['default'], ensure_ascii=False)}`" if "default" in one else "none"
        rows.append([f"`{name}`", kind(one), *([default] if request else []), one.get("description", "")])
    return table(["field", "type", *(["default"] if request else []), "what"], rows)


def used(document: Mapping, start, found: dict[str, None]) -> dict[str, None]:
    "The schemas that one refers to, in the order in which a reader meets them."
    if isinstance(start, Mapping):
        if "$ref" in start and (name := reference_of(start)) not in found:
            found[name] = None
            used(document, document["components"]["schemas"][name], found)
        for one in start.values(): used(document, one, found)
    elif isinstance(start, list):
        for one in start: used(document, one, found)
    return found


def example(document: Mapping, schema: Mapping, own: Mapping) -> object | None:
    "The first example of a body."
    if examples := own.get("examples"): return examples[0] if isinstance(examples, list) else next(iter(examples.values()))["value"]
    if examples := schema.get("examples"): return examples[0]
    return example(document, document["components"]["schemas"][reference_of(schema)], {}) if "$ref" in schema else None


PLACES = {"survey_id": "$SURVEY", "schedule_id": "$SCHEDULE"}  # what stands for a part of a path in examples
PAIR = {"surveys": ["00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"]}  # two ids, where the schema has no example


def curl(document: Mapping, method: str, path: str, said: Mapping) -> str:
    address = re.sub(r"\{(\w+)\}", lambda found: PLACES[found[1]], path)
    words = ["curl", "--fail-with-body", "--silent", "--show-error"] + (["--no-buffer"] if path.endswith("/events") else [])
    if method != "GET": words += ["--request", method]
    if said.get("security"): words += ['--header "X-API-Key: $SSR_KEY"']
    body = ""
    if content := said.get("requestBody", {}).get("content", {}).get("application/json"):
        shown = example(document, content["schema"], content) or (PAIR if path.endswith("/compare") else None)
        assert shown is not None, f"{method} {path} has a body and no example"
        words += ["--json @-"]
        lines = ",\n ".join(f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in shown.items())
        body = f" <<'BODY'\n{{{lines}}}\nBODY"
    return f"```sh\n{' '.join(words)} \"$SSR_URL{address}\"{body}\n```"


def reference() -> str:
    application = app()
    document, needs = application.openapi(), scopes(application)
    schemas = document["components"]["schemas"]
    from ssr_nb.service.keys import SCOPES
    lines = ["<!-- made by `python deploy/docs/make.py` from the API's own description: edit that -->", "", "# API reference", "", "> Every address, what it takes, what it gives back, and what can go wrong. How they go together: [USER_GUIDE.md](USER_GUIDE.md).", "",
             "The same, with a page to try it in, is at `/docs` of a running service; for programs at `/openapi.json`. JSON in, JSON out. `SSR_URL` is the service's address and `SSR_KEY` a key, sent in the header `X-API-Key`.", "",
             "Fields and query parameters that are not listed are refused with 422. A list comes in pages: `next_cursor` of one page is the `cursor` of the next. Times carry their zone. Every response has `X-Request-ID` (yours, if you sent one) and, behind the door, "
             "`X-RateLimit-Limit`, `X-RateLimit-Remaining` and `X-RateLimit-Reset`. Every error is a problem document (RFC 9457): [ProblemDocument](#problemdocument).", "", "## Scopes of a key", "", table(["scope", "it may"], [[f"`{name}`", told] for name, told in SCOPES.items()]), ""]
    tags: dict[str, list] = {}
    for path, operations in document["paths"].items():
        for method, said in operations.items(): tags.setdefault((said.get("tags") or ["other"])[0], []).append((method.upper(), path, said))
    lines += ["## Addresses", "", table(["", "", "scope", ""], [[f"`{method}`", f"[`{path}`](#{anchor(f'{method} {path}')})", ask(needs.get((method, path)), said), said["summary"]] for each in tags.values() for method, path, said in each]), ""]
    errors: dict[str, str] = {}
    for each in tags.values():
        for _, _, said in each: errors |= {status: one["description"] for status, one in said["responses"].items() if status >= "400" and said.get("security")}
    lines += ["## Errors", "", table(["status", "why"], [[f"`{status}`", told] for status, told in sorted(errors.items())]), ""]
    shown: dict[str, None] = {}
    for tag, each in tags.items():
        lines += [f"## {tag[0].upper()}{tag[1:]}", ""]
        for method, path, said in each:
            lines += [f"### {method} {path}", "", f"{said['summary']}." + (f" {said['description']}" if said.get("description") else ""), "", f"Scope: {ask(needs.get((method, path)), said)}.", ""]
            if parameters := said.get("parameters"):
                rows = [[f"`{one['name']}`", one["in"], kind(one["schema"]), "**required**" if one.get("required") else f"`{json.dumps(one['schema']['default'])}`" if one["schema"].get("default") is not None else "none", one.get("description", "")] for one in parameters]
                lines += [table(["parameter", "in", "type", "default", "what"], rows), ""]
            if content := said.get("requestBody", {}).get("content", {}).get("application/json"):
                lines += [f"Body: {kind(content['schema'])}.", ""]
                used(document, content["schema"], shown)
            for status, one in sorted(said["responses"].items()):
                if status >= "400" and said.get("security"): continue
                bodies = " or ".join(kind(media["schema"]) + (f" (`{name}`)" if name not in ("application/json", "application/problem+json") else "") if media.get("schema") else f"`{name}`" for name, media in one.get("content", {}).items())
                headers = ", ".join(f"`{name}`" for name in one.get("headers", ()) if not name.startswith("X-RateLimit"))
                told = one["description"].rstrip(".")
                lines += [f"- `{status}` {'' if told == 'Successful Response' else told + ': '}{bodies or 'no body'}{f'; headers {headers}' if headers else ''}"]
                used(document, one.get("content", {}), shown)
            if failures := sorted(status for status in said["responses"] if status >= "400" and said.get("security")): lines += ["- errors: " + ", ".join(f"`{status}`" for status in failures)]
            lines += ["", curl(document, method, path, said), ""]
    used(document, {"$ref": "#/components/schemas/ProblemDocument"}, shown)
    asked = used(document, [one.get("requestBody", {}) for operations in document["paths"].values() for one in operations.values()], {})
    lines += ["## Objects", ""]
    for name in shown:
        if "properties" not in schemas[name]: continue
        lines += [f"### {name}", "", schemas[name].get("description", ""), "", fields(schemas[name], name in asked), ""]
    return "\n".join(lines).rstrip() + "\n"


def ask(needed: tuple[str, ...] | None, said: Mapping) -> str:
    if not said.get("security"): return "none, no key"
    return ", ".join(f"`{one}`" for one in needed) if needed else "any key"


PARTS = {"DEPLOYMENT.md": {"llm-costs": llm_costs, "minimum": lambda: resources(MINIMUM), "recommended": lambda: resources(RECOMMENDED), "ceilings": ceilings, "infrastructure": infrastructure, "ownership": ownership},
         "TECHNICAL.md": {"tables": tables, "metrics": metrics}}


def documents() -> dict[Path, str]:
    "Every document with its computed parts as they should be."
    made = {HERE / "API_REFERENCE.md": reference()}
    for name, parts in PARTS.items():
        text = (HERE / name).read_text()
        for part, make in parts.items():
            text, found = re.subn(rf"(<!-- {part}: [^>]*-->\n).*?(<!-- end {part} -->)", lambda match, make=make: f"{match[1]}{make()}\n{match[2]}", text, flags=re.S)
            if found != 1: sys.exit(f"{name} has {found} places for {part!r}: give it one, '<!-- {part}: made by make.py -->' and '<!-- end {part} -->'")
        made[HERE / name] = text
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if something is out of date")
    given = parser.parse_args()
    late = {file: text for file, text in documents().items() if not file.exists() or file.read_text() != text}
    for file, text in late.items():
        if not given.check: file.write_text(text)
        print(f"{file.name} {'is out of date: run python deploy/docs/make.py' if given.check else 'written'}")
    sys.exit(1 if late and given.check else 0)


if __name__ == "__main__": main()
