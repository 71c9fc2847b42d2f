"""OpenAI's wire protocol for the stand-in server: chats, completions, embeddings, files, batches, models."""

import base64
import json
import math
import random
import re
import time

from model_answers import Question, Refused, digest, tokens, uniform, vectors

MODELS = ("gpt-4o", "gpt-4.1-mini", "o4-mini", "gpt-6-luna", "text-embedding-3-small", "text-embedding-3-large")
MOST_INPUTS = 2048  # texts to embed at once
REASONS = re.compile(r"o\d|gpt-[56]")
ERRORS = {  # status -> type, code, message
    400: ("invalid_request_error", None, "Invalid request: {model}"),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided: test. You can find your API key at https://platform.openai.com/account/api-keys."),
    402: ("billing_error", "insufficient_balance", "Insufficient balance."),
    403: ("request_forbidden", "unsupported_country_region_territory", "Country, region, or territory not supported"),
    404: ("invalid_request_error", "model_not_found", "The model `{model}` does not exist or you do not have access to it."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached for {model} in organization org-test on requests per min (RPM): Limit 500, Used 500, Requested 1. Please try again in {wait}s."),
    500: ("server_error", None, "The server had an error while processing your request. Sorry about that!"),
    503: ("service_unavailable", None, "That model is currently overloaded with other requests."),
    529: ("overloaded_error", None, "Overloaded")}


def refused(message: str, code: str | None = None, param: str | None = None, status: int = 400, kind: str = "invalid_request_error") -> Refused:
    return Refused(status, {"error": {"message": message, "type": kind, "param": param, "code": code}})


FAULTS = {  # that are refusals of their own
    "quota": refused("You exceeded your current quota, please check your plan and billing details.", "insufficient_quota", status=429, kind="insufficient_quota"),
    "unsupported-parameter": refused("Unsupported parameter: 'temperature' is not supported with this model.", "unsupported_parameter", "temperature"),
    "prompt-filter": refused("The response was filtered due to the prompt triggering our content management policy.", "content_filter", "prompt")}


def error(fault: str, model: str, wait: float) -> tuple[int, dict, dict] | None:
    "Status, body and headers of a fault that is a refusal."
    if fault in FAULTS: return FAULTS[fault].status, FAULTS[fault].payload, {}
    number = "401" if fault == "wrong-key" else fault.removesuffix("-retry-after")
    if not number.isdigit(): return None
    kind, code, message = ERRORS.get(int(number), ("server_error", None, f"made to fail with {number}"))
    headers = {"retry-after": str(math.ceil(wait)), **({"retry-after-ms": str(round(wait * 1000))} if wait < 1 else {})} if fault.endswith("retry-after") else {}
    return int(number), refused(message.format(model=model, wait=wait), code, kind=kind).payload, headers


def given_key(request) -> str: return request.headers.get("Authorization", "").removeprefix("Bearer ")


def question_of(body: dict) -> Question:
    "The question in a body, checked as far as the protocol does."
    model, chat, effort = body.get("model") or "", "messages" in body, body.get("reasoning_effort")
    if not model: raise refused("you must provide a model parameter")
    if reasons := REASONS.match(model):
        if body.get("max_tokens") is not None: raise refused("Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.", "unsupported_parameter", "max_tokens")
        if effort != "none" and body.get("temperature", 1) not in (1, None):
            raise refused(f"Unsupported value: 'temperature' does not support {body['temperature']} with this model. Only the default (1) value is supported.", "unsupported_value", "temperature")
    content = body["messages"] if chat else body.get("prompt")
    if not content: raise refused(f"Missing required parameter: '{'messages' if chat else 'prompt'}'.", "missing_required_parameter", "messages" if chat else "prompt")
    pictures, texts = 0, []
    for message in content if chat else [{"content": content}]:
        parts = message["content"] if chat and isinstance(message["content"], list) else [{"type": "text", "text": message.get("content") or ""}]
        texts.append("\n".join(str(part["text"]) for part in parts if part["type"] == "text"))
        pictures += sum(part["type"] == "image_url" for part in parts)
    most, stop = body.get("max_completion_tokens", body.get("max_tokens")), body.get("stop") or ()
    thought = 64 * (1 + int(4 * uniform(model, texts[-1]))) if reasons and effort not in ("none", "minimal") else 0
    return Question(model, content, "\n".join(texts), texts[-1] if chat else texts[-1].split("\n\n")[-1], len(texts), pictures, body.get("seed"), most, thought, (stop,) if isinstance(stop, str) else tuple(stop), body)


def completion(call) -> dict:
    "A chat completion, or a completion."
    question, fault, chat = question_of(call.body), call.fault, "messages" in call.body
    answer = call.ask(question)
    usage = {"prompt_tokens": answer.prompt, "completion_tokens": answer.said + answer.thought, "total_tokens": answer.prompt + answer.said + answer.thought}
    if chat: usage |= {"prompt_tokens_details": {"cached_tokens": answer.cached, "audio_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": answer.thought, "audio_tokens": 0}}
    if fault == "wrong-usage": usage = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), -(call.number % 2))
    choice = {"index": 0, "logprobs": None, "finish_reason": "content_filter" if answer.finish == "filter" else answer.finish}
    if chat: choice["message"] = {"role": "assistant", "content": None if fault == "openai-refusal" else answer.text, "refusal": answer.text if fault == "openai-refusal" else None, "annotations": []}
    else: choice["text"] = answer.text
    reply = {"id": f"chatcmpl-{call.number}", "object": "chat.completion" if chat else "text_completion", "created": int(time.time()), "model": question.model,
             "choices": [] if fault == "empty-choices" else [choice], "usage": usage, "system_fingerprint": "fp_stand_in"}
    if fault == "no-usage": del reply["usage"]
    return reply


