"""A Hugging Face hub on this machine with one repository: what the hub's own client asks for, and no more."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

NAME, COMMIT = "someone/some-set", "0123456789abcdef" * 2 + "01234567"


@dataclass
class LocalHub:
    """What is served, and what was fetched."""

    folder: Path
    made: list[dict[str, object]] = field(default_factory=list)  # repositories that were asked for
    refuses: int | None = None  # the status with which whatever is sent is refused
    fetched: list[tuple[str, int]] = field(default_factory=list)  # files whose content was asked for, and from where on
    cut_off: str | None = None  # a file whose content ends too early, once
    url: str = ""


@contextmanager
def serving(folder: Path, kind: str = "dataset") -> Iterator[LocalHub]:
    """Serve a folder as the dataset or model NAME with the one commit COMMIT, the branch main and the tag v3.0.

    What is sent to it is written into the folder: small files as they come in the commit, large ones before it.
    """
    hub = LocalHub(folder)
    uploaded: dict[str, bytes] = {}
    api, files_at = f"/api/{kind}s/{NAME}", f"/datasets/{NAME}" if kind == "dataset" else f"/{NAME}"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if re.fullmatch(rf"{api}(/revision/(main|v3\.0|{COMMIT}))?", path):
                names = sorted(str(f.relative_to(hub.folder)) for f in hub.folder.rglob("*") if f.is_file())
                self._json(200, {"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]})
            elif path == f"{api}/tree/{COMMIT}":
                files = [f for f in sorted(hub.folder.rglob("*")) if f.is_file()]
                self._json(
                    200,
                    [
                        {"type": "file", "path": str(f.relative_to(hub.folder)), "size": f.stat().st_size, "oid": "0"}
                        for f in files
                    ],
                )
            elif match := re.fullmatch(rf"{files_at}/resolve/(?:main|v3\.0|{COMMIT})/(.+)", path):
                self._file(match[1])
            else:
                revision = f"{api}/revision/" in path
                self._json(404, {"error": "not here"}, "RevisionNotFound" if revision else "RepoNotFound")

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            path = self.path.split("?")[0]
            if hub.refuses is not None:
                self._json(hub.refuses, {"error": "not yours"})
            elif path == "/api/repos/create":
                hub.made.append(json.loads(body))
                self._json(200, {"url": f"{hub.url}/{NAME}"})
            elif path == "/api/validate-yaml":
                self._json(200, {"errors": [], "warnings": []})
            elif path == f"{api}/preupload/main":
                asked = json.loads(body)["files"]
                modes = {f["path"]: "lfs" if f["path"].endswith(".safetensors") else "regular" for f in asked}
                files = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
                self._json(200, {"files": files})
            elif path == f"/{NAME}.git/info/lfs/objects/batch":
                objects = [
                    {**one, "actions": {"upload": {"href": f"{hub.url}/upload/{one['oid']}"}}}
                    for one in json.loads(body)["objects"]
                ]
                self._json(200, {"transfer": "basic", "objects": objects})
            elif path == f"{api}/commit/main":
                self._commit([json.loads(line) for line in body.splitlines()])
            else:
                self._json(404, {"error": "not here"}, "RepoNotFound")

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            oid = self.path.removeprefix("/upload/")
            assert hashlib.sha256(body).hexdigest() == oid
            uploaded[oid] = body
            self._json(200, {})

        def _commit(self, entries: list[dict[str, dict[str, str]]]) -> None:
            for entry in entries[1:]:
                value = entry["value"]
                large = entry["key"] == "lfsFile"
                file = hub.folder / value["path"]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(uploaded[value["oid"]] if large else base64.b64decode(value["content"]))
            self._json(200, {"commitUrl": f"{hub.url}/{NAME}/commit/{COMMIT}", "commitOid": COMMIT})

        def _json(self, status: int, values: object, code: str | None = None) -> None:
            body = json.dumps(values).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            if code is not None:
                self.send_header("X-Error-Code", code)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _file(self, name: str) -> None:
            file = hub.folder / name
            if not file.is_file():
                self._json(404, {"error": "not here"}, "EntryNotFound")
                return
            body = file.read_bytes()
            begin = int(match[1]) if (match := re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")) else 0
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(body) - begin))
            if begin:
                self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if self.command == "GET":
                hub.fetched.append((name, begin))
                if hub.cut_off == name:
                    hub.cut_off = None
                    self.wfile.write(body[begin : (begin + len(body)) // 2])
                    self.close_connection = True
                else:
                    self.wfile.write(body[begin:])

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serving_models(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """An empty model repository, as with HF_ENDPOINT, HF_TOKEN and HF_HUB_DISABLE_XET, which are read at import."""
    from huggingface_hub import constants

    (folder / "hub").mkdir()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    with serving(folder / "hub", "model") as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield hub
