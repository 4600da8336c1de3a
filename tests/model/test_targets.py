"""What a head predicts, made from images and brought back to them."""

import json
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from tiny import batch, swin_config

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling
from hf_simmim.model.configuration_simmim import TARGETS
from hf_simmim.model.frozen_targets import FROZEN_TARGETS
from hf_simmim.model.masking import patch_grid, random_mask
from hf_simmim.model.targets import PIXEL_TARGETS, Target

CENTERS = torch.rand(40, 3, generator=torch.Generator().manual_seed(7)).tolist()
MEAN, STD = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
NEED_WEIGHTS = ("codebook", "features")
REQUIRED = {"color_clusters": {"centers": CENTERS}}

# Name, options and stride of the prediction.
CASES = [
    ("rgb", {}, 1),
    ("rgb", {}, 4),
    ("normalized_rgb", {"window_size": 7}, 1),
    ("normalized_rgb", {"patch_size": 8}, 1),
    ("normalized_rgb", {"patch_size": 4}, 2),
    ("color_bins", {"num_bins": 8}, 1),
    ("color_bins", {"num_bins": 256}, 2),
    ("color_bins", {"num_bins": 5, "joint": True}, 4),
    ("color_clusters", {"centers": CENTERS}, 1),
    ("color_clusters", {"centers": CENTERS}, 4),
    ("hog", {"cell_size": 8}, None),
    ("hog", {"cell_size": 4, "num_bins": 8}, 4),
]
CLASS_CASES = [case for case in CASES if case[0].startswith("color")]


def make_config(name: str, options: dict | None = None, stride: int | None = None, **kwargs) -> SimMIMConfig:
    encoder_config = kwargs.pop("encoder_config", None) or swin_config()
    options = REQUIRED.get(name, {}) if options is None else options
    return SimMIMConfig(
        encoder_config=encoder_config, target=name, target_options=options, prediction_stride=stride, **kwargs
    )


def make_target(name: str, options: dict | None = None, stride: int | None = None, **kwargs) -> Target:
    return TARGETS[name].build(make_config(name, options, stride, **kwargs))


