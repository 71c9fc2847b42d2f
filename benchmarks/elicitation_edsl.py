"""The same number of answers through edsl 1.0.9, from a server that already runs; the last line it prints is its figure as JSON, for elicitation.py.

`PYTHON benchmarks/elicitation_edsl.py URL ANSWERS [AT_ONCE]`; PYTHON is an interpreter of an environment of its own with `edsl[inference]==1.0.9`. AT_ONCE is its `max_concurrency`: all of them, if not given. Nothing but URL is reached. Its `run` stores each answer as it comes, which no option turns off and which takes most of its time: the work grows with the square of ANSWERS.
"""

import json
import os
import sys
import tempfile
import time

AT_MOST = 10 ** 9  # requests, and tokens, a minute: its limiter never waits
WARM_UP = 10  # answers
SETTINGS = {"EDSL_FETCH_TOKEN_PRICES": "False", "EXPECTED_PARROT_URL": "http://localhost:9", "EDSL_API_TIMEOUT": "600", "STAND_IN_KEY": "none"}
LOCAL = {"disable_remote_inference": True, "disable_remote_cache": True, "offload_execution": False, "cache": False, "fresh": True, "progress_bar": False, "verbose": False}


def job(answers: int, url: str):
    from edsl import Agent, AgentList, Model, QuestionFreeText, Survey
    question = QuestionFreeText(question_name="intent", question_text="A mug that keeps coffee hot for eight hours, for $24. How likely would you be to buy it? Answer in one or two sentences.")
    agents = AgentList([Agent(name=f"Person {number}", traits={"person": number, "age": 18 + number % 70, "gender": ("woman", "man")[number % 2], "region": ("South", "West", "Midwest", "Northeast")[number % 4]}) for number in range(answers)])
    model = Model("gpt-4o", service_name="openai", base_url=url, api_key_env="STAND_IN_KEY", skip_api_key_check=True, rpm=AT_MOST, tpm=AT_MOST)  # with OPENAI_API_KEY set its runner would take no notice of either limit
    return Survey([question]).by(agents).by(model)


def main() -> None:
    url, answers = sys.argv[1], int(sys.argv[2])
    at_once = int(sys.argv[3]) if len(sys.argv) > 3 else answers
    with tempfile.TemporaryDirectory() as folder:  # for its store, its logs and its reports of errors; and no .env is found from there
        os.chdir(folder)
        for name in [name for name in os.environ if name.endswith("_API_KEY")]: del os.environ[name]
        os.environ.update(SETTINGS, XDG_DATA_HOME=folder, XDG_CACHE_HOME=folder)  # read when edsl is imported
        job(WARM_UP, url).run(max_concurrency=at_once, **LOCAL)
        asked = job(answers, url)
        wall, cpu = time.perf_counter(), time.process_time()
        results = asked.run(max_concurrency=at_once, **LOCAL)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        found = sum(answer is not None for answer in results.select("answer.intent").to_list())
    print(json.dumps({"answers": found, "wall_s": wall, "cpu_ms_an_answer": cpu / max(found, 1) * 1e3}))


if __name__ == "__main__": main()
