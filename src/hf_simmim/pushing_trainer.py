"""A Trainer whose pushes to the Hub are whole at any time, and never stop a training."""

from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from transformers import Trainer
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import logging

from .hub_pushes import HubPushes
from .hub_snapshots import Push

logger = logging.get_logger(__name__)


class PushingTrainer(Trainer):
    """`transformers.Trainer` with other pushes to the Hub, for the same options.

    A push that fails in mid-training is a warning and is tried again in the background; every commit holds weights,
    configuration, processor, code, card and pictures of one moment. Trainer's own would upload files while training
    writes them, in several commits, and forget those that failed.

    Args:
        hub_pushes: Where to push to, if it is known already; else as the arguments say.
    """

    # Of the first process, where there is something to push to.
    hub_pushes: HubPushes | None
    args: Any

    def __init__(self, *args, hub_pushes: HubPushes | None = None, **kwargs):
        self.hub_pushes = hub_pushes
        super().__init__(*args, **kwargs)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository; one that cannot be reached is made by a later push.

        Raises:
            ValueError: If it can never be pushed to.
        """
        if not self.is_world_process_zero():
            return
        if self.hub_pushes is None:
            self.hub_pushes = HubPushes.from_arguments(self.args, token, private)
        self._note_repository()

    def _note_repository(self) -> None:
        if self.hub_pushes is not None:
            name = self.hub_pushes.repo_id
            self.hub_model_id = name  # type: ignore[assignment]
            if "/" in name:
                # The card tells by this name how to load the model.
                self.args.hub_model_id = name

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            # Every process writes its random state into the checkpoint.
            self.accelerator.wait_for_everyone()
        if self.hub_pushes is None or self.args.hub_strategy == HubStrategy.END:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.write_card()
        checkpoint = Path(checkpoint_folder)
        folder = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: checkpoint.name}
        step = self.state.global_step
        # The best one may come several times in an epoch.
        moment = f"epoch {int(self.state.epoch)}" if self.args.save_strategy == SaveStrategy.EPOCH else f"step {step}"
        try:
            push = Push.of_checkpoint(
                checkpoint,
                f"Training in progress, {moment}",
                folder.get(self.args.hub_strategy),
                revision=self.args.hub_revision,
            )
        except OSError as error:
            self.hub_pushes.num_failed += 1
            logger.warning(
                f"Could not prepare a push of {checkpoint} ({error}). Training goes on, and the next one stands for it."
            )
            return
        if push.paths():
            self.hub_pushes.submit(push)
        else:
            logger.warning_once("Checkpoints of this run are sharded: the model is pushed at the end only.")

    def _finish_current_push(self) -> None:
        """Trainer ends training with it."""
        if self.hub_pushes is not None:
            self.hub_pushes.settle()

    def write_card(self, **kwargs) -> None:
        """Write the model card; one that cannot be written is a warning, for it stops neither training nor pushes.

        Args:
            **kwargs: Passed to `create_model_card`.
        """
        self._note_repository()
        try:
            self.create_model_card(**kwargs)
        except Exception as error:
            # A model without a new card is better than none.
            logger.warning(f"Could not write the model card ({type(error).__name__}: {error}).")

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> "CommitInfo | Future[CommitInfo | None] | None":
        """Save to `output_dir` and push what of it belongs into a repository; all processes must call it.

        Args:
            commit_message: Of the commit.
            blocking: Whether to wait until it is through or given up.
            token: Instead of that of the arguments, from now on.
            revision: Branch; that of the arguments if None.
            private: Whether the repository is made private, if it is made by this call.
            **kwargs: Passed to `create_model_card`.

        Returns:
            The commit; None if the push did not get through, which is logged with what to do, and in other processes.
            Without `blocking`, a future of that.

        Raises:
            ValueError: If there is no repository yet, and it can never be pushed to.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if self.hub_pushes is None:
            return None
        if token is not None:
            self.hub_pushes.token = token
        self.write_card(**kwargs)
        push = Push.of_run(
            Path(str(self.args.output_dir)),
            commit_message or "End of training",
            revision=revision or self.args.hub_revision,
        )
        self.hub_pushes.submit(push)
        return self.hub_pushes.wait(push) if blocking else push.result

    def finish_pushes(self) -> None:
        """Push what a script has made; training succeeded, so that a push that fails is reported, but is no error.

        Raises:
            SystemExit: If the waiting for the Hub is interrupted.
        """
        try:
            commit = self.push_to_hub()
        except KeyboardInterrupt:
            # As a shell has it for what is interrupted; what to do has been told.
            raise SystemExit(130) from None
        if isinstance(commit, CommitInfo) and self.hub_pushes is not None:
            failed = self.hub_pushes.num_failed
            repeated = f" ({failed} failed push{'es' if failed > 1 else ''} made up for)" if failed else ""
            print(f"{commit.commit_url}  everything, on the Hub{repeated}")
