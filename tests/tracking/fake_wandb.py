"""As much of a wandb server as a run needs, on 127.0.0.1; tests may look at what the client sends."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from fake_artifacts import ArtifactStore, Refused

ENTITY, PROJECT = "somebody", "atlas-vla"


class FakeWandb(ThreadingHTTPServer):
    """`url` goes into WANDB_BASE_URL; `stop` makes the server ask for the run to be stopped.

    runs: by their id, what the server has been told; a run that is in it can be resumed. artifacts: see there.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.stop = False
        self.operations: list[str] = []
        self.run_variables: list[dict[str, Any]] = []
        self.runs: dict[str, dict[str, Any]] = {}
        self.history: list[dict[str, Any]] = []
        self.exit_codes: list[int] = []
        self.artifacts = ArtifactStore(lambda: self.url)
        self.closing = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def server_close(self) -> None:
        self.closing.set()
        self.shutdown()
        super().server_close()

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The `data` of a GraphQL answer. Raises Refused."""
        self.operations.append(operation)
        answer = self.artifacts.answer(operation, variables)
        if answer is not None:
            return answer
        if operation == "UpsertBucket":
            self.run_variables.append(variables)
            return {"upsertBucket": self._upsert_run(variables)}
        if operation == "RunResumeStatus":
            return {"model": self._resume_status(variables)}
        if operation == "CreateRunFiles":
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": []}}
        if operation in ("Viewer", "GetDefaultEntity"):
            return {"viewer": {"id": "1", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}}
        if operation == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        return {}

    def _upsert_run(self, variables: dict[str, Any]) -> dict[str, Any]:
        id = variables.get("name") or "run"
        inserted = id not in self.runs
        run = self.runs.setdefault(id, {"rows": []})
        run.update({key: value for key, value in variables.items() if value is not None})
        bucket = {
            "id": id,
            "name": id,
            "displayName": run.get("displayName") or id,
            "description": None,
            "config": None,
            "sweepName": run.get("sweep"),
            "project": {
                "id": "1",
                "name": variables.get("project") or PROJECT,
                "entity": {"id": "1", "name": variables.get("entity") or ENTITY},
            },
            "historyLineCount": len(run["rows"]),
        }
        return {"bucket": bucket, "inserted": inserted}

    def _resume_status(self, variables: dict[str, Any]) -> dict[str, Any] | None:
        run = self.runs.get(variables["name"])
        if run is None:
            return None
        rows = run["rows"]
        bucket = {
            "id": variables["name"],
            "name": variables["name"],
            "displayName": run.get("displayName"),
            "summaryMetrics": json.dumps(rows[-1] if rows else {}),
            "logLineCount": 0,
            "historyLineCount": len(rows),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]),
            "eventsTail": "[]",
            "config": run.get("config") or "{}",
            "tags": run.get("tags") or [],
            "notes": run.get("notes"),
            "wandbConfig": json.dumps({"t": 1}),
        }
        project = variables.get("project") or PROJECT
        return {"id": "1", "name": project, "entity": {"id": "1", "name": ENTITY}, "bucket": bucket}

    def take_stream(self, run: str, body: dict[str, Any]) -> None:
        """Keep what a run sends of its history, and how it ended."""
        files = body.get("files", {})
        printed = files.get("output.log", {}).get("content", [])
        self.runs.setdefault(run, {"rows": []}).setdefault("output", []).extend(printed)
        events = files.get("wandb-events.jsonl", {}).get("content", [])
        self.runs[run].setdefault("events", []).extend(json.loads(line) for line in events)
        lines = files.get("wandb-history.jsonl", {}).get("content", [])
        rows = [json.loads(line) for line in lines]
        self.history.extend(rows)
        self.runs.setdefault(run, {"rows": []})["rows"].extend(rows)
        if body.get("complete"):
            self.exit_codes.append(body["exitcode"])


class _Handler(BaseHTTPRequestHandler):
    server: FakeWandb

    def do_POST(self) -> None:
        body = json.loads(self._body() or b"{}")
        if self.path.endswith("/graphql"):
            name = body.get("operationName") or body.get("query", "").split("(")[0].split("{")[0].split()[-1]
            try:
                self._reply({"data": self.server.answer(name, body.get("variables") or {})})
            except Refused as refusal:
                self._reply({"data": None, "errors": [{"message": str(refusal)}]})
        else:
            self.server.take_stream(self.path.split("/")[-2], body)
            self._reply({"stopped": self.server.stop})

    def do_PUT(self) -> None:
        data = self._body()
        if self.server.artifacts.silent_files and "/files/" in self.path:
            self.server.closing.wait()
            return
        self._send(self.server.artifacts.put(self.path.removeprefix("/storage/"), data), b"")

    def do_GET(self) -> None:
        if self.server.artifacts.silent_files:
            self.server.closing.wait()
            return
        data = self.server.artifacts.get(self.path.removeprefix("/storage/"))
        self._send(404 if data is None else 200, data or b"")

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _reply(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), "application/json")

    def _send(self, status: int, data: bytes, kind: str = "application/octet-stream") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""
