"""Listings and downloads of the loopback Hub."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from .access import AccessHandler
from .store import Commit, Entry, HubError, Repository, lfs_pointer


class FileRoutes(AccessHandler):
    """Routes that read a repository."""

    def information(self, kind: str, name: str, revision: str | None) -> None:
        """What is known about a repository and a revision of it."""
        from .cards import card_metadata

        repository = self.open_repository(kind, name)
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
            value |= {"modelId": name} | {key: card.get(key) for key in ("library_name", "pipeline_tag", "model-index")}
        if asked := self.query.get("expand", []) + self.query.get("expand[]", []):
            value = {key: value[key] for key in ("_id", "id", *asked) if key in value}
        self.answer(value)

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
        """Files and folders of a revision, in pages."""
        repository = self.open_repository(kind, name)
        commit = repository.commit(revision)
        listing = self._listing(repository, commit, self.flag("expand"))
        prefix = f"{path.strip('/')}/" if path else ""
        found = [value for key, value in listing.items() if key.startswith(prefix)]
        if not found:
            raise HubError(404, f"{path} does not exist on {revision!r}", "EntryNotFound", commit.oid)
        if not self.flag("recursive"):
            found = [value for value in found if "/" not in value["path"][len(prefix) :]]
        self.answer_page(found)

    def paths_information(self, kind: str, name: str, revision: str) -> None:
        """The same of given paths; those that do not exist are left out."""
        form = parse_qs(b"".join(self.body).decode())
        repository = self.open_repository(kind, name)
        is_expanded = form.get("expand", [""])[0].lower() == "true"
        listing = self._listing(repository, repository.commit(revision), is_expanded)
        self.answer([listing[path] for path in form.get("paths", []) if path in listing])

    def resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        """A file: its content, or where the storage has it."""
        repository = self.open_repository(kind, name, content=True)
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

    def commits(self, kind: str, name: str, revision: str) -> None:
        """Commits of a revision, the last one first, in pages."""
        self.answer_page(
            [
                {
                    "id": commit.oid,
                    "title": commit.title,
                    "message": commit.message,
                    "date": commit.date,
                    "authors": [{"user": commit.author}],
                }
                for commit in self.open_repository(kind, name).history(revision)
            ]
        )

    def refs(self, kind: str, name: str) -> None:
        """Branches and tags."""
        settings = self.open_repository(kind, name).settings

        def listed(names: dict[str, str], folder: str) -> list[dict[str, str]]:
            return [{"name": key, "ref": f"refs/{folder}/{key}", "targetCommit": oid} for key, oid in names.items()]

        branches, tags = listed(settings["branches"], "heads"), listed(settings["tags"], "tags")
        self.answer({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})

    def stored(self, sha256: str) -> None:
        """Content of a large file."""
        path = self.hub.store.blob(sha256)
        if not path.is_file():
            raise HubError(404, "NoSuchKey")
        self._send_content(path, {"ETag": f'"{sha256}"'})

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


def _below(commit: Commit, path: str) -> dict[str, str]:
    return {key: entry.sha256 for key, entry in commit.files.items() if key == path or key.startswith(path + "/")}


def _pieces(path: Path, start: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while start < end and (piece := file.read(min(2**16, end - start))):
            start += len(piece)
            yield piece
