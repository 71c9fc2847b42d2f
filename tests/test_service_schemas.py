"""Every field of a survey's request is honoured or refused, in every way that it can be given."""

import io
from base64 import b64encode

import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st
from pydantic import ValidationError

from ssr_nb.core import InputError, Settings
from ssr_nb.personas import Panel
from ssr_nb.scales import load_construct
from ssr_nb.service.schemas import EXAMPLE, MOST_ANSWERS, SurveyRequest, find_construct
from ssr_nb.service.settings import ServiceSettings
from ssr_nb.survey import Survey

SERVICE = ServiceSettings(library=Settings(has_openai_key=True))
HOSTED = {**{name: value for name, value in EXAMPLE.items() if name != "target_demographics"}, "llm_model": "gpt-4o"}


def made(service=SERVICE, **changes) -> Survey: return SurveyRequest(**{**HOSTED, **changes}).survey(service)


def refused(service=SERVICE, **changes) -> str:
    with pytest.raises((ValidationError, InputError)) as caught: made(service, **changes)
    error = caught.value
    return f"{'.'.join(map(str, error.errors()[0]['loc']))}: {error.errors()[0]['msg']}" if isinstance(error, ValidationError) else str(error)


def picture() -> str:
    from PIL import Image
    out = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(out, "PNG")
    return f"data:image/png;base64,{b64encode(out.getvalue()).decode()}"


SAME = ("llm_model", "llm_temperature", "embedding_model", "samples", "max_tokens", "max_reasoning_tokens", "reasoning_effort", "replacements", "ask_why", "wordings", "seed", "ssr_temperature", "ssr_epsilon", "prompt", "method", "scale_points", "locale")
HONOURED = {  # field -> a value that is not the default, and what the survey shows of it
    **{name: (value, lambda survey, name=name, value=value: getattr(survey, name) == value) for name, value in dict(
        llm_model="gpt-4.1-mini", llm_temperature=None, embedding_model="text-embedding-3-small", samples=3, max_tokens=99, max_reasoning_tokens=500, reasoning_effort="low", replacements=2, ask_why=True, wordings=6, seed=9,
        ssr_temperature=.5, ssr_epsilon=.1, prompt="chat-prefix-first", method="ssr,flr", scale_points=7, locale="en-GB").items()},
    "concepts": ([{"name": "Tea", "description": "Green tea.", "price": "$4", "image": picture()}], lambda s: (s.concepts[0].name, s.concepts[0].price, s.concepts[0].image is not None) == ("Tea", "$4", True)),
    "constructs": (["trust", "relevance"], lambda s: [one.name for one in s.constructs] == ["trust", "relevance"]),
    "question": ("Would you want this?", lambda s: s.constructs[0].question == "Would you want this?"),
    "panel": ({"source": "us_adults", "filters": {"gender": "female"}, "seed": 4}, lambda s: s.panel.hash == Panel.us_adults(5, seed=4, gender="female").hash),
    "target_demographics": ({"age_range": [25, 54], "income_range": [50_000, None], "gender": "male", "regions": ["South"], "ethnicities": "Hispanic"}, lambda s: set(s.panel.frame["gender"]) == {"male"} and set(s.panel.frame["region"]) == {"South"} and s.panel.frame["age"].between(25, 54).all() and set(s.panel.frame["ethnicity"]) == {"Hispanic"}),
    "cohort_size": (11, lambda s: len(s.panel) == 11),
    "reference_sets": (["purchase_intent_everyday_2"], lambda s: [one.id for one in s.sets(s.constructs[0])] == ["purchase_intent_everyday_2"]),
    "llm_price": ({"input_usd": 1.0, "output_usd": 2.0}, lambda s: s.llm_price == {"input_usd": 1.0, "output_usd": 2.0}),
    "enable_demographics": (False, lambda s: s.panel.personas == [{}] * 5),
    "enable_multi_set_averaging": (False, lambda s: len(s.sets(s.constructs[0])) == 1),
}
KEPT = {"name": "Teas", "metadata": {"a": [1, {"b": None}]}, "max_cost_usd": 2.5, "enable_bias_detection": False}  # for the row of the survey, not its specification