def embeddings(call) -> dict:
    "Vectors, in base64 where that is asked for."
    body, given = call.body, call.body.get("input")
    if isinstance(given, str) or given and isinstance(given[0], int): given = [given]
    if not given or len(given) > MOST_INPUTS or any(text in ("", []) for text in given): raise refused("'$.input' is invalid. Please check the API reference: https://platform.openai.com/docs/api-reference.", param="input")
    texts = [text if isinstance(text, str) else " ".join(map(str, text)) for text in given]
    call.key = digest(body["model"], texts)
    found = vectors(texts, body.get("dimensions") or (3072 if "large" in body["model"] else 1536), call.fault)
    def sent(vector): return base64.b64encode(vector.astype("<f4").tobytes()).decode() if body.get("encoding_format") == "base64" else vector.tolist()
    entries = [{"object": "embedding", "index": index, "embedding": sent(vector)} for index, vector in enumerate(found)]
    if call.fault == "shuffled": entries = entries[1:] + entries[:1]
    used = sum(map(tokens, texts))
    return {"object": "list", "data": entries, "model": body["model"], "usage": {"prompt_tokens": used, "total_tokens": used}}


# Files

def keep(server, content: bytes, filename: str, purpose: str) -> dict:
    "A file as the protocol describes it."
    name = server.new_name("file-")
    described = {"id": name, "object": "file", "bytes": len(content), "created_at": int(time.time()), "expires_at": None, "filename": filename, "purpose": purpose, "status": "processed", "status_details": None}
    server.files[name] = (described, content)
    return described


def file_of(call) -> tuple[dict, bytes]:
    if call.name not in call.server.files: raise refused(f"No such File object: {call.name}", param="id", status=404)
    return call.server.files[call.name]


def upload(call) -> dict:
    given = call.body["file"]
    return keep(call.server, given.file.read(), given.filename, call.body["purpose"])


def delete(call) -> dict:
    file_of(call)
    del call.server.files[call.name]
    return {"id": call.name, "object": "file", "deleted": True}


# Batches

def faulty(content: bytes, endpoint: str) -> list[dict]:
    "What is wrong with a batch's file, as the protocol tells it."
    found, seen = [], set()
    for number, text in enumerate(content.splitlines(), 1):
        try: line = json.loads(text)
        except ValueError: found.append(("invalid_json_line", "This line is not parseable as valid JSON.", None, number))
        else:
            if line["custom_id"] in seen: found.append(("duplicate_custom_id", f"The custom_id for this request is a duplicate of another request: {line['custom_id']}.", "custom_id", number))
            if line["url"] != endpoint: found.append(("mismatched_endpoint", f"The URL provided for this request does not match the batch endpoint: {endpoint}.", "url", number))
            seen.add(line["custom_id"])
    if not content.strip(): found.append(("empty_file", "The input file is empty. Please ensure that the batch contains at least one request.", None, None))
    return [dict(zip(("code", "message", "param", "line"), one)) for one in found]


