"""One run of the study: pre-train a row without labels, then evaluate its features with few labels."""

import math
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling
from hf_simmim.data.image_statistics import fit_color_clusters
from hf_simmim.model.masking import MASK_STRATEGIES, average_distance
from hf_simmim.training.acceleration import faster_kernels

from .data import ImageData, augment, stratified_sample
from .grid import Row, baseline_row
from .results import Result
from .settings import Settings

WARM_UP_SHARE = 0.1  # of all steps
WEIGHT_DECAY = 0.05
MAX_GRADIENT_NORM = 5.0
NEIGHBORS = 10
PROBE_PENALTIES = (1e-3, 1e-2, 1e-1)
DISTANCE_MASKS = 1024
CLUSTERED_IMAGES = 500
CLUSTERED_PIXELS = 100  # per image

# From predicted classes (N,) and labels (N,) to a number from 0 to 1.
Measure = Callable[[torch.Tensor, torch.Tensor], float]


def run_row(name: str, row: Row, seed: int, settings: Settings, data: ImageData, dtype: torch.dtype) -> Result:
    """Pre-train a row and evaluate its features.

    Args:
        name: Name of the row.
        row: Components of the row.
        seed: Random seed of weights, batches, crops, masks and labeled images, the same for all rows.
        settings: Settings of all rows.
        data: The images.
        dtype: float32, or another dtype for autocast.

    Returns:
        The result.
    """
    start = time.perf_counter()
    model = build_model(row, settings, data, seed)
    loss = distance = None
    with faster_kernels():
        if row.is_pretrained:
            loss = pretrain(model, row, settings, data, seed, dtype)
            distance = row_distance(row, model.config)
        linear_probe, knn = probes(model, settings, data, seed, dtype, data.metric)
        accuracy = fine_tune(model, settings, data, seed, dtype, data.metric)
    return Result(name, seed, accuracy, linear_probe, knn, distance, loss, time.perf_counter() - start)


def build_model(row: Row, settings: Settings, data: ImageData, seed: int) -> SimMIMForMaskedImageModeling:
    """Build a row's model with random weights, on the device of the images."""
    options = dict(row.target_options)
    if "num_clusters" in options:
        options = {"centers": _color_centers(data, options["num_clusters"])}
    torch.manual_seed(seed)
    config = SimMIMConfig(
        encoder_config=settings.encoder | {"image_size": settings.image_size, "num_channels": data.images.shape[1]},
        head=row.head,
        head_options=row.head_options,
        prediction_stride=row.prediction_stride,
        target=row.target,
        target_options=options,
        loss=row.loss,
        loss_region=row.loss_region,
        image_mean=data.mean,
        image_std=data.std,
    )
    return SimMIMForMaskedImageModeling(config).to(data.images.device)


def draw_masks(row: Row, config: SimMIMConfig, batch_size: int, generator: torch.Generator) -> torch.Tensor:
    """Draw masks (B, h, w) of a row, True = masked."""
    if row.mask_patch_size % config.patch_size:
        raise ValueError(
            f"A mask patch of {row.mask_patch_size} px is not a multiple of the encoder's patch of {config.patch_size}"
            " px."
        )
    return MASK_STRATEGIES[row.strategy](
        config.grid_size,
        row.mask_ratio,
        batch_size,
        unit_size=row.mask_patch_size // config.patch_size,
        generator=generator,
    )


def row_distance(row: Row, config: SimMIMConfig) -> float:
    """AvgDist of a row in pixels, averaged over many masks."""
    masks = draw_masks(row, config, DISTANCE_MASKS, torch.Generator().manual_seed(0))
    return average_distance(masks, config.patch_size).mean().item()


def faster_dtype(settings: Settings, data: ImageData) -> str:
    """The faster dtype of a training step on the device of the images: float32 or bfloat16 (autocast)."""
    device = data.images.device
    row = baseline_row(settings)
    model = build_model(row, settings, data, seed=0)
    pixel_values = data.normalize(data.images[: settings.batch_size])
    mask = draw_masks(row, model.config, len(pixel_values), torch.Generator(device))
    times = {}
    for name in ("float32", "bfloat16"):
        start = 0.0
        for index in range(4):
            if index == 2:  # after two warm-up steps
                start = time.perf_counter()
            with faster_kernels():
                with torch.autocast(device.type, torch.bfloat16, enabled=name == "bfloat16"):
                    loss = model(pixel_values, bool_masked_pos=mask, return_reconstruction=False).loss
                loss.backward()
            torch.get_device_module(device).synchronize()
        times[name] = time.perf_counter() - start
    print(", ".join(f"a step in {name} takes {seconds / 2:.3f} s" for name, seconds in times.items()), flush=True)
    return min(times, key=lambda name: times[name])


def _color_centers(data: ImageData, num_clusters: int) -> list[list[float]]:
    """Cluster the colors of the images."""
    rows = [{"image": image.permute(1, 2, 0).cpu().numpy()} for image in data.images[:CLUSTERED_IMAGES]]
    return fit_color_clusters(rows, num_clusters, data.images.shape[1], pixels_per_image=CLUSTERED_PIXELS)


