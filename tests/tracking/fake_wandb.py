"""As much of a wandb server as a run needs, on 127.0.0.1: what the client sends is kept for tests to look at."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY, PROJECT = "somebody", "atlas-vla"


class FakeWandb(ThreadingHTTPServer):
    """`url` goes into WANDB_BASE_URL; `stop` makes the server ask for the run to be stopped."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.stop = False
        self.operations: list[str] = []
        self.run_variables: list[dict[str, Any]] = []
        self.history: list[dict[str, Any]] = []
        self.exit_codes: list[int] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        self.operations.append(operation)
        if operation == "UpsertBucket":
            self.run_variables.append(variables)
            project = {"name": PROJECT, "entity": {"name": ENTITY}}
            name = variables.get("name", "run")
            bucket = {
                "id": name,
                "name": name,
                "displayName": variables.get("displayName") or name,
                "description": None,
                "config": None,
                "sweepName": None,
                "project": project,
                "historyLineCount": 0,
            }
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if operation == "CreateRunFiles":
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": []}}
        if operation == "Viewer":
            return {"viewer": {"id": "1", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}}
        if operation == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if operation == "RunResumeStatus":
            return {"model": None}
        return {}

    def take_stream(self, body: dict[str, Any]) -> None:
        lines = body.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
        self.history.extend(json.loads(line) for line in lines)
        if body.get("complete"):
            self.exit_codes.append(body["exitcode"])


class _Handler(BaseHTTPRequestHandler):
    server: FakeWandb

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        if self.path.endswith("/graphql"):
            name = body.get("operationName") or body.get("query", "").split("(")[0].split("{")[0].split()[-1]
            self._reply({"data": self.server.answer(name, body.get("variables") or {})})
        else:
            self.server.take_stream(body)
            self._reply({"stopped": self.server.stop})

    def _reply(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""
