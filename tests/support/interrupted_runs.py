"""Tiny trainings that are resumed in the middle of their second epoch; run by test_resumable_trainer.py.

Every sample depends on its epoch, so equal weights mean equal orders and epochs.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from tiny import swin_config
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling, SimMIMImageProcessor
from hf_simmim.data.masked_images import collate
from hf_simmim.data.reading import UnreadableImages
from hf_simmim.data.sampling import sample_generator
from hf_simmim.training.agreement import check_agreement
from hf_simmim.training.callbacks import EpochCallback
from hf_simmim.training.stop_signals import TrainingInterrupted
from hf_simmim.training.trainers import RunTrainer, SimMIMTrainer

NUM_IMAGES = 24


class KeyedImages(torch.utils.data.Dataset):
    """Images for pre-training, whose keys hold the epoch."""

    def __len__(self) -> int:
        return NUM_IMAGES

    def __getitem__(self, key: int) -> dict:
        generator = sample_generator(0, key)
        units = torch.rand(4, 4, generator=generator).argsort(dim=1) < 2
        return {
            "pixel_values": torch.randint(256, (3, 32, 32), generator=generator, dtype=torch.uint8),
            "bool_masked_pos": units.repeat_interleave(4, 0).repeat_interleave(4, 1).flatten(),
            "unreadable": [],
        }


class EpochNumbers(torch.utils.data.Dataset):
    """Numbers that are told the epoch, like the images of fine-tuning and segmentation."""

    def __init__(self):
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return NUM_IMAGES

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def __getitem__(self, index: int) -> dict:
        return {"inputs": torch.randn(4, generator=sample_generator(int(self.epoch), index))}


class Squares(nn.Module):
    """A loss of a linear layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, inputs: torch.Tensor) -> dict:
        return {"loss": self.layer(inputs).square().mean()}


def make_trainer(kind: str, folder: Path, num_workers: int = 0, **options) -> RunTrainer:
    """A trainer of either kind, for three epochs."""
    settings = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 3,
        "learning_rate": 0.01,
        "save_strategy": "steps",
        "save_steps": 5,
        "eval_steps": 5,
        "label_names": [],
        "report_to": "none",
        "remove_unused_columns": False,
        "use_cpu": True,
        "dataloader_num_workers": num_workers,
        "dataloader_persistent_workers": num_workers > 0,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    } | options
    torch.manual_seed(0)
    if kind == "pretraining":
        settings |= {"label_names": ["bool_masked_pos"]}
        return SimMIMTrainer(
            model=SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=swin_config())),
            args=TrainingArguments(output_dir=str(folder), **settings),
            train_dataset=KeyedImages(),
            eval_dataset=KeyedImages(),
            data_collator=collate,
            processing_class=SimMIMImageProcessor(size={"height": 32, "width": 32}, model_patch_size=2),
            unreadable_images=UnreadableImages(folder / "unreadable.txt", NUM_IMAGES, 1.0),
            callbacks=[EpochCallback()],
        )
    arguments = TrainingArguments(output_dir=str(folder), **settings)
    datasets = {"train_dataset": EpochNumbers(), "eval_dataset": EpochNumbers()}
    return RunTrainer(Squares(), arguments, **datasets, callbacks=[EpochCallback()])


def differences(folder: Path, num_workers: int) -> list[str]:
    """Weights that differ between uninterrupted runs and runs resumed from step 5."""
    found = []
    for kind in ("pretraining", "fine-tuning"):
        whole = make_trainer(kind, folder / kind, num_workers)
        whole.train()
        resumed = make_trainer(kind, folder / f"{kind} resumed", num_workers)
        resumed.train(resume_from_checkpoint=str(folder / kind / "checkpoint-5"))
        assert whole.state.global_step == resumed.state.global_step == 9 * 2 // whole.args.world_size
        pairs = zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True)
        found += [f"{kind} {name}" for (name, one), (_, other) in pairs if not torch.equal(one, other)]
    return found


class SignalInEvaluation(TrainerCallback):
    """Sends a signal to the last process in the second batch of an evaluation, and counts the batches."""

    num_batches = 0

    def on_prediction_step(self, args, state, control, **kwargs):
        self.num_batches += 1
        if self.num_batches == 2 and args.process_index == args.world_size - 1:
            os.kill(os.getpid(), signal.SIGUSR1)


def interruption(folder: Path) -> str:
    """How a run ends whose last process gets a signal in an evaluation of several batches."""
    options = {"eval_strategy": "steps", "per_device_eval_batch_size": 1, "save_strategy": "no"}
    trainer, callback = make_trainer("fine-tuning", folder, **options), SignalInEvaluation()
    trainer.add_callback(callback)
    try:
        trainer.train()
    except TrainingInterrupted as error:
        saved = sorted(path.name for path in folder.glob("checkpoint-*"))
        return f"exit status {error.code} after {callback.num_batches} batches, with {saved}"
    return "it was not interrupted"


def disagreement() -> str:
    """What processes that found different images are told."""
    try:
        check_agreement({"seed": 0, "images": torch.distributed.get_rank()})
    except ValueError as error:
        return str(error)
    return "they agree"


if __name__ == "__main__":
    different = differences(Path(sys.argv[1]), int(sys.argv[2]))
    if different:
        raise SystemExit(f"{len(different)} other weights, such as {different[0]} and {different[-1]}")
    if "process 0 has images 0, process 1 has 1" not in disagreement():
        raise SystemExit(disagreement())
    ending = interruption(Path(sys.argv[1]) / "interrupted")
    if ending != f"exit status {128 + signal.SIGUSR1} after 3 batches, with ['checkpoint-5']":
        raise SystemExit(ending)
