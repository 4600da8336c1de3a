"""Which settings are chosen for which machine and images."""

import pytest

from hf_simmim.data.survey import Survey
from hf_simmim.model.configuration_simmim import ENCODER_PRESETS
from hf_simmim.planning.machine import GIB, Machine
from hf_simmim.planning.sizing import (
    RATES,
    choose_batch,
    choose_epochs,
    choose_mask_patch,
    choose_model,
    choose_target,
    choose_window,
    smaller_batch,
)

LAPTOP = Machine("cpu", 1, 16 * GIB, 2, has_bf16=False)
SMALL_GPU = Machine("cuda", 1, 8 * GIB, 8, has_bf16=True)
LARGE_GPU = Machine("cuda", 1, 80 * GIB, 16, has_bf16=True)


def images(side: int, channels: int = 3, count: int = 2000) -> Survey:
    return Survey(count, [(side, side)], {channels: 1}, {"8 bits": 1}, {}, 0, None, {})


def values_of(choices) -> dict:
    return {name: choice.value for name, choice in choices.items()}


def values(machine, seen) -> dict:
    return values_of(choose_model(machine, seen))


@pytest.mark.parametrize(
    ("machine", "side", "encoder", "image_size"),
    [
        (LAPTOP, 300, "swin-mini", 96),
        (LAPTOP, 64, "swin-mini", 64),
        (LAPTOP, 28, "swin-mini", 32),
        (Machine("cpu", 1, 64 * GIB, 32, True), 300, "swin-tiny", 128),
        (SMALL_GPU, 300, "swin-tiny", 192),
        (LARGE_GPU, 300, "swin-base", 192),
        (LARGE_GPU, 100, "swin-base", 96),
    ],
)
def test_a_larger_machine_takes_a_larger_model(machine, side, encoder, image_size):
    chosen = values(machine, images(side))
    assert (chosen["encoder"], chosen["image_size"]) == (encoder, image_size)
    assert encoder in ENCODER_PRESETS
    assert encoder in RATES
    assert all(choice.reason for choice in choose_model(machine, images(side)).values())


def test_channels_are_those_of_the_images():
    assert values(LAPTOP, images(64, 1))["num_channels"] == 1
    assert values(LAPTOP, images(64, 5))["num_channels"] == 5
    mixed = Survey(2, [(64, 64)], {1: 1, 3: 1}, {}, {}, 0, None, {})
    assert "num_channels" not in values(LAPTOP, mixed)


