"""Pairs of pictures that are nearly the same, and their groups."""

import numpy as np
import pytest
from photos_for_audits import changed, scene
from PIL import Image

from hf_simmim.curation.facts import SIDE, Thumbnails, look
from hf_simmim.curation.likeness import candidates, components, correlations, similar_pairs, stars


def thumbnails_of(tmp_path, contents) -> Thumbnails:
    found = Thumbnails.empty(len(contents))
    for index, content in enumerate(contents):
        path = tmp_path / f"{index}.jpg"
        path.write_bytes(content)
        _, thumbnail = look(str(path))
        found.gray[index], found.colors[index] = thumbnail
    return found


@pytest.mark.parametrize("kind", ["half", "quality", "mirrored", "cropped", "all"])
def test_changed_copies_are_found_and_nothing_else(tmp_path, kind):
    scenes = [scene(seed) for seed in range(24)]
    contents = [changed(picture, "same") for picture in scenes] + [changed(picture, kind) for picture in scenes]
    found, _ = similar_pairs(*thumbnails_of(tmp_path, contents))
    pairs = {(one, other) for one, other, _ in found}
    wanted = {(index, index + 24) for index in range(24)}
    assert not pairs - wanted
    assert len(pairs & wanted) >= 23
    assert all(0.85 < likeness < 1.001 for _, _, likeness in found)


def test_a_crop_of_a_quarter_is_another_picture(tmp_path):
    picture = scene(1)
    width, height = picture.size
    part = picture.crop((0, 0, int(0.75 * width), int(0.75 * height)))
    assert not similar_pairs(*thumbnails_of(tmp_path, [changed(picture, "same"), changed(part, "same")]))[0]


def test_equal_shapes_of_other_colors_are_other_pictures(tmp_path):
    picture = np.asarray(scene(2))
    contents = [changed(Image.fromarray(pixels), "same") for pixels in (picture, picture[..., ::-1].copy())]
    thumbnails = thumbnails_of(tmp_path, contents)
    assert np.abs(thumbnails.colors[0].astype(int) - thumbnails.colors[1]).mean() > 8
    assert not similar_pairs(*thumbnails)[0]


def test_pairs_of_the_first_ones_only():
    gray = np.random.default_rng(0).integers(0, 255, (6, SIDE, SIDE)).astype(np.uint8)
    gray[3] = gray[1]
    gray[5] = gray[4]
    colors = Thumbnails.empty(6).colors
    assert [pair[:2] for pair in similar_pairs(gray, colors)[0]] == [(1, 3), (4, 5)]
    assert [pair[:2] for pair in similar_pairs(gray, colors, num_first=2)[0]] == [(1, 3)]
    assert similar_pairs(gray[:0], colors[:0]) == ([], 0)


def test_blocks_miss_no_pair(monkeypatch):
    gray = np.random.default_rng(0).integers(0, 255, (30, SIDE, SIDE)).astype(np.uint8)
    gray[29], gray[17] = gray[0], gray[9][:, ::-1]
    monkeypatch.setattr("hf_simmim.curation.likeness.BLOCK", 7)
    found = {
        (*pair, flag)
        for pairs, mirrored, _ in candidates(gray)
        for pair, flag in zip(pairs.tolist(), mirrored.tolist(), strict=True)
    }
    assert {(0, 29, False), (9, 17, True)} <= found


def test_alignment_undoes_a_move_that_a_crop_makes():
    rows, columns = np.mgrid[:SIDE, :SIDE]

    def waves(scale, move):
        place = (columns - 15.5) * scale + 15.5 + move
        return np.uint8(128 + 60 * np.sin(place / 2.1) + 60 * np.cos(rows / 3 + place / 5))

    coarse, fine = correlations(waves(1, 0)[None], waves(0.95, 0.8)[None])
    assert coarse[0] > 0.99
    assert fine[0] > 0.9
    assert correlations(waves(1, 0)[None], waves(1, 3)[None])[0][0] < 0.95


def test_groups():
    chain = [(0, 1), (1, 2), (2, 3), (3, 4), (6, 7)]
    assert components(8, chain).tolist() == [0, 0, 0, 0, 0, 5, 6, 6]
    # No picture is in the group of one that it is not like.
    groups = stars(8, chain, ranks=[1, 1, 5, 1, 1, 1, 1, 2])
    assert groups == [[2, 1, 3], [7, 6]]
