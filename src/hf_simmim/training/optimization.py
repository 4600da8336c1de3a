"""Parameter groups and learning rate schedules of the official implementation, for `Trainer(optimizers=...)`.

Source: optimizer.py and lr_scheduler.py of microsoft/SimMIM.
"""

import bisect
import math
from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import Trainer, TrainingArguments, get_scheduler

from ..model.encoder_stages import encoder_layers

# Schedules of the official implementation, besides those of transformers.
SIMMIM_SCHEDULES = ("simmim_cosine", "simmim_multistep")
# Parts that compiling and sharding insert into the names of parameters.
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def create_optimizers(
    model: nn.Module,
    arguments: TrainingArguments,
    num_training_steps: int,
    layer_decay: float = 1.0,
    official: bool = True,
) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """Create optimizer and schedule for `Trainer(optimizers=...)`.

    Args:
        model: A SimMIM model, or one that contains a SimMIM model, such as UperNet with our backbone.
        arguments: Training arguments: optimizer, learning rate, weight decay and schedule are used.
        num_training_steps: Updates of the whole run, as `planned_steps` computes.
        layer_decay: As in `parameter_groups`.
        official: As in `parameter_groups`.

    Returns:
        Optimizer and schedule. The first group has the full learning rate, which is what Trainer logs.

    Raises:
        ValueError: If `layer_decay` or an option of the schedule is out of range.
    """
    optimizer = create_optimizer(model, arguments, layer_decay, official)
    return optimizer, create_schedule(optimizer, arguments, num_training_steps)


