"""What the features of a frozen encoder are worth: a linear classifier and nearest neighbors on top of them."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from ..model.encoder_stages import HiddenState, hidden_states
from ..model.modeling_base import SimMIMModelOutput, SimMIMPreTrainedModel
from .metrics import PerClassAccuracy, TopKAccuracy

POOLINGS = ("mean", "max", "cls", "mean_std", "grid2")
# Of half the squared weights, beside the mean cross entropy of standardized features; the strongest first.
PENALTIES = (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6)
VALIDATION_SHARE = 0.2
# Share of the validated images by which a penalty is worse than the best when no weaker one is tried.
DROP = 0.01
# Similarities that are held at once.
MAX_SIMILARITIES = 2**25


@dataclass(frozen=True)
class ProbeResult:
    """How well a probe classifies the test images.

    Args:
        accuracy: Share that is right.
        balanced_accuracy: Mean of the classes' own accuracies.
        top5_accuracy: Share whose class is among the five best; None of fewer than six classes.
        predictions: Predicted classes, int64 tensor (N,) on the CPU.
        penalty: The linear probe's, as it was chosen; None of nearest neighbors.
    """

    accuracy: float
    balanced_accuracy: float
    top5_accuracy: float | None
    predictions: torch.Tensor
    penalty: float | None = None


def extract_features(
    model: SimMIMPreTrainedModel,
    batches: Iterable[Any],
    layer: int | None = None,
    pooling: str = "mean",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = True,
) -> torch.Tensor:
    """One vector for each image from a frozen encoder. See `extract_layers`, which takes several layers at once.

    Args:
        model: Any SimMIM model.
        batches: Normalized images (B, C, H, W), or dicts with them as `pixel_values`.
        layer: Hidden state to take, counted as in `output_hidden_states`: 0 is the patch embedding, and -1 the last.
            The paper probes layer 8 of ViT-B. None for the encoder's output.
        pooling: "mean" or "max" over the steps of the map; "cls", the class token; "mean_std", both, one after the
            other; "grid2", the means of the four quarters of the image.
        device: Where to compute; the model's own if None.
        dtype: Type of autocast, such as torch.bfloat16; that of the model if None.
        progress: Whether to show a bar.

    Returns:
        float32 tensor (N, D) on the CPU.

    Raises:
        ValueError: If there is no such layer or pooling, or no image.
    """
    return extract_layers(model, batches, [layer], pooling, device, dtype, progress)[0]


def extract_layers(
    model: SimMIMPreTrainedModel,
    batches: Iterable[Any],
    layers: Sequence[int | None],
    pooling: str = "mean",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = True,
) -> list[torch.Tensor]:
    """Vectors from several layers in one pass over the images.

    The whole model is run in evaluation mode, so that sharded ones work, and is left in the mode that it was in.

    Args:
        model: Any SimMIM model.
        batches: As in `extract_features`.
        layers: Hidden states, or None for the encoder's output.
        pooling: As in `extract_features`.
        device: As in `extract_features`.
        dtype: As in `extract_features`.
        progress: As in `extract_features`.

    Returns:
        float32 tensors (N, D_i) on the CPU, one for each layer.

    Raises:
        ValueError: As in `extract_features`.
    """
    states = check_layers(model.config, layers, pooling)
    device = torch.device(device) if device is not None else model.device
    # Heads other than that of pre-training do not know it.
    options = {"return_reconstruction": False} if hasattr(model, "target") else {}
    features: list[list[torch.Tensor]] = [[] for _ in layers]
    if model.device != device:
        model.to(device)  # type: ignore[arg-type]
    with torch.no_grad(), _frozen(model) as outputs:
        for batch in tqdm(batches, desc="features", unit="batch", leave=False, disable=not progress):
            pixel_values = batch if torch.is_tensor(batch) else batch["pixel_values"]
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                model(pixel_values.to(device), output_hidden_states=any(states), **options)
            output = outputs.pop()
            for collected, layer, state in zip(features, layers, states, strict=True):
                collected.append(_pooled(output, layer, state, pooling).float().cpu())
    if not features[0]:
        raise ValueError("There are no images to take features of. Give at least one batch.")
    return [torch.cat(collected) for collected in features]


def check_layers(config: Any, layers: Sequence[int | None], pooling: str) -> list[HiddenState | None]:
    """Find the hidden states that features come from.

    Args:
        config: The SimMIM config.
        layers: Hidden states, or None for the encoder's output.
        pooling: As in `extract_features`.

    Returns:
        Where the steps of each lie; None for the encoder's output.

    Raises:
        ValueError: If a layer or the pooling does not fit the encoder.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling={pooling!r} is unknown. Use one of: {', '.join(POOLINGS)}.")
    if not layers:
        raise ValueError("layers is empty. Name at least one, or None for the encoder's output.")
    # The class token of the output is that of the last hidden state.
    numbers = [-1 if layer is None and pooling == "cls" else layer for layer in layers]
    if all(number is None for number in numbers):
        return [None for _ in numbers]
    states = hidden_states(config)
    found: list[HiddenState | None] = []
    for number in numbers:
        if number is None:
            found.append(None)
            continue
        if not -len(states) <= number < len(states):
            raise ValueError(
                f"layer={number}: the encoder has {len(states)} hidden states. Use one from {-len(states)} to"
                f" {len(states) - 1}, where 0 is the patch embedding, or none for its output."
            )
        state = states[number]
        if state is None:
            usable = [str(index) for index, other in enumerate(states) if other is not None]
            raise ValueError(f"layer={number} is no map of the image. Use one of: {', '.join(usable) or 'none'}.")
        if pooling == "cls" and not state.num_prefix_tokens:
            raise ValueError(
                f"pooling='cls': the encoder {config.encoder_config.model_type!r} has no class token. Use mean."
            )
        found.append(state)
    return found


