"""Features of images in a parquet file: written while they are computed, and searched without holding all of them."""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.labeled_images import WholeImageDataset
from ..model.modeling_base import SimMIMPreTrainedModel
from .probing import extract_features

# Images whose features are written as a group of rows.
GROUP_SIZE = 8192


def write_features(
    model: SimMIMPreTrainedModel,
    dataset: WholeImageDataset,
    path: Path,
    labels: Sequence[str] | None = None,
    layer: int | None = None,
    pooling: str = "mean",
    batch_size: int = 128,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    half: bool = False,
    description: dict[str, Any] | None = None,
) -> tuple[list[int], list[tuple[str, str]]]:
    """Compute features and write them as a parquet file, a group of rows after the other.

    The file has the columns `name`, `label` if there are labels, and `features`, a list of D numbers. It gets its name
    only when it is whole.

    Args:
        model: Any SimMIM model.
        dataset: The images.
        path: File to write.
        labels: Of each image.
        layer: Hidden state, as in `extract_features`.
        pooling: How an image's features become one vector, as in `extract_features`.
        batch_size: Images that are encoded at once.
        num_workers: Processes that load images.
        device: Where to compute; the model's own if None.
        dtype: Type of autocast; none if None.
        half: Whether numbers are written with 16 bits.
        description: What to note in the file, as JSON under the key `hf_simmim`.

    Returns:
        Indices of the images in the order of the rows, and (name, reason) of those that cannot be read.

    Raises:
        ValueError: If no image can be read, or the layer or pooling does not fit the encoder.
    """
    indices: list[int] = []
    unreadable: list[tuple[str, str]] = []

    def readable() -> Iterator[torch.Tensor]:
        for batch in DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=_collate):
            progress.update(len(batch["indices"]) + len(batch["reasons"]))
            unreadable.extend((dataset.images[index]["name"], reason) for index, reason in batch["reasons"])
            indices.extend(batch["indices"])
            if batch["indices"]:
                yield batch["pixel_values"]

    writer, num_written = None, 0
    unfinished = path.with_name(f"{path.name}.unfinished")
    metadata = {"hf_simmim": json.dumps(description or {})}
    try:
        with tqdm(total=len(dataset), desc="features", unit="image") as progress:
            batches = readable()
            for first in batches:
                group = itertools.chain([first], itertools.islice(batches, max(0, GROUP_SIZE // batch_size - 1)))
                features = extract_features(model, group, layer, pooling, device, dtype, progress=False)
                table = _table(dataset.images, indices[num_written:], labels, features.half() if half else features)
                table = table.replace_schema_metadata(metadata)
                num_written = len(indices)
                if writer is None:
                    writer = pyarrow.parquet.ParquetWriter(unfinished, table.schema)
                writer.write_table(table)
        if writer is None:
            first_ones = "; ".join(f"{name} ({reason})" for name, reason in unreadable[:3])
            raise ValueError(f"None of the {len(dataset)} images can be read: {first_ones}. Name other images.")
        writer.close()
        unfinished.replace(path)
    finally:
        if writer is not None:
            writer.close()
        unfinished.unlink(missing_ok=True)
    return indices, unreadable


def read_features(path: Path, rows: Sequence[int] | None = None) -> torch.Tensor:
    """Features of a file that `write_features` wrote.

    Args:
        path: The file.
        rows: Which rows, in rising order; all if None.

    Returns:
        float32 tensor (N, D).
    """
    parts = []
    wanted = None if rows is None else np.asarray(rows)
    for start, features in _groups(path):
        if wanted is None:
            parts.append(features)
        else:
            inside = wanted[(wanted >= start) & (wanted < start + len(features))] - start
            parts.append(features[torch.from_numpy(inside)])
    return torch.cat(parts)


def nearest_rows(path: Path, queries: Sequence[int], k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows whose features are most like those of some rows, by cosine similarity.

    Args:
        path: A file that `write_features` wrote.
        queries: Rows to compare with, in rising order.
        k: How many to find of each; the row itself is none of them.

    Returns:
        Rows int64 (Q, k), the most similar first, and their similarities float32 (Q, k). With k rows or fewer in the
        file, k is the number of the others.
    """
    vectors = F.normalize(read_features(path, queries), dim=1)
    positions = torch.tensor(list(queries))
    best = torch.empty(len(vectors), 0)
    found = torch.empty(len(vectors), 0, dtype=torch.int64)
    for start, features in _groups(path):
        similarity = vectors @ F.normalize(features, dim=1).T
        numbers = torch.arange(start, start + len(features)).expand(len(vectors), -1)
        similarity = similarity.masked_fill(numbers == positions[:, None], -torch.inf)
        best, found = torch.cat([best, similarity], dim=1), torch.cat([found, numbers], dim=1)
        best, order = best.topk(min(k + 1, best.shape[1]), dim=1)
        found = found.gather(1, order)
    k = min(k, best.shape[1] - 1)
    return found[:, :k], best[:, :k]


def _collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    good = [sample for sample in samples if "pixel_values" in sample]
    return {
        "indices": [sample["index"] for sample in good],
        "pixel_values": torch.stack([sample["pixel_values"] for sample in good]) if good else None,
        "reasons": [(sample["index"], sample["reason"]) for sample in samples if "reason" in sample],
    }


def _table(images: Dataset, indices: list[int], labels: Sequence[str] | None, features: torch.Tensor) -> pyarrow.Table:
    """Rows of the file."""
    columns: dict[str, Any] = {"name": images.select_columns("name")[indices]["name"]}
    if labels is not None:
        columns["label"] = [labels[index] for index in indices]
    numbers = pyarrow.array(features.numpy().reshape(-1))
    columns["features"] = pyarrow.FixedSizeListArray.from_arrays(numbers, features.shape[1])
    return pyarrow.table(columns)


def _groups(path: Path) -> Iterator[tuple[int, torch.Tensor]]:
    """First row and float32 features (N, D) of each group of rows."""
    start = 0
    with pyarrow.parquet.ParquetFile(path) as file:
        for index in range(file.num_row_groups):
            column = file.read_row_group(index, columns=["features"]).column("features").combine_chunks()
            numbers = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
            yield start, torch.from_numpy(numbers).view(len(column), -1)
            start += len(column)


def project(features: torch.Tensor, method: str = "tsne", seed: int = 0) -> np.ndarray:
    """Bring features to a plane.

    Args:
        features: (N, D).
        method: "tsne", where near ones stay near, on 50 principal components; or "pca", the first two components.
        seed: Of the course of t-SNE.

    Returns:
        Positions float64 (N, 2) in 0 to 1.

    Raises:
        ValueError: If there are fewer than three images.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(features) < 3:
        raise ValueError(f"{len(features)} images make no map. Use 3 or more.")
    values = features.double().numpy()
    count = min(50, *values.shape) if method == "tsne" else 2
    points = PCA(count, random_state=seed).fit_transform(values)
    # scikit-learn divides by the spread, and crashes where there is none.
    if method == "tsne" and points[:, 0].std() <= 1e-5 * max(1.0, float(np.abs(values).max())):
        raise ValueError("The features of all images are alike, so that there is no map to draw. Use --map none.")
    if method == "tsne":
        perplexity = min(30.0, (len(points) - 1) / 3)
        points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)
    low, high = points.min(axis=0), points.max(axis=0)
    return (points - low) / np.maximum(high - low, 1e-12)
