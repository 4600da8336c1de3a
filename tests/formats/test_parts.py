"""Folders of files of many images: one row for each image, in all that goes through folders."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from fields import RGB, noise, write_dicom, write_nifti
from PIL import Image

import hf_simmim
from hf_simmim.cli.embed import sub_folders
from hf_simmim.cli.options.images import PixelArguments
from hf_simmim.curation.facts import look
from hf_simmim.data.groups import hold_out, image_groups
from hf_simmim.data.labeled.annotations import read_ids
from hf_simmim.data.labeled.images import load_labeled_images
from hf_simmim.data.labeled.segmentation import load_folder
from hf_simmim.data.reading import open_row
from hf_simmim.data.sources import folder_rows, load_images
from hf_simmim.data.survey import survey
from hf_simmim.formats import readers
from hf_simmim.formats.slicing import Slicing
from hf_simmim.training.fingerprints import digest

ARRAY = noise(12, 10, 5, high=200)


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    for index, name in enumerate(("sick", "well")):
        (folder / name).mkdir(parents=True)
        write_nifti(folder / name / "scan.nii.gz", ARRAY + index)
    return folder


def below(rows, folder):
    return [os.path.relpath(name, folder) for name in rows["name"]]


def test_a_folder_has_a_row_for_each_image(tmp_path, scans):
    Image.fromarray(RGB).save(scans / "photo.png")
    write_dicom(scans / "IM0001", ARRAY[..., 0], 12)
    write_dicom(scans / "frames.dcm", np.moveaxis(ARRAY, -1, 0), 12)
    for name in ("DICOMDIR", "README", "1.2.3.4"):
        shutil.copy(scans / "IM0001", scans / name)
    (scans / "README").write_text("notes")
    rows = load_images(scans)
    assert below(rows, scans) == [
        "1.2.3.4",
        "IM0001",
        *(f"frames.dcm::frame={index}" for index in range(5)),
        "photo.png",
        *(f"{name}/scan.nii.gz::axis=2,slice={index}" for name in ("sick", "well") for index in range(5)),
    ]
    assert all(open_row(row, 3, 1 / 4095) is not None for row in rows)
    np.testing.assert_array_equal(open_row(rows[len(rows) - 1], 1, 1.0)[0], ARRAY[..., 4] + 1)
    seen = survey(rows)
    assert seen.closed == {}
    assert seen.num_copies == 1


def test_classes_are_those_of_the_files(scans):
    labeled = load_labeled_images(scans)
    assert labeled.class_names == ["sick", "well"]
    assert labeled.labels == [0] * 5 + [1] * 5
    assert sub_folders(labeled.rows["name"], scans) == ["sick"] * 5 + ["well"] * 5
    assert len(load_labeled_images(scans, slicing=Slicing(slice_axis=0)).rows) == 24


def test_slices_and_their_masks_are_pairs(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    write_nifti(tmp_path / "images" / "scan.nii.gz", ARRAY)
    masks = (ARRAY > 100).astype(np.uint8)
    write_nifti(tmp_path / "masks" / "scan.nii", masks)
    pairs = load_folder(tmp_path, Slicing(slice_neighbors=1))
    assert len(pairs.images) == 5
    for index in range(5):
        np.testing.assert_array_equal(open_row(pairs.images[index], 3, 1.0)[1], ARRAY[..., index])
        np.testing.assert_array_equal(read_ids(pairs.annotations[index], 255), masks[..., index])


def test_fingerprints_are_those_of_the_files(scans):
    before = digest(load_images(scans))
    assert before == digest(load_images(scans))
    write_nifti(scans / "well" / "scan.nii.gz", ARRAY + 7)
    after = digest(load_images(scans))
    assert (after["number"], after["names"]) == (before["number"], before["names"])
    assert after["content"] != before["content"]
    assert "5 changed (well/scan.nii.gz::axis=2,slice=0" in after.changes(before.files)
    assert digest(load_images(scans, slicing=Slicing(slice_axis=1)))["names"] != before["names"]


def test_whole_files_are_held_out(scans):
    for index in range(4):
        write_nifti(scans / f"{index}.nii", ARRAY)
    rows = load_images(scans)
    train, held = hold_out(rows, 0.3, seed=0)
    assert len(train) + len(held) == len(rows) == 30
    assert not {*image_groups(train["name"])} & {*image_groups(held["name"])}
    assert len(held) == 10
    assert hold_out(rows, 0.3, seed=0)[1]["name"] == held["name"]
    one = load_images(scans / "sick")
    assert [len(part) for part in hold_out(one, 0.2, seed=0)] == [4, 1]


def test_a_factor_is_chosen_for_numbers(tmp_path):
    (tmp_path / "scans").mkdir()
    write_nifti(tmp_path / "scans" / "a.nii", ARRAY.astype(np.int16) * 10 - 1000)
    pixels = PixelArguments()
    statistics = pixels.settle(None, 3, load_images(tmp_path / "scans"), {})
    assert pixels.rescale == 1 / 1023
    np.testing.assert_allclose(statistics["image_mean"], (ARRAY.mean() * 10 - 1000) / 1023, rtol=1e-4)
    # What somebody chose is kept, and numbers of other files are refused as ever.
    assert PixelArguments(rescale_factor="1/4095").rescale == 1 / 4095
    np.save(tmp_path / "a.npy", ARRAY[..., 0].astype(np.float32) * 10)
    with pytest.raises(ValueError, match="which the default rescale_factor=1/255 maps to"):
        PixelArguments().settle(None, 1, folder_rows([str(tmp_path / "a.npy")]), {})


@pytest.mark.filterwarnings("ignore")
def test_forked_workers_read_all_formats(scans):
    """Libraries with threads and locks of their own have been used before the fork."""
    h5py, zarr = pytest.importorskip("h5py"), pytest.importorskip("zarr")
    with h5py.File(scans / "a.h5", "w") as file:
        file["x"] = np.moveaxis(ARRAY, -1, 0)
    zarr.save_array(scans / "a.zarr", np.moveaxis(ARRAY, -1, 0))
    write_dicom(scans / "frames.dcm", np.moveaxis(ARRAY, -1, 0), 12)
    rows = load_images(scans)
    expected = [open_row(row, 1, 1.0).mean() for row in rows]

    class Means(torch.utils.data.Dataset):
        def __len__(self):
            return len(rows)

        def __getitem__(self, index):
            return open_row(rows[index], 1, 1.0).mean()

    loader = torch.utils.data.DataLoader(Means(), batch_size=5, num_workers=2, timeout=60, collate_fn=list)
    assert [mean for batch in loader for mean in batch] == expected
    assert len(expected) == 25


def test_the_processor_takes_addresses(scans):
    name = load_images(scans)["name"][7]
    processor = hf_simmim.SimMIMImageProcessorPil(
        image_mean=[0.0], image_std=[1.0], rescale_factor=1 / 65535, do_resize=False
    )
    pixels = processor(name, return_tensors="np")["pixel_values"][0, 0]
    np.testing.assert_allclose(pixels * 65535, ARRAY[..., 2] + 1, rtol=1e-5)


def test_facts_of_a_slice(scans):
    name = load_images(scans)["name"][3]
    facts, thumbnail = look(name)
    assert (facts.error, facts.format, facts.height, facts.width) == ("", "NIfTI, compressed", 12, 10)
    assert thumbnail is not None
    assert facts.high == ARRAY[..., 3].max()
    assert facts.size == os.path.getsize(scans / "sick" / "scan.nii.gz")
    assert look(load_images(scans)["name"][4])[0].digest != facts.digest


def test_a_broken_file_is_reported_when_it_is_read(scans):
    (scans / "sick" / "broken.nii.gz").write_bytes(b"\x1f\x8b")
    rows = load_images(scans)
    assert len(rows) == 11
    with pytest.raises(Exception, match="NIfTI|Compressed file"):
        open_row(rows[0], 3, 1.0)


def test_a_folder_that_needs_a_library_says_so(scans, monkeypatch):
    monkeypatch.setattr(readers, "_is_installed", lambda library: False)
    with pytest.raises(ValueError, match=r'None of the 2 files .* can be read .*pip install "hf-simmim\[medical\]"\.'):
        load_images(scans)
    Image.fromarray(RGB).save(scans / "photo.png")
    assert len(load_images(scans)) > 1


def test_pack_leave_out_and_audit(scans, tmp_path):
    listed = tmp_path / "out.json"
    listed.write_text(json.dumps([str(scans / "well" / "scan.nii.gz"), load_images(scans)["name"][0]]))
    packed = hf_simmim.pack(
        image_dir=str(scans), output_dir=str(tmp_path / "packed"), labels="folder", leave_out=str(listed), workers=1
    )
    assert packed.num_images == 4
    rows = load_images(tmp_path / "packed")
    np.testing.assert_array_equal(open_row(rows[0], 1, 1 / 65535)[0], ARRAY[..., 1])
    found = hf_simmim.audit(folder=str(scans), output_dir=str(tmp_path / "audit"), workers=1, slice_axis=2)
    assert len(found.audit.facts) == 10
    assert not found.audit.unreadable
