"""Whose the time is: surveys through the whole service, and the CPU of each part beside that of the same surveys in one process.

`python benchmarks/service.py [surveys]`: 200 answers each; a model server that answers after 0.2 s and embeds, three API processes, two workers of two processes."""

import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from model_server import model_server  # noqa: E402
from ssr_nb.client import Client  # noqa: E402
from ssr_nb.core import Settings  # noqa: E402
from ssr_nb.personas import Panel  # noqa: E402
from ssr_nb.service.database import make_engine  # noqa: E402
from ssr_nb.service.supervisor import Supervisor  # noqa: E402
from ssr_nb.survey import Survey, read_concepts  # noqa: E402

PEOPLE = 200


def survey(seed: int) -> Survey:
    return Survey(read_concepts("demo_concepts.csv")[:1], Panel.us_adults(PEOPLE, seed=seed), samples=1, llm_model="gpt-4o", embedding_model="text-embedding-3-small", seed=seed)


def computed(pids: list[int]) -> float:
    "CPU seconds of processes, those that have ended beneath them included."
    total = 0.0
    for pid in pids:
        try: times = psutil.Process(pid).cpu_times()
        except psutil.NoSuchProcess: continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def through_the_service(n: int, models) -> dict[str, float]:
    environment = {**os.environ, "OPENAI_BASE_URL": models.url, "OPENAI_API_KEY": "none", "RATE_LIMIT_ENABLED": "false", "CELERY_WORKER_CONCURRENCY": "2", "LOG_LEVEL": "WARNING", "DATABASE_URL": "", "REDIS_URL": ""}
    with tempfile.TemporaryDirectory() as folder, Supervisor(folder, api=3, workers=2, own_ports=True, flower=False, environment=environment) as service:
        def spent(): return {name.rstrip("-123"): sum(computed(service.pids(part)) for part in service.parts if part.rstrip("-123") == name.rstrip("-123")) for name in service.parts} | {"client": sum(psutil.Process().cpu_times()[:2]) - models.cpu_seconds(), "model server": models.cpu_seconds()}
        before, started = spent(), time.perf_counter()
        clients = [Client(url, service.first_key) for url in service.api_urls]
        with ThreadPoolExecutor(4) as pool: list(pool.map(lambda seed: clients[seed % 3].post(survey(seed)), range(n)))
        with make_engine(service.settings.database_url).connect() as connection:
            while connection.scalar(sa.text("SELECT count(*) FROM surveys WHERE status = 'completed'")) < n: time.sleep(.5)
        return {"seconds": time.perf_counter() - started, **{name: value - before[name] for name, value in spent().items()}}


def in_this_process(n: int, models) -> float:
    "CPU seconds of the same surveys by the library alone."
    os.environ |= {"OPENAI_BASE_URL": models.url, "OPENAI_API_KEY": "none"}
    before = time.process_time() - models.cpu_seconds()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"SSR_RUNS": folder, "SSR_CACHE": folder}
        for seed in range(n): survey(10_000 + seed).run(progress=False, settings=Settings.from_environment())
    return time.process_time() - models.cpu_seconds() - before


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    with model_server(delay=.2, numbered=True) as models:
        alone = in_this_process(few := max(2, n // 10), models) / few
        found = through_the_service(n, models)
    seconds, ours = found.pop("seconds"), sum(value for name, value in found.items() if name not in ("model server", "client"))
    print(f"{n} surveys of {PEOPLE} answers in {seconds:.0f} s: {n * PEOPLE / seconds:.0f} answers a second on {psutil.cpu_count()} cores")
    for name, value in sorted(found.items(), key=lambda one: -one[1]): print(f"  {name:14} {value / n:6.2f} CPU s a survey" + ("" if name in ("model server", "client") else f"  {value / ours:4.0%} of the service"))
    print(f"  the service takes {ours / n / alone:.2f} times the CPU of the library alone ({ours / n:.2f} and {alone:.2f} s a survey)")


if __name__ == "__main__": main()
