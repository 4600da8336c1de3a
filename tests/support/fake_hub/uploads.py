"""Uploads to the loopback Hub: what goes where, large files, commits."""

import base64
import json
from typing import Any

from .access import AccessHandler
from .store import Entry, HubError, is_ignored, is_lfs


class UploadRoutes(AccessHandler):
    """Routes of a commit, in the order in which a client takes them."""

    def preupload(self, kind: str, name: str, revision: str) -> None:
        """Tell of each file whether it goes through LFS, is ignored, and what is there now."""
        request = self.json()
        repository = self.open_repository(kind, name, write=True)
        commit = repository.commit(revision)
        gitignore = request.get("gitIgnore")
        if gitignore is None and ".gitignore" in commit.files:
            gitignore = repository.file(".gitignore", commit.oid).decode()
        answer = []
        for file in request["files"]:
            path = file["path"]
            is_large = is_lfs(kind, path, file["size"], base64.b64decode(file["sample"]))
            value = {"path": path, "uploadMode": "lfs" if is_large else "regular"}
            value["shouldIgnore"] = is_ignored(path, gitignore or "")
            if path in commit.files:
                value["oid"] = commit.files[path].etag()
            answer.append(value)
        self.answer({"files": answer})

    def lfs_batch(self, kind: str, name: str) -> None:
        """Tell where to upload large files that are not there yet."""
        request = self.json()
        self.open_repository(kind, name, write=True)
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
        """Check that a large file arrived."""
        request = self.json()
        self.open_repository(kind, name, write=True)
        if self.hub.store.lfs_entry(request["oid"]).size != request["size"]:
            raise HubError(400, f"{request['oid']} is not of {request['size']} bytes")
        self.answer({})

    def store(self, sha256: str) -> None:
        """Take a large file."""
        self.hub.store.receive(self.body, sha256)
        self.answer(headers={"ETag": f'"{sha256}"'})

    def store_part(self, sha256: str, number: str) -> None:
        """Take a part of a very large file."""
        self.answer(headers={"ETag": f'"{self.hub.store.receive(self.body)}"'})

    def join_parts(self, sha256: str) -> None:
        """Make a file of its parts."""
        parts = sorted(self.json()["parts"], key=lambda part: part["partNumber"])
        paths = [self.hub.store.blob(part["etag"].strip('"')) for part in parts]
        self.hub.store.receive((path.read_bytes() for path in paths), sha256)
        self.answer({})

    def commit(self, kind: str, name: str, branch: str) -> None:
        """Make a commit, of lines of JSON."""
        lines = [json.loads(line) for line in b"".join(self.body).splitlines() if line.strip()]
        repository = self.open_repository(kind, name, write=True)
        if self.flag("create_pr"):
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
