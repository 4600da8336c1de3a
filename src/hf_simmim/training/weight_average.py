"""Exponential moving average (EMA) of the weights during training, loaded into the model at the end.

The arithmetic is torch's `get_ema_multi_avg_fn`. Its `AveragedModel` is not used: it averages in the model's own dtype
(bfloat16 loses small steps, and with a float32 copy of a bfloat16 model `update_parameters` raises), and its
`use_buffers` truncates integer buffers, which changed 29 of 169 indices in three steps of an unchanged model.
"""

import os
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

AVERAGE_FILE = "weight_average.safetensors"


class WeightAverageCallback(TrainerCallback):
    """Averages float parameters and buffers exponentially over the steps, and loads the average at the end of training.

    During training the model is evaluated and saved with its current weights; afterwards evaluations and `save_model`
    use the average. Each checkpoint holds the average in `weight_average.safetensors`, and a resumed run continues with
    it: from the checkpoint of that step in the output folder, or the one that
    `TrainingArguments.resume_from_checkpoint` names.

    Args:
        decay: Share of the average that is kept at each step, in [0, 1).
        warmup: Whether to keep less at first, (1 + steps) / (10 + steps), so that the first weights are soon forgotten.

    Raises:
        ValueError: If `decay` is out of range; at the start of training, if Trainer is to load the best model at the
            end, shards the weights or searches hyperparameters, or if a checkpoint has no average.
    """

    def __init__(self, decay: float = 0.9999, warmup: bool = True):
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay} must be in [0, 1), such as 0.9999.")
        self.decay = decay
        self.warmup = warmup
        self.average: dict[str, torch.Tensor] = {}
        self._saved_step = -1

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Start with the model's weights, or continue with the average of a checkpoint."""
        if args.load_best_model_at_end:
            raise ValueError(
                "load_best_model_at_end=True would replace the average by the weights of one step. Set it to False, or"
                " leave WeightAverageCallback out."
            )
        if state.is_hyper_param_search:
            raise ValueError("WeightAverageCallback does not work in a hyperparameter search. Leave it out there.")
        weights = averaged_tensors(model)
        is_split = AcceleratorState().distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        # A DTensor has a mesh.
        if is_split or any(hasattr(tensor, "device_mesh") for tensor in weights.values()):
            raise ValueError(
                "WeightAverageCallback needs all weights in each process, but FSDP or DeepSpeed shards them. Train"
                " without these, or leave it out."
            )
        if state.global_step:
            self.average = self._read(args, state.global_step, weights)
        else:
            self.average = {name: tensor.detach().float().clone() for name, tensor in weights.items()}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Update the average with the current weights."""
        decay = self.decay
        if self.warmup:
            decay = min(decay, (1 + state.global_step) / (10 + state.global_step))
        weights = averaged_tensors(model)
        # In float32: a lower precision loses a share of 0.0001.
        current = [weights[name].detach().float() for name in self.average]
        get_ema_multi_avg_fn(decay)(list(self.average.values()), current, state.global_step)

    def on_push_begin(self, args, state, control, **kwargs):
        """Write the average: a checkpoint is pushed before `on_save`."""
        self.on_save(args, state, control)

    def on_save(self, args, state, control, **kwargs):
        """Write the average next to the weights, unless the trainer had it written with the checkpoint."""
        if self._saved_step != state.global_step:
            self._save(args, Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}", AVERAGE_FILE))

    def save_with_checkpoint(self, args: Any, folder: Path, step: int) -> None:
        """Write the average into a checkpoint that is not complete yet; `ResumableTrainer` calls this.

        Args:
            args: Training arguments.
            folder: Folder of the checkpoint.
            step: Step of the checkpoint.
        """
        self._save(args, folder / AVERAGE_FILE)
        self._saved_step = step

    def _save(self, args: Any, path: Path) -> None:
        if args.should_save and self.average and path.parent.is_dir():
            # Replaced at once: the run may be killed here.
            partial = path.with_suffix(".partial")
            save_file({name: tensor.contiguous() for name, tensor in self.average.items()}, partial)
            os.replace(partial, path)

    @torch.no_grad()
    def on_train_end(self, args, state, control, model=None, **kwargs):
        """Load the average into the model."""
        for name, tensor in averaged_tensors(model).items():
            tensor.copy_(self.average[name])
        self.average = {}

    def _read(self, args, step: int, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        folder = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{step}")
        if isinstance(args.resume_from_checkpoint, str) and Path(args.resume_from_checkpoint).is_dir():
            folder = Path(args.resume_from_checkpoint)
        path = folder / AVERAGE_FILE
        if not path.is_file():
            raise ValueError(
                f"{path} does not exist: the checkpoint was written without WeightAverageCallback, or is elsewhere."
                " Set TrainingArguments.resume_from_checkpoint to its folder, resume from an earlier checkpoint, or"
                " leave the callback out."
            )
        average = load_file(path)
        if {name: tensor.shape for name, tensor in average.items()} != {
            name: tensor.shape for name, tensor in weights.items()
        }:
            raise ValueError(f"{path} does not fit the weights of the model. Resume with the model that was trained.")
        return {name: average[name].to(tensor.device) for name, tensor in weights.items()}


def averaged_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Float parameters and buffers by name."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
