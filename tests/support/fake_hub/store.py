"""Repositories of the loopback Hub on disk: contents by hash, commits that are whole or not there."""

import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

# What the Hub puts into a new repository's .gitattributes, shortened to what is in use here.
LFS_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.onnx", "*.npy", "*.npz", "*.parquet", "*.arrow")
LFS_PATTERNS += ("*.zip", "*.tar", "*.tar.*", "*.gz", "*.h5", "*.msgpack", "*.pkl", "*tfevents*")
# Data sets keep their media there too.
LFS_MEDIA = ("*.jpg", "*.jpeg", "*.png", "*.webp", "*.gif", "*.tif", "*.tiff", "*.mp4", "*.wav")
LFS_SIZE = 10 * 2**20


class HubError(Exception):
    """An answer that is not 2xx: its status, message, and what huggingface_hub reads to choose an exception."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.commit = status, message, code, commit


@dataclass(frozen=True)
class Entry:
    """A file of a commit: size in bytes, sha256 of its content, name of its git object, whether LFS holds it."""

    size: int
    sha256: str
    oid: str
    lfs: bool

    def etag(self) -> str:
        """What `resolve` answers as the file's ETag, and `preupload` as what is there."""
        return self.sha256 if self.lfs else self.oid


def git_oid(content: bytes) -> str:
    """Name that git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The text that git holds in place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def is_lfs(kind: str, path: str, size: int, sample: bytes) -> bool:
    """Whether a file goes through LFS, by its name, size, and first bytes."""
    patterns = LFS_PATTERNS + (LFS_MEDIA if kind == "datasets" else ())
    return (
        size > LFS_SIZE
        or b"\0" in sample
        or any(fnmatch(path.rsplit("/", 1)[-1].lower(), pattern) for pattern in patterns)
    )


def is_ignored(path: str, gitignore: str) -> bool:
    """Whether a .gitignore's text leaves a path out; plain patterns and folders, no negation."""
    lines = [line.strip() for line in gitignore.splitlines()]
    parts = path.split("/")
    prefixes = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    for pattern in (line for line in lines if line and not line.startswith("#")):
        # What ends in a slash means folders only.
        candidates = prefixes[:-1] if pattern.endswith("/") else prefixes
        pattern = pattern.strip("/")
        if any(fnmatch(prefix, pattern) or fnmatch(prefix.rsplit("/", 1)[-1], pattern) for prefix in candidates):
            return True
    return False