@contextlib.contextmanager
def _frozen(model: SimMIMPreTrainedModel) -> Iterator[list[SimMIMModelOutput]]:
    """Evaluation mode, and a list to which every forward adds what the encoder returns."""
    outputs: list[SimMIMModelOutput] = []
    modes = [(module, module.training) for module in model.modules()]
    handle = model.base_model.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model.eval()
    try:
        yield outputs
    finally:
        handle.remove()
        # One by one: what is frozen within a model that trains stays so.
        for module, mode in modes:
            module.training = mode


def _pooled(output: SimMIMModelOutput, layer: int | None, state: HiddenState | None, pooling: str) -> torch.Tensor:
    feature_map: Any = output.feature_map
    if state is not None:
        tokens = output.hidden_states[-1 if layer is None else layer]  # type: ignore[index]
        if pooling == "cls":
            return tokens[:, 0]
        if state.layout == "tokens":
            patches = tokens[:, state.num_prefix_tokens :]
            height, width = feature_map.shape[2:]
            ratio = round((patches.shape[1] / (height * width)) ** 0.5)
            feature_map = patches.unflatten(1, (height * ratio, width * ratio)).permute(0, 3, 1, 2)
        else:
            feature_map = tokens if state.layout == "channels_first" else tokens.permute(0, 3, 1, 2)
    steps = feature_map.float()
    if pooling == "max":
        return steps.amax(dim=(2, 3))
    if pooling == "mean_std":
        return torch.cat([steps.mean(dim=(2, 3)), steps.flatten(2).std(dim=2, correction=0)], dim=1)
    if pooling == "grid2":
        return F.adaptive_avg_pool2d(steps, 2).flatten(1)
    return steps.mean(dim=(2, 3))


def linear_probe(
    train: torch.Tensor,
    train_labels: torch.Tensor | Sequence[int],
    test: torch.Tensor,
    test_labels: torch.Tensor | Sequence[int],
    num_classes: int,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
    max_iter: int = 200,
    device: torch.device | str | None = None,
) -> ProbeResult:
    """Logistic regression on standardized features, whose penalty is chosen on a fifth of the training features.

    The mean cross entropy, plus penalty / 2 times the squared weights, is minimized by L-BFGS: scikit-learn's
    `LogisticRegression(C=1 / (penalty * N))`.

    Args:
        train: Training features (N, D).
        train_labels: Their classes (N,).
        test: Test features (M, D).
        test_labels: Their classes (M,).
        num_classes: Number K of classes.
        penalties: To choose from. Where each class has only one image the middle one is taken.
        seed: Of the choice of that fifth, which has as much of every class.
        max_iter: Iterations of L-BFGS for each penalty.
        device: Where to compute; that of the features if None.

    Returns:
        How well it classifies the test images.

    Raises:
        ValueError: If features and labels do not fit, or there is nothing to choose from.
    """
    if not penalties or min(penalties) < 0:
        raise ValueError(f"penalties={tuple(penalties)} must be one or more numbers of at least 0.")
    train, labels = _checked(train, train_labels, num_classes, device)
    test, _ = _checked(test, test_labels, num_classes, device)
    penalties = sorted(penalties, reverse=True)
    best = penalties[len(penalties) // 2]
    layer = _zeros(train, num_classes)
    fitted, validated = _stratified(labels.cpu(), seed)
    if len(penalties) > 1 and len(validated):
        fitted, validated = fitted.to(train.device), validated.to(train.device)
        mean, std = _spread(train[fitted])
        inputs, others = (train[fitted] - mean) / std, (train[validated] - mean) / std
        highest = -1
        # Each begins where the one before has ended. Of equal ones the stronger penalty wins.
        for penalty in penalties:
            _fit(layer, inputs, labels[fitted], penalty, max_iter, tolerance=1e-5)
            right = int((layer(others).argmax(1) == labels[validated]).sum())
            if right > highest:
                best, highest = penalty, right
            elif highest - right > max(1, DROP * len(validated)):
                break  # Weaker ones are the slowest, and worse still.
    mean, std = _spread(train)
    _fit(layer, (train - mean) / std, labels, best, max_iter, tolerance=1e-6)
    with torch.no_grad():
        return _result(layer((test - mean) / std), test_labels, best)


def _zeros(train: torch.Tensor, num_classes: int) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, train.shape[1], num_classes, device=train.device)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _fit(
    layer: nn.Linear, inputs: torch.Tensor, labels: torch.Tensor, penalty: float, max_iter: int, tolerance: float
) -> None:
    optimizer = torch.optim.LBFGS(
        layer.parameters(),
        max_iter=max_iter,
        tolerance_grad=tolerance,
        tolerance_change=tolerance,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(inputs), labels) + penalty / 2 * layer.weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)


