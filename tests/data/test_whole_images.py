"""Batches of whole images."""

import torch

from hf_simmim.data.whole_images import CollateReadable


def test_images_are_padded_alone_and_run_with_those_of_their_size():
    sizes = [(5, 8), (8, 8), (9, 8), (8, 6)]
    samples = [
        {"index": index, "pixel_values": torch.ones(3, *size), "size": (2 * size[0], 2 * size[1])}
        for index, size in enumerate(sizes)
    ]
    batch = CollateReadable(stride=4)([*samples, {"index": 9, "reason": "broken"}])
    assert (batch.num_images, batch.unreadable) == (5, [(9, "broken")])
    assert [group.indices for group in batch.groups] == [[0, 1, 3], [2]]
    assert [tuple(group.pixel_values.shape) for group in batch.groups] == [(3, 3, 8, 8), (1, 3, 12, 8)]
    first = batch.groups[0]
    assert first.prepared_sizes == [(5, 8), (8, 8), (8, 6)]
    assert first.stored_sizes == [(10, 16), (16, 16), (16, 12)]
    # Padding is on the right and below.
    assert first.pixel_values[2].sum() == first.pixel_values[2, :, :8, :6].sum() == 3 * 48


def test_a_batch_without_readable_images_has_no_groups():
    batch = CollateReadable()([{"index": 0, "reason": "broken"}])
    assert (batch.groups, batch.num_images) == ([], 1)