def write_atomically(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees all of it or what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(value, file, indent=1)
    os.replace(file.name, path)


@dataclass(frozen=True)
class Commit:
    """A commit: its name, what its author wrote, and the whole tree."""

    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: dict[str, Entry]


class Repository:
    """Commits, branches and tags of one repository in a folder."""

    def __init__(self, store: "Store", kind: str, name: str) -> None:
        self.store, self.kind, self.name = store, kind, name
        self.folder = store.folder / kind / name

    @property
    def settings(self) -> dict[str, Any]:
        """`private` and `gated`, `created` and the refs: `branches` and `tags`, each name to commit."""
        return json.loads((self.folder / "repository.json").read_text())

    def save(self, **changes: Any) -> None:
        """Change settings or refs, atomically."""
        with self.store.lock:
            write_atomically(self.folder / "repository.json", self.settings | changes)

    def resolve(self, revision: str) -> str:
        """Name of the commit that a branch, tag, ref, or (shortened) commit name stands for."""
        settings = self.settings
        for kind, names in (("heads", settings["branches"]), ("tags", settings["tags"])):
            name = revision.removeprefix(f"refs/{kind}/")
            if name in names:
                return names[name]
        found = [path.stem for path in (self.folder / "commits").glob("*.json") if path.stem.startswith(revision)]
        if len(revision) < 7 or len(found) != 1:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found[0]

    def commit(self, revision: str) -> Commit:
        """The commit of a revision."""
        fields = json.loads((self.folder / "commits" / f"{self.resolve(revision)}.json").read_text())
        files = {path: Entry(**entry) for path, entry in fields.pop("files").items()}
        return Commit(**fields, files=files)

    def history(self, revision: str) -> Iterator[Commit]:
        """Commits of a revision, the last one first."""
        oid: str | None = self.resolve(revision)
        while oid is not None:
            commit = self.commit(oid)
            yield commit
            oid = commit.parent

    def file(self, path: str, revision: str = "main") -> bytes:
        """Content of a file."""
        return self.store.blob(self.entry(path, self.commit(revision)).sha256).read_bytes()

    def entry(self, path: str, commit: Commit) -> Entry:
        """A file of a commit, 404 if there is none."""
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound", commit.oid)
        return commit.files[path]

    def add_commit(
        self,
        operations: Iterable[tuple[str, str, Entry | None]],
        title: str,
        message: str = "",
        author: str = "user",
        branch: str = "main",
        parent: str | None = None,
    ) -> str:
        """Apply `(add | deletedFile | deletedFolder, path, entry)` on a branch and move it to the new commit.

        Args:
            operations: What changes.
            title: First line of the commit's message.
            message: The rest of it.
            author: Who commits.
            branch: The branch, which must exist.
            parent: The commit that the author saw last; another one by now is refused.

        Returns:
            The new commit's name.
        """
        with self.store.lock:
            settings = self.settings
            branch = branch.removeprefix("refs/heads/")
            if branch not in settings["branches"]:
                raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
            head = settings["branches"][branch]
            if parent is not None and head != self.resolve(parent):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(self.commit(head).files) if head else {}
            for operation, path, entry in operations:
                if entry is not None:
                    files[path] = entry
                    continue
                gone = [name for name in files if name == path or name.startswith(path.rstrip("/") + "/")]
                if (operation == "deletedFile" and path not in files) or not gone:
                    raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound", head)
                for name in gone:
                    del files[name]
            date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
            fields = Commit("", head, title, message, author, date, files)
            oid = hashlib.sha1(json.dumps(asdict(fields)).encode()).hexdigest()
            write_atomically(self.folder / "commits" / f"{oid}.json", asdict(fields) | {"oid": oid})
            self.save(branches=settings["branches"] | {branch: oid})
            return oid

    def add_files(self, files: Mapping[str, bytes], title: str = "Add files") -> str:
        """Commit contents to main, large ones as LFS holds them, and return the commit's name."""
        entries = {
            path: self.store.add(content, is_lfs(self.kind, path, len(content), content[:512]))
            for path, content in files.items()
        }
        return self.add_commit([("add", path, entry) for path, entry in entries.items()], title)


class Store:
    """All repositories and contents of a Hub, in a folder that another server may open later.

    Args:
        folder: Where they lie; made if need be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.RLock()

    @cached_property
    def _blobs(self) -> Path:
        folder = self.folder / "blobs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def create(self, kind: str, name: str, private: bool = False) -> Repository:
        """A new repository with one commit, as the Hub makes it; 409 if it exists."""
        if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
            raise HubError(400, f"Invalid name: {name}")
        with self.lock:
            repository = Repository(self, kind, name)
            if repository.folder.exists():
                raise HubError(409, f"You already created this {kind[:-1]} repo: {name}")
            settings = {"private": private, "gated": False, "branches": {"main": None}, "tags": {}}
            write_atomically(repository.folder / "repository.json", settings)
            patterns = LFS_PATTERNS + (LFS_MEDIA if kind == "datasets" else ())
            attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in patterns)
            repository.add_commit([("add", ".gitattributes", self.add(attributes.encode()))], "initial commit")
            return repository

    def get(self, kind: str, name: str) -> Repository:
        """A repository, 404 if there is none."""
        repository = Repository(self, kind, name)
        if not (repository.folder / "repository.json").is_file():
            raise HubError(404, "Repository not found", "RepoNotFound")
        return repository

    def names(self, kind: str) -> list[str]:
        """Names of all repositories of a kind."""
        files = (self.folder / kind).glob("*/*/repository.json")
        return sorted(str(path.parent.relative_to(self.folder / kind)) for path in files)

    def delete(self, repository: Repository) -> None:
        """Delete a repository; contents stay."""
        with self.lock:
            shutil.rmtree(repository.folder)

    def blob(self, sha256: str) -> Path:
        """Where a content lies, or would."""
        return self._blobs / sha256

    def add(self, content: bytes, lfs: bool = False) -> Entry:
        """Keep a content."""
        sha256 = self.receive([content])
        return Entry(len(content), sha256, git_oid(lfs_pointer(sha256, len(content)) if lfs else content), lfs)

    def lfs_entry(self, sha256: str) -> Entry:
        """Entry of a content that was uploaded before, 400 if it was not."""
        if not self.blob(sha256).is_file():
            raise HubError(400, f"LFS pointer pointed to a file that does not exist: {sha256}")
        size = self.blob(sha256).stat().st_size
        return Entry(size, sha256, git_oid(lfs_pointer(sha256, size)), True)

    def receive(self, chunks: Iterable[bytes], expected: str | None = None) -> str:
        """Keep a content that comes in pieces; 400 if its sha256 is not the expected one."""
        digest = hashlib.sha256()
        with tempfile.NamedTemporaryFile(dir=self._blobs, prefix="incoming-", delete=False) as file:
            try:
                for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
                if expected is not None and digest.hexdigest() != expected:
                    raise HubError(400, f"The content's sha256 is {digest.hexdigest()}, not {expected}")
            except BaseException:
                os.unlink(file.name)
                raise
        os.replace(file.name, self.blob(digest.hexdigest()))
        return digest.hexdigest()
