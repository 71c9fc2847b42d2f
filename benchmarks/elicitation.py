"""How much the runner adds to the SDK: 2,000 journalled answers at 200 ms latency against a bare loop over the same SDK, on the same server, in one run.

`python benchmarks/elicitation.py [--answers N] [--latency SECONDS] [--edsl PYTHON]`; PYTHON is an interpreter of an environment with edsl 1.0.9, whose figure then stands beside.
Measured once on two cores: bare loop 5.8 s and 2.1 ms CPU an answer, ssr_nb 6.2 s (x1.06) and 2.4 ms (x1.12), edsl 43 s (x7.4) and 19.6 ms (x9.2).
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from ssr_nb.calls import Journal
from ssr_nb.core import Settings
from ssr_nb.interview import plan
from ssr_nb.limits import Limits
from ssr_nb.llms import load_llm
from ssr_nb.personas import Panel
from ssr_nb.prompts import PROMPTS, Concept
from ssr_nb.provider_openai import sent_messages, sent_parameters
from ssr_nb.runner import Elicitation
from ssr_nb.survey import Survey

MODEL, AT_ONCE = "gpt-4o", 100
SERVER = Path(__file__).parent.parent / "tests" / "model_server.py"


@contextmanager
def server(latency: float):
    process = subprocess.Popen([sys.executable, str(SERVER), "--port", "0", "--latency", str(latency)], stdout=subprocess.PIPE, text=True)
    try: yield process.stdout.readline().strip()
    finally: process.kill()


def requests_for(answers: int, provider: str):
    survey = Survey([Concept("Mug", "A mug that keeps coffee hot for eight hours.", "$24")], Panel.us_adults(answers, seed=1), llm_model=MODEL, samples=1)
    return [ask.request for ask in plan(survey, PROMPTS["chat"], provider)]


async def bare(requests, url: str) -> int:
    "What anyone would write in ten lines: no journal, no retry, no limit that adapts."
    from openai import AsyncOpenAI
    turn = asyncio.Semaphore(AT_ONCE)
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        async def ask(request):
            async with turn: return await client.chat.completions.create(model=MODEL, messages=sent_messages(request), seed=request.seed, **sent_parameters(MODEL, request.parameters))
        return len(await asyncio.gather(*map(ask, requests)))


async def ours(requests, llm, folder: str) -> int:
    with Journal(Path(folder) / "calls.sqlite") as journal:
        async with Elicitation(llm, journal, Limits(most_concurrency=AT_ONCE)) as elicitation: outcomes = await elicitation.ask(requests)
    return sum(outcome.reply is not None for outcome in outcomes)


def measure(make) -> dict:
    wall, cpu = time.perf_counter(), time.process_time()
    answers = asyncio.run(make())
    return {"answers": answers, "wall_s": time.perf_counter() - wall, "cpu_ms_an_answer": (time.process_time() - cpu) / answers * 1e3}


def edsl(python: str, url: str, answers: int) -> dict:
    done = subprocess.run([python, str(Path(__file__).with_name("elicitation_edsl.py")), url, str(answers)], capture_output=True, text=True, timeout=1200)
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if done.returncode == 0 and lines else {"error": (done.stderr.strip().splitlines() or ["no output"])[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--latency", type=float, default=.2)
    parser.add_argument("--edsl", help="an interpreter with edsl 1.0.9")
    given = parser.parse_args()
    os.environ.setdefault("OPENAI_API_KEY", "none")
    with server(given.latency) as url, tempfile.TemporaryDirectory() as folder:
        llm = load_llm(MODEL, Settings(openai_base_url=url))
        requests = requests_for(given.answers, llm.provider)
        asyncio.run(bare(requests[:AT_ONCE], url))  # imports, and the first connections
        rows = {"bare loop": measure(lambda: bare(requests, url)), "ssr_nb": measure(lambda: ours(requests, llm, folder)), "bare loop again": measure(lambda: bare(requests, url))}
        if given.edsl: rows["edsl 1.0.9"] = edsl(given.edsl, url, given.answers)
    base = {name: (rows["bare loop"][name] + rows["bare loop again"][name]) / 2 for name in ("wall_s", "cpu_ms_an_answer")}
    print(f"{given.answers} answers, {given.latency * 1e3:.0f} ms latency, {AT_ONCE} at once; the ideal is {given.answers / AT_ONCE * given.latency:.1f} s")
    for name, row in rows.items():
        if "error" in row: print(f"{name:16} failed: {row['error']}")
        else: print(f"{name:16} {row['answers']:5} answers  {row['wall_s']:6.2f} s (x{row['wall_s'] / base['wall_s']:.2f})  {row['cpu_ms_an_answer']:5.2f} ms CPU an answer (x{row['cpu_ms_an_answer'] / base['cpu_ms_an_answer']:.2f})")


if __name__ == "__main__": main()
