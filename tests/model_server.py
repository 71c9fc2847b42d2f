"""A stand-in for hosted models on loopback: it speaks the protocols of OpenAI and Google, answers by what it is shown, fails on demand, and keeps count.

`python tests/model_server.py --port 0 --latency 0.2 --faults mix` runs it as a process of its own, which prints its URL."""

import argparse
import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from aiohttp import web

import google_protocol
import openai_protocol
from model_answers import STANCES, Answer, Question, Refused, answer, digest, say, uniform

__all__ = ["EVERY_FAULT", "PASSING_FAULTS", "STANCES", "ModelServer", "Sent", "model_server"]

REFUSED = ("429", "429-retry-after", "quota", "401", "402", "403", "404", "400", "500", "503", "529")  # answered by a status
BROKEN = ("slow", "hang", "cut-before", "cut", "invalid-json")  # of the connection
CONTENT = ("empty-choices", "content-filter", "length", "refusal", "bare-rating", "empty-answer", "no-usage", "wrong-usage", "openai-refusal", "unsupported-parameter", "prompt-filter")
VECTORS = ("wrong-size", "nan", "zero", "fewer", "shuffled")
FAULTS = {"chat": {*REFUSED, *BROKEN, *CONTENT}, "completions": {*REFUSED, *BROKEN, *CONTENT}, "batch": {*REFUSED, *CONTENT}, "embeddings": {*REFUSED, *BROKEN, *VECTORS}}  # endpoint -> what applies without a prefix
SLOW = ("chat", "completions", "embeddings")  # endpoints that take the delay
EVERY_FAULT = dict.fromkeys((*REFUSED, *BROKEN, *CONTENT), .01)  # the faults of a chat
LASTING = ("quota", "401", "402", "403", "404", "400", "unsupported-parameter")  # that end a run
PASSING_FAULTS = {name: chance for name, chance in EVERY_FAULT.items() if name not in LASTING}


class Sent(NamedTuple):
    "One request and what came of it."
    number: int
    endpoint: str  # "chat", "completions", "embeddings", "batch" (a line), "tokens", "files", "batches", "models"
    fault: str | None
    key: str  # a hash of model and messages
    seed: int | None
    text: str  # the answer, even where a cut connection kept it


@dataclass(slots=True)
class Call:
    "One request, or one line of a batch, on its way through the server."
    server: "ModelServer"
    number: int
    endpoint: str
    fault: str | None
    body: Mapping
    name: str = ""  # from the path
    request: web.BaseRequest | None = None
    raw: bytes = b""
    headers: Mapping = field(default_factory=dict)  # of the reply
    key: str = ""
    seed: int | None = None
    text: str = ""
    content: str = ""  # for `asked`

    def ask(self, question: Question) -> Answer:
        "The model's answer."
        server = self.server
        messages = json.dumps(question.content)
        self.key, self.seed, self.content = digest(question.model, messages), question.seed, f"[{messages}, {json.dumps(question.seed)}]"
        said = server.answer(question.body, self.number) if server.answer else say(question)
        if (server.numbered or server.delay) and not said.isdigit(): said = f"{said} ({self.number})"
        found = answer(question, self.fault, said, server.seen, server.count)
        self.text = found.text
        return found

    def record(self, answered: bool) -> None:
        self.server.sent.append(Sent(self.number, self.endpoint, self.fault, self.key, self.seed, self.text))
        if answered and self.content: self.server.asked.append(self.content)


@dataclass
class Batch:
    "Requests that are answered later, all at once."
    name: str
    lines: list[dict]
    finish: Callable  # server, batch -> None; answers the lines
    order: dict  # as it was given
    errors: list[dict]  # found in it
    seconds: float
    begun: float = field(default_factory=time.time)
    outcome: str | None = None  # "completed", "expired", "failed", "cancelled" once it has ended
    done: int = 0  # lines that were reached in the end
    results: dict = field(default_factory=dict)

    @property
    def share(self) -> float:
        "The part of its time that has passed."
        return min(1.0, (time.time() - self.begun) / self.seconds) if self.seconds else 1.0


