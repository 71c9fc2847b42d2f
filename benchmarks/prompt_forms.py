"""Does a small model rank concepts as plain appeal does? Spearman of a concept's grade with its mean rating, for the shipped prompts.

    python benchmarks/prompt_forms.py [--llm-model gemma-3-270m] [--respondents 20] [--seed 1]

The graded concepts were written before any prompt was tried; the held-out half was used for the finalists only.
"""

import argparse
import tempfile
from pathlib import Path

import pandas as pd
from scipy.stats import spearmanr

from ssr_nb.core import Settings
from ssr_nb.personas import Panel
from ssr_nb.survey import Concept, Survey


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm-model", default="gemma-3-270m")
    parser.add_argument("--respondents", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    graded = pd.read_csv(Path(__file__).with_name("graded_concepts.csv"))
    with tempfile.TemporaryDirectory() as runs:
        settings = Settings(runs=Path(runs), cache=Settings.from_environment().cache)
        for half, rows in graded.groupby("half", sort=False):
            concepts = [Concept(row.name, row.description, row.price) for row in rows[["name", "description", "price"]].itertuples(index=False, name="Row")]
            survey = Survey(concepts, Panel.us_adults(chosen.respondents, seed=chosen.seed), llm_model=chosen.llm_model, samples=1, seed=chosen.seed)
            results = survey.run(settings=settings)
            found = results.summary().set_index("concept").loc[rows["name"]]
            texts = results.answers.loc[results.answers["status"] == "ok", "text"]
            print(f"{half:9} {chosen.llm_model}: Spearman {spearmanr(rows['grade'], found['mean']).statistic:.2f}, means {found['mean'].min():.2f} to {found['mean'].max():.2f}, "
                  f"{texts.nunique() / len(texts):.0%} of answers distinct, {len(texts)} of {len(results.answers)} scored")


if __name__ == "__main__": main()
