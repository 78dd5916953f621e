"""A loopback stand-in for the W&B server: answers just enough, or hangs, or fails on purpose."""

from __future__ import annotations

import gzip
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class WandbServer:
    """Records every operation; ``behaviour`` is "answer", "hang", "fail" or "nonsense"."""

    def __init__(self, behaviour: str = "answer") -> None:
        self.behaviour = behaviour
        self.operations: list[tuple[str, dict]] = []
        self.history: list[dict] = []
        self.runs: dict[str, dict] = {}
        self.artifacts: dict[str, str] = {}
        self.stopped = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                self.answer({})

            def do_PUT(self) -> None:
                self.do_POST()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if server.behaviour == "hang":
                    server.stopped.wait(120)
                    return
                if server.behaviour == "fail":
                    self.answer({"errors": [{"message": "broken"}]}, 500)
                    return
                self.answer(server.reply(self.path, body))

            def answer(self, content: dict, status: int = 200) -> None:
                text = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.stopped.set()
        self.http.shutdown()
        self.http.server_close()

    def named(self, operation: str) -> list[dict]:
        return [variables for name, variables in self.operations if name == operation]

    def reply(self, path: str, body: bytes) -> dict:
        if path.endswith("/file_stream"):
            files = json.loads(body or b"{}").get("files") or {}
            lines = files.get("wandb-history.jsonl", {}).get("content", [])
            self.history += [json.loads(line) for line in lines]
            self.operations.append(("file_stream", {"path": path}))
            return {}
        if not path.endswith("/graphql"):
            self.operations.append((f"upload {path}", {}))
            return {}
        request = json.loads(body)
        match = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
        name = match.group(1) if match else ""
        variables = request.get("variables") or {}
        self.operations.append((name, variables))
        answer = getattr(self, f"on_{name}", lambda _: {})
        return {"data": {} if self.behaviour == "nonsense" else answer(variables)}

    def on_Viewer(self, _: dict) -> dict:
        return {"viewer": {"id": "V", "entity": "lab", "username": "lab", "flags": "{}"}}

    def on_GetDefaultEntity(self, _: dict) -> dict:
        return {"viewer": {"id": "V", "entity": "lab"}}

    def on_RunResumeStatus(self, asked: dict) -> dict:
        bucket = self.runs.get(asked["name"])
        if bucket is None:
            return {"model": None}
        lines = len(self.history)
        tail = json.dumps([json.dumps(self.history[-1])]) if lines else "[]"
        resumed = {
            "summaryMetrics": "{}",
            "logLineCount": 0,
            "historyLineCount": lines,
            "eventsLineCount": 0,
            "historyTail": tail,
            "eventsTail": "[]",
            "tags": [],
            "notes": None,
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"model": {**PROJECT, "bucket": {**bucket, **resumed}}}

    def on_UpsertBucket(self, asked: dict) -> dict:
        inserted = asked["name"] not in self.runs
        bucket = {
            "id": asked["name"],
            "name": asked["name"],
            "displayName": asked["displayName"],
            "description": None,
            "config": "{}",
            "sweepName": None,
            "project": PROJECT,
            "historyLineCount": 0,
        }
        self.runs.setdefault(asked["name"], bucket)
        return {"upsertBucket": {"bucket": self.runs[asked["name"]], "inserted": inserted}}

    def on_CreateRunFiles(self, asked: dict) -> dict:
        files = [{"name": name, "uploadUrl": f"{self.url}/up/{name}"} for name in asked["files"]]
        return {"createRunFiles": {"runID": asked["run"], "uploadHeaders": [], "files": files}}

    def on_ServerFeaturesQuery(self, _: dict) -> dict:
        return {"serverInfo": {"features": []}}

    def on_OrganizationCoreWeaveOrganizationID(self, _: dict) -> dict:
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}

    def on_ArtifactType(self, asked: dict) -> dict:
        kind = self.artifacts.get(asked["name"].removesuffix(":latest"))
        return {"project": {"artifact": {"artifactType": {"name": kind}} if kind else None}}

    def on_CreateArtifact(self, asked: dict) -> dict:
        name = asked["input"]["artifactCollectionName"]
        self.artifacts[name] = asked["input"]["artifactTypeName"]
        sequence = {"latestArtifact": {"id": name}}
        artifact = {"id": name, "state": "COMMITTED", "artifactSequence": sequence}
        return {"createArtifact": {"artifact": artifact}}

    def on_UseArtifact(self, asked: dict) -> dict:
        return {"useArtifact": {"artifact": {"id": asked.get("input", asked)["artifactID"]}}}

    def on_ArtifactByID(self, asked: dict) -> dict:
        return {"artifact": self.described(asked["id"])}

    def on_ArtifactMembershipByName(self, asked: dict) -> dict:
        name = asked["name"].removesuffix(":latest")
        if name not in self.artifacts:
            return {"project": {**PROJECT, "artifactCollectionMembership": None}}
        membership = {
            "__typename": "ArtifactCollectionMembership",
            "id": f"M{name}",
            "versionIndex": 0,
            "createdAt": "2026-01-01T00:00:00",
            "aliases": [{"__typename": "ArtifactAlias", "id": "A", "alias": "latest"}],
            "artifactCollection": {
                "__typename": "ArtifactSequence",
                "name": name,
                "project": PROJECT,
            },
            "artifact": self.described(name),
        }
        return {"project": {**PROJECT, "artifactCollectionMembership": membership}}

    def described(self, name: str) -> dict:
        return {
            "__typename": "Artifact",
            "id": name,
            "artifactSequence": {
                "__typename": "ArtifactSequence",
                "name": name,
                "project": PROJECT,
            },
            "versionIndex": 0,
            "artifactType": {"name": self.artifacts[name]},
            "description": None,
            "metadata": "{}",
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": None,
            "state": "COMMITTED",
            "size": 1,
            "digest": "0" * 32,
            "commitHash": "0" * 20,
            "fileCount": 1,
            "createdAt": "2026-01-01T00:00:00",
            "updatedAt": None,
            "aliases": [],
        }


PROJECT = {"id": "P", "internalId": "1", "name": "p", "entity": {"id": "E", "name": "lab"}}
