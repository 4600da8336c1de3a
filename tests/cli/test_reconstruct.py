"""The script that draws reconstructions, run as a user runs it."""

import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tiny import vit_config

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling, SimMIMImageProcessor
from hf_simmim.cli import reconstruct
from hf_simmim.data.masked_images import MaskedImageDataset
from hf_simmim.data.sources import folder_rows
from hf_simmim.evaluation.reconstruction import Reconstruction, Reconstructor


@pytest.fixture(scope="module")
def script():
    """The script as a module."""
    return reconstruct


def save(folder, target="rgb", **encoder) -> str:
    """A checkpoint of images of 32 x 48 px, with its processor."""
    torch.manual_seed(0)
    config = SimMIMConfig(encoder_config=vit_config(**({"image_size": [32, 48]} | encoder)), target=target)
    SimMIMForMaskedImageModeling(config).save_pretrained(folder)
    height, width = config.image_size
    SimMIMImageProcessor(
        size={"height": height, "width": width},
        model_patch_size=config.patch_size,
        mask_patch_size=8,
        mask_ratio=0.5,
        image_mean=[0.5] * config.num_channels,
        image_std=[0.2] * config.num_channels,
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Five pictures of different proportions."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for index, size in enumerate([(32, 48), (40, 200), (90, 30), (64, 96), (50, 50)]):
        Image.fromarray(generator.integers(0, 255, (*size, 3), np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def run(script, tmp_path, capsys, monkeypatch):
    """Runs the script; returns its lines as lists of figures by label, what it drew, and the picture."""
    drawn = []

    def draw(reconstruction, *args, **kwargs):
        drawn.append(reconstruction)
        return script_grid(reconstruction, *args, **kwargs)

    script_grid = script.reconstruction_grid
    monkeypatch.setattr(script, "reconstruction_grid", draw)

    def run_script(*arguments) -> tuple[dict[str, list[float]], Reconstruction, np.ndarray]:
        output = tmp_path / "drawn.png"
        script.COMMAND.main([*map(str, arguments), "--device", "cpu", "--output", str(output)])
        lines = re.findall(r"^(\S.*?)  +([\d. ]+)$", capsys.readouterr().out, re.MULTILINE)
        figures = {label: [float(value) for value in values.split()] for label, values in lines}
        return figures, drawn.pop(), np.asarray(Image.open(output))

    return run_script


def test_figures_are_of_every_image_and_their_mean(run, checkpoint, photos):
    figures, drawn, picture = run("--checkpoint", checkpoint, "--images", photos, "--batch_size", 2)
    assert list(figures) == [*(str(photos / f"{index}.png") for index in range(5)), "mean of 5"]
    errors = drawn.masked_l1.tolist()
    assert [values[1] for values in figures.values()] == pytest.approx([*errors, sum(errors) / 5], abs=0.006)
    distances = drawn.average_distance.tolist()
    assert [values[0] for values in figures.values()] == pytest.approx([*distances, sum(distances) / 5], abs=0.006)
    # As one call of the model does, whatever the batch.
    expected = Reconstructor(checkpoint, device="cpu")(drawn.pictures("original")[0], seed=0)
    assert torch.equal(expected.bool_masked_pos[0], drawn.bool_masked_pos[0])
    assert drawn.bool_masked_pos.unique(dim=0).shape[0] == 5
    assert picture.std() > 0


def test_images_are_read_as_in_evaluations(run, checkpoint, photos):
    """The largest crop at the center; or all of them if asked."""
    paths = sorted(map(str, photos.iterdir()))
    _, drawn, _ = run("--checkpoint", checkpoint, "--images", photos)
    dataset = MaskedImageDataset(folder_rows(paths), (32, 48), 3, 8, mask_patch_size=8, crop_scale=None)
    expected = torch.stack([dataset[index]["pixel_values"] for index in range(5)]) / 255
    assert torch.allclose(drawn.pixel_values * 0.2 + 0.5, expected, atol=1e-5)
    _, whole, _ = run("--checkpoint", checkpoint, "--images", photos, "--whole_images")
    assert torch.allclose(whole.pixel_values[0], drawn.pixel_values[0], atol=1e-5)
    squeezed = np.asarray(Image.open(paths[1]).resize((48, 32), Image.Resampling.BILINEAR, reducing_gap=3.0))
    assert np.abs(whole.pictures("original")[1].astype(int) - squeezed).max() <= 1


def test_files_folders_and_patterns_are_spread_evenly(run, checkpoint, photos):
    figures, drawn, _ = run(
        "--checkpoint", checkpoint, "--images", photos / "4.png", photos / "[0-2].png", "--num_images", 2
    )
    assert [label.rsplit("/", 1)[-1] for label in figures] == ["4.png", "2.png", "mean of 2"]
    figures, drawn, _ = run("--checkpoint", checkpoint, "--images", photos, "--num_drawn", 2, "--batch_size", 1)
    assert len(figures) == 6
    assert drawn.masked_l1.tolist() == pytest.approx(
        [figures[str(photos / f"{index}.png")][1] for index in (0, 4)], abs=0.01
    )


def test_images_that_cannot_be_read_are_left_out(run, script, checkpoint, photos, tmp_path, capsys):
    """As in training; the masks of the others are those that they have without it."""
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    expected, _, _ = run("--checkpoint", checkpoint, "--images", folder)
    (folder / "2 broken.png").write_bytes(b"no picture")
    figures, drawn, _ = run("--checkpoint", checkpoint, "--images", folder)
    assert figures == expected
    assert len(drawn.pixel_values) == 5
    script.COMMAND.main(["--checkpoint", checkpoint, "--images", str(folder), "--output", str(tmp_path / "drawn.png")])
    printed = capsys.readouterr().out
    assert f"left out: {folder / '2 broken.png'} cannot be read (UnidentifiedImageError" in printed
    assert "1 of 6 images cannot be read and are left out." in printed


def test_every_ratio_has_a_row(run, checkpoint, photos):
    figures, drawn, picture = run(
        *("--checkpoint", checkpoint, "--images", photos, "--num_images", 2, "--batch_size", 1),
        *("--mask_ratio", 0.25, 0.75, "--mask_patch_size", 16, "--mask_strategy", "random", "--seed", 4),
    )
    assert [label.rsplit("/", 1)[-1] for label in figures] == [
        *("0.png, 0.25 masked", "0.png, 0.75 masked", "4.png, 0.25 masked", "4.png, 0.75 masked"),
        *("mean of 2, 0.25 masked", "mean of 2, 0.75 masked"),
    ]
    # Six squares of 2 x 2 patches.
    assert drawn.bool_masked_pos.flatten(1).sum(1).tolist() == [8, 20, 8, 20]
    assert torch.equal(drawn.pixel_values[0], drawn.pixel_values[1])
    assert drawn.masked_l1.tolist() == pytest.approx([values[1] for values in figures.values()][:4], abs=0.006)
    _, _, bare = run("--checkpoint", checkpoint, "--images", photos, "--num_images", 2, "--no_captions")
    assert bare.shape[0] < picture.shape[0]


def test_a_painted_mask_lies_where_it_was_painted(run, checkpoint, photos, tmp_path):
    """On a picture that is twice as wide as the model's: white at its middle, which is what the crop keeps."""
    mask = Image.new("RGB", (240, 80))
    ImageDraw.Draw(mask).rectangle((60, 0, 79, 19), fill="white")
    mask.save(tmp_path / "mask.png")
    _, drawn, _ = run("--checkpoint", checkpoint, "--images", photos / "1.png", "--mask", tmp_path / "mask.png")
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[0, 0] = True
    assert torch.equal(drawn.bool_masked_pos[0], expected)
    whole = ("--images", photos / "1.png", "--mask", tmp_path / "mask.png", "--whole_images")
    _, drawn, _ = run("--checkpoint", checkpoint, *whole)
    assert drawn.bool_masked_pos[0].nonzero().tolist() == [[0, 1]]


def test_checkpoints_are_shown_the_same(run, checkpoint, photos, tmp_path):
    """Side by side, of different patches and normalization; with the error of each."""
    finer = save(tmp_path / "finer", patch_size=4)
    common = ("--images", photos, "--num_images", 2)
    figures, drawn, _ = run("--checkpoint", checkpoint, finer, *common, "--error_map")
    assert list(drawn) == [checkpoint, finer]
    assert torch.equal(drawn[checkpoint].hidden, drawn[finer].hidden)
    for position, name in enumerate((checkpoint, finer), start=1):
        alone, _, _ = run("--checkpoint", name, *common)
        assert [values[position] for values in figures.values()] == [values[1] for values in alone.values()]
    mask = Image.new("L", (48, 32))
    ImageDraw.Draw(mask).rectangle((1, 1, 2, 2), fill="white")
    mask.save(tmp_path / "mask.png")
    _, drawn, _ = run("--checkpoint", checkpoint, finer, *common, "--mask", tmp_path / "mask.png")
    assert drawn[finer].bool_masked_pos[0].sum() == 4
    assert torch.equal(drawn[checkpoint].hidden, drawn[finer].hidden)


def test_a_model_that_is_helped_is_named(script, checkpoint, photos, tmp_path, capsys):
    helped = save(tmp_path / "helped", target="normalized_rgb")
    output = ["--images", str(photos), "--device", "cpu", "--output", str(tmp_path / "drawn.png")]
    script.COMMAND.main(["--checkpoint", checkpoint, helped, *output])
    lines = [line for line in capsys.readouterr().out.splitlines() if "of the original" in line]
    assert lines == [f"Predictions of {helped} are decoded with the local mean and contrast of the original."]


def test_gradients_are_drawn_and_compared_with_pixels(run, script, checkpoint, photos, tmp_path, capsys):
    """A checkpoint of each target, in one picture, with the error of each in its own unit."""
    gradients = save(tmp_path / "hog", target="hog")
    common = ("--images", photos, "--num_images", 2)
    figures, drawn, alone = run("--checkpoint", gradients, *common, "--error_map")
    assert drawn.gradient_error.tolist() == pytest.approx([row[1] for row in figures.values()][:2], abs=0.0006)
    both, together, picture = run("--checkpoint", checkpoint, gradients, *common, "--error_map")
    assert torch.equal(together[checkpoint].hidden, together[gradients].hidden)
    assert [row[2] for row in both.values()] == [row[1] for row in figures.values()]
    assert picture.size > alone.size
    output = ["--images", str(photos), "--device", "cpu", "--output", str(tmp_path / "drawn.png")]
    script.COMMAND.main(["--checkpoint", checkpoint, gradients, *output])
    printed = capsys.readouterr().out
    assert f"masked l1 of {checkpoint}  gradient error of {gradients}\n" in printed
    assert "drawn.png  original | masked | prediction | predicted gradients | true gradients\n" in printed
    with pytest.raises(SystemExit, match="columns has 'target', which predictions of rgb do not have. Use some"):
        script.COMMAND.main(["--checkpoint", checkpoint, *output, "--columns", "target"])
    with pytest.raises(SystemExit, match="columns has 'composite', which predictions of hog do not have"):
        script.COMMAND.main(["--checkpoint", gradients, *output, "--columns", "composite"])
    arguments = script.PictureArguments(checkpoint=[checkpoint, gradients], images=[str(photos)], output=output[-1])
    result = script.run(arguments)
    assert list(result.masked_l1) == [checkpoint]
    assert list(result.gradient_error) == [gradients]
    assert 0 < result.gradient_error[gradients] < 3


def test_another_size_and_channels(run, tmp_path):
    """Four bands of a .npy file, some pixels of which are none, larger than the model was trained with."""
    checkpoint = save(tmp_path / "four", num_channels=4)
    array = np.random.default_rng(0).uniform(0, 255, (64, 96, 4)).astype(np.float32)
    array[:20] = np.nan
    np.save(tmp_path / "bands.npy", array)
    figures, drawn, _ = run("--checkpoint", checkpoint, "--images", tmp_path / "bands.npy", "--image_size", 64, 96)
    assert drawn.pixel_values.shape == (1, 4, 64, 96)
    assert not drawn.pixel_mask[0, :19].any()
    assert drawn.pixel_mask[0, 21:].all()
    assert np.isfinite(figures["mean of 1"]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "No checkpoint is named"),
        (("--checkpoint", "CHECKPOINT", "--mask_ratio", 1.5), "mask_ratio=1.5 is outside"),
        (("--checkpoint", "CHECKPOINT", "--mask_ratio", 0.999), "mask_ratio=0.999 masks all units"),
        (("--checkpoint", "CHECKPOINT", "--mask_strategy", "stripes"), "mask_strategy='stripes' is unknown"),
        (("--checkpoint", "CHECKPOINT", "--mask_patch_size", 3), "mask_patch_size=3 px is not a multiple"),
        (("--checkpoint", "CHECKPOINT", "--mask", "black.png", "--mask_ratio", 0.5), "mask_ratio has no effect"),
        (("--checkpoint", "CHECKPOINT", "--mask", "black.png"), "mask='black.png' masks nothing"),
        (("--checkpoint", "CHECKPOINT", "--mask", "white.png"), "masks everything"),
        (("--checkpoint", "CHECKPOINT", "--mask", "broken.png"), "mask='broken.png' cannot be read"),
        (("--checkpoint", "CHECKPOINT", "--images", "broken.png"), "broken.png cannot be read"),
        (("--checkpoint", "CHECKPOINT", "--images", "no*.png"), r"images='no\*.png' is neither a file"),
        (("--checkpoint", "CHECKPOINT", "--output", "missing/drawn.png"), "Create missing first"),
        (("--checkpoint", "CHECKPOINT", "--output", "drawn.txt"), "is not the name of a picture"),
        (("--checkpoint", "CHECKPOINT", "--columns", "eroor"), "columns has the unknown 'eroor'"),
        (("--checkpoint", "CHECKPOINT", "--eror_map"), "Did you mean --error_map"),
        (("--checkpoint", "CHECKPOINT", "CHECKPOINT"), "contains duplicates"),
        (("--checkpoint", "CHECKPOINT", "LARGER"), "take images of different sizes"),
        (("--checkpoint", "DAMAGED"), "weights of DAMAGED are damaged"),
    ],
)
def test_what_cannot_be_drawn_is_refused(script, checkpoint, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (48, 32)).save("black.png")
    Image.new("L", (48, 32), 255).save("white.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    if "LARGER" in arguments:
        save(tmp_path / "LARGER", image_size=[64, 64])
    if "DAMAGED" in arguments:
        save(tmp_path / "DAMAGED")
        (tmp_path / "DAMAGED" / "model.safetensors").write_bytes(b"\0" * 64)
    images = () if "--images" in arguments else ("--images", "black.png")
    given = [checkpoint if part == "CHECKPOINT" else str(part) for part in (*arguments, *images)]
    with pytest.raises(SystemExit, match=message):
        script.COMMAND.main(given)
    assert not (tmp_path / "reconstruction.png").exists()


def test_the_embedded_images_are_there_by_default(run, tmp_path):
    checkpoint = save(tmp_path / "gray", num_channels=1, image_size=[32, 32])
    figures, drawn, _ = run("--checkpoint", checkpoint)
    assert len(figures) == 13
    assert drawn.pixel_values.shape == (12, 1, 32, 32)