class ModelServer:
    "A server in a thread of its own; what is set on it takes effect with the next request."
    def __init__(
        self,
        delay: float = 0.0,  # seconds for each answer
        fail: Callable[[int], int | str | None] = lambda number: None,  # a request's number -> a status or a fault
        faults: Mapping[str, float] = {},  # fault, or endpoint:fault -> probability
        seed: int = 0,  # of the faults
        burst: tuple[int, int] | None = None,  # numbers of requests (from, below) that meet an outage
        retry_after: float = .05,  # seconds
        answer: Callable[[dict, int], str] | None = None,  # body, number -> text
        numbered: bool = False,  # answers end in their request's number; also with a delay
        key: str | None = None,  # the one that is accepted
        batch_seconds: float = .3,
        batch_outcome: str = "completed",  # "expired", "failed", "cancelled"
        port: int = 0,
        host: str = "127.0.0.1",
    ):
        self.delay, self.fail, self.faults, self.seed, self.burst, self.retry_after = delay, fail, faults, seed, burst, retry_after
        self.answer, self.numbered, self.key, self.batch_seconds, self.batch_outcome, self.port, self.host = answer, numbered, key, batch_seconds, batch_outcome, port, host
        self.count: Callable[[str], int] | None = None  # tokens of a text, where a test wants its own count
        self.asked: list[str] = []  # messages and seed of every chat that was answered
        self.sent: list[Sent] = []
        self.requests = 0  # lines of batches included
        self.at_once = self.most_at_once = 0  # requests that wait for their delay
        self.seen: dict[tuple, str] = {}  # the starts of long prompts
        self.files: dict[str, tuple[dict, bytes]] = {}
        self.batches: dict[str, Batch] = {}
        self.names = count(1)
        self.taken: Counter = Counter()  # numbers of requests by endpoint: how often a batch is looked after moves no other fault

    @property
    def url(self) -> str: return f"http://127.0.0.1:{self.port}/v1"

    @property
    def google_url(self) -> str: return f"http://127.0.0.1:{self.port}"

    def counts(self) -> Counter:
        "How often each fault was sent; `ok` for none."
        return Counter(one.fault or "ok" for one in list(self.sent))

    def cpu_seconds(self) -> float:
        "What the server itself has computed so far."
        return time.clock_gettime(time.pthread_getcpuclockid(self.thread.ident))

    def new_name(self, start: str) -> str: return f"{start}{next(self.names)}"

    def take_number(self) -> int:
        self.requests += 1
        return self.requests

    def draw(self, number: int, endpoint: str) -> str | None:
        "The fault of a request."
        self.taken[endpoint] += 1
        if self.burst and self.burst[0] <= number < self.burst[1]: return "503"
        if (failure := self.fail(number)) is not None: return str(failure)
        if not self.faults: return None
        drawn = uniform(self.seed, endpoint, self.taken[endpoint])
        for name, chance in self.faults.items():
            place, _, fault = name.rpartition(":")
            if place == endpoint or not place and fault in FAULTS.get(endpoint, ()):
                drawn -= chance
                if drawn < 0: return fault
        return None

    def reply(self, call: Call, function: Callable, error: Callable) -> tuple[int, dict | bytes, Mapping]:
        "Status, content and headers for a call, its fault included."
        if call.fault and (refusal := error(call.fault, call.name or call.body.get("model", ""), self.retry_after)): return refusal
        try: return 200, function(call), call.headers
        except Refused as refused: return refused.status, refused.payload, {}
        except (KeyError, TypeError, AttributeError, ValueError) as wrong: return error("400", f"{wrong!r}", 0)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        protocol = google_protocol if "x-goog-api-client" in request.headers or not request.path.startswith("/v1/") else openai_protocol
        endpoint, function, name = protocol.find(request.method, request.path)
        raw, body = b"", {}
        try:
            if request.content_type == "multipart/form-data": body = await request.post()
            elif raw := await request.read(): body = {} if "upload_id" in request.query else json.loads(raw)
        except ConnectionError: return web.Response()  # the client is gone, and its request was never whole
        except ValueError: body = None
        number = self.take_number()
        call = Call(self, number, endpoint, self.draw(number, endpoint), body, name, request, raw)
        if self.key is not None and protocol.given_key(request) != self.key: call.fault = "wrong-key"
        if function is None: call.fault = "404"
        if not isinstance(body, Mapping): call.body, call.fault = {}, "400"
        status, payload, headers = self.reply(call, function, protocol.error)
        if call.fault == "hang":
            call.record(False)
            await asyncio.Event().wait()
        if call.fault == "slow": await asyncio.sleep(self.delay * 5 or .25)
        elif self.delay and endpoint in SLOW: await self.dawdle()
        call.record(status == 200 and call.fault not in ("cut", "cut-before", "invalid-json"))
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        if call.fault in ("cut", "cut-before"): return cut(request, data if call.fault == "cut" else b"")
        if call.fault == "invalid-json": return web.Response(body=data[:-9] if number % 2 else b"<html><body>Bad gateway</body></html>", content_type="application/json" if number % 2 else "text/html")
        return web.Response(body=data, status=status, content_type="application/octet-stream" if data is payload else "application/json", headers={"x-request-id": f"req_{number}", **headers})

    async def dawdle(self) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try: await asyncio.sleep(self.delay)
        finally: self.at_once -= 1

    def begin(self, name: str, lines: list[dict], finish: Callable, order: dict, errors: list[dict] | None = None) -> Batch:
        "A batch, which ends by itself."
        batch = self.batches[name] = Batch(name, lines, finish, order, errors or [], self.batch_seconds)
        outcome = "failed" if errors else self.batch_outcome
        self.loop.call_later(self.batch_seconds, self.end, batch, outcome, {"completed": 1, "failed": 0}.get(outcome, .5))
        return batch

    def end(self, batch: Batch, outcome: str, share: float) -> None:
        "Answer that share of a batch; nothing, if it has ended already."
        if batch.outcome: return
        batch.outcome, batch.done = outcome, int(len(batch.lines) * share)
        batch.finish(self, batch)

    def answer_line(self, body: dict, function: Callable, error: Callable) -> tuple[int, dict, Mapping, Call]:
        "One line of a batch."
        number = self.take_number()
        fault = self.draw(number, "batch")
        call = Call(self, number, "batch", fault if fault and (fault in FAULTS["batch"] or fault.isdigit()) else None, body)
        status, payload, headers = self.reply(call, function, error)
        call.record(status == 200)
        return status, payload, headers, call

    async def serve(self, started: threading.Event) -> None:
        self.loop, self.stop = asyncio.get_running_loop(), asyncio.Event()
        def whole(*parts): return web.BaseRequest(*parts, self.loop, client_max_size=2 ** 30)
        handler = web.Server(self.handle, request_factory=whole, access_log=None, keepalive_timeout=600)
        listener = await self.loop.create_server(handler, self.host, self.port, backlog=1024)
        self.port = listener.sockets[0].getsockname()[1]
        started.set()
        await self.stop.wait()
        listener.close()
        await handler.shutdown(.01)

    def start(self) -> "ModelServer":
        started = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self.serve(started)), daemon=True)
        self.thread.start()
        if not started.wait(10): raise RuntimeError("the model server did not start")
        return self

    def close(self) -> None:
        if not self.loop.is_closed(): self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join(10)


def cut(request: web.BaseRequest, data: bytes) -> web.Response:
    "Half of the reply, and the connection closed."
    if request.transport is None: return web.Response()  # the client was faster
    if data: request.transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data) + data[:len(data) // 2])
    request.transport.close()
    return web.Response()  # goes nowhere


@contextmanager
def model_server(**options):
    server = ModelServer(**options).start()
    try: yield server
    finally: server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 in a container")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds for each answer")
    parser.add_argument("--faults", default="{}", help="mix, every, or JSON such as '{\"500\": 0.1}'")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    mix = {name: chance for name, chance in PASSING_FAULTS.items() if name != "hang"}
    faults = {"mix": mix, "every": EVERY_FAULT}.get(given.faults) or json.loads(given.faults)
    server = ModelServer(delay=given.latency, faults=faults, seed=given.seed, port=given.port, host=given.host).start()
    print(server.url, flush=True)
    try: server.thread.join()
    except KeyboardInterrupt: server.close()


if __name__ == "__main__": main()
