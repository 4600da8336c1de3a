"""Features of images in a parquet file: extraction, nearest neighbors, and projection to two dimensions.

The file is written and searched one group of rows at a time, so that features need not fit into memory.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.labeled.images import WholeImageDataset
from ..data.reading import NoReadableImageError
from ..data.sampling import evenly_spaced
from ..data.whole_images import CollateReadable, none_readable
from ..model.modeling_base import SimMIMPreTrainedModel
from .probing import extract_features
from .tables import TableFile

# Images per group of rows.
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
    columns: Mapping[str, Sequence[Any]] | None = None,
) -> tuple[list[int], list[tuple[str, str]]]:
    """Compute features and write them to a parquet file, one group of rows at a time.

    The file has the columns `name`, `label` if there are labels, further ones if they are given, and `features`, a list
    of D numbers. It gets its name
    only when it is complete.

    Args:
        model: Any SimMIM model.
        dataset: The images.
        path: File to write.
        labels: Label of each image.
        layer: Hidden state, as in `extract_features`.
        pooling: How an image's features become one vector, as in `extract_features`.
        batch_size: Number of images that are encoded at once.
        num_workers: Number of processes that load images.
        device: Device to compute on; the model's own if None.
        dtype: Dtype of autocast; None disables it.
        half: Whether numbers are stored as float16.
        description: Metadata of the file, stored as JSON under the key `hf_simmim`.
        columns: Further columns by name, with a value for each image, such as where a window lies.

    Returns:
        Indices of the images in the order of the rows, and (name, reason) of the unreadable images.

    Raises:
        ValueError: If no image can be read, or the layer or pooling does not fit the encoder.
    """
    indices: list[int] = []
    unreadable: list[tuple[str, str]] = []

    def readable() -> Iterator[torch.Tensor]:
        for batch in DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=CollateReadable()):
            progress.update(batch.num_images)
            unreadable.extend((dataset.images[index]["name"], reason) for index, reason in batch.unreadable)
            for group in batch.groups:
                indices.extend(group.indices)
                yield group.pixel_values

    num_written = 0
    metadata = {"hf_simmim": json.dumps(description or {})}
    with TableFile(path) as file, tqdm(total=len(dataset), desc="features", unit="image") as progress:
        batches = readable()
        for first in batches:
            group = itertools.chain([first], itertools.islice(batches, max(0, GROUP_SIZE // batch_size - 1)))
            features = extract_features(model, group, layer, pooling, device, dtype, progress=False)
            numbers = features.half() if half else features
            table = _table(dataset.images, indices[num_written:], labels, columns or {}, numbers)
            file.write(table.replace_schema_metadata(metadata))
            num_written = len(indices)
        if not num_written:
            raise NoReadableImageError(none_readable(len(dataset), unreadable))
    return indices, unreadable


def read_features(path: Path, rows: Sequence[int] | None = None) -> torch.Tensor:
    """Read features from a file of `write_features`.

    Args:
        path: The file.
        rows: Row numbers in increasing order; all rows if None.

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
    """Find the nearest neighbors of rows by cosine similarity of centered features.

    The mean of the features of all rows is subtracted first: what all images share would make all similarities high.

    Args:
        path: A file of `write_features`.
        queries: Row numbers of the queries, in increasing order.
        k: Number of neighbors of each query, without the query itself.

    Returns:
        Row numbers int64 (Q, k), the most similar first, and their similarities float32 (Q, k). If the file has k rows
        or fewer, k is the number of other rows.
    """
    total, count = torch.zeros(()), 0
    for start, features in _groups(path):
        total, count = total + features.double().sum(dim=0), start + len(features)
    mean = (total / count).float()
    vectors = F.normalize(read_features(path, queries) - mean, dim=1)
    positions = torch.tensor(list(queries))
    best = torch.empty(len(vectors), 0)
    found = torch.empty(len(vectors), 0, dtype=torch.int64)
    for start, features in _groups(path):
        similarity = vectors @ F.normalize(features - mean, dim=1).T
        numbers = torch.arange(start, start + len(features)).expand(len(vectors), -1)
        similarity = similarity.masked_fill(numbers == positions[:, None], -torch.inf)
        best, found = torch.cat([best, similarity], dim=1), torch.cat([found, numbers], dim=1)
        best, order = best.topk(min(k + 1, best.shape[1]), dim=1)
        found = found.gather(1, order)
    k = min(k, best.shape[1] - 1)
    return found[:, :k], best[:, :k]


