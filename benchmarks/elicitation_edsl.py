"""The same answers through edsl 1.0.9, on a server that already runs; it prints its figure as JSON, for elicitation.py.

`PYTHON benchmarks/elicitation_edsl.py URL ANSWERS [AT_ONCE]`; PYTHON is an interpreter of an environment of its own with `edsl[inference]==1.0.9`. AT_ONCE is `max_concurrency`, all the answers where it is not given.
"""

import json
import os
import sys
import tempfile
import time

AT_MOST = 10 ** 9  # requests, and tokens, a minute: its own limiter never waits
WARM_UP = 10  # answers
OFFLINE = {"EDSL_FETCH_TOKEN_PRICES": "False", "EXPECTED_PARROT_URL": "http://localhost:9", "STAND_IN_KEY": "none"}
LOCAL = {"disable_remote_inference": True, "disable_remote_cache": True, "offload_execution": False, "cache": False, "fresh": True, "progress_bar": False, "verbose": False}


def job(answers: int, url: str):
    from edsl import Agent, AgentList, Model, QuestionFreeText, Survey
    question = QuestionFreeText(question_name="intent", question_text="A mug that keeps coffee hot for eight hours, for $24. How likely would you be to buy it? Answer in one or two sentences.")
    agents = AgentList([Agent(name=f"Person {number}", traits={"person": number, "age": 18 + number % 70, "gender": ("woman", "man")[number % 2], "region": ("South", "West", "Midwest", "Northeast")[number % 4]}) for number in range(answers)])
    model = Model("gpt-4o", service_name="openai", base_url=url, api_key_env="STAND_IN_KEY", skip_api_key_check=True, rpm=AT_MOST, tpm=AT_MOST)  # under OPENAI_API_KEY its runner would ignore both limits
    return Survey([question]).by(agents).by(model)


def main() -> None:
    url, answers = sys.argv[1], int(sys.argv[2])
    at_once = int(sys.argv[3]) if len(sys.argv) > 3 else answers
    with tempfile.TemporaryDirectory() as folder:  # it keeps every run's results and its logs for good
        for name in [name for name in os.environ if name.endswith("_API_KEY")]: del os.environ[name]
        os.environ.update(OFFLINE, XDG_DATA_HOME=folder, XDG_CACHE_HOME=folder)  # before the import, which reads them
        job(WARM_UP, url).run(max_concurrency=at_once, **LOCAL)
        asked = job(answers, url)
        wall, cpu = time.perf_counter(), time.process_time()
        results = asked.run(max_concurrency=at_once, **LOCAL)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        found = sum(answer is not None for answer in results.select("answer.intent").to_list())
    print(json.dumps({"answers": found, "wall_s": wall, "cpu_ms_an_answer": cpu / answers * 1e3}))


if __name__ == "__main__": main()