def _spread(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each feature; 1 where it is the same in all images."""
    std, mean = torch.std_mean(features, dim=0, correction=0)
    return mean, std.masked_fill(std <= 1e-6 * mean.abs(), 1.0)


def _stratified(labels: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices to fit and to validate on: of each class of two or more at least one each."""
    generator = torch.Generator().manual_seed(seed)
    is_validated = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        if len(members) > 1:
            count = max(1, round(VALIDATION_SHARE * len(members)))
            is_validated[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return (~is_validated).nonzero()[:, 0], is_validated.nonzero()[:, 0]


def knn(
    train: torch.Tensor,
    train_labels: torch.Tensor | Sequence[int],
    test: torch.Tensor,
    test_labels: torch.Tensor | Sequence[int],
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
    device: torch.device | str | None = None,
) -> ProbeResult:
    """Nearest neighbors by cosine similarity, which vote with exp(similarity / temperature).

    Args:
        train: Training features (N, D).
        train_labels: Their classes (N,).
        test: Test features (M, D).
        test_labels: Their classes (M,).
        num_classes: Number K of classes.
        k: Number of neighbors; all of fewer images.
        temperature: The smaller, the more the nearest ones count.
        device: Where to compute; that of the features if None.

    Returns:
        How well they classify the test images.

    Raises:
        ValueError: If features and labels do not fit, or k or the temperature is not positive.

    Source: `knn_classifier` in eval_knn.py of facebookresearch/dino; Wu et al., arXiv 1805.01978.
    """
    if k < 1 or temperature <= 0:
        raise ValueError(f"k={k} must be at least 1 and temperature={temperature} more than 0.")
    train, labels = _checked(train, train_labels, num_classes, device)
    test, _ = _checked(test, test_labels, num_classes, device)
    references = F.normalize(train, dim=1).T
    scores = []
    for chunk in F.normalize(test, dim=1).split(max(1, MAX_SIMILARITIES // len(train))):
        similarity, nearest = (chunk @ references).topk(min(k, len(train)), dim=1)
        # Against the nearest, so that nothing overflows at small temperatures; the order is the same.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = torch.zeros(len(chunk), num_classes, device=chunk.device)
        scores.append(votes.scatter_add_(1, labels[nearest], weights))
    return _result(torch.cat(scores), test_labels)


def _checked(
    features: torch.Tensor, labels: torch.Tensor | Sequence[int], num_classes: int, device: torch.device | str | None
) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.as_tensor(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise ValueError(
            f"Features have shape {tuple(features.shape)} and labels {tuple(labels.shape)}. Give (N, D) and (N,)."
        )
    if not features.isfinite().all():
        raise ValueError("Some features are not finite: the model has diverged. Take an earlier checkpoint.")
    if labels.is_floating_point() or int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise ValueError(f"Labels must be integers from 0 to {num_classes - 1}, one class for each image.")
    device = features.device if device is None else torch.device(device)
    return features.to(device, torch.float32), labels.to(device, torch.int64)


def _result(scores: torch.Tensor, labels: torch.Tensor | Sequence[int], penalty: float | None = None) -> ProbeResult:
    num_classes = scores.shape[1]
    predictions = scores.argmax(dim=1).cpu()
    names = [str(index) for index in range(num_classes)]
    figures = PerClassAccuracy(names).compute(predictions=predictions, references=labels)
    top5 = None
    if num_classes > 5:
        top5 = TopKAccuracy(5).compute(predictions=scores, references=labels)["top5_accuracy"]
    return ProbeResult(figures["accuracy"], figures["balanced_accuracy"], top5, predictions, penalty)
