"""A stand-in for a cluster's API that real kubectl speaks to: deployments that become ready, and an autoscaler. It keeps every change."""

import copy
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

APPS, SCALING = "apps/v1", "autoscaling/v2"
RESOURCES = {APPS: [{"name": "deployments", "singularName": "deployment", "namespaced": True, "kind": "Deployment", "verbs": ["get", "list", "watch", "patch", "update"], "shortNames": ["deploy"]},
                    {"name": "deployments/scale", "singularName": "", "namespaced": True, "kind": "Scale", "group": "autoscaling", "version": "v1", "verbs": ["get", "patch", "update"]}],
             SCALING: [{"name": "horizontalpodautoscalers", "singularName": "horizontalpodautoscaler", "namespaced": True, "kind": "HorizontalPodAutoscaler", "verbs": ["get", "list", "patch"], "shortNames": ["hpa"]}]}


def deployment(name: str, image: str, replicas: int, container: str = "api") -> dict:
    return {"apiVersion": APPS, "kind": "Deployment", "metadata": {"name": name, "namespace": "ssr-prod", "generation": 1, "resourceVersion": "1", "annotations": {}},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": container, "image": image}]}}}}


def merge(target: dict, patch: dict) -> dict:
    "A merge patch; containers go by their name, as a strategic one has it."
    for key, value in patch.items():
        if value is None: target.pop(key, None)
        elif isinstance(value, dict): target[key] = merge(target.get(key) or {}, value)
        elif key == "containers":
            for one in value: merge(next(old for old in target[key] if old["name"] == one["name"]), one)
        elif not key.startswith("$setElementOrder"): target[key] = value
    return target


class Cluster:
    "What the cluster holds; what was changed, in order; images whose pods never become ready."
    def __init__(self, image: str):
        self.objects = {("deployments", one["metadata"]["name"]): one for one in (deployment("ssr-api-stable", image, 4), deployment("ssr-api-canary", image, 0),
                        *(deployment(name, image, 2, name) for name in ("celery-worker", "celery-beat", "flower")))}
        self.objects["horizontalpodautoscalers", "ssr-api-hpa"] = {"apiVersion": SCALING, "kind": "HorizontalPodAutoscaler", "metadata": {"name": "ssr-api-hpa", "namespace": "ssr-prod", "resourceVersion": "1"}, "spec": {"minReplicas": 3, "maxReplicas": 20}}
        self.changes: list[tuple] = []
        self.broken: set[str] = set()
        self.lock = threading.Lock()

    def image(self, name: str) -> str: return self.objects["deployments", name]["spec"]["template"]["spec"]["containers"][0]["image"]

    def replicas(self, name: str) -> int: return self.objects["deployments", name]["spec"]["replicas"]

    @property
    def bounds(self) -> tuple[int, int]:
        spec = self.objects["horizontalpodautoscalers", "ssr-api-hpa"]["spec"]
        return spec["minReplicas"], spec["maxReplicas"]

    def shown(self, found: dict) -> dict:
        "With the status of a deployment whose pods came up at once, or never."
        one = copy.deepcopy(found)
        if one["kind"] == "Deployment":
            count, well = one["spec"]["replicas"], one["spec"]["template"]["spec"]["containers"][0]["image"] not in self.broken
            one["status"] = {"observedGeneration": one["metadata"]["generation"], "replicas": count, "updatedReplicas": count, "readyReplicas": count * well, "availableReplicas": count * well, "unavailableReplicas": count * (not well)}
        return one

    def change(self, kind: str, name: str, patch: dict) -> None:
        with self.lock:
            one = self.objects[kind, name]
            merge(one, patch)
            one["metadata"]["resourceVersion"] = str(int(one["metadata"]["resourceVersion"]) + 1)
            if kind == "deployments": one["metadata"]["generation"] += 1
            if kind == "deployments" and "replicas" in patch.get("spec", {}): self.changes.append((name, patch["spec"]["replicas"]))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_): pass

    def reply(self, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def missing(self, name: str) -> None: self.reply(404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "message": f"{name} not found", "code": 404})

    def scale(self, one: dict) -> dict:
        return {"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {name: one["metadata"][name] for name in ("name", "namespace", "resourceVersion")}, "spec": {"replicas": one["spec"]["replicas"]}, "status": {"replicas": one["spec"]["replicas"]}}

    def do(self) -> None:
        cluster, url = self.server.cluster, urlsplit(self.path)
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"null")
        parts = url.path.strip("/").split("/")
        if url.path == "/api": return self.reply(200, {"kind": "APIVersions", "versions": ["v1"]})
        if url.path == "/api/v1": return self.reply(200, {"kind": "APIResourceList", "groupVersion": "v1", "resources": []})
        if url.path == "/apis": return self.reply(200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": [{"name": one.split("/")[0], "versions": [{"groupVersion": one, "version": one.split("/")[1]}], "preferredVersion": {"groupVersion": one, "version": one.split("/")[1]}} for one in RESOURCES]})
        if len(parts) == 3 and "/".join(parts[1:]) in RESOURCES: return self.reply(200, {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "/".join(parts[1:]), "resources": RESOURCES["/".join(parts[1:])]})
        if len(parts) < 6 or parts[3:5] != ["namespaces", "ssr-prod"]: return self.missing(url.path)
        kind, names = parts[5], parts[6:]
        if not names:  # a list, or a watch of one that is ready already
            chosen = parse_qs(url.query).get("fieldSelector", [""])[0].removeprefix("metadata.name=")
            found = [cluster.shown(one) for (of, name), one in cluster.objects.items() if of == kind and name == (chosen or name)]
            return self.reply(200, {"kind": "DeploymentList", "apiVersion": APPS, "metadata": {"resourceVersion": "1"}, "items": found})
        if (kind, names[0]) not in cluster.objects: return self.missing(f"{kind} \"{names[0]}\"")
        if self.command in ("PATCH", "PUT"): cluster.change(kind, names[0], {"spec": {"replicas": body["spec"]["replicas"]}} if names[1:] == ["scale"] else body)
        one = cluster.objects[kind, names[0]]
        self.reply(200, self.scale(one) if names[1:] == ["scale"] else cluster.shown(one))

    do_GET = do_PATCH = do_PUT = do


def start(cluster: Cluster) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.cluster = cluster
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