def _table(
    images: Dataset,
    indices: list[int],
    labels: Sequence[str] | None,
    others: Mapping[str, Sequence[Any]],
    features: torch.Tensor,
) -> pyarrow.Table:
    """Rows of the file."""
    columns: dict[str, Any] = {"name": images.select_columns("name")[indices]["name"]}
    if labels is not None:
        columns["label"] = [labels[index] for index in indices]
    columns |= {name: [values[index] for index in indices] for name, values in others.items()}
    numbers = pyarrow.array(features.numpy().reshape(-1))
    columns["features"] = pyarrow.FixedSizeListArray.from_arrays(numbers, features.shape[1])
    return pyarrow.table(columns)


def _groups(path: Path) -> Iterator[tuple[int, torch.Tensor]]:
    """First row number and float32 features (N, D) of each group of rows."""
    start = 0
    with pyarrow.parquet.ParquetFile(path) as file:
        for index in range(file.num_row_groups):
            column = file.read_row_group(index, columns=["features"]).column("features").combine_chunks()
            numbers = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
            yield start, torch.from_numpy(numbers).view(len(column), -1)
            start += len(column)


def principal_components(path: Path, count: int, max_fitted: int = 50_000) -> np.ndarray:
    """Project the features of a file to their first principal components, in units of their standard deviations.

    Args:
        path: A file of `write_features`.
        count: Number of components K.
        max_fitted: Largest number of rows that the components are found by, spread evenly.

    Returns:
        float64 array (N, K); components that do not vary, or do not exist, are 0.
    """
    from sklearn.decomposition import PCA

    with pyarrow.parquet.ParquetFile(path) as file:
        total = file.metadata.num_rows
    fitted = read_features(path, evenly_spaced(total, max_fitted)).double().numpy()
    kept = min(count, *fitted.shape)
    components = PCA(kept, random_state=0).fit(fitted)
    values = np.zeros((total, count))
    for start, features in _groups(path):
        values[start : start + len(features), :kept] = components.transform(features.double().numpy())
    spread = values.std(axis=0)
    return values / np.where(spread > 1e-9, spread, np.inf)


def project(features: torch.Tensor, method: str = "tsne", seed: int = 0) -> np.ndarray:
    """Project features to two dimensions.

    Args:
        features: Features (N, D).
        method: "tsne", which keeps near features near, on 50 principal components; or "pca", the first two components.
        seed: Random seed of t-SNE and PCA.

    Returns:
        Positions float64 (N, 2) in [0, 1].

    Raises:
        ValueError: If there are fewer than three images, or t-SNE gets equal features.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(features) < 3:
        raise ValueError(f"A map of {len(features)} images is not possible. Use 3 or more.")
    values = features.double().numpy()
    count = min(50, *values.shape) if method == "tsne" else 2
    points = PCA(count, random_state=seed).fit_transform(values)
    # scikit-learn divides by the standard deviation, and crashes if it is 0.
    if method == "tsne" and points[:, 0].std() <= 1e-5 * max(1.0, float(np.abs(values).max())):
        raise ValueError("The features of all images are equal, so there is no map to draw. Use --map none.")
    if method == "tsne":
        perplexity = min(30.0, (len(points) - 1) / 3)
        points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)
    low, high = points.min(axis=0), points.max(axis=0)
    return (points - low) / np.maximum(high - low, 1e-12)
