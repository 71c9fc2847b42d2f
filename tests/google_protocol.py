"""Google's wire protocol (Gemini over REST) for the stand-in server: generation, token counts, embeddings, files, batches, models."""

import json
import random
import re
import time

from model_answers import Question, Refused, digest, prompt_tokens, uniform, vectors

MODELS = {"gemini-2.0-flash": "generateContent", "gemini-2.5-flash": "generateContent", "gemini-3.8-flash": "generateContent", "gemini-embedding-001": "embedContent"}
MOST_INPUTS = 100  # texts to embed at once
THINKS = re.compile(r"gemini-(2\.5|[3-9])(?!.*lite)")
TYPE = "type.googleapis.com/google.ai.generativelanguage.v1beta.GenerateContentBatch"
ERRORS = {  # status -> name, message
    400: ("INVALID_ARGUMENT", "Request contains an invalid argument: {model}"),
    401: ("UNAUTHENTICATED", "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid authentication credential."),
    402: ("FAILED_PRECONDITION", "Payment is required."),
    403: ("PERMISSION_DENIED", "Your project has been denied access. Please contact support."),
    404: ("NOT_FOUND", "models/{model} is not found for API version v1beta, or is not supported for generateContent. Call ListModels to see the list of available models and their supported methods."),
    429: ("RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."),
    500: ("INTERNAL", "An internal error has occurred. Please retry or report in https://developers.generativeai.google/guide/troubleshooting"),
    503: ("UNAVAILABLE", "The model is overloaded. Please try again later."),
    504: ("DEADLINE_EXCEEDED", "Deadline expired before operation could complete.")}
QUOTA = "You exceeded your current quota, please check your plan and billing details. For more information on this error, head to: https://ai.google.dev/gemini-api/docs/rate-limits."


def refused(status: int, message: str, details: list | None = None) -> Refused:
    told = {"code": status, "message": message, "status": ERRORS.get(status, ("UNKNOWN",))[0]}
    return Refused(status, {"error": {**told, "details": details} if details else told})


def violation(period: str) -> dict:
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaMetric": "generativelanguage.googleapis.com/generate_requests", "quotaId": f"GenerateRequestsPer{period}PerProjectPerModel"}]}


