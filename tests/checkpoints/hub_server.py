"""A small Hugging Face Hub on this machine: the endpoints that pushing and loading a model use, with real commits.

    with HubServer() as hub:
        subprocess.run([...], env={..., "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN})
        hub.files("tester/model")

Repositories live in memory. What it cannot do: datasets, pull requests, xet (large files go through git-lfs).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

USER, TOKEN = "tester", "hf_of_the_tester"


@dataclass
class Repo:
    """A repository: what every commit holds, and which commit its branches point to."""

    name: str
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        content = {name: _digest(data) for name, data in files.items()}
        sha = _digest(json.dumps([len(self.commits), content], sort_keys=True).encode())[:40]
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str:
        """The commit that a branch or a commit's own name means."""
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise HubError(404, "RevisionNotFound")
        return sha


class HubError(Exception):
    """An answer with an error's status and the Hub's code for it."""

    def __init__(self, status: int, code: str, message: str = "", body: Any = None, **headers: str):
        super().__init__(code)
        self.status, self.body = status, body or {"error": message}
        self.headers = {"X-Error-Code": code, "X-Error-Message": message, **headers}


class HubServer:
    """The server, at `url`, with `repos` by "user/name"; in `cut` the endpoint of each whose connections break."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.cut: dict[str, str] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        repo = self.repos[repo_id]
        return repo.commits[repo.resolve(revision)]


class _Handler(BaseHTTPRequestHandler):
    """One request; a method `on_<endpoint>` answers it with JSON or with bytes and headers."""

    protocol_version = "HTTP/1.1"
    hub: HubServer

    ENDPOINTS = (
        ("POST", r"/api/repos/create", "create"),
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?", "info"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", "tree"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/(?P<repo>[^/]+/[^/]+)\.git/lfs/(?P<oid>\w+)", "lfs_upload"),
        ("GET|HEAD", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def log_message(self, *unused: object) -> None:
        pass

    def handle_any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        path = unquote(urlsplit(self.path).path)
        matches = [
            (name, match)
            for methods, pattern, name in self.ENDPOINTS
            if self.command in methods.split("|") and (match := re.fullmatch(pattern, path))
        ]
        if not matches:
            self.rfile.read(length)
            return self.answer(404, b"", {"X-Error-Message": f"no endpoint {self.command} {path}"})
        ((name, match),) = matches
        arguments = {key: value for key, value in match.groupdict().items() if value is not None}
        if self.hub.cut.get(arguments.get("repo", "")) == name:
            self.rfile.read(length // 2)
            self.close_connection = True
            return self.connection.close()
        self.body = self.rfile.read(length)
        try:
            if "repo" in arguments and name != "lfs_upload":  # whose address is the permission, as in real storage
                arguments["repo"] = self.find(arguments["repo"])
            result = getattr(self, f"on_{name}")(**arguments)
            data, headers = result if isinstance(result, tuple) else (json.dumps(result).encode(), {})
            self.answer(200, data, headers)
        except HubError as error:
            headers = {name: value for name, value in error.headers.items() if value}
            self.answer(error.status, json.dumps(error.body).encode(), headers)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

    def answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def has_user(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def needs_user(self) -> None:
        if not self.has_user():
            raise HubError(401, "", "Invalid username or password.")

    def find(self, name: str) -> Repo:
        """The repository, which the Hub says is not there where it is private."""
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self.has_user()):
            raise HubError(404 if self.has_user() else 401, "RepoNotFound", "Repository not found")
        return repo

    def on_create(self) -> Any:
        self.needs_user()
        wanted = json.loads(self.body)
        owner = wanted.get("organization") or USER
        if owner != USER:
            raise HubError(403, "", f"You don't have the rights to create a model under the namespace {owner!r}")
        name = f"{owner}/{wanted['name']}"
        address = {"url": f"{self.hub.url}/{name}", "id": name}
        if name in self.hub.repos:
            raise HubError(409, "", "You already created this model repo", address)
        private = wanted.get("visibility") == "private" or wanted.get("private") is True
        repo = self.hub.repos[name] = Repo(name, private)
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        return address

    def on_whoami(self) -> Any:
        self.needs_user()
        return {"name": USER, "type": "user", "orgs": []}

    def on_validate_yaml(self) -> Any:
        return {"errors": [], "warnings": []}

    def on_info(self, repo: Repo, revision: str = "main") -> Any:
        sha = repo.resolve(revision)
        siblings = [{"rfilename": path} for path in repo.commits[sha]]
        return {"id": repo.name, "sha": sha, "private": repo.private, "siblings": siblings, "tags": []}

    def on_tree(self, repo: Repo, revision: str, path: str = "") -> Any:
        files = repo.commits[repo.resolve(revision)]
        return [
            {"type": "file", "path": name, "size": len(data), "oid": _digest(data)}
            for name, data in files.items()
            if not path or name.startswith(f"{path}/")
        ]

    def on_preupload(self, repo: Repo, revision: str) -> Any:
        self.needs_user()
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        modes = ["lfs" if path.endswith((".safetensors", ".bin", ".onnx")) else "regular" for path in paths]
        return {
            "files": [
                {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": None}
                for path, mode in zip(paths, modes, strict=True)
            ]
        }

    def on_lfs_batch(self, repo: Repo) -> Any:
        self.needs_user()
        upload = f"{self.hub.url}/{repo.name}.git/lfs"
        objects = [
            {**wanted, "actions": {"upload": {"href": f"{upload}/{wanted['oid']}", "header": {}}}}
            for wanted in json.loads(self.body)["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    def on_lfs_upload(self, repo: str, oid: str) -> Any:
        assert _digest(self.body) == oid
        self.hub.blobs[oid] = self.body
        return {}

    def on_commit(self, repo: Repo, revision: str) -> Any:
        self.needs_user()
        files = dict(repo.commits[repo.branches[revision]])
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        sha = repo.commit(revision, files)
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo.name}/commit/{sha}"}

    def on_resolve(self, repo: Repo, revision: str, path: str) -> Any:
        sha = repo.resolve(revision)
        if path not in repo.commits[sha]:
            raise HubError(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": sha})
        data = repo.commits[sha][path]
        return data, {"X-Repo-Commit": sha, "ETag": f'"{_digest(data)}"'}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
