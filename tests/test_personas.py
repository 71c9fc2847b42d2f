"""Panels: what they draw, what they refuse, what they tell."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssr_nb.core import InputError
from ssr_nb.personas import Panel
from ssr_nb.prompts import PROMPTS, Concept, PromptTemplate, load_prompt, tell_persona
from ssr_nb.scales import load_construct

INTENT = load_construct("purchase_intent")


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.integers(0, 10_000))
def test_us_adults_are_plausible_and_repeatable(n, seed):
    panel = Panel.us_adults(n, seed)
    assert len(panel) == n and panel.hash == Panel.us_adults(n, seed).hash
    assert panel.frame["age"].between(18, 89).all()
    lowest = panel.frame["age_group"].str[:2].astype(int)
    assert (panel.frame["age"] >= lowest).all()
    assert all(set(persona) == {"age", "gender", "region", "income"} for persona in panel.personas)


def test_a_large_draw_has_the_tables_margins():
    panel = Panel.us_adults(40_000, seed=5)
    share = panel.frame.groupby("region").size() / 40_000
    assert np.allclose(share[["Northeast", "Midwest", "South", "West"]], [.17, .206, .389, .235], atol=.01)
    assert np.isclose(panel.frame["gender"].eq("female").mean(), .51, atol=.01)


def test_weights_and_missing_values():
    frame = pd.DataFrame({"age": [30, 40, np.nan], "city": ["a", "", "c"], "w": [1, 1, 4]})
    panel = Panel.from_frame(frame, ["age", "city"], weight="w")
    assert np.allclose(panel.weights, [.5, .5, 2]) and panel.personas == [{"age": 30, "city": "a"}, {"age": 40}, {"city": "c"}]


@pytest.mark.parametrize("options, said", [({"attributes": ["agee"]}, "column 'agee'"), ({"attributes": "age"}, "give a list"), ({"attributes": []}, "attributes is empty"), ({"attributes": ["age"], "weight": "w"}, "missing, negative")])
def test_bad_frames(options, said):
    with pytest.raises(InputError, match=said): Panel.from_frame(pd.DataFrame({"age": [1, 2], "w": [1, -1]}), **options)


@pytest.mark.parametrize("n", [0, -1, 2.5, True, "ten"])
def test_bad_cohorts(n):
    with pytest.raises(InputError, match="cohort_size"): Panel.us_adults(n)


@given(st.dictionaries(st.sampled_from(["age", "gender", "region", "income", "pets"]), st.one_of(st.text("ab {}", min_size=1, max_size=5), st.integers(0, 99))))
def test_every_attribute_is_told(persona):
    told = tell_persona(persona)
    assert all(str(value) in told or name == "gender" for name, value in persona.items())
    for template in PROMPTS.values(): assert template.render(persona, Concept("{name}", "has {braces}"), INTENT)


def test_the_prompt_names_no_scale_and_persona_comes_first():
    chat = PROMPTS["chat"].render({"age": 40}, Concept("Mug", "Hot"), INTENT)["messages"]
    assert [m["role"] for m in chat] == ["system", "user"] and "40-year-old" in chat[0]["content"] and "40-year-old" not in chat[1]["content"]
    assert not any(word in chat[1]["content"] for word in ("scale", "1 to 5", "points"))


def test_the_hash_follows_the_wording_only():
    template = PROMPTS["chat"]
    assert PromptTemplate(**{**template.__dict__, "id": "other", "version": 9}).hash == template.hash != PromptTemplate(**{**template.__dict__, "ask": template.ask + " "}).hash
    with pytest.raises(InputError, match="pass a PromptTemplate in 'fr'"): load_prompt(None, "chat", "fr")
