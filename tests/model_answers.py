"""What the stand-in model says, whichever protocol it is asked by: stances, ratings, tokens, vectors."""

import math
import re
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

STANCES = {"Mug": ["I would definitely buy this, I love it.", "I'd happily get one, it is just what I need."],
           "Club": ["I might buy it or I might not, I am not sure.", "Hard to say, perhaps if it were cheaper."],
           "Fish": ["I would never buy this, it is disgusting.", "No way, that is a terrible idea and a waste of money."]}
OPINIONS = (("never", 0.0), ("no way", 0.0), ("disgusting", 0.0), ("might", .5), ("hard to say", .5), ("definitely", 1.0), ("love", 1.0), ("happily", 1.0))  # words -> place on a scale
REFUSAL = "I'm sorry, but as an AI language model I cannot have preferences or buy anything."
RANGE = re.compile(r"\b(\d)\s*(?:to|through|and|-|–)\s*(\d\d?)\b")
CACHEABLE = 4096  # characters, 1024 tokens


class Refused(Exception):
    "A request that the protocol itself refuses."
    def __init__(self, status: int, payload: dict):
        super().__init__(status, payload)
        self.status, self.payload = status, payload


class Question(NamedTuple):
    "What is asked, whichever protocol it came by."
    model: str
    content: object  # the messages as they were sent
    text: str  # all of it that is text
    last: str  # the last message, or a transcript's last paragraph
    turns: int
    pictures: int
    seed: int | None
    most: int | None  # tokens that may come back
    thought: int  # tokens the model would like to reason for
    stop: tuple[str, ...]
    body: dict


class Answer(NamedTuple):
    text: str
    finish: str  # "stop", "length" or "filter"
    prompt: int  # tokens
    cached: int
    said: int
    thought: int


def digest(*parts) -> str: return blake2b("\n".join(map(str, parts)).encode(), digest_size=12).hexdigest()


def uniform(*parts) -> float:
    "A number in [0, 1) that depends on the parts alone."
    return int(digest(*parts)[:12], 16) / 16 ** 12


def say(question: Question) -> str:
    "An answer by what is shown: a digit where a number of a range is wanted, else a sentence."
    draw, wish = question.seed or 0, question.text if isinstance(question.content, str) else question.last  # a transcript says at its top what it wants
    span = RANGE.search(wish) if "number" in wish.lower() else None
    shown = question.last[:span.start()] if span and wish is question.last else question.last  # what follows may be the scale's labels, which are no opinion
    def stance(text): return next((word for word in STANCES if word in text), None)
    def opinion(text): return next((place for word, place in OPINIONS if word in text.lower()), None)
    found = stance(shown)
    if found is None and not (span and opinion(shown) is not None) and wish is question.last: found = stance(question.text)
    if not span:
        choices = STANCES.get(found, ["It is all right, I suppose."])
        return choices[draw % len(choices)]
    low, high = int(span[1]), int(span[2])
    place = {"Mug": 1.0, "Club": .5, "Fish": 0.0}[found] if found else next((place for text in (shown, question.last) if (place := opinion(text)) is not None), .5)
    return str(round(low + place * (high - low)) - (draw % 2 if found == "Mug" else 0))


def tokens(text: str) -> int: return math.ceil(len(text.split()) * 1.3)


def prompt_tokens(question: Question) -> int: return len(question.text) // 4 + 4 * question.turns + 200 * question.pictures


def cached_tokens(question: Question, seen: dict[tuple, str]) -> int:
    "The tokens of the prompt's start that were seen before, in steps of 128."
    if len(question.text) < CACHEABLE: return 0
    earlier = seen.setdefault((question.model, question.text[:CACHEABLE]), question.text)
    if earlier is question.text: return 0
    shared = CACHEABLE
    while shared + 512 <= min(len(earlier), len(question.text)) and earlier.startswith(question.text[shared:shared + 512], shared): shared += 512
    return shared // 4


def answer(question: Question, fault: str | None, said: str, seen: dict, count=None) -> Answer:
    "What the model answers when it wants to say `said`, with a content fault and within its tokens."
    text = {"refusal": REFUSAL, "openai-refusal": REFUSAL, "bare-rating": "4/5", "empty-answer": "", "content-filter": "", "prompt-filter": "", "length": said[:max(1, len(said) // 2)]}.get(fault, said)
    for mark in question.stop: text = text.split(mark)[0]
    finish = {"content-filter": "filter", "length": "length"}.get(fault, "stop")
    thought, used = question.thought, (count or tokens)(text)
    if question.most is not None and thought + used > question.most:
        thought = min(thought, question.most)
        used = question.most - thought
        text, finish = " ".join(text.split()[:int(used / 1.3)]), "length"
    asked = count(question.text) + 4 * question.turns if count else prompt_tokens(question)
    return Answer(text, finish, asked, cached_tokens(question, seen), used, thought)


def vector(text: str, size: int) -> np.ndarray:  # (size,) float32, of length 1
    "A hashed bag of words: texts that share words are similar."
    found = np.full(size, 1e-3, np.float32)
    for word in re.findall(r"\w+", text.lower()):
        for hashed in np.frombuffer(blake2b(word.encode(), digest_size=16).digest(), "<u4").tolist(): found[hashed % size] += 1 if hashed >> 31 else -1
    return found / np.linalg.norm(found)


def vectors(texts: list[str], size: int, fault: str | None) -> list[np.ndarray]:
    "The vectors of texts, with a fault."
    found = [vector(text, size // 2 if fault == "wrong-size" else size) for text in texts]
    if fault in ("nan", "zero"): found[0] = np.full_like(found[0], np.nan if fault == "nan" else 0)
    return found[:-1] if fault == "fewer" else found