def create_optimizer(
    model: nn.Module,
    arguments: TrainingArguments,
    layer_decay: float = 1.0,
    official: bool = True,
    full_rate: Collection[str] = (),
    new_factor: float = 1.0,
) -> torch.optim.Optimizer:
    """Create the optimizer of `create_optimizers`.

    Args:
        model: The model.
        arguments: Training arguments: optimizer, learning rate and weight decay are used.
        layer_decay: As in `parameter_groups`.
        official: As in `parameter_groups`.
        full_rate: As in `parameter_groups`.
        new_factor: As in `parameter_groups`.

    Returns:
        The optimizer.

    Raises:
        ValueError: If `layer_decay` is out of range.
    """
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)  # type: ignore[arg-type]
    decays = (arguments.weight_decay, layer_decay, official)
    return optimizer_class(parameter_groups(model, options["lr"], *decays, full_rate, new_factor), **options)


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    official: bool = True,
    full_rate: Collection[str] = (),
    new_factor: float = 1.0,
) -> list[dict[str, Any]]:
    """Group trained parameters by depth, each group with its own learning rate.

    Heads and norms after the last layer get the full learning rate, the last layer `layer_decay` of it, the layer
    before `layer_decay ** 2`, and so on; patch embedding, positions and tokens are below the first layer.

    Args:
        model: A SimMIM model, or one that contains a SimMIM model.
        learning_rate: Peak learning rate of the heads.
        weight_decay: Weight decay of the parameters in `decay_parameter_names`; the others have none.
        layer_decay: Factor in (0, 1] from each layer to the one below it; 1 for the same rate everywhere.
        official: As in `decay_parameter_names`.
        full_rate: Last parts of the names of parameters that get the full rate wherever they are, such as those that
            are new.
        new_factor: Factor of the rate of the head and the decoder of a pre-training and of what `full_rate` names. If
            it is not 1, these are groups of their own at the end.

    Returns:
        Groups for a torch optimizer, from the heads down, with the keys `params`, `lr`, `lr_scale`, `weight_decay` and
        `name`, such as `layer_3_decay` or `new_decay`.

    Raises:
        ValueError: If `layer_decay` is out of range.

    Source: appendix A.3 of the paper; `get_finetune_param_groups` in optimizer.py of microsoft/SimMIM.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay={layer_decay} must be in (0, 1], such as 0.9 for Swin-B.")
    decayed = set(decay_parameter_names(model, official))
    depths, top = _depths(model) if layer_decay < 1 else ({}, 0)
    groups: dict[tuple[bool, int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_full = _plain(name).rpartition(".")[2] in full_rate
        depth, has_decay = top if is_full else _depth_of(_plain(name), depths, top), name in decayed
        is_new = new_factor != 1 and (is_full or _plain(name).startswith(("head.", "decoder.")))
        scale = new_factor if is_new else layer_decay ** (top - depth)
        group = groups.setdefault(
            # Trainer logs the rate of the first group.
            (not is_new, depth, has_decay),
            {
                "name": f"{'new' if is_new else f'layer_{depth}'}_{'decay' if has_decay else 'no_decay'}",
                "params": [],
                "lr": learning_rate * scale,
                "lr_scale": scale,
                "weight_decay": weight_decay if has_decay else 0.0,
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups, reverse=True)]


def _depths(model: nn.Module) -> tuple[dict[str, int], int]:
    """Depth of each parameter of the SimMIM encoders in a model, and the depth of all other parameters."""
    depths: dict[str, int] = {}
    top = 1
    models = _simmim_models(model)
    if not models:
        raise ValueError(
            f"{type(model).__name__} contains no SimMIM encoder, so its layers are unknown. Use layer_decay=1, or a"
            " model of this package."
        )
    for module_name, module in models:
        layers = encoder_layers(module.config)
        top = max(top, len(layers.names) + 1)
        prefix = f"{module_name}." if module_name else ""
        depths |= {f"{prefix}encoder.{name}": depth for name, depth in layers.depths.items()}
        if getattr(module, "mask_token", None) is not None:
            depths[f"{prefix}mask_token"] = 0
    return depths, top


def freeze_all_but_last(model: nn.Module, num_layers: int) -> None:
    """Train only the last layers of the encoder, what follows them, and the mask token.

    Args:
        model: A SimMIM model; `requires_grad` of its other parameters is set to False.
        num_layers: Number of trained layers.

    Raises:
        ValueError: If the encoder has fewer layers.
    """
    depths, top = _depths(model)
    if not 0 < num_layers < top:
        raise ValueError(f"train_layers={num_layers}: the encoder has {top - 1} blocks. Use a number from 1 to that.")
    for name, parameter in model.named_parameters():
        if depths.get(_plain(name), top) < top - num_layers and not name.endswith("mask_token"):
            parameter.requires_grad = False


def _simmim_models(model: nn.Module) -> list[tuple[str, Any]]:
    """Modules of a model that contain an encoder of this package, with their names."""
    return [
        (_plain(f"{name}.").rstrip("."), module)
        for name, module in model.named_modules()
        if getattr(getattr(module, "config", None), "model_type", None) == "simmim" and hasattr(module, "encoder")
    ]


def _depth_of(name: str, depths: dict[str, int], top: int) -> int:
    """Depth of a parameter; one added to a module of the encoder, such as an adapter, has the depth of the module."""
    if name in depths:
        return depths[name]
    owner = name.rpartition(".")[0]
    while owner:
        around = {depth for known, depth in depths.items() if known.startswith(f"{owner}.")}
        if around:
            return around.pop() if len(around) == 1 else top
        owner = owner.rpartition(".")[0]
    return top


def decay_parameter_names(model: nn.Module, official: bool = True) -> list[str]:
    """Names of the parameters with weight decay: the weights of linear layers and convolutions.

    Biases, norms, tokens, positions, relative position tables and their replacements have none.

    Args:
        model: Any model.
        official: Whether to also decay what the official implementation decays by mistake: in pre-training the
            relative position tables, SwinV2's logit scales and its MLP of positions, and the mask token of the ViT,
            because a prefix keeps their names from matching its exclusions; in fine-tuning the ViT's relative position
            tables. The published results include this.

    Returns:
        The names, as `model.named_parameters()` has them.

    Source: `get_pretrain_param_groups`, and `no_weight_decay_keywords` of the models, of microsoft/SimMIM.
    """
    embeddings = {
        f"{name}.weight" if name else "weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    }
    is_pretraining = any(_plain(name).endswith("mask_token") for name, _ in model.named_parameters())
    kinds = {module.config.encoder_config.model_type for _, module in _simmim_models(model)} if official else set()
    names = []
    for name, parameter in model.named_parameters():
        last = name.rpartition(".")[2]
        is_spared = parameter.ndim <= 1 or not last.endswith("weight") or name in embeddings
        if "continuous_position_bias_mlp" in name:
            is_spared = True
        if official and parameter.ndim > 1 and last != "bias":
            is_table = last == "relative_position_bias_table"
            if is_pretraining:
                is_scale = last == "logit_scale" or "continuous_position_bias_mlp" in name
                is_spared = is_spared and not (is_table or is_scale or (last == "mask_token" and "beit" in kinds))
            else:
                is_spared = is_spared and not (is_table and "beit" in kinds)
        if not is_spared:
            names.append(name)
    return names


def _plain(name: str) -> str:
    """Name of a parameter without the parts that wrappers insert."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


