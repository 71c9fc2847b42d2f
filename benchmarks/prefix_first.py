"""What the order of a prompt costs and changes: `chat`, the persona first, against `chat-prefix-first`, the shared part first.

    python benchmarks/prefix_first.py [--llm-model smollm2-135m] [--respondents 6]

Cost: 100 respondents, a long description, against a stand-in server that caches prompts as OpenAI does (from 1,024 tokens on).
Answers: the graded concepts, asked of an embedded chat model with either prompt and the same panel and seeds.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import pandas as pd
from scipy.stats import spearmanr

from ssr_nb.core import Settings
from ssr_nb.personas import Panel
from ssr_nb.survey import Concept, Survey

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
PROMPTS = ("chat", "chat-prefix-first")


def cost(prompt: str) -> dict:
    from model_server import model_server
    long = Concept("Everwarm", " ".join(["A mug that keeps coffee hot for eight hours, with a lid that does not leak."] * 80), "$24")
    with model_server() as server, tempfile.TemporaryDirectory() as folder:
        settings = Settings(Path(folder), Path(folder), openai_base_url=server.url)
        return Survey([long], Panel.us_adults(100, seed=1), llm_model="gpt-4o", samples=1, prompt=prompt).run(progress=False, settings=settings).manifest["costs"][0]


def answers(prompt: str, llm_model: str, respondents: int) -> pd.DataFrame:
    graded = pd.read_csv(Path(__file__).with_name("graded_concepts.csv"))
    concepts = [Concept(row.name, row.description, row.price) for row in graded[["name", "description", "price"]].itertuples(index=False, name="Row")]
    with tempfile.TemporaryDirectory() as runs:
        settings = Settings(Path(runs), Settings.from_environment().cache)
        results = Survey(concepts, Panel.us_adults(respondents, seed=1), llm_model=llm_model, samples=1, prompt=prompt).run(settings=settings)
    return results.summary().set_index("concept").loc[graded["name"]].assign(grade=graded["grade"].to_numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm-model", default="smollm2-135m")
    parser.add_argument("--respondents", type=int, default=6)
    chosen = parser.parse_args()
    for prompt in PROMPTS:
        row = cost(prompt)
        print(f"{prompt:18} ${row['cost_usd']:.4f}, {row['cached_tokens'] / row['prompt_tokens']:.0%} of {row['prompt_tokens']:,} prompt tokens cached, ${row['saved_by_prompt_cache_usd']:.4f} saved")
    found = {prompt: answers(prompt, chosen.llm_model, chosen.respondents) for prompt in PROMPTS}
    for prompt, rows in found.items():
        scored = rows.dropna(subset=["mean"])
        print(f"{prompt:18} {chosen.llm_model}: {rows['n_ok'].sum()} of {rows['n_answers'].sum()} scored, mean {scored['mean'].mean():.2f}, Spearman with the grade {spearmanr(scored['grade'], scored['mean']).statistic:.2f}")
    both = pd.concat([rows["mean"] for rows in found.values()], axis=1).dropna()
    print(f"between the prompts: Spearman {spearmanr(both.iloc[:, 0], both.iloc[:, 1]).statistic:.2f}, mean absolute difference {(both.iloc[:, 0] - both.iloc[:, 1]).abs().mean():.2f} of a point, {len(both)} concepts")


if __name__ == "__main__": main()