@pytest.mark.parametrize("field", SurveyRequest.model_fields)
def test_every_field_is_honoured(field):
    value = {**KEPT, **{name: value for name, (value, _) in HONOURED.items()}}[field]
    request = SurveyRequest(**{**HOSTED, field: value})
    if field in KEPT: assert getattr(request, field) == value == request.stored(SERVICE)[field]
    else: assert HONOURED[field][1](request.survey(SERVICE)) and not HONOURED[field][1](made()) and field in request.stored(SERVICE)


REFUSED = [
    ({"temperature": .5}, "llm_temperature"), ({"cohort_sise": 5}, "cohort_sise"), ({"samples": "2"}, "samples"), ({"samples": 2.5}, "samples"), ({"ask_why": 1}, "ask_why"), ({"samples": 0}, "samples"), ({"cohort_size": 10_001}, "cohort_size"),
    ({"ssr_temperature": float("nan")}, "ssr_temperature"), ({"ssr_epsilon": -1.0}, "ssr_epsilon"), ({"llm_temperature": 3.0}, "llm_temperature"), ({"concepts": []}, "concepts"), ({"constructs": []}, "constructs"),
    ({"concepts": [{"name": "a", "description": " "}]}, "description"), ({"concepts": [{"name": "a", "description": "b\x00"}]}, "description"), ({"concepts": [{"name": "a", "description": "\ud800"}]}, "description"), ({"concepts": [HOSTED["concepts"][0]] * 2}, "twice"),
    ({"concepts": [{"name": "a", "description": "b", "image": "/etc/passwd"}]}, "image"), ({"concepts": [{"name": "a", "description": "b", "image": "http://127.0.0.1/a.png"}]}, "public"), ({"concepts": [{"name": "a", "description": "b", "image": "data:text/html;base64,AAAA"}]}, "image"),
    ({"constructs": ["joy"]}, "joy"), ({"constructs": ["../reference_sets/trust.yaml"]}, "constructs"), ({"constructs": ["trust.yaml"]}, "trust.yaml"), ({"constructs": ["trust@12345678"]}, "constructs[0]"), ({"constructs": ["trust", "trust"]}, "trust"),
    ({"question": "Why?", "constructs": ["trust", "relevance"]}, "question"), ({"question": "Why?", "wordings": 2}, "wording"), ({"scale_points": 9}, "scale_points"), ({"locale": "de"}, "'de'"), ({"wordings": 12, "constructs": ["trust"], "question": "Why?"}, "wording"),
    ({"panel": {"source": "uk_adults"}}, "source"), ({"panel": {"source": "us_adults"}, "target_demographics": {}}, "target_demographics"), ({"target_demographics": {"age_range": [40, 20]}}, "age_range"), ({"target_demographics": {"income_range": [1, 2]}}, "income_range"),
    ({"target_demographics": {"regions": ["Bavaria"]}}, "Bavaria"), ({"target_demographics": {"age": [1, 2]}}, "age"), ({"method": "magic"}, "method"), ({"method": ["ssr", "ssr"]}, "method"), ({"prompt": "/etc/passwd"}, "prompt"),
    ({"llm_model": "gemini-2.5-flash-lite"}, "GOOGLE_API_KEY"), ({"llm_model": "/models/a.gguf"}, "llm_model"), ({"llm_model": "local:/models/a.gguf"}, "file"), ({"llm_model": "model.gguf"}, "file"), ({"embedding_model": "m.onnx"}, "file"), ({"embedding_model": "onnx:m"}, "file"),
    ({"embedding_model": "gemini-embedding-001"}, "GOOGLE_API_KEY"), ({"embedding_model": "none"}, "embedding_model"), ({"reference_sets": ["nothing"]}, "nothing"), ({"reference_sets": []}, "reference_sets"), ({"reference_sets": ["trust_everyday_1"]}, "reference_sets"),
    ({"llm_price": {"input_usd": 1.0}}, "output_usd"), ({"cohort_size": 10_000, "samples": 50}, f"{MOST_ANSWERS:,}"), ({"metadata": {"a": "\x00"}}, "NUL"), ({"metadata": {"a": float("inf")}}, "metadata"), ({"metadata": {"a": "x" * 20_000}}, "metadata"), ({"max_cost_usd": -1.0}, "max_cost_usd"), ({"seed": -1}, "seed"),
]