def pretrain(model: nn.Module, row: Row, settings: Settings, data: ImageData, seed: int, dtype: torch.dtype) -> float:
    """Pre-train a model in place to predict masked pixels.

    Returns:
        Mean loss over the last tenth of the steps.
    """
    device = data.images.device
    crops, masks = (torch.Generator(device).manual_seed(10 * seed + offset) for offset in (1, 2))
    optimizer, schedule = _optimizer(model, settings.learning_rate, settings.pretrain_steps)
    losses = []
    model.train()
    for indices in _batches(len(data.images), settings.batch_size, settings.pretrain_steps, seed):
        pixel_values = augment(data.normalize(data.images[indices.to(device)]), crops)
        mask = draw_masks(row, model.config, len(indices), masks)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = model(pixel_values, bool_masked_pos=mask, return_reconstruction=False).loss
        _step(model, loss, optimizer, schedule)
        losses.append(loss.detach())
    return torch.stack(losses[-math.ceil(len(losses) / 10) :]).float().mean().item()


def fine_tune(
    model: nn.Module, settings: Settings, data: ImageData, seed: int, dtype: torch.dtype, metric: str = "accuracy"
) -> float:
    """Fine-tune the encoder of a model, with a linear layer on the mean of its tokens, on few labels.

    Returns:
        Accuracy on the test images, or another one of `METRICS`.
    """
    device = data.images.device
    encoder = model.simmim
    labeled = stratified_sample(data.labels, settings.num_labels, torch.Generator().manual_seed(seed)).to(device)
    images, labels = data.images[labeled], data.labels[labeled]
    torch.manual_seed(seed)
    classifier = nn.Linear(model.config.hidden_size, data.num_classes).to(device)
    trained = nn.ModuleList([encoder, classifier])
    optimizer, schedule = _optimizer(trained, settings.fine_tune_learning_rate, settings.fine_tune_steps)
    crops = torch.Generator(device).manual_seed(10 * seed + 3)
    trained.train()
    for indices in _batches(len(images), settings.fine_tune_batch_size, settings.fine_tune_steps, seed):
        indices = indices.to(device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            pixel_values = augment(data.normalize(images[indices]), crops)
            loss = F.cross_entropy(classifier(encoder(pixel_values).pooler_output).float(), labels[indices])
        _step(trained, loss, optimizer, schedule)
    with torch.no_grad():
        scores = classifier(features(model, data.test_images, data, dtype))
    return METRICS[metric](scores.argmax(1), data.test_labels)


@torch.no_grad()
def features(model: nn.Module, images: torch.Tensor, data: ImageData, dtype: torch.dtype) -> torch.Tensor:
    """Mean of the encoder's tokens for whole uint8 images: float32 tensor (N, D)."""
    encoder = model.simmim.eval()
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        return torch.cat([encoder(data.normalize(chunk)).pooler_output.float() for chunk in images.split(256)])


def probes(
    model: nn.Module, settings: Settings, data: ImageData, seed: int, dtype: torch.dtype, metric: str = "accuracy"
) -> tuple[float, float]:
    """Test accuracies, or values of another one of `METRICS`, of a linear probe and of k-NN on frozen features."""
    measure = METRICS[metric]
    generator = torch.Generator().manual_seed(seed)
    labeled = stratified_sample(data.labels, settings.num_probe_images, generator).to(data.labels.device)
    train, labels = features(model, data.images[labeled], data, dtype), data.labels[labeled]
    test = features(model, data.test_images, data, dtype)
    mean, std = train.mean(0), train.std(0) + 1e-6
    train, test = (train - mean) / std, (test - mean) / std
    return (
        measure(_linear_scores(train, labels, test, data.num_classes, measure).argmax(1), data.test_labels),
        measure(_neighbor_scores(train, labels, test, data.num_classes).argmax(1), data.test_labels),
    )


def _linear_scores(
    train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, num_classes: int, measure: Measure
) -> torch.Tensor:
    """Logistic regression, with the penalty that is best on a fifth of the training features."""

    def fit(inputs: torch.Tensor, targets: torch.Tensor, penalty: float) -> nn.Linear:
        layer = nn.Linear(inputs.shape[1], num_classes).to(inputs.device)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(layer(inputs), targets) + penalty * layer.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return layer

    cut = max(1, len(train) // 5)  # the sample is shuffled
    best = max(
        PROBE_PENALTIES,
        key=lambda penalty: measure(fit(train[cut:], labels[cut:], penalty)(train[:cut]).argmax(1), labels[:cut]),
    )
    layer = fit(train, labels, best)
    with torch.no_grad():
        return layer(test)


def _neighbor_scores(train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Votes of the nearest neighbors, weighted by cosine similarity."""
    similarity = F.normalize(test, dim=1) @ F.normalize(train, dim=1).T
    values, nearest = similarity.topk(min(NEIGHBORS, len(train)), dim=1)
    votes = torch.zeros(len(test), num_classes, device=test.device)
    return votes.scatter_add_(1, labels[nearest], values)


def accuracy(predicted: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of right predictions (N,)."""
    return (predicted == labels).float().mean().item()


def balanced_accuracy(predicted: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean over the classes of the share of right predictions (N,), which a frequent class cannot decide."""
    is_right = (predicted == labels).double()
    return torch.stack([is_right[labels == label].mean() for label in labels.unique()]).mean().item()


METRICS: dict[str, Measure] = {"accuracy": accuracy, "balanced accuracy": balanced_accuracy}


def _batches(num_images: int, batch_size: int, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """Indices of `steps` batches; the images are shuffled in every epoch."""
    generator = torch.Generator().manual_seed(10 * seed)
    waiting = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(waiting) < batch_size:
            waiting = torch.cat([waiting, torch.randperm(num_images, generator=generator)])
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def _optimizer(
    model: nn.Module, learning_rate: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW without weight decay of vectors, and a cosine schedule after a linear warm-up."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    warm_up = max(1, round(WARM_UP_SHARE * steps))

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _step(
    model: nn.Module,
    loss: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
