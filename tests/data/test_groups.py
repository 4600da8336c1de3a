"""Images of one file or one DICOM series are on one side of every split."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from fields import noise, write_dicom, write_nifti
from PIL import Image

from hf_simmim.cli import compare, finetune, probe, segment
from hf_simmim.cli.options.probes import load_probe
from hf_simmim.data.groups import group_folds, hold_out, image_groups, split_groups
from hf_simmim.data.labeled.images import load_labeled_images
from hf_simmim.data.labeled.splits import folds, holdout
from hf_simmim.data.sources import load_images

CLASSES = ("sick", "well")


def sides(*parts) -> list[set[str]]:
    """Group of each image, for each part of a split."""
    groups = image_groups([name for part in parts for name in part["name"]])
    ends = np.cumsum([len(part["name"]) for part in parts])
    return [set(part) for part in np.split(np.array(groups), ends[:-1])]


@pytest.fixture
def scans(tmp_path):
    """Volumes of four slices each, six of each class."""
    for label, name in enumerate(CLASSES):
        (tmp_path / "scans" / name).mkdir(parents=True)
        for index in range(6):
            write_nifti(tmp_path / "scans" / name / f"{index}.nii.gz", noise(12, 10, 4, high=200) + 20 * label)
    return tmp_path / "scans"


@pytest.fixture
def series(tmp_path):
    """Six series of four files each; every one has slices of both classes, in the folders of the classes."""
    for name in CLASSES:
        (tmp_path / "series" / name).mkdir(parents=True)
    for index in range(6):
        for number in range(4):
            # With a name of DICOM, and without.
            path = (
                tmp_path
                / "series"
                / CLASSES[number % 2]
                / (f"{index}-{number}.dcm" if index % 2 else f"IM{index}{number}")
            )
            write_dicom(path, noise(12, 10, high=4000), 12, SeriesInstanceUID=f"1.2.3.{index}", InstanceNumber=number)
    return tmp_path / "series"


def test_groups(scans, series, tmp_path):
    names = load_images(scans)["name"]
    assert [group.endswith("0.nii.gz") for group in image_groups(names)[:5]] == [True] * 4 + [False]
    found = image_groups(load_images(series)["name"])
    assert {group: found.count(group) for group in found} == {f"1.2.3.{index}": 4 for index in range(6)}
    write_dicom(tmp_path / "frames.dcm", noise(5, 12, 10, high=4000), 12, SeriesInstanceUID="1.2.4")
    assert image_groups([f"{tmp_path}/frames.dcm::frame={index}" for index in range(5)]) == ["1.2.4"] * 5
    windows = [f"slide.svs::level=0,top={top},left=0,height=9,width=9" for top in (0, 9)]
    assert image_groups([*windows, "slide.svs", "b.png"]) == [*["slide.svs"] * 3, "3 b.png"]
    # Files of their own, rows of a data set, a file that is cut off, and one that does not name its series.
    (tmp_path / "cut.dcm").write_bytes((series / "sick" / "1-0.dcm").read_bytes()[:140])
    write_dicom(tmp_path / "alone.dcm", noise(12, 10, high=4000), 12, SeriesInstanceUID="")
    shutil.copy(tmp_path / "alone.dcm", tmp_path / "again.dcm")
    assert (
        image_groups(["a.png", "b.png", "17", *(f"{tmp_path}/{name}.dcm" for name in ("cut", "alone", "again"))])
        is None
    )


def test_series_are_held_out_of_a_pretraining(series):
    train, held = hold_out(load_images(series), 0.3, seed=0)
    assert len(held) == 8
    assert not set.intersection(*sides(train, held))


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_split_has_the_share_of_every_class(share):
    generator = np.random.default_rng(0)
    labels, groups = [], []
    for index, size in enumerate(generator.integers(1, 30, 120)):
        labels += generator.choice(3, size, p=np.roll([0.8, 0.15, 0.05], index)).tolist()
        groups += [str(index)] * int(size)
    train, held = split_groups(np.eye(3)[labels], groups, share, seed=1)
    assert sorted(train + held) == list(range(len(labels)))
    assert not {groups[index] for index in train} & {groups[index] for index in held}
    held_share = np.bincount(np.array(labels)[held], minlength=3) / np.bincount(labels)
    np.testing.assert_allclose(held_share, share, atol=0.03)
    assert split_groups(np.eye(3)[labels], groups, share, seed=1) == (train, held)
    assert split_groups(np.eye(3)[labels], groups, share, seed=2) != (train, held)
    parts = group_folds(np.eye(3)[labels], groups, 5, seed=0)
    assert len({(group, fold) for group, fold in zip(groups, parts, strict=True)}) == 120
    for fold in range(5):
        found = np.bincount(np.array(labels)[parts == fold], minlength=3) / np.bincount(labels)
        np.testing.assert_allclose(found, 0.2, atol=0.05)


def test_every_class_is_on_both_sides_and_no_fold_is_empty():
    # Two large files of each class: a share of a fifth is nearer to none of them.
    labels, groups = [0] * 20 + [1] * 20, ["a"] * 10 + ["b"] * 10 + ["c"] * 10 + ["d"] * 10
    train, held = holdout(labels, 0.2, 0, groups=groups)
    assert {labels[index] for index in train} == {labels[index] for index in held} == {0, 1}
    assert len(held) == 20
    parts = [folds(labels, 2, fold, 0, groups=groups) for fold in range(2)]
    assert sorted(parts[0][1] + parts[1][1]) == list(range(40))
    for train, held in parts:
        assert sorted(train + held) == list(range(40))
        assert {labels[index] for index in train} == {labels[index] for index in held} == {0, 1}
    # As many files as folds, in one class of numbers.
    values, few = [0.5] * 9, list("aaaaaabbc")
    assert sorted(len(folds(values, 3, fold, 0, groups=few)[1]) for fold in range(3)) == [1, 2, 6]
    train, held = holdout([[1, 0], [0, 1], [1, 1], [0, 1]], 0.5, 0, groups=list("aabb"))
    assert (train, held) in (([0, 1], [2, 3]), ([2, 3], [0, 1]))


def test_what_cannot_be_split_is_refused():
    labels, groups = [0, 0, 0, 1, 1, 1], list("aabccc")
    with pytest.raises(ValueError, match="class well come from 1 file or series, too few for both parts.*Add files"):
        holdout(labels, 0.5, 0, CLASSES, groups)
    with pytest.raises(ValueError, match="class sick come from 2 files or series, too few for 3 folds"):
        folds(labels, 3, 0, 0, CLASSES, list("aabcde"))
    with pytest.raises(ValueError, match="come from 2 files or series, too few for 3 folds"):
        folds([0.1] * 6, 3, 0, 0, None, list("aaabbb"))
    with pytest.raises(ValueError, match="All images come from one file or series.*Name other files"):
        holdout([0.1] * 6, 0.5, 0, None, ["a"] * 6)


@pytest.mark.parametrize("kind", ["scans", "series"])
def test_commands_hold_out_whole_files_and_series(kind, request):
    folder = request.getfixturevalue(kind)
    common = ["--train_dir", str(folder)]
    options = finetune.FineTuningOptions(*finetune.COMMAND.parse([*common, "--holdout", "0.3"]))
    planned = finetune.plan_runs(options)[0]
    splits = [(planned.train.rows, planned.evaluation.rows)]
    options = finetune.FineTuningOptions(
        *finetune.COMMAND.parse([*common, "--num_folds", "3", "--labels_per_class", "9"])
    )
    splits += [(run.train.rows, run.evaluation.rows) for run in finetune.plan_runs(options)]
    splits.append([part.rows for part in probe.load_images(probe.COMMAND.parse([*common, "--checkpoint", "none"])[0])])
    splits.append(
        [part.rows for part in load_probe(SimpleNamespace(probe_dir=folder, probe_label_column=None, slicing=None))]
    )
    for train, held in splits:
        assert len(train)
        assert len(held)
        assert not set.intersection(*sides(train, held))


def test_the_test_set_of_a_comparison_is_of_other_files(scans):
    (arguments,) = compare.COMMAND.parse(
        ["--train_dir", str(scans), "--arms", "scratch", "public", "--public", "x", "--labels_per_class", "4"]
    )
    options = compare.run_options(arguments, 4) | compare.run_source(arguments)
    planned = finetune.plan_runs(finetune.FineTuningOptions(*finetune.COMMAND.parse(compare.options_of(options))))[0]
    assert not set.intersection(*sides(planned.train.rows, planned.evaluation.rows))


def test_segmentation_holds_out_whole_volumes(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        for index in range(5):
            array = noise(12, 10, 4, high=200 if name == "images" else 2)
            write_nifti(tmp_path / name / f"{index}.nii.gz", array.astype(np.int16))
    data = segment.COMMAND.parse(["--train_dir", str(tmp_path), "--checkpoint", "none", "--holdout", "0.2"])[0]
    train, validation = segment.load_splits(data)
    assert (len(train.images), len(validation.images)) == (16, 4)
    assert not set.intersection(*sides(train.images, validation.images))


def test_images_of_their_own_are_split_as_before(tmp_path):
    for index in range(20):
        path = tmp_path / CLASSES[index % 2] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(noise(8, 8, 3, high=255, dtype=np.uint8)).save(path)
    images = load_labeled_images(tmp_path)
    assert images.groups is None
    before = [1, 2, 4, 6, 7, 8, 9, 10, 11, 12, 13, 15, 18, 19], [0, 3, 5, 14, 16, 17]
    assert holdout(images.labels, 0.3, 0, groups=images.groups) == before