@pytest.mark.parametrize("changes, named", REFUSED, ids=[f"{number} {next(iter(changes))}" for number, (changes, _) in enumerate(REFUSED)])
def test_what_cannot_be_honoured_is_refused_by_name(changes, named): assert named in refused(**changes)


def test_a_ceiling_is_narrowed_and_never_passed():
    for name in ("enable_demographics", "enable_multi_set_averaging", "enable_bias_detection"):
        closed = ServiceSettings(library=SERVICE.library, **{name: False})
        assert name in refused(closed, **{name: True}) and name.upper() in refused(closed, **{name: True})
        assert SurveyRequest(**HOSTED).stored(closed)[name] is False and SurveyRequest(**HOSTED, **{name: False}).stored(SERVICE)[name] is False and SurveyRequest(**HOSTED).stored(SERVICE)[name] is True


def test_a_panel_of_ones_own_is_the_same_panel():
    panel = Panel.us_adults(30, seed=2)
    sent = {"respondents": panel.frame.to_dict("records"), "attributes": list(panel.attributes), "weights": [1.0, 3.0] * 15, "source": "our customers"}
    request = {name: value for name, value in HOSTED.items() if name != "cohort_size"} | {"panel": sent}
    survey = SurveyRequest(**request).survey(SERVICE)
    assert survey.panel.personas == panel.personas and survey.panel.weights.tolist() == [.5, 1.5] * 15 and survey.panel.source == "our customers"
    assert "cohort_size" in refused(panel=sent, cohort_size=5) and made(panel=sent, cohort_size=30)
    for wrong, named in (({"weights": [1.0]}, "weights"), ({"weights": [0.0] * 30}, "weights"), ({"attributes": ["shoe size"]}, "shoe size"), ({"respondents": [{"a": {"b": 1}}]}, "respondents"), ({"attributes": []}, "attributes")): assert named in refused(panel={**sent, **wrong}, cohort_size=30)


def test_the_second_set_of_anchors_goes_to_its_own_construct():
    survey = made(constructs=["trust", "relevance"], reference_sets=["relevance_everyday_2", "trust_everyday_1", "trust_everyday_3"])
    assert [[one.id for one in survey.sets(construct)] for construct in survey.constructs] == [["trust_everyday_1", "trust_everyday_3"], ["relevance_everyday_2"]]


def test_a_request_has_one_hash_however_it_is_written():
    assert SurveyRequest(**HOSTED).hash == SurveyRequest(**dict(reversed(HOSTED.items())), seed=0).hash != SurveyRequest(**HOSTED, seed=1).hash
    stored = SurveyRequest(**{**HOSTED, "concepts": [{"name": "Tea", "description": "Green", "image": picture()}]}).stored(SERVICE)
    assert stored["concepts"][0]["image"].startswith("sha256:")


def test_posted_constructs_never_stand_in_for_shipped_ones():
    own = load_construct("trust")
    assert find_construct("appetite", {"appetite": own}) is own and find_construct("trust@12345678", {"trust@12345678": own}) is own
    assert find_construct("trust", {}) == load_construct("trust")


@hypothesis_settings(max_examples=150, deadline=None)
@given(st.text(min_size=1, max_size=60), st.sampled_from(["constructs", "llm_model", "embedding_model", "prompt", "locale", "method", "reference_sets", "question", "name"]))
def test_no_text_reads_a_file_or_breaks_anything(text, field):
    "A text in any field makes a survey or an error that names it, and no other exception."
    try: made(**{field: [text] if field in ("constructs", "reference_sets") else text})
    except (ValidationError, InputError): pass