def pictures(height: int = 30, width: int = 43, batch_size: int = 2) -> torch.Tensor:
    """Normalized random pictures of 8 bits."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (batch_size, 3, height, width), generator=generator)
    return (pixels / 255 - MEAN) / STD


def to_logits(classes: torch.Tensor, num_outputs: int) -> torch.Tensor:
    """A prediction (B, K, h, w) that is sure of the right classes (B, G, h, w)."""
    one_hot = F.one_hot(classes, num_outputs // classes.shape[1])  # B, G, h, w, classes
    return 100.0 * one_hot.movedim(-1, 2).flatten(1, 2)


def average(pixel_values: torch.Tensor, stride: int) -> torch.Tensor:
    """Each cell filled with its mean."""
    averaged = pixel_values.clone()
    for top in range(0, pixel_values.shape[2], stride):
        for left in range(0, pixel_values.shape[3], stride):
            cell = averaged[:, :, top : top + stride, left : left + stride]
            cell[:] = cell.mean(dim=(2, 3), keepdim=True)
    return averaged


def test_all_targets_are_tested():
    assert {name for name, _, _ in CASES} == set(TARGETS) - set(NEED_WEIGHTS)


@pytest.mark.parametrize(("name", "options", "stride"), CASES)
def test_shapes_of_rectangles_that_the_stride_cuts(name, options, stride):
    config = make_config(name, options, stride)
    model = SimMIMForMaskedImageModeling(config).eval()
    pixel_values = pictures()
    stride = model.target.stride
    grid_size = patch_grid((30, 43), stride)
    target = model.target(pixel_values)
    assert target.shape[2:] == grid_size
    if config.loss == "cross_entropy":
        assert not target.is_floating_point()
        assert target.min() >= 0
        assert target.max() < model.target.num_outputs // target.shape[1]
    else:
        assert target.dtype == torch.float32
        assert target.shape[1] == model.target.num_outputs
    outputs = model(pixel_values, random_mask(patch_grid((30, 43), config.patch_size), 0.6, 2))
    assert outputs.prediction.shape == (2, model.target.num_outputs, *grid_size)
    if model.target.is_decodable:
        assert outputs.reconstruction.shape == pixel_values.shape
    else:
        assert outputs.reconstruction is None
    outputs.loss.backward()
    assert outputs.loss > 0
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(("name", "options", "stride"), CASES)
def test_what_pictures_borrow_from_the_original_is_said(name, options, stride):
    """Where the same prediction makes another picture of other pixels."""
    target = make_target(name, options, stride)
    if not target.is_decodable:
        return
    prediction = torch.randn(2, target.num_outputs, *patch_grid((30, 43), target.stride))
    first, second = (target.decode(prediction, pixels) for pixels in (pictures(), pictures().flip(3)))
    assert bool(target.decode_uses) != torch.equal(first, second)


@pytest.mark.parametrize(("name", "options", "stride"), CASES)
def test_autocast_changes_nothing(name, options, stride):
    target = make_target(name, options, stride)
    pixel_values = pictures()
    prediction = torch.randn(2, target.num_outputs, *patch_grid((30, 43), target.stride))
    expected, picture = target(pixel_values), target.decode(prediction, pixel_values)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(target(pixel_values), expected)
        if picture is not None:
            torch.testing.assert_close(target.decode(prediction, pixel_values), picture)


@pytest.mark.parametrize(("name", "options", "stride"), CASES)
def test_a_few_steps_lower_the_loss(name, options, stride):
    torch.manual_seed(0)
    config = make_config(name, options, stride)
    model = SimMIMForMaskedImageModeling(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    pixel_values, mask = batch(config)
    losses = []
    for _ in range(12):
        loss = model(pixel_values, mask, return_reconstruction=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.97 * losses[0]


@pytest.mark.parametrize("stride", [1, 4])
def test_rgb_is_the_picture(stride):
    target, pixel_values = make_target("rgb", {}, stride), pictures()
    decoded = target.decode(target(pixel_values), pixel_values)
    torch.testing.assert_close(decoded, average(pixel_values, stride))
    assert target.is_pixels == (stride == 1)


@pytest.mark.parametrize("options", [{"window_size": 7}, {"patch_size": 8}, {}])
def test_normalized_pixels_lead_back_to_the_picture(options):
    target, pixel_values = make_target("normalized_rgb", options), pictures()
    assert not target.is_pixels
    torch.testing.assert_close(target.decode(target(pixel_values), pixel_values), pixel_values, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(32, 48), (30, 43)])
def test_normalized_patches(height, width):
    """Mean and unbiased variance of all channels of a patch, as MAE has them."""
    pixel_values = pictures(height, width)
    expected = torch.empty_like(pixel_values)
    for top in range(0, height, 8):
        for left in range(0, width, 8):
            patch = pixel_values[:, :, top : top + 8, left : left + 8]
            variance = patch.var(dim=(1, 2, 3), keepdim=True)
            normalized = (patch - patch.mean(dim=(1, 2, 3), keepdim=True)) / (variance + 1e-6) ** 0.5
            expected[:, :, top : top + 8, left : left + 8] = normalized
    target = make_target("normalized_rgb", {"patch_size": 8})
    torch.testing.assert_close(target(pixel_values), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window_size", [3, 7, 47])
def test_normalized_windows(window_size):
    """Each channel by the window around a pixel, of which only what is inside the image counts."""
    pixel_values = pictures(20, 27, batch_size=1)
    half, expected = window_size // 2, torch.empty_like(pixel_values)
    for row in range(20):
        for column in range(27):
            rows, columns = slice(max(0, row - half), row + half + 1), slice(max(0, column - half), column + half + 1)
            window = pixel_values[:, :, rows, columns].double().flatten(2)
            deviation = (window.var(dim=2, correction=1) + 1e-6) ** 0.5
            expected[:, :, row, column] = (pixel_values[:, :, row, column] - window.mean(dim=2)) / deviation
    target = make_target("normalized_rgb", {"window_size": window_size})
    torch.testing.assert_close(target(pixel_values), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("num_bins", "expected"), [(2, [0, 0, 1, 1]), (5, [0, 1, 2, 4]), (256, [0, 51, 128, 255])])
def test_bins_of_known_colors(num_bins, expected):
    """51 of 255 is where the second of five bins starts, whatever the normalization rounds it to."""
    pixels = torch.tensor([0, 51, 128, 255]).expand(1, 3, 1, 4)
    classes = make_target("color_bins", {"num_bins": num_bins})((pixels / 255 - MEAN) / STD)
    assert classes.tolist() == [[[expected]] * 3]


def test_256_bins_are_the_bytes():
    pixels = torch.arange(256).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(make_target("color_bins", {"num_bins": 256})((pixels / 255 - MEAN) / STD), pixels)


def test_colors_outside_of_the_range_are_in_the_outer_bins():
    classes = make_target("color_bins")(torch.tensor([-9.0, 9.0]).expand(1, 3, 1, 2))
    assert classes.tolist() == [[[[0, 7]]] * 3]


def test_joint_classes_count_through_all_channels():
    pixel_values = pictures()
    red, green, blue = make_target("color_bins", {"num_bins": 5})(pixel_values).unbind(1)
    joint = make_target("color_bins", {"num_bins": 5, "joint": True})
    assert joint.num_outputs == 125
    assert torch.equal(joint(pixel_values), (25 * red + 5 * green + blue)[:, None])


@pytest.mark.parametrize(("name", "options", "stride"), CLASS_CASES)
def test_sure_classes_decode_to_the_picture(name, options, stride):
    """To within half a bin, or to the nearest center."""
    target, pixel_values = make_target(name, options, stride), pictures()
    decoded = target.decode(to_logits(target(pixel_values), target.num_outputs).bfloat16(), pixel_values)
    decoded, colors = decoded * STD + MEAN, average(pixel_values * STD + MEAN, stride)
    if name == "color_bins":
        assert (decoded - colors).abs().max() < 0.5 / options["num_bins"] + 1e-4
        return
    centers = torch.tensor(CENTERS, dtype=torch.float64)
    distances = (colors.movedim(1, -1)[..., None, :].double() - centers).square().sum(dim=-1)
    nearest = centers[distances.argmin(dim=-1)].movedim(-1, 1).float()
    torch.testing.assert_close(decoded, nearest, atol=1e-5, rtol=0)


def test_unsure_classes_decode_to_their_mean():
    pixel_values = pictures()
    bins = make_target("color_bins", {"num_bins": 4})
    logits = torch.full((2, 3, 4, 30, 43), -100.0)
    logits[:, :, 1:3] = 0
    logits[:, 2, 3] = 0
    colors = bins.decode(logits.flatten(1, 2), pixel_values) * STD + MEAN
    torch.testing.assert_close(colors[0, :, 5, 5], torch.tensor([0.5, 0.5, 0.625]))
    clusters = make_target("color_clusters")
    colors = clusters.decode(torch.zeros(2, 40, 30, 43), pixel_values) * STD + MEAN
    torch.testing.assert_close(colors[1, :, 9, 9], torch.tensor(CENTERS).mean(dim=0))


@pytest.mark.parametrize(("name", "options"), [("color_bins", {"num_bins": 8}), ("color_clusters", None)])
def test_parts_are_put_together(monkeypatch, name, options):
    """Of batches that are too large to be worked on at once."""
    target, pixel_values = make_target(name, options), pictures(batch_size=3)
    classes = target(pixel_values)
    prediction = torch.randn(3, target.num_outputs, 30, 43)
    decoded = target.decode(prediction, pixel_values)
    monkeypatch.setattr("hf_simmim.model.targets.CHUNK", 1000)
    assert torch.equal(target(pixel_values), classes)
    torch.testing.assert_close(target.decode(prediction, pixel_values), decoded)


def test_the_normalization_is_the_configs():
    """Thirteen channels, of which no statistics are known."""
    encoder_config = swin_config(num_channels=13)
    mean, std = torch.linspace(0.1, 0.7, 13), torch.linspace(0.1, 0.3, 13)
    with pytest.raises(ValueError, match="needs to know how pixel_values are normalized"):
        make_target("color_bins", encoder_config=encoder_config)
    config = {"encoder_config": encoder_config, "image_mean": mean.tolist(), "image_std": std.tolist()}
    target = make_target("color_bins", {"num_bins": 10}, **config)
    colors = torch.rand(2, 13, 16, 16)
    classes = target((colors - mean.view(-1, 1, 1)) / std.view(-1, 1, 1))
    assert (classes - 10 * colors).abs().max() <= 1.001
    assert classes.shape == colors.shape
    assert make_target("hog", {"cell_size": 4}, encoder_config=encoder_config)(colors).shape == (2, 117, 4, 4)


def test_hog_does_not_depend_on_the_normalization():
    pixels = torch.randint(0, 8, (2, 3, 32, 48)) / 255
    statistics = [([0, 0, 0], [1, 1, 1]), ([0.4, 0.5, 0.6], [0.2, 0.3, 0.25]), ([0.123, 0.987, 0.31], [0.07, 3, 0.11])]
    histograms = []
    for mean, std in statistics:
        pixel_values = (pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
        target = make_target("hog", {"cell_size": 8, "num_bins": 8}, image_mean=mean, image_std=std)
        histograms.append(target(pixel_values))
    for histogram in histograms[1:]:
        torch.testing.assert_close(histogram, histograms[0])


@pytest.mark.parametrize(("name", "options", "stride"), CASES)
def test_a_checkpoint_brings_its_target(tmp_path, name, options, stride):
    config = make_config(name, options, stride)
    model = SimMIMForMaskedImageModeling(config).eval()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["target_options"] == options
    loaded = SimMIMForMaskedImageModeling.from_pretrained(tmp_path)
    pixel_values, mask = batch(config)
    expected, outputs = model(pixel_values, mask), loaded(pixel_values, mask)
    torch.testing.assert_close(outputs.loss, expected.loss)
    if model.target.is_decodable:
        torch.testing.assert_close(outputs.reconstruction, expected.reconstruction)


def test_a_checkpoint_goes_on_with_another_target(tmp_path):
    config = make_config("normalized_rgb", {"window_size": 5}, loss="smooth_l1", loss_options={"beta": 0.5})
    SimMIMForMaskedImageModeling(config).save_pretrained(tmp_path)
    load = partial(SimMIMForMaskedImageModeling.from_pretrained, tmp_path, ignore_mismatched_sizes=True)
    for target, loss in (("hog", "l2"), ("color_bins", "cross_entropy"), ("rgb", "l1")):
        model = load(target=target)
        assert (model.config.loss, model.config.loss_options, model.config.target_options) == (loss, {}, {})
        pixel_values, mask = batch(model.config)
        assert model(pixel_values, mask).loss.isfinite()
    kept = load(target="normalized_rgb", loss_region="all").config
    assert (kept.loss, kept.loss_options, kept.target_options) == ("smooth_l1", {"beta": 0.5}, {"window_size": 5})
    unchanged = SimMIMConfig.from_dict(SimMIMConfig(loss="l2").to_diff_dict(), target="rgb")
    assert unchanged.loss == "l2"
    assert load(target="hog", loss="l1", target_options={"cell_size": 4}).target.stride == 4
    with pytest.raises(StrictDataclassError, match="loss='l1' does not fit target='color_bins'"):
        load(target="color_bins", loss="l1")


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in NEED_WEIGHTS])
def test_losses_that_do_not_fit(name):
    wrong = "l1" if name.startswith("color") else "cross_entropy"
    with pytest.raises(StrictDataclassError, match=f"loss='{wrong}' does not fit target='{name}'"):
        make_config(name, loss=wrong)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("color_clusters", {}, "has no centers. Fit them .*fit_color_clusters"),
        ("color_clusters", {"centers": [[0.1, 0.2, 0.3]]}, "a list of two or more colors"),
        ("color_clusters", {"centers": [[0.1, 0.2, 0.3], [0.1, 0.2, float("nan")]]}, "a list of two or more colors"),
        ("color_bins", {"num_bins": 1}, "num_bins=1 must be a whole number from 2 to 256"),
        ("color_bins", {"num_bins": 257}, "num_bins=257 must be a whole number from 2 to 256"),
        ("color_bins", {"num_bin": 8}, "has 'num_bin', .* Did you mean num_bins?"),
        ("color_bins", {"joint": 1}, "joint=1 must be True or False"),
        ("normalized_rgb", {"window_size": 7, "patch_size": 8}, "both a window_size, .* and a patch_size"),
        ("normalized_rgb", {"window_size": 8}, "window_size=8 must be an odd number"),
        ("rgb", {"num_bins": 8}, "has 'num_bins', .* It has no options"),
        ("hog", {"cell": 8}, "has 'cell', .* Did you mean cell_size?"),
        ("hog", {"num_bins": 1}, "num_bins=1 must be a whole number of at least 2"),
    ],
)
def test_options_that_make_no_target(name, options, message):
    with pytest.raises(StrictDataclassError, match=message):
        make_config(name, options)


@pytest.mark.parametrize(
    ("num_channels", "num_bins", "message"),
    [
        (3, 21, r"21\*\*3 = 9261 classes .* Use num_bins=20 or less, or joint=False"),
        (2, 256, r"256\*\*2 = 65536 classes .* Use num_bins=90 or less, or joint=False"),
        (14, 2, r"2\*\*14 = 16384 classes .* Use joint=False"),
    ],
)
def test_joint_classes_that_are_too_many(num_channels, num_bins, message):
    statistics = {"image_mean": [0.5] * num_channels, "image_std": [0.2] * num_channels}
    encoder_config = swin_config(num_channels=num_channels)
    with pytest.raises(ValueError, match=message):
        make_target("color_bins", {"num_bins": num_bins, "joint": True}, encoder_config=encoder_config, **statistics)


def test_joint_classes_of_one_channel_are_its_bins():
    config = {"encoder_config": swin_config(num_channels=1), "image_mean": [0.0], "image_std": [1.0]}
    joint, separate = (make_target("color_bins", {"num_bins": 256, "joint": both}, **config) for both in (True, False))
    pixel_values = torch.rand(2, 1, 8, 8)
    assert joint.num_outputs == separate.num_outputs == 256
    assert torch.equal(joint(pixel_values), separate(pixel_values))
    logits = torch.randn(2, 256, 8, 8)
    torch.testing.assert_close(joint.decode(logits, pixel_values), separate.decode(logits, pixel_values))


def test_centers_of_other_channels():
    with pytest.raises(ValueError, match="has centers of 2 channels, but the model has 3. Fit them"):
        make_target("color_clusters", {"centers": [[0.1, 0.2], [0.3, 0.4]]})


def test_cells_that_do_not_fit():
    with pytest.raises(ValueError, match="cell_size=8 px, but prediction_stride is 4. Leave prediction_stride out"):
        make_target("hog", {}, 4)
    with pytest.raises(ValueError, match="cell_size=3 px does not fit the encoder's stride of 8 px"):
        make_target("hog", {"cell_size": 3})


def test_no_target_hides_another():
    assert not PIXEL_TARGETS.keys() & FROZEN_TARGETS.keys()
