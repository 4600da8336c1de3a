"""Evaluation of frozen features: linear probe and nearest neighbors."""

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
# A hidden state, or None for the encoder's output, and a pooling.
Pair = tuple[int | None, str]
# Layers that are tried besides the output, from the middle of the encoder on; and poolings.
NUM_CANDIDATES = 4
CANDIDATE_POOLINGS = ("mean", "mean_std", "cls")
# Iterations of the probes that are compared for it: more change few answers.
NUM_CHOICE_STEPS = 50
# L2 penalties: factors of half the squared weights, added to the mean cross entropy; the strongest first.
PENALTIES = (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6)
# The penalty where one fit has to be enough.
PENALTY = 1e-3
VALIDATION_SHARE = 0.2
# Drop of validation accuracy from the best after which no weaker penalty is tried.
DROP = 0.01
# Similarities that are held in memory at once.
MAX_SIMILARITIES = 2**25


@dataclass(frozen=True)
class ProbeResult:
    """Accuracy of a probe on the test images.

    Args:
        accuracy: Fraction of correct predictions.
        balanced_accuracy: Mean recall of the classes.
        top5_accuracy: Fraction of images whose class has one of the five best scores; None with fewer than six classes.
        predictions: Predicted classes, int64 tensor (N,) on the CPU.
        penalty: Chosen penalty of the linear probe; None for nearest neighbors.
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
    """Extract one feature vector per image from a frozen encoder. `extract_layers` takes several layers at once.

    Args:
        model: Any SimMIM model.
        batches: Normalized images (B, C, H, W), or dicts with them as `pixel_values`.
        layer: Hidden state to take, counted as in `output_hidden_states`: 0 is the patch embedding, and -1 the last.
            The paper probes layer 8 of ViT-B. None for the encoder's output.
        pooling: "mean" or "max" over the positions of the feature map; "cls", the class token; "mean_std", mean and
            standard deviation, concatenated; "grid2", the means of the four quarters of the image.
        device: Device to compute on; the model's own if None.
        dtype: Dtype of autocast, such as torch.bfloat16; None disables it.
        progress: Whether to show a progress bar.

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
    """Extract feature vectors from several layers in one pass over the images.

    The whole model is run in evaluation mode, so that sharded models work, and its modes are restored afterwards.

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
    return extract_pairs(model, batches, [(layer, pooling) for layer in layers], device, dtype, progress)


def extract_pairs(
    model: SimMIMPreTrainedModel,
    batches: Iterable[Any],
    pairs: Sequence[Pair],
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = True,
) -> list[torch.Tensor]:
    """Extract feature vectors of several layers and poolings in one pass over the images.

    Args:
        model: Any SimMIM model.
        batches: As in `extract_features`.
        pairs: Layers, as in `extract_layers`, with their poolings.
        device: As in `extract_features`.
        dtype: As in `extract_features`.
        progress: As in `extract_features`.

    Returns:
        float32 tensors (N, D_i) on the CPU, one for each pair.

    Raises:
        ValueError: As in `extract_features`.
    """
    if not pairs:
        raise ValueError("layers is empty. Name at least one, or None for the encoder's output.")
    states = [check_layers(model.config, [layer], pooling)[0] for layer, pooling in pairs]
    device = torch.device(device) if device is not None else model.device
    # Only the pre-training model takes it.
    options = {"return_reconstruction": False} if hasattr(model, "target") else {}
    features: list[list[torch.Tensor]] = [[] for _ in pairs]
    if model.device != device:
        model.to(device)  # type: ignore[arg-type]
    with torch.no_grad(), _frozen(model) as outputs:
        for batch in tqdm(batches, desc="features", unit="batch", leave=False, disable=not progress):
            pixel_values = batch if torch.is_tensor(batch) else batch["pixel_values"]
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                model(pixel_values.to(device), output_hidden_states=any(states), **options)
            output = outputs.pop()
            for collected, (layer, pooling), state in zip(features, pairs, states, strict=True):
                collected.append(_pooled(output, layer, state, pooling).float().cpu())
    if not features[0]:
        raise ValueError("There are no images to extract features from. Give at least one batch.")
    return [torch.cat(collected) for collected in features]


def check_layers(config: Any, layers: Sequence[int | None], pooling: str) -> list[HiddenState | None]:
    """Find the hidden states that features come from.

    Args:
        config: The SimMIM config.
        layers: Hidden states, or None for the encoder's output.
        pooling: As in `extract_features`.

    Returns:
        Layout of each hidden state; None for the encoder's output.

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
            raise ValueError(f"layer={number} is not a feature map. Use one of: {', '.join(usable) or 'none'}.")
        if pooling == "cls" and not state.num_prefix_tokens:
            raise ValueError(
                f"pooling='cls': the encoder {config.encoder_config.model_type!r} has no class token. Use mean."
            )
        found.append(state)
    return found