def create_batch(call) -> dict:
    body, server = call.body, call.server
    if body["input_file_id"] not in server.files: raise refused(f"No such File object: {body['input_file_id']}", param="input_file_id", status=404)
    content = server.files[body["input_file_id"]][1]
    errors = faulty(content, body["endpoint"])
    if server.batch_outcome == "failed" and not errors: errors = [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached for gpt-4o in organization org-test. Limit: 90,000 enqueued tokens. Please try again once some in_progress batches have been completed.", "param": None, "line": None}]
    lines = [] if errors else [json.loads(line) for line in content.splitlines()]
    return describe(server.begin(server.new_name("batch_"), lines, finish, body, errors=errors))


def finish(server, batch) -> None:
    "Answer the lines of a batch that were reached; the others are told why not."
    answered, failed = [], []
    for number, line in enumerate(batch.lines):
        entry = {"id": f"batch_req_{batch.name}_{number}", "custom_id": line["custom_id"], "response": None, "error": None}
        if number < batch.done:
            status, payload, _, call = server.answer_line(line["body"], LINES[line["url"]], error)
            entry["response"] = {"status_code": status, "request_id": f"req_{call.number}", "body": payload}
            (answered if status == 200 else failed).append(entry)
        else:
            told = "the completion window expired" if batch.outcome == "expired" else "the batch was cancelled"
            failed.append({**entry, "error": {"code": f"batch_{batch.outcome}", "message": f"This request could not be executed before {told}."}})
    for kind, entries in (("output", answered), ("error", failed)):
        random.Random(len(entries)).shuffle(entries)
        content = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
        batch.results[f"{kind}_file_id"] = keep(server, content, f"{batch.name}_{kind}.jsonl", "batch_output")["id"] if entries else None
    batch.results["counts"] = {"total": len(batch.lines), "completed": len(answered), "failed": len(failed)}


def describe(batch) -> dict:
    "A batch as the protocol describes it."
    begun, status = int(batch.begun), batch.outcome or ("validating" if batch.share < .2 else "in_progress")
    counts = batch.results.get("counts") or {"total": len(batch.lines) if status != "validating" else 0, "completed": int(len(batch.lines) * batch.share) if status == "in_progress" else 0, "failed": 0}
    times = {f"{name}_at": begun if name == "created" or name == status or batch.outcome and name in ("in_progress", "finalizing") else None for name in ("created", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")}
    return {"id": batch.name, "object": "batch", "endpoint": batch.order["endpoint"], "errors": {"object": "list", "data": batch.errors} if status == "failed" else None, "input_file_id": batch.order["input_file_id"],
            "completion_window": batch.order["completion_window"], "status": status, "output_file_id": batch.results.get("output_file_id"), "error_file_id": batch.results.get("error_file_id"), **times,
            "expires_at": begun + 86400, "request_counts": counts, "metadata": batch.order.get("metadata")}


def batch_of(call):
    if call.name not in call.server.batches: raise refused(f"No batch found with id '{call.name}'.", status=404)
    return call.server.batches[call.name]


def cancel(call) -> dict:
    batch = batch_of(call)
    if batch.outcome: raise refused(f"Cannot cancel a batch with status '{batch.outcome}'.", status=409)
    call.server.end(batch, "cancelled", batch.share)
    return {**describe(batch), "status": "cancelling", "output_file_id": None, "error_file_id": None}


def list_batches(call) -> dict:
    "One page, the newest first."
    names, after, limit = list(call.server.batches)[::-1], call.request.query.get("after"), int(call.request.query.get("limit", 20))
    start = names.index(after) + 1 if after in names else 0
    page = names[start:start + limit]
    return {"object": "list", "data": [describe(call.server.batches[name]) for name in page], "first_id": page[0] if page else None, "last_id": page[-1] if page else None, "has_more": start + limit < len(names)}


def model(call) -> dict: return {"id": call.name, "object": "model", "created": 1, "owned_by": "stand-in"}


def list_models(call) -> dict: return {"object": "list", "data": [{"id": name, "object": "model", "created": 1, "owned_by": "stand-in"} for name in MODELS]}


LINES = {"/v1/chat/completions": completion, "/v1/completions": completion, "/v1/embeddings": embeddings}
ROUTES = {"POST chat/completions": ("chat", completion), "POST completions": ("completions", completion), "POST embeddings": ("embeddings", embeddings),
          "POST files": ("files", upload), "GET files/*": ("files", lambda call: file_of(call)[0]), "GET files/*/content": ("files", lambda call: file_of(call)[1]), "DELETE files/*": ("files", delete),
          "POST batches": ("batches", create_batch), "GET batches": ("batches", list_batches), "GET batches/*": ("batches", lambda call: describe(batch_of(call))), "POST batches/*/cancel": ("batches", cancel),
          "GET models": ("models", list_models), "GET models/*": ("models", model)}


def find(method: str, path: str) -> tuple:  # endpoint, function, name in the path
    "What a path means."
    path = path.removeprefix("/v1/")
    if route := ROUTES.get(f"{method} {path}"): return *route, ""
    kind, _, rest = path.partition("/")
    name, _, action = rest.partition("/")
    return *ROUTES.get(f"{method} {kind}/*{'/' if action else ''}{action}", ("unknown", None)), name
