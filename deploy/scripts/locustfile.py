"""What users of the service do, for load_test.sh: look at lists and surveys, estimate, rate texts. Surveys are posted only where SURVEYS says so, since models cost money."""

import os
import random
import uuid

from locust import HttpUser, between, task

TEXTS = ("I would buy this at once.", "Not for me, much too dear.", "Perhaps, if a friend told me that it is good.", "I do not care either way.")
SURVEY = {"concepts": [{"name": "Oat drink", "description": "A drink made of oats, unsweetened, one litre."}], "constructs": ["purchase_intent"], "cohort_size": 20, "llm_model": os.environ.get("LLM_MODEL", "gpt-4o-mini")}
SURVEYS = os.environ.get("SURVEYS") == "yes"


class Researcher(HttpUser):
    wait_time = between(.5, 2)

    def on_start(self):
        with open(os.environ["KEY_FILE"], encoding="utf-8") as file: self.client.headers["X-API-Key"] = file.read().strip()

    @task(10)
    def look_at_the_list(self): self.client.get("/api/v1/surveys", params={"limit": 20})

    @task(5)
    def look_at_one(self):
        found = self.client.get("/api/v1/surveys", params={"limit": 5}).json().get("surveys", [])
        if found: self.client.get(f"/api/v1/surveys/{random.choice(found)['id']}", name="/api/v1/surveys/{id}")

    @task(3)
    def estimate(self): self.client.post("/api/v1/surveys/estimate", json=SURVEY)

    @task(3)
    def rate(self): self.client.post("/api/v1/ratings", json={"texts": random.choices(TEXTS, k=5), "construct": "purchase_intent"})

    @task(1)
    def look_at_costs(self): self.client.get("/api/v1/costs")

    @task(1)
    def post(self):
        if SURVEYS: self.client.post("/api/v1/surveys", json=SURVEY | {"max_cost_usd": float(os.environ["MAX_COST_USD"]), "seed": random.randrange(10 ** 6)}, headers={"Idempotency-Key": str(uuid.uuid4())})