def candidate_pairs(config: Any, layer: int | str | None = "auto", pooling: str = "auto") -> list[Pair]:
    """Layers and poolings to choose from: the output, and hidden states from the middle of the encoder on.

    Args:
        config: The SimMIM config.
        layer: "auto" for several, else the only layer.
        pooling: "auto" for several, else the only pooling.

    Returns:
        The pairs that the encoder has; the first is the fallback where there are too few labels to choose.

    Raises:
        ValueError: If the layer or pooling does not fit the encoder.

    Source: section 4.1.3 of the paper, which probes the 8th of ViT-B's 12 layers because it is better than the last.
    """
    layers: list[int | None] = [layer] if isinstance(layer, int) else [None]
    if layer == "auto":
        try:
            states = hidden_states(config)
        except ValueError:  # an encoder without hidden states
            states = []
        usable = [index for index, state in enumerate(states) if state is not None and 2 * index >= len(states) - 1]
        count = min(NUM_CANDIDATES, len(usable))
        layers += [usable[(index + 1) * len(usable) // count - 1] for index in range(count)]
    pairs: list[Pair] = []
    for name in CANDIDATE_POOLINGS if pooling == "auto" else (pooling,):
        for number in layers:
            try:
                check_layers(config, [number], name)
            except ValueError:
                if name == "cls" and pooling == "auto":
                    continue
                raise
            pairs.append((number, name))
    return pairs


def choose_pair(
    features: Sequence[torch.Tensor],
    labels: torch.Tensor | Sequence[int],
    num_classes: int,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> int:
    """Choose among features of the same training images by a linear probe, without any test image.

    Each is fitted to four fifths of the images, and validated on the others, the same for all.

    Args:
        features: Training features (N, D_i) of each candidate.
        labels: Classes (N,) of the training images.
        num_classes: Number of classes.
        seed: Seed of the stratified split.
        device: Device to compute on; that of the features if None.

    Returns:
        Position of the one with the highest validation accuracy, the first of equals; 0 if each class has one image.
    """
    labels = torch.as_tensor(labels)
    fitted, validated = _stratified_split(labels, seed)
    if len(features) < 2 or not len(validated):
        return 0
    accuracies = [
        linear_probe(
            *(part[fitted], labels[fitted], part[validated], labels[validated], num_classes),
            penalties=[PENALTY],
            max_iter=NUM_CHOICE_STEPS,
            device=device,
        ).accuracy
        for part in features
    ]
    return accuracies.index(max(accuracies))


def name_pair(pair: Pair) -> str:
    """Words for a layer and a pooling, such as "hidden state 8, pooling mean"."""
    layer, pooling = pair
    return f"{'the output' if layer is None else f'hidden state {layer}'}, pooling {pooling}"


@contextlib.contextmanager
def _frozen(model: SimMIMPreTrainedModel) -> Iterator[list[SimMIMModelOutput]]:
    """Set evaluation mode, and yield a list to which every forward pass adds the encoder's output."""
    outputs: list[SimMIMModelOutput] = []
    modes = [(module, module.training) for module in model.modules()]
    handle = model.base_model.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model.eval()
    try:
        yield outputs
    finally:
        handle.remove()
        # One by one, because frozen modules of a model in training mode are in evaluation mode.
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
    """Logistic regression on standardized features, whose L2 penalty is chosen on a fifth of the training features.

    The mean cross entropy, plus penalty / 2 times the squared weights, is minimized by L-BFGS: scikit-learn's
    `LogisticRegression(C=1 / (penalty * N))`.

    Args:
        train: Training features (N, D).
        train_labels: Their classes (N,).
        test: Test features (M, D).
        test_labels: Their classes (M,).
        num_classes: Number of classes K.
        penalties: Penalties to choose from. If each class has only one image, the middle one is taken.
        seed: Seed of the stratified split of the training features.
        max_iter: Iterations of L-BFGS for each penalty.
        device: Device to compute on; that of the features if None.

    Returns:
        Accuracy on the test images.

    Raises:
        ValueError: If features and labels do not match, or there are no valid penalties.
    """
    if not penalties or min(penalties) < 0:
        raise ValueError(f"penalties={tuple(penalties)} must be one or more non-negative numbers.")
    train, labels = _checked(train, train_labels, num_classes, device)
    test, _ = _checked(test, test_labels, num_classes, device)
    penalties = sorted(penalties, reverse=True)
    best = penalties[len(penalties) // 2]
    layer = _zero_layer(train, num_classes)
    fitted, validated = _stratified_split(labels.cpu(), seed)
    if len(penalties) > 1 and len(validated):
        fitted, validated = fitted.to(train.device), validated.to(train.device)
        mean, std = _mean_and_std(train[fitted])
        inputs, others = (train[fitted] - mean) / std, (train[validated] - mean) / std
        highest = -1
        # Each fit starts from the previous one. Among equal accuracies the stronger penalty wins.
        for penalty in penalties:
            _fit(layer, inputs, labels[fitted], penalty, max_iter, tolerance=1e-5)
            right = int((layer(others).argmax(1) == labels[validated]).sum())
            if right > highest:
                best, highest = penalty, right
            elif highest - right > max(1, DROP * len(validated)):
                break  # weaker penalties take longest and are worse still
    mean, std = _mean_and_std(train)
    _fit(layer, (train - mean) / std, labels, best, max_iter, tolerance=1e-6)
    with torch.no_grad():
        return _result(layer((test - mean) / std), test_labels, best)


def _zero_layer(train: torch.Tensor, num_classes: int) -> nn.Linear:
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


def _mean_and_std(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each feature; 1 as standard deviation of constant features."""
    std, mean = torch.std_mean(features, dim=0, correction=0)
    return mean, std.masked_fill(std <= 1e-6 * mean.abs(), 1.0)


def _stratified_split(labels: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of training and validation images, at least one each of every class with two or more."""
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
        num_classes: Number of classes K.
        k: Number of neighbors; all training images if there are fewer.
        temperature: Temperature of the votes: at lower ones the nearest neighbors weigh more.
        device: Device to compute on; that of the features if None.

    Returns:
        Accuracy on the test images.

    Raises:
        ValueError: If features and labels do not match, or k or the temperature is not positive.

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
        # Relative to the nearest, so that small temperatures do not overflow; the order is the same.
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
        raise ValueError("Some features are not finite: the model has diverged. Use an earlier checkpoint.")
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