@pytest.mark.parametrize("size", range(32, 257, 32))
def test_masks_and_windows_tile_the_image(size):
    mask = choose_mask_patch(size, 4).value
    assert (size % mask, mask % 4) == (0, 0)
    assert 1 / 10 <= mask / size <= 1 / 4
    assert (size // 4) % choose_window(size).value == 0


def test_the_geometry_of_the_paper_is_chosen_at_its_size():
    assert (choose_window(192).value, choose_mask_patch(192, 4).value) == (6, 32)


def test_batches_grow_with_the_images_and_rates_with_the_batch():
    for num_images, batch in ((40, 16), (1890, 32), (2100, 32), (200_000, 256)):
        assert choose_batch(num_images, "swin-mini", LAPTOP)["batch_size"].value == batch
    large = choose_batch(2_000_000, "swin-base", LARGE_GPU)
    assert (large["batch_size"].value, large["learning_rate"].value) == (2048, 8e-4)
    assert choose_batch(20_000, "swin-base", LARGE_GPU)["learning_rate"].value < 8e-4
    assert choose_batch(10, "swin-mini", LAPTOP)["batch_size"].value == 10
    eight = Machine("cuda", 8, 80 * GIB, 16, True)
    assert choose_batch(3000, "swin-base", eight)["batch_size"].value % 8 == 0


def test_small_encoders_learn_at_higher_rates():
    small, large = (
        choose_batch(2100, "{}", LAPTOP, parameters)["learning_rate"].value for parameters in (500_000, 50_000_000)
    )
    assert small == choose_batch(2100, "swin-mini", LAPTOP)["learning_rate"].value == 1.4e-3
    assert large == choose_batch(2100, "swin-tiny", LAPTOP)["learning_rate"].value == 2.8e-4
    small, large = (
        choose_batch(2100, None, LAPTOP, parameters)["learning_rate"].value for parameters in (500_000, 50_000_000)
    )
    assert (small, large) == (1.4e-3, choose_batch(2100, "swin-base", LAPTOP)["learning_rate"].value)


@pytest.mark.parametrize(
    ("size", "patch_size", "mask"),
    [(192, 4, 32), (64, 4, 8), (64, 8, 8), (64, 16, 16), (28, 7, 7), (224, 16, 32), (518, 14, 84), (16, 16, 16)],
)
def test_masks_are_a_sixth_of_the_image_in_whole_patches(size, patch_size, mask):
    assert choose_mask_patch(size, patch_size).value == mask


@pytest.mark.parametrize(("channels", "kind"), [(1, "gray images"), (3, "images in color")])
def test_few_images_learn_from_gradients(channels, kind):
    choices = choose_target(images(64, channels), 2100, 16, channels)
    assert values_of(choices) == {"target": "hog", "target_options": {"cell_size": 8}}
    assert choices["target"].reason == f"2,100 {kind}, fewer than 10,000; --target rgb predicts pixels"
    assert choose_target(images(28, channels), 2100, 7, channels)["target_options"].value == {"cell_size": 7}
    assert choose_target(images(64, channels), 9_999, 16, channels)
    assert choose_target(images(64, channels), 10_000, 16, channels) == {}
    assert choose_target(images(64, channels), 2100, 3, channels) == {}


def test_images_of_other_channels_keep_pixels_and_that_is_said():
    choices = choose_target(images(64, 13), 2100, 16, 13)
    assert values_of(choices) == {"target": "rgb"}
    assert choices["target"].reason == "gradients were not measured on images of 13 channels"
    assert choose_target(images(64, 13), 10_000, 16, 13) == {}


def test_length():
    # 20 minutes for 2,000 images on processors, of which the start and evaluations take a part.
    assert choose_epochs(2000, 100, LAPTOP).value == 60
    assert choose_epochs(2000, 100, LAPTOP, other_seconds=lambda epochs: 240).value == 48
    # Few epochs have few evaluations: 100 s of training and 5 of evaluations, not 20.
    assert choose_epochs(2000, 100, LAPTOP, hours=106 / 3600, other_seconds=lambda epochs: epochs).value == 5

    # Beyond twenty epochs every second one has an evaluation, so 22 fit where 20 do not.
    def alternate(epochs: int) -> float:
        return 10 * epochs if epochs <= 20 else 5 * epochs

    assert choose_epochs(2000, 100, LAPTOP, hours=560 / 3600, other_seconds=alternate).value == 22
    assert choose_epochs(2000, 100, LAPTOP, hours=510 / 3600, other_seconds=alternate).value == 17
    assert choose_epochs(2000, 0.1, LAPTOP).value == 5
    assert choose_epochs(20_000, 100, LAPTOP).value == 60
    assert "20 min" in choose_epochs(2000, 100, LAPTOP).reason
    # As long as the paper's schedules on a GPU.
    assert choose_epochs(1_281_167, 1000, LARGE_GPU).value == 100
    assert choose_epochs(2000, 1000, LARGE_GPU).value == 800
    # Or as long as somebody allows.
    assert choose_epochs(1_281_167, 1000, LARGE_GPU, hours=8).value == 22
    assert choose_epochs(2000, 100, LAPTOP, hours=0.5).value == 90
    assert choose_epochs(2000, 0.1, LAPTOP, hours=0.5).value == 1


def test_smaller_batches_keep_the_images_of_a_step():
    batch, parts = 96, 1
    seen = []
    while batch > 1:
        batch, parts = smaller_batch(batch, parts)
        seen.append(batch)
        assert batch * parts == 96
    assert seen == [48, 24, 12, 6, 3, 1]
    with pytest.raises(ValueError, match="does not fit the memory even with one image"):
        smaller_batch(1, 96)
