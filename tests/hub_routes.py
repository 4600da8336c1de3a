"""What the loopback Hub answers: one method a route."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from hub_handler import HttpHandler
from hub_store import Commit, Entry, HubError, Repository, is_ignored, is_lfs, lfs_pointer

REPOSITORY = r"/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
PAGE = r"/(?:(?P<kind>datasets|spaces)/)?(?P<name>[^/]+/[^/]+?)"

# Method, path, and the handler's method that gets the path's named parts.
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/validate-yaml", "validate_card"),
    ("POST", r"/api/repos/create", "create_repository"),
    ("DELETE", r"/api/repos/delete", "delete_repository"),
    ("GET", REPOSITORY + r"(?:/revision/(?P<revision>[^/]+))?", "information"),
    ("GET", REPOSITORY + r"/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", "tree"),
    ("POST", REPOSITORY + r"/paths-info/(?P<revision>[^/]+)", "paths_information"),
    ("GET", REPOSITORY + r"/refs", "refs"),
    ("GET", REPOSITORY + r"/commits/(?P<revision>[^/]+)", "commits"),
    ("GET", REPOSITORY + r"/auth-check(?P<write>/write)?", "check_access"),
    ("GET", REPOSITORY + r"/discussions", "discussions"),
    ("PUT", REPOSITORY + r"/settings", "change_settings"),
    ("POST", REPOSITORY + r"/branch/(?P<branch>[^/]+)", "create_branch"),
    ("DELETE", REPOSITORY + r"/branch/(?P<branch>[^/]+)", "delete_branch"),
    ("POST", REPOSITORY + r"/tag/(?P<revision>[^/]+)", "create_tag"),
    ("DELETE", REPOSITORY + r"/tag/(?P<tag>[^/]+)", "delete_tag"),
    ("POST", REPOSITORY + r"/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", REPOSITORY + r"/commit/(?P<branch>[^/]+)", "commit"),
    ("POST", PAGE + r"\.git/info/lfs/objects/batch", "lfs_batch"),
    ("POST", PAGE + r"\.git/info/lfs/objects/verify", "lfs_verify"),
    ("GET", PAGE + r"/(?:resolve|raw)/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    ("POST", r"/control/faults", "add_fault"),
    ("DELETE", r"/control/faults", "remove_faults"),
    ("GET", r"/control/requests", "list_requests"),
]
STORAGE_ROUTES = [
    ("GET", r"/objects/(?P<sha256>\w+)", "stored"),
    ("PUT", r"/objects/(?P<sha256>\w+)", "store"),
    ("PUT", r"/parts/(?P<sha256>\w+)/(?P<number>\d+)", "store_part"),
    ("POST", r"/parts/(?P<sha256>\w+)", "join_parts"),
]


class HubHandler(HttpHandler):
    """Answers of the API and of the storage of large files."""

    def respond(self) -> None:
        """Find the route and take it."""
        is_storage = self.server.server_port == urlsplit(self.hub.storage_url).port
        if is_storage and "authorization" in self.headers:
            raise HubError(400, "Only one auth mechanism allowed")
        method = "GET" if self.command == "HEAD" else self.command
        for route_method, pattern, name in STORAGE_ROUTES if is_storage else ROUTES:
            match = re.fullmatch(pattern, self.url.path)
            if route_method == method and match:
                parts = {key: value and unquote(value) for key, value in match.groupdict().items()}
                if "kind" in parts:
                    parts["kind"] = parts["kind"] or "models"
                getattr(self, name)(**parts)
                return
        raise HubError(404, "Sorry, we can't find the page you are looking for.")

    def _role(self) -> str | None:
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.roles:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.hub.roles.get(token)

    def _check_write(self, name: str) -> None:
        role = self._role()
        if role is None:
            raise HubError(401, "Invalid username or password.")
        if role != "write":
            raise HubError(403, "Forbidden: you must use a write token to upload to a repository.")
        if name.split("/")[0] not in self.hub.namespaces:
            raise HubError(403, f"You don't have the rights to write to {name}")

    def _repository(self, kind: str, name: str, write: bool = False, content: bool = False) -> Repository:
        """The repository, if this request may see it, write it, or read its content."""
        role = self._role()
        hidden = HubError(404 if role else 401, "Repository not found", "RepoNotFound")
        is_member = role is not None and name.split("/")[0] in self.hub.namespaces
        try:
            repository = self.hub.store.get(kind, name)
        except HubError:
            raise hidden from None
        settings = repository.settings
        if settings["private"] and not is_member:
            raise hidden
        if content and settings["gated"] and not is_member:
            raise HubError(403 if role else 401, f"Access to {kind[:-1]} {name} is restricted.", "GatedRepo")
        if write:
            self._check_write(name)
        return repository

    # Accounts and repositories.

    def whoami(self) -> None:
        role = self._role()
        if role is None:
            raise HubError(401, "Invalid username or password.")
        user, *others = self.hub.namespaces
        organizations = [{"type": "org", "id": name, "name": name, "fullname": name} for name in others]
        access = {"type": "access_token", "accessToken": {"displayName": "tests", "role": role}}
        self.answer({"type": "user", "id": user, "name": user, "fullname": user, "orgs": organizations, "auth": access})

    def validate_card(self) -> None:
        from hub_cards import check_card

        request = self.json()
        errors, warnings = check_card(request["content"], request.get("repoType") or "model")
        if errors and "text/plain" in self.headers.get("accept", ""):
            content = "\n".join(errors).encode()
            self.send(400, {"Content-Type": "text/plain", "Content-Length": str(len(content))}, [content])
            return
        value = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
        self.answer(value, 400 if errors else 200)

    def create_repository(self) -> None:
        request = self.json()
        kind = f"{request.get('type') or 'model'}s"
        name = f"{request.get('organization') or self.hub.namespaces[0]}/{request['name']}"
        self._check_write(name)
        address = f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{name}"
        is_private = bool(request.get("private")) or request.get("visibility") == "private"
        try:
            self.hub.store.create(kind, name, is_private)
        except HubError as error:
            self.answer({"error": str(error), "url": address}, error.status)
            return
        self.answer({"url": address, "name": name, "id": name})

    def delete_repository(self) -> None:
        request = self.json()
        kind = f"{request.get('type') or 'model'}s"
        name = f"{request.get('organization') or self.hub.namespaces[0]}/{request['name']}"
        self.hub.store.delete(self._repository(kind, name, write=True))
        self.answer()

    def change_settings(self, kind: str, name: str) -> None:
        request = self.json()
        repository = self._repository(kind, name, write=True)
        if "visibility" in request:
            request["private"] = request["visibility"] == "private"
        repository.save(**{key: request[key] for key in ("private", "gated") if key in request})
        self.answer({key: repository.settings[key] for key in ("private", "gated")})

    def check_access(self, kind: str, name: str, write: str | None) -> None:
        self._repository(kind, name, write=write is not None, content=True)
        self.answer()

    def discussions(self, kind: str, name: str) -> None:
        self._repository(kind, name)
        self.answer({"discussions": [], "count": 0, "start": 0})

    def information(self, kind: str, name: str, revision: str | None) -> None:
        from hub_cards import card_metadata

        repository = self._repository(kind, name)
        commit = repository.commit(revision or "main")
        first = list(repository.history(commit.oid))[-1]
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        if "blobs" in self.query:
            siblings = [
                {"rfilename": file["path"], "size": file["size"], "blobId": file["oid"]}
                | ({"lfs": file["lfs"] | {"sha256": file["lfs"]["oid"]}} if "lfs" in file else {})
                for file in (self._file(path, commit.files[path]) for path in sorted(commit.files))
            ]
        card = card_metadata(repository, commit)
        value = {
            "_id": first.oid[:24],
            "id": name,
            "author": name.split("/")[0],
            "sha": commit.oid,
            "lastModified": commit.date,
            "createdAt": first.date,
            "private": repository.settings["private"],
            "gated": repository.settings["gated"],
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [*card.get("tags", []), *(f"license:{card[key]}" for key in ("license",) if key in card)],
            "cardData": card,
            "siblings": siblings,
        }
        if kind == "models":
            value |= {
                "modelId": name,
                "library_name": card.get("library_name"),
                "pipeline_tag": card.get("pipeline_tag"),
            }
            value |= {"model-index": card.get("model-index")}
        if asked := self.query.get("expand", []) + self.query.get("expand[]", []):
            value = {key: value[key] for key in ("_id", "id", *asked) if key in value}
        self.answer(value)

    # Files.

    def _file(self, path: str, entry: Entry) -> dict[str, Any]:
        value: dict[str, Any] = {"type": "file", "path": path, "size": entry.size, "oid": entry.oid}
        if entry.lfs:
            pointer = len(lfs_pointer(entry.sha256, entry.size))
            value["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": pointer}
        return value

    def _listing(self, repository: Repository, commit: Commit, expand: bool) -> dict[str, dict[str, Any]]:
        """All files and folders by path."""
        folders = {"/".join(path.split("/")[:end]) for path in commit.files for end in range(1, path.count("/") + 1)}
        listing = {path: {"type": "directory", "path": path, "size": 0, "oid": commit.oid} for path in folders}
        listing |= {path: self._file(path, entry) for path, entry in commit.files.items()}
        if expand:
            # From the newest: the last commit of a path is the one before which it was not the same.
            history = list(repository.history(commit.oid))
            for path, value in listing.items():
                last = next(
                    newer
                    for newer, older in zip(history, [*history[1:], None], strict=True)
                    if older is None or _below(newer, path) != _below(older, path)
                )
                value["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.date}
        return {path: listing[path] for path in sorted(listing)}

    def tree(self, kind: str, name: str, revision: str, path: str | None) -> None:
        repository = self._repository(kind, name)
        commit = repository.commit(revision)
        listing = self._listing(repository, commit, self._flag("expand"))
        prefix = f"{path.strip('/')}/" if path else ""
        found = [value for key, value in listing.items() if key.startswith(prefix)]
        if not found:
            raise HubError(404, f"{path} does not exist on {revision!r}", "EntryNotFound", commit.oid)
        if not self._flag("recursive"):
            found = [value for value in found if "/" not in value["path"][len(prefix) :]]
        self._answer_page(found)

    def _flag(self, name: str) -> bool:
        return self.query.get(name, [""])[0].lower() in ("1", "true")

    def _answer_page(self, values: list[Any]) -> None:
        start = int(self.query.get("cursor", ["0"])[0])
        end = start + self.hub.page_size
        headers = {}
        if end < len(values):
            query = urlencode({key: value[0] for key, value in self.query.items()} | {"cursor": end})
            headers["Link"] = f'<{self.hub.url}{self.url.path}?{query}>; rel="next"'
        self.answer(values[start:end], headers=headers)

    def paths_information(self, kind: str, name: str, revision: str) -> None:
        form = parse_qs(b"".join(self.body).decode())
        repository = self._repository(kind, name)
        is_expanded = form.get("expand", [""])[0].lower() == "true"
        listing = self._listing(repository, repository.commit(revision), is_expanded)
        self.answer([listing[path] for path in form.get("paths", []) if path in listing])

    def resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        repository = self._repository(kind, name, content=True)
        commit = repository.commit(revision)
        entry = repository.entry(path, commit)
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{entry.etag()}"'}
        if not entry.lfs:
            self._send_content(self.hub.store.blob(entry.sha256), headers)
            return
        location = f"{self.hub.storage_url}/objects/{entry.sha256}"
        headers |= {"Location": location, "Content-Length": "0"}
        headers |= {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
        self.send(302, headers, [])

    def _send_content(self, path: Path, headers: dict[str, str]) -> None:
        """Send a file, or the asked range of it."""
        size = path.stat().st_size
        start, end, status = 0, size, 200
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("range", ""))
        if match and any(match.groups()):
            first, last = match.groups()
            start = int(first) if first else max(size - int(last), 0)
            end = min(int(last) + 1, size) if first and last else size
            if start >= end:
                self.answer(None, 416, {"Content-Range": f"bytes */{size}"})
                return
            status = 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        headers |= {"Accept-Ranges": "bytes", "Content-Length": str(end - start)}
        self.send(status, {"Content-Type": "application/octet-stream"} | headers, _pieces(path, start, end))

    # Revisions.

    def refs(self, kind: str, name: str) -> None:
        settings = self._repository(kind, name).settings

        def listed(names: dict[str, str], folder: str) -> list[dict[str, str]]:
            return [{"name": key, "ref": f"refs/{folder}/{key}", "targetCommit": oid} for key, oid in names.items()]

        branches, tags = listed(settings["branches"], "heads"), listed(settings["tags"], "tags")
        self.answer({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})

    def commits(self, kind: str, name: str, revision: str) -> None:
        self._answer_page(
            [
                {
                    "id": commit.oid,
                    "title": commit.title,
                    "message": commit.message,
                    "date": commit.date,
                    "authors": [{"user": commit.author}],
                }
                for commit in self._repository(kind, name).history(revision)
            ]
        )

    def create_branch(self, kind: str, name: str, branch: str) -> None:
        start = self.json().get("startingPoint", "main")
        self._add_ref(self._repository(kind, name, write=True), "branches", branch, start)

    def create_tag(self, kind: str, name: str, revision: str) -> None:
        tag = self.json()["tag"]
        self._add_ref(self._repository(kind, name, write=True), "tags", tag, revision)

    def _add_ref(self, repository: Repository, kind: str, name: str, revision: str) -> None:
        with self.hub.store.lock:
            refs = repository.settings[kind]
            if name in refs:
                raise HubError(409, f"Reference already exists: {name}")
            repository.save(**{kind: refs | {name: repository.resolve(revision)}})
        self.answer(status=201)

    def delete_branch(self, kind: str, name: str, branch: str) -> None:
        if branch == "main":
            raise HubError(403, "Cannot delete the main branch")
        self._delete_ref(self._repository(kind, name, write=True), "branches", branch)

    def delete_tag(self, kind: str, name: str, tag: str) -> None:
        self._delete_ref(self._repository(kind, name, write=True), "tags", tag)

    def _delete_ref(self, repository: Repository, kind: str, name: str) -> None:
        with self.hub.store.lock:
            refs = repository.settings[kind]
            if name not in refs:
                raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
            repository.save(**{kind: {key: oid for key, oid in refs.items() if key != name}})
        self.answer()

    # Uploads.

    def preupload(self, kind: str, name: str, revision: str) -> None:
        request = self.json()
        repository = self._repository(kind, name, write=True)
        commit = repository.commit(revision)
        gitignore = request.get("gitIgnore")
        if gitignore is None and ".gitignore" in commit.files:
            gitignore = repository.file(".gitignore", commit.oid).decode()
        answer = []
        for file in request["files"]:
            path = file["path"]
            value = {"path": path, "uploadMode": "lfs" if is_lfs(kind, path, file["size"]) else "regular"}
            value["shouldIgnore"] = is_ignored(path, gitignore or "")
            if path in commit.files:
                value["oid"] = commit.files[path].etag()
            answer.append(value)
        self.answer({"files": answer})

    def lfs_batch(self, kind: str, name: str) -> None:
        request = self.json()
        self._repository(kind, name, write=True)
        page = self.url.path.removesuffix("/batch")
        verify = {"href": f"{self.hub.url}{page}/verify", "header": {}}
        objects = []
        for value in request["objects"]:
            sha256, size = value["oid"], value["size"]
            answer: dict[str, Any] = {"oid": sha256, "size": size}
            if not self.hub.store.blob(sha256).is_file():
                answer["actions"] = {"upload": self._upload_action(sha256, size), "verify": verify}
            objects.append(answer)
        self.answer({"transfer": "basic", "objects": objects})

    def _upload_action(self, sha256: str, size: int) -> dict[str, Any]:
        part = self.hub.multipart_size
        if size <= part:
            return {"href": f"{self.hub.storage_url}/objects/{sha256}", "header": {}}
        parts = f"{self.hub.storage_url}/parts/{sha256}"
        numbers = range(1, -(-size // part) + 1)
        return {"href": parts, "header": {"chunk_size": str(part)} | {str(n): f"{parts}/{n}" for n in numbers}}

    def lfs_verify(self, kind: str, name: str) -> None:
        request = self.json()
        self._repository(kind, name, write=True)
        if self.hub.store.lfs_entry(request["oid"]).size != request["size"]:
            raise HubError(400, f"{request['oid']} is not of {request['size']} bytes")
        self.answer({})

    def commit(self, kind: str, name: str, branch: str) -> None:
        lines = [json.loads(line) for line in b"".join(self.body).splitlines() if line.strip()]
        repository = self._repository(kind, name, write=True)
        if self._flag("create_pr"):
            raise HubError(403, "Pull requests are not supported")
        header = next(line["value"] for line in lines if line["key"] == "header")
        operations: list[tuple[str, str, Entry | None]] = []
        for operation, value in ((line["key"], line["value"]) for line in lines if line["key"] != "header"):
            entry = None
            if operation == "file":
                entry = self.hub.store.add(base64.b64decode(value["content"]))
            elif operation == "lfsFile":
                entry = self.hub.store.lfs_entry(value["oid"])
            elif operation not in ("deletedFile", "deletedFolder"):
                raise HubError(400, f"Unknown operation {operation}")
            operations.append((operation, value["path"], entry))
        oid = repository.add_commit(
            operations,
            header["summary"],
            header.get("description", ""),
            self.hub.namespaces[0],
            branch,
            header.get("parentCommit"),
        )
        page = f"{'' if kind == 'models' else kind + '/'}{name}"
        self.answer({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{page}/commit/{oid}"})

    # The storage of large files.

    def stored(self, sha256: str) -> None:
        path = self.hub.store.blob(sha256)
        if not path.is_file():
            raise HubError(404, "NoSuchKey")
        self._send_content(path, {"ETag": f'"{sha256}"'})

    def store(self, sha256: str) -> None:
        self.hub.store.receive(self.body, sha256)
        self.answer(headers={"ETag": f'"{sha256}"'})

    def store_part(self, sha256: str, number: str) -> None:
        self.answer(headers={"ETag": f'"{self.hub.store.receive(self.body)}"'})

    def join_parts(self, sha256: str) -> None:
        parts = sorted(self.json()["parts"], key=lambda part: part["partNumber"])
        paths = [self.hub.store.blob(part["etag"].strip('"')) for part in parts]
        self.hub.store.receive((path.read_bytes() for path in paths), sha256)
        self.answer({})

    # From other processes.

    def add_fault(self) -> None:
        try:
            self.hub.fail(**self.json())
        except (TypeError, ValueError) as error:
            raise HubError(400, str(error)) from error
        self.answer()

    def remove_faults(self) -> None:
        self.hub.recover()
        self.answer()

    def list_requests(self) -> None:
        self.answer([{"method": note.method, "path": note.path, "status": note.status} for note in self.hub.requests])


def _below(commit: Commit, path: str) -> dict[str, str]:
    return {key: entry.sha256 for key, entry in commit.files.items() if key == path or key.startswith(path + "/")}


def _pieces(path: Path, start: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while start < end and (piece := file.read(min(2**16, end - start))):
            start += len(piece)
            yield piece
