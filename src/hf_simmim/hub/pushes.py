"""Pushes to the Hub that are complete, run in the background, and never stop a training.

Each push is a snapshot that becomes one commit, so the model on the Hub can be loaded at any time. A failed push is
retried after growing pauses until it succeeds or a newer one replaces it. A run waits for its last push.
"""

import contextlib
import itertools
import math
import shlex
import shutil
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_session, get_token
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id
from transformers import TrainingArguments
from transformers.utils import logging

from .snapshots import SNAPSHOT_PREFIX, Push

logger = logging.get_logger(__name__)

# Seconds until a failed push is retried; the last pause repeats.
PAUSES = (5.0, 15.0, 60.0, 300.0, 900.0)
# Seconds for which the last push of a run is retried after a failure, and after a rejection, which seldom resolves
# itself. Its pauses are shorter: where half of all requests fail, one push in five succeeds.
PATIENCE = 1200.0
PATIENCE_IF_REFUSED = 15.0
LONGEST_LAST_PAUSE = 45.0
# Timeouts in seconds: to connect, to read, to write, for a free connection; huggingface_hub has none.
TIMEOUTS = (30.0, 600.0, 600.0, 30.0)


class HubPushes:
    """Pushes a run to its repository from a background thread, in the first process only.

    Args:
        output_dir: Folder of the run.
        repo_id: Name of the repository, "organization/name" or "name".
        token: Token with write access; that of the logged-in user if None.
        private: Whether a new repository is private; the default of its owner if None.
        revision: Branch to push to, created if it is missing; main if None.
        keep_all: Whether every push is made, in order; else the newest waiting push replaces the older ones.

    Raises:
        ValueError: If `repo_id` is not a valid name of a repository.
    """

    def __init__(
        self,
        output_dir: Path,
        repo_id: str,
        token: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
        keep_all: bool = False,
    ):
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise ValueError(
                f"{repo_id!r} is not a valid name of a repository on the Hub: {error} Set --hub_model_id to another"
                " one, such as my-organization/my-model."
            ) from error
        self.output_dir, self.repo_id = output_dir, repo_id
        self.token, self.private, self.revision = token, private, revision
        self.keep_all = keep_all
        self.num_failed = 0
        self._branches: set[str | None] = set()
        self._waiting: deque[Push] = deque()
        self._changed = threading.Condition()
        self._is_uploading = False
        self._is_interrupted = False
        self._thread: threading.Thread | None = None

    @classmethod
    def from_arguments(
        cls, arguments: TrainingArguments, token: str | None = None, private: bool | None = None
    ) -> "HubPushes":
        """Open the repository that training arguments name, and create it if the Hub can be reached.

        Args:
            arguments: Training arguments; `hub_model_id` is the name of `output_dir` by default.
            token: Replaces `hub_token` of the arguments.
            private: Replaces `hub_private_repo` of the arguments.

        Returns:
            The pushes of the run.

        Raises:
            ValueError: If pushing can never work.
        """
        output_dir = Path(str(arguments.output_dir))
        pushes = cls(
            output_dir,
            arguments.hub_model_id or output_dir.absolute().name,
            arguments.hub_token if token is None else token,
            arguments.hub_private_repo if private is None else private,
            arguments.hub_revision,
            arguments.hub_always_push,
        )
        if pushes.token is None and get_token() is None:
            raise ValueError(
                f"Pushing to {pushes.repo_id!r} needs a Hub token with write access. Run `hf auth login`, or set"
                " --hub_token."
            )
        # A killed run leaves its snapshots here.
        for leftover in output_dir.glob(f"{SNAPSHOT_PREFIX}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            pushes.open(pushes.revision)
        except Exception as error:
            if is_refusal(error) and not isinstance(error, OfflineModeIsEnabled):
                raise ValueError(
                    f"The Hub ({HfApi().endpoint}) rejects pushes to {pushes.repo_id!r}: {reason(error)}. Run `hf auth"
                    " login` or set a --hub_token with write access there, or another --hub_model_id."
                ) from error
            logger.warning(
                f"The Hub ({HfApi().endpoint}) cannot be reached: {reason(error)}. Training continues without it; the"
                f" first successful push creates {pushes.repo_id}."
            )
        return pushes

    @property
    def upload_command(self) -> str:
        """Shell command that pushes the run by hand."""
        parts = ["hf", "upload", self.repo_id, str(self.output_dir), "."]
        # Files that may be private, or that only a resumed run can use.
        parts += [part for pattern in ("checkpoint-*", "_*", "*.txt") for part in ("--exclude", pattern)]
        parts += [] if self.revision is None else ["--revision", self.revision]
        parts += ["--private"] if self.private else []
        return shlex.join(parts)

    def open(self, revision: str | None) -> HfApi:
        """Create repository and branch if they are missing.

        Args:
            revision: The branch; main if None.

        Returns:
            The client.
        """
        get_session().timeout = TIMEOUTS
        api = HfApi()
        if revision not in self._branches:
            self.repo_id = api.create_repo(self.repo_id, token=self.token, private=self.private, exist_ok=True).repo_id
            try:
                # `create_repo` accepts an existing repository with any token.
                api.auth_check(self.repo_id, token=self.token, write=True)
            except Exception as error:
                # Some Hubs do not have this check.
                if _status(error) in (401, 403):
                    raise
            # References of pull requests cannot be created.
            if revision is not None and not revision.startswith("refs/"):
                api.create_branch(self.repo_id, branch=revision, token=self.token, exist_ok=True)
            self._branches.add(revision)
        return api

    def submit(self, push: Push) -> None:
        """Push in the background. `push.result` will hold the commit, or None if the push failed."""
        with self._changed:
            while self._waiting and not self.keep_all:
                push.supersede(self._waiting.popleft())
            self._waiting.append(push)
            self._is_interrupted = False
            self._changed.notify_all()
        if self._thread is None:
            # A daemon: the process must not wait for it after training has failed.
            self._thread = threading.Thread(target=self._work, name="pushes to the Hub", daemon=True)
            self._thread.start()

    def wait(self, push: Push) -> CommitInfo | None:
        """Wait for a push; an interrupt ends both waiting and pushing.

        Args:
            push: A submitted push.

        Returns:
            The commit, or None if the push was given up.
        """
        try:
            while True:
                # In short waits: some platforms notice an interrupt only between them.
                with contextlib.suppress(TimeoutError):
                    return push.result.result(timeout=1.0)
        except KeyboardInterrupt:
            with self._changed:
                self._is_interrupted = True
                self._changed.notify_all()
            logger.error(f"Interrupted: {self.output_dir} is not pushed yet. {self._by_hand}")
            raise

    def settle(self, limit: float = 60.0) -> None:
        """Wait until every push was tried once; failed ones will be retried.

        Args:
            limit: Longest wait in seconds; other processes wait meanwhile.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._is_uploading, timeout=limit)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                push = self._waiting.popleft()
                self._is_uploading = True
            self._deliver(push)

    def _deliver(self, push: Push) -> None:
        """Try until the push succeeds, is given up, or is replaced by a newer one."""
        first_failure = None
        for pause in itertools.chain(PAUSES, itertools.repeat(PAUSES[-1])):
            failure, commit, patience = None, None, math.inf
            try:
                commit = self._commit(push)
            except Exception as error:
                failure = reason(error)
                if push.is_last:
                    patience = PATIENCE_IF_REFUSED if is_refusal(error) else PATIENCE
            with self._changed:
                self._is_uploading = False
                self._changed.notify_all()
                if failure is None:
                    push.finish(commit)
                    return
                if first_failure is None:
                    first_failure = time.monotonic()
                    self.num_failed += 1
                    self._warn(push, failure, patience)
                rest = first_failure + patience - time.monotonic()
                longest = min(rest, LONGEST_LAST_PAUSE) if push.is_last else rest
                self._changed.wait_for(lambda: self._waiting or self._is_interrupted, timeout=min(pause, longest))
                if self._waiting:
                    self._waiting[0].supersede(push)
                    return
                if rest <= 0 and not self._is_interrupted:
                    logger.error(f"{self.output_dir} could not be pushed to {self.repo_id}: {failure}. {self._by_hand}")
                if rest <= 0 or self._is_interrupted:
                    push.finish(None)
                    return
                self._is_uploading = True

    def _commit(self, push: Push) -> CommitInfo:
        """Make a single commit of all files, so that the repository is never incomplete."""
        api = self.open(push.revision)
        target: dict[str, Any] = {"repo_id": self.repo_id, "revision": push.revision, "token": self.token}
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationDelete(name, is_folder=False) for name in push.obsolete(api.list_repo_files(**target))
        ]
        operations += [CommitOperationAdd(name, str(path)) for name, path in push.paths().items()]
        try:
            return api.create_commit(operations=operations, commit_message=push.message, **target)
        except ValueError as error:
            if "README.md" not in push.files or "metadata in README.md" not in str(error):
                raise
            logger.warning(f"The Hub rejects the model card ({reason(error)}); it is left out of the repository.")
            del push.files["README.md"]
            return self._commit(push)

    def _warn(self, push: Push, failure: str, patience: float) -> None:
        text = f"Could not push to {self.repo_id} ({push.message}): {failure}."
        if push.is_last:
            text += f" Retrying for {patience:.0f} s; interrupt to stop waiting."
        else:
            text += " Training continues, checkpoints stay on the disk, and the push will be retried."
        logger.warning(text)

    @property
    def _by_hand(self) -> str:
        return f"All files are in {self.output_dir}; to push them by hand: {self.upload_command}"


def open_hub(arguments: TrainingArguments) -> HubPushes | None:
    """Check before training that a run can be pushed; all processes must call it.

    Args:
        arguments: Training arguments of the run.

    Returns:
        The pushes, in the first process of a run with `push_to_hub`; else None.

    Raises:
        ValueError: If pushing can never work; in all processes alike.
    """
    if not arguments.push_to_hub:
        return None
    pushes, refusal = None, [""]
    if arguments.process_index == 0:
        try:
            pushes = HubPushes.from_arguments(arguments)
        except ValueError as error:
            refusal = [str(error)]
    broadcast_object_list(refusal)
    if refusal[0]:
        raise ValueError(refusal[0])
    return pushes


def is_refusal(error: Exception) -> bool:
    """Whether the Hub or this machine's settings reject a push, rather than the network failing."""
    if isinstance(error, OfflineModeIsEnabled | HFValidationError):
        return True
    status = _status(error)
    # Timeouts, conflicts with another commit, and rate limits are temporary.
    return status is not None and 400 <= status < 500 and status not in (408, 409, 412, 429)


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def reason(error: Exception) -> str:
    """Describe an error in one line."""
    status, told = _status(error), getattr(error, "server_message", None)
    text = f"{status} {told}" if status is not None and told else f"{type(error).__name__}: {error}"
    return " ".join(text.split()).rstrip(".")