class SimMIMSchedule(LRScheduler):
    """The learning rate schedules of the official implementation, applied at every update.

    A linear warm-up from `warmup_lr`, then a cosine to `min_lr` or a multi-step decay. The warm-up overlaps the cosine,
    so the rate drops below its peak when the warm-up ends. `warmup_lr` and `min_lr` are the same for all groups.

    Args:
        optimizer: The optimizer, whose groups have their peak learning rates.
        kind: "simmim_cosine" or "simmim_multistep".
        num_training_steps: Updates of the whole run.
        num_warmup_steps: Updates of the warm-up.
        warmup_lr: Learning rate at the start of the warm-up.
        min_lr: Learning rate at the end of the cosine.
        milestones: Updates at which the multi-step rate is multiplied by `gamma`.
        gamma: Factor at each milestone.

    Source: lr_scheduler.py of microsoft/SimMIM and `CosineLRScheduler` of timm 0.4.12.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        kind: str,
        num_training_steps: int,
        num_warmup_steps: int,
        warmup_lr: float,
        min_lr: float = 0.0,
        milestones: tuple[int, ...] = (),
        gamma: float = 0.1,
    ):
        self.kind = kind
        self.num_training_steps = num_training_steps
        self.num_warmup_steps = num_warmup_steps
        self.warmup_lr = warmup_lr
        self.min_lr = min_lr
        self.milestones = milestones
        self.gamma = gamma
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        """Learning rates of all groups for the next update."""
        return [self._rate(self.last_epoch, float(peak)) for peak in self.base_lrs]

    def _rate(self, step: int, peak: float) -> float:
        if step < self.num_warmup_steps:
            return self.warmup_lr + step * (peak - self.warmup_lr) / self.num_warmup_steps
        if self.kind == "simmim_multistep":
            return peak * self.gamma ** bisect.bisect_right(self.milestones, step)
        if step >= self.num_training_steps:
            return self.min_lr
        return self.min_lr + 0.5 * (peak - self.min_lr) * (1 + math.cos(math.pi * step / self.num_training_steps))

    def state_dict(self) -> dict[str, Any]:
        """Position and rates of the schedule; its length comes from the run, which may be extended when it resumes."""
        keys = ("last_epoch", "_step_count", "_last_lr", "base_lrs", "warmup_lr", "min_lr")
        return {key: getattr(self, key) for key in keys}


def create_schedule(
    optimizer: torch.optim.Optimizer, arguments: TrainingArguments, num_training_steps: int
) -> LRScheduler:
    """Create the schedule that training arguments name: an official one, or one of transformers.

    Args:
        optimizer: The optimizer, whose groups have their peak learning rates.
        arguments: Training arguments: `lr_scheduler_type`, which may be one of `SIMMIM_SCHEDULES`, `warmup_steps`
            (updates, or a share of all updates if below 1), `learning_rate` and `lr_scheduler_kwargs`. Options of the
            official schedules are `warmup_lr_rate` (0.005) and `min_lr_rate` (0.05), shares of the learning rate,
            `milestones` ([0.875]), shares of the run, and `gamma` (0.1).
        num_training_steps: Updates of the whole run.

    Returns:
        The schedule.

    Raises:
        ValueError: If an option is unknown or out of range.
    """
    kind = getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type)
    options: dict[str, Any] = dict(arguments.lr_scheduler_kwargs or {})  # type: ignore[arg-type]
    warmup_steps = warmup_updates(arguments, num_training_steps)
    if kind not in SIMMIM_SCHEDULES:
        try:
            return get_scheduler(kind, optimizer, warmup_steps, num_training_steps, options)
        except TypeError as error:
            raise ValueError(
                f"lr_scheduler_kwargs={options} is invalid for lr_scheduler_type={kind!r} ({error}). Set options of"
                " that schedule, or {} for none."
            ) from error
    shape: dict[str, Any] = {"warmup_lr_rate": 0.005}
    shape |= {"min_lr_rate": 0.05} if kind == "simmim_cosine" else {"milestones": [0.875], "gamma": 0.1}
    for name in options:
        if name not in shape:
            raise ValueError(
                f"lr_scheduler_kwargs has the unknown option {name!r}. Options of {kind} are: {', '.join(shape)}. Set"
                " these, or {} for the defaults."
            )
    shape |= options
    milestones = shape.get("milestones", [])
    shares = {"warmup_lr_rate": shape["warmup_lr_rate"], "min_lr_rate": shape.get("min_lr_rate", 0.0)}
    shares |= {f"milestones[{i}]": share for i, share in enumerate(milestones)}
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"lr_scheduler_kwargs: {name}={share} must be a share between 0 and 1.")
    peak = arguments.learning_rate
    return SimMIMSchedule(
        optimizer,
        kind,
        num_training_steps,
        warmup_steps,
        warmup_lr=peak * shape["warmup_lr_rate"],
        min_lr=peak * shares["min_lr_rate"],
        milestones=tuple(sorted(round(share * num_training_steps) for share in milestones)),
        gamma=shape.get("gamma", 0.1),
    )


def warmup_updates(arguments: TrainingArguments, num_training_steps: int) -> int:
    """Number of warm-up updates; `warmup_steps` below 1 is a share of all updates."""
    # Rounded: Trainer rounds up, which turns a share of 0.1 of 30 steps into 4.
    steps = arguments.warmup_steps
    return round(steps * num_training_steps) if 0 < steps < 1 else int(steps)


def images_per_step(arguments: TrainingArguments) -> int:
    """Global batch size, over devices, processes and accumulated batches."""
    return arguments.train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps


def check_batches(arguments: TrainingArguments, num_images: int) -> None:
    """Refuse batches that a decoder with batch normalization cannot be trained with.

    Args:
        arguments: Training arguments.
        num_images: Length of the training set.

    Raises:
        ValueError: If there are fewer images than in a batch, or one is alone in a batch.
    """
    images = images_per_step(arguments)
    if num_images < images:
        raise ValueError(
            f"{num_images} images are fewer than the batch size of {images}. Use a smaller"
            " --per_device_train_batch_size."
        )
    size = arguments.train_batch_size
    if size == 1:
        raise ValueError(
            "per_device_train_batch_size=1: the decoder normalizes by the images of a batch, which must be two or more."
            " Use 2, and as many images."
        )
    # Several processes fill the last batch.
    if not arguments.dataloader_drop_last and arguments.world_size == 1 and num_images % size == 1:
        raise ValueError(
            f"{num_images} images leave a single one for the last batch, and the decoder normalizes by the images of a"
            f" batch, which must be two or more. Use another --per_device_train_batch_size than {size}, or"
            " --dataloader_drop_last true."
        )


def planned_steps(arguments: TrainingArguments, num_images: int) -> int:
    """Number of updates that Trainer will make.

    Args:
        arguments: Training arguments.
        num_images: Length of the training set.

    Returns:
        `max_steps` if set, else the updates of all epochs.
    """
    if arguments.max_steps > 0:
        return arguments.max_steps
    batches = num_images / arguments.train_batch_size
    whole = math.floor(batches) if arguments.dataloader_drop_last else math.ceil(batches)
    share = whole / arguments.world_size
    share = math.floor(share) if arguments.dataloader_drop_last else math.ceil(share)
    updates = max(math.ceil(share / arguments.gradient_accumulation_steps), 1)
    return math.ceil(arguments.num_train_epochs * updates)
