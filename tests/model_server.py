"""A stand-in for a hosted model on loopback that speaks the OpenAI protocol, answers by what it is shown, and keeps count."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STANCES = {"Mug": ["I would definitely buy this, I love it.", "I'd happily get one, it is just what I need."],
           "Club": ["I might buy it or I might not, I am not sure.", "Hard to say, perhaps if it were cheaper."],
           "Fish": ["I would never buy this, it is disgusting.", "No way, that is a terrible idea and a waste of money."]}


class ModelServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # more than a survey opens at once

    def __init__(self, delay: float = 0.0, fail=lambda number: None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.delay, self.fail = delay, fail
        self.asked: list[str] = []  # the content of every request that was answered
        self.requests = 0
        self.lock = threading.Lock()

    def handle_error(self, *_): pass  # clients are killed on purpose

    @property
    def url(self) -> str: return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_): pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.requests += 1
            number = server.requests
        if server.delay: time.sleep(server.delay)
        if failure := server.fail(number): return self.reply(failure, {"error": {"message": f"made to fail with {failure}"}})
        shown = body["messages"][-1]["content"]
        choices = next((answers for word, answers in STANCES.items() if word in shown), ["It is all right, I suppose."])
        answer = choices[body.get("seed", 0) % len(choices)]
        with server.lock: server.asked.append(json.dumps([body["messages"], body.get("seed")]))
        self.reply(200, {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"], "usage": {"prompt_tokens": 50, "completion_tokens": 12, "total_tokens": 62},
                         "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": f"{answer} ({number})" if server.delay else answer}}]})

    def reply(self, status: int, content: dict):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def model_server(**options):
    server = ModelServer(**options)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try: yield server
    finally:
        server.shutdown()
        server.server_close()