def error(fault: str, model: str, wait: float) -> tuple[int, dict, dict] | None:
    "Status, body and headers of a fault that is a refusal."
    if fault == "quota": made = refused(429, QUOTA, [violation("Day")])
    elif fault == "429-retry-after": made = refused(429, f"{QUOTA} Please retry in {wait}s.", [violation("Minute"), {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{wait:g}s"}])
    elif fault == "unsupported-parameter": made = refused(400, "Temperature is not supported by this model.")
    elif fault == "wrong-key": made = refused(400, "API key not valid. Please pass a valid API key.", [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com", "metadata": {"service": "generativelanguage.googleapis.com"}}])
    elif fault.isdigit(): made = refused(int(fault), ERRORS.get(int(fault), ("", f"made to fail with {fault}"))[1].format(model=model))
    else: return None
    return made.status, made.payload, {}


def given_key(request) -> str: return request.headers.get("x-goog-api-key") or request.query.get("key") or request.query.get("upload_id", "")


def question_of(body: dict, model: str) -> Question:
    "The question in a body, as far as the protocol checks it."
    contents, system = body.get("contents") or [], body.get("systemInstruction")
    if not contents: raise refused(400, "* GenerateContentRequest.contents: contents is not specified\n")
    turns = [*([system] if system else []), *contents]
    texts = ["\n".join(part["text"] for part in turn.get("parts", []) if "text" in part) for turn in turns]
    pictures = sum("inlineData" in part or "fileData" in part for turn in turns for part in turn.get("parts", []))
    config = body.get("generationConfig") or {}
    budget = (config.get("thinkingConfig") or {}).get("thinkingBudget")
    thinks = budget != 0 and (THINKS.match(model) or (budget or 0) > 0)
    thought = 64 * (1 + int(4 * uniform(model, texts[-1]))) if thinks else 0
    if budget and budget > 0: thought = min(thought, budget)
    return Question(model, [system, contents], "\n".join(texts), texts[-1], len(turns), pictures, config.get("seed"), config.get("maxOutputTokens"), thought, tuple(config.get("stopSequences") or ()), body)


def generate(call) -> dict:
    "Candidates, or why there are none."
    model, fault = call.name or call.body.get("model", "").removeprefix("models/"), call.fault
    answer = call.ask(question_of(call.body, model))
    counts = {"promptTokenCount": answer.prompt, "candidatesTokenCount": answer.said, "totalTokenCount": answer.prompt + answer.said + answer.thought, "thoughtsTokenCount": answer.thought, "cachedContentTokenCount": answer.cached}
    usage = {name: count for name, count in counts.items() if count}  # zeros are left out, as in every message of Google's
    if fault == "wrong-usage": usage = dict.fromkeys(counts, -(call.number % 2))
    reply = {"usageMetadata": usage, "modelVersion": model, "responseId": f"response-{call.number}"}
    if fault == "no-usage": del reply["usageMetadata"]
    if fault == "prompt-filter" or fault == "content-filter" and call.number % 2:  # the prompt itself is refused, before any thought
        return {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT" if fault == "prompt-filter" else "SAFETY"}, **reply, "usageMetadata": {"promptTokenCount": answer.prompt, "totalTokenCount": answer.prompt}}
    if fault == "empty-choices": return reply
    candidate = {"index": 0, "finishReason": {"filter": "SAFETY", "length": "MAX_TOKENS"}.get(answer.finish, "STOP")}
    if answer.finish == "filter": candidate["safetyRatings"] = [{"category": "HARM_CATEGORY_HARASSMENT", "probability": "HIGH", "blocked": True}]
    else: candidate["content"] = {"role": "model", **({"parts": [{"text": answer.text}]} if answer.text else {})}
    return {"candidates": [candidate], **reply}


def count(call) -> dict:
    "The tokens of a prompt."
    used = prompt_tokens(question_of(call.body.get("generateContentRequest") or call.body, call.name))
    return {"totalTokens": used, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": used}]}


def embed(call, requests: list[dict]) -> list[dict]:
    "Vectors; those of fewer dimensions than the model has are not of length 1, as Google's are not."
    texts = [" ".join(part.get("text", "") for part in request["content"]["parts"]) for request in requests]
    if not texts or not all(texts): raise refused(400, "* EmbedContentRequest.content: content is empty\n")
    if len(texts) > MOST_INPUTS: raise refused(400, f"* BatchEmbedContentsRequest.requests: at most {MOST_INPUTS} requests can be in one batch\n")
    call.key = digest(call.name, texts)
    full = 768 if call.name == "text-embedding-004" else 3072
    size = requests[0].get("outputDimensionality") or full
    return [{"values": (vector * (1 if size == full else .7)).tolist()} for vector in vectors(texts, size, call.fault)]


def embed_one(call) -> dict:
    found = embed(call, [call.body])
    return {"embedding": found[0]} if found else {}


# Files

def stamp(seconds: float) -> str: return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def keep(server, content: bytes, source: str, **given) -> dict:
    "A file as the protocol describes it."
    name = server.new_name("files/stand-in-")
    described = {"name": name, **given, "sizeBytes": str(len(content)), "createTime": stamp(time.time()), "uri": f"{server.google_url}/v1beta/{name}", "state": "ACTIVE", "source": source}
    if source == "GENERATED": described["downloadUri"] = f"{described['uri']}:download?alt=media"
    server.files[name] = (described, content)
    return described


def upload(call) -> dict:
    "Begin an upload, or take its content; large files come in pieces."
    server, name = call.server, call.request.query.get("upload_id")
    if name is None:
        name = server.new_name("upload-")
        server.files[name] = (call.body.get("file", {}), b"")
        call.headers = {"X-Goog-Upload-URL": f"{server.google_url}/upload/v1beta/files?upload_id={name}", "X-Goog-Upload-Status": "active"}
        return {}
    given, content = server.files[name][0], server.files[name][1] + call.raw
    server.files[name] = (given, content)
    final = "finalize" in call.request.headers["X-Goog-Upload-Command"]
    call.headers = {"X-Goog-Upload-Status": "final" if final else "active"}
    return {"file": keep(server, content, "UPLOADED", displayName=given.get("displayName") or given.get("display_name"), mimeType=given.get("mimeType") or given.get("mime_type"))} if final else {}


def file_of(call) -> tuple[dict, bytes]:
    if (name := f"files/{call.name}") not in call.server.files: raise refused(403, f"You do not have permission to access the File {call.name} or it may not exist.")
    return call.server.files[name]


def delete_file(call) -> dict:
    del call.server.files[file_of(call)[0]["name"]]
    return {}


# Batches

def create_batch(call) -> dict:
    order, server = call.body["batch"], call.server
    given = order["inputConfig"]
    if source := given.get("fileName"):
        if source not in server.files: raise refused(404, f"File {source} is not found.")
        lines = [json.loads(line) for line in server.files[source][1].splitlines() if line.strip()]
    else: lines = given["requests"]["requests"]
    return describe(server.begin(server.new_name("batches/"), lines, finish, {**order, "model": f"models/{call.name}", "file": source}))


def finish(server, batch) -> None:
    "Answer a batch: in order within the message, in any order in a file; one that did not end well has no output."
    if batch.outcome != "completed": return
    entries = []
    for line in batch.lines:
        status, payload, _, _ = server.answer_line({"model": batch.order["model"], **line["request"]}, generate, error)
        told = {name: line[name] for name in ("key", "metadata") if name in line}
        entries.append({**told, **({"response": payload} if status == 200 else {"error": {name: payload["error"][name] for name in ("code", "message")}})})
    if batch.order["file"]:
        random.Random(len(entries)).shuffle(entries)
        batch.results["output"] = {"responsesFile": keep(server, "".join(json.dumps(entry) + "\n" for entry in entries).encode(), "GENERATED", mimeType="application/jsonl")["name"]}
    else: batch.results["output"] = {"inlinedResponses": {"inlinedResponses": entries}}
    batch.results["failed"] = sum("error" in entry for entry in entries)


def describe(batch) -> dict:
    "A batch as an operation."
    state = {"completed": "SUCCEEDED", None: "PENDING" if batch.share < .2 else "RUNNING"}.get(batch.outcome, (batch.outcome or "").upper())
    output, failed, total = batch.results.get("output"), batch.results.get("failed", 0), len(batch.lines)
    stats = {"requestCount": total, "successfulRequestCount": total - failed if output else 0, "failedRequestCount": failed, "pendingRequestCount": 0 if batch.outcome else total}
    metadata = {"@type": TYPE, "model": batch.order["model"], "displayName": batch.order.get("displayName", ""), "createTime": stamp(batch.begun), "updateTime": stamp(time.time()), "name": batch.name,
                "batchStats": {name: str(count) for name, count in stats.items() if count}, "state": f"BATCH_STATE_{state}", **({"endTime": stamp(time.time())} if batch.outcome else {}), **({"output": output} if output else {})}
    result = {None: {}, "completed": {"done": True, "response": {"@type": TYPE.replace("Batch", "BatchOutput"), **(output or {})}}}.get(batch.outcome, {"done": True, "error": {"code": 13, "message": f"The batch {batch.outcome}."}})
    return {"name": batch.name, "metadata": metadata, **result}


def batch_of(call):
    if (name := f"batches/{call.name}") not in call.server.batches: raise refused(404, "Requested entity was not found.")
    return call.server.batches[name]


def cancel(call) -> dict:
    batch = batch_of(call)
    if batch.outcome is None: call.server.end(batch, "cancelled", 0)
    return {}


def delete_batch(call) -> dict:
    del call.server.batches[batch_of(call).name]
    return {}


def list_batches(call) -> dict:
    "One page, the newest first."
    names, start, size = list(call.server.batches)[::-1], int(call.request.query.get("pageToken") or 0), int(call.request.query.get("pageSize", 50))
    return {"operations": [describe(call.server.batches[name]) for name in names[start:start + size]], **({"nextPageToken": str(start + size)} if start + size < len(names) else {})}


def model(call) -> dict: return {"name": f"models/{call.name}", "version": "1", "displayName": call.name, "inputTokenLimit": 1048576, "outputTokenLimit": 65536, "supportedGenerationMethods": [MODELS.get(call.name, "generateContent"), "countTokens"]}


def list_models(call) -> dict: return {"models": [{"name": f"models/{name}", "version": "1", "displayName": name, "inputTokenLimit": 1048576, "outputTokenLimit": 65536, "supportedGenerationMethods": [method, "countTokens"]} for name, method in MODELS.items()]}


ROUTES = {"POST models/*:generateContent": ("chat", generate), "POST models/*:countTokens": ("tokens", count), "POST models/*:embedContent": ("embeddings", embed_one),
          "POST models/*:batchEmbedContents": ("embeddings", lambda call: {"embeddings": embed(call, call.body.get("requests") or [])}), "POST models/*:batchGenerateContent": ("batches", create_batch),
          "GET batches": ("batches", list_batches), "GET batches/*": ("batches", lambda call: describe(batch_of(call))), "POST batches/*:cancel": ("batches", cancel), "DELETE batches/*": ("batches", delete_batch),
          "POST files": ("files", upload), "GET files/*": ("files", lambda call: file_of(call)[0]), "GET files/*:download": ("files", lambda call: file_of(call)[1]), "DELETE files/*": ("files", delete_file),
          "GET models": ("models", list_models), "GET models/*": ("models", model)}
PATH = re.compile(r"(?:/upload)?/(?:v1beta|v1)/(\w+)(?:/([^:]+)(:\w+)?)?$")


def find(method: str, path: str) -> tuple:  # endpoint, function, name in the path
    "What a path means."
    if not (found := PATH.match(path)): return "unknown", None, ""
    kind, name, action = found.groups()
    return *ROUTES.get(f"{method} {kind}{'/*' if name else ''}{action or ''}", ("unknown", None)), name or ""
