"""Settings that nobody gave: which are chosen, that options and recipes win, and that a resumed run keeps them."""

import json
import types

import numpy as np
import pytest
import torch
from photos import random_photo
from tiny import swin_config, vit_config

from hf_simmim import SimMIMConfig
from hf_simmim.cli import pretrain
from hf_simmim.planning import automatic as automatic_module
from hf_simmim.planning.automatic import Automatic
from hf_simmim.planning.machine import GIB, Machine
from hf_simmim.planning.rehearsal import Rehearsal

LAPTOP = Machine("cpu", 1, 16 * GIB, 2, has_bf16=False)
LARGE_GPU = Machine("cuda", 1, 80 * GIB, 16, has_bf16=True)


@pytest.fixture
def rehearsed(monkeypatch):
    """Rehearsals that take no time; the batches that do not fit can be set."""
    state = types.SimpleNamespace(largest=1000, batches=[], compiled=Rehearsal(0.4, 125.0, 300.0, GIB, 0, 30.0))

    def rehearse(model, dataset, arguments, *rest):
        state.batches.append(arguments.per_device_train_batch_size)
        if arguments.per_device_train_batch_size > state.largest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if arguments.compile_blocks:
            if state.compiled is None:
                raise RuntimeError("Failed to find a C compiler")
            return state.compiled
        return Rehearsal(0.5, 100.0, 300.0, GIB)

    monkeypatch.setattr(automatic_module, "rehearse", rehearse)
    return state


def built(monkeypatch, tmp_path, photos, machine=LAPTOP, **options):
    """The trainer of a command line."""
    monkeypatch.setattr(pretrain, "find_machine", lambda arguments: machine)
    words = [f"--train_dir={photos}", f"--output_dir={tmp_path / 'run'}", "--use_cpu=true"]
    words += ["--dataloader_num_workers=0", *(f"--{name}={value}" for name, value in options.items())]
    parts = pretrain.COMMAND.parse(words)
    trainer, _ = pretrain.build_trainer(*parts)
    return trainer, parts


@pytest.fixture(scope="module")
def gray(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gray")
    for index in range(60):
        photo = random_photo(np.random.default_rng(index), (100, 80))
        photo.convert("L").save(folder / f"{index}.png")
    return folder


def test_a_folder_alone_is_enough(monkeypatch, tmp_path, gray, rehearsed):
    trainer, (_, model, arguments) = built(monkeypatch, tmp_path, gray)
    assert trainer.model.config.encoder_config.embed_dim == 48
    assert trainer.model.config.image_size == (64, 64)
    assert trainer.model.config.num_channels == 1
    assert trainer.processing_class.mask_patch_size == 8
    assert model.encoder == "swin-mini"
    assert (arguments.per_device_train_batch_size, arguments.bf16) == (16, False)
    # 20 minutes, of which the start and 20 evaluations take 18.6 s; 57 images at 100 a second; 800 at most.
    assert arguments.num_train_epochs == 800
    assert arguments.learning_rate == pytest.approx(1e-3)
    chosen = json.loads((tmp_path / "run" / "run.json").read_text())["chosen"]
    assert chosen == trainer.plan.automatic.values
    lines = trainer.plan.lines(arguments, 57)
    assert lines["  encoder"] == "swin-mini: 2 processor cores, no GPU"
    assert lines["  num_channels"] == "1: gray images"
    assert (model.target, model.target_options) == ("hog", {"cell_size": 8})
    assert trainer.model.config.loss == "l2"
    assert lines["  target"] == "hog: 57 gray images, fewer than 10,000; --target rgb predicts pixels"
    assert " min at 32 images/s, 1.15 GB of memory" in lines["Forecast"]


def test_on_a_gpu_the_same_command_takes_a_larger_encoder(monkeypatch, tmp_path, gray, rehearsed):
    """A tiny model is built in its place: what counts is which was asked for."""
    taken = []
    monkeypatch.setattr(
        pretrain,
        "build_config",
        lambda arguments: taken.append(arguments.encoder) or pretrain.SimMIMConfig(encoder_config=swin_config()),
    )
    built(monkeypatch, tmp_path, gray, machine=Machine("cuda", 1, 80 * GIB, 16, has_bf16=False))
    assert set(taken) == {"swin-base"}
    arguments = types.SimpleNamespace(given=set(), recipe=None, mixed_precision="no", fsdp=None, deepspeed=None)
    chosen = Automatic(arguments)
    chosen.choose_precision(arguments, SimMIMConfig(encoder_config=swin_config()), LARGE_GPU)
    assert (arguments.bf16, arguments.mixed_precision) == (True, "bf16")
    # Small encoders are slower in bfloat16 on processors.
    processor = Machine("cpu", 1, GIB, 2, True)
    for encoder, expected in ((swin_config(), False), ("swin-tiny", True)):
        plain = types.SimpleNamespace(**vars(arguments) | {"mixed_precision": "no", "bf16": False})
        Automatic(plain).choose_precision(plain, SimMIMConfig(encoder_config=encoder), processor)
        assert plain.bf16 == expected
    # Its config decides.
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    launched = types.SimpleNamespace(**vars(arguments) | {"mixed_precision": "no", "bf16": False})
    Automatic(launched).choose_precision(launched, SimMIMConfig(encoder_config=swin_config()), LARGE_GPU)
    assert (launched.bf16, launched.mixed_precision) == (False, "no")


def test_options_win(monkeypatch, tmp_path, gray, rehearsed):
    given = {
        "encoder": json.dumps(swin_config(num_channels=1).to_diff_dict() | {"model_type": "swin"}),
        "mask_patch_size": 16,
        "target": "rgb",
        "per_device_train_batch_size": 5,
        "num_train_epochs": 2,
        "bf16": "false",
    }
    trainer, (_, _, arguments) = built(monkeypatch, tmp_path, gray, machine=Machine("cpu", 1, GIB, 2, True), **given)
    assert trainer.plan.automatic.choices == {}
    assert trainer.model.config.encoder_config.embed_dim == swin_config().embed_dim
    assert (arguments.per_device_train_batch_size, arguments.num_train_epochs) == (5, 2)
    assert arguments.learning_rate == pytest.approx(2e-4 * 5 / 512)
    assert rehearsed.batches == []
    assert trainer.plan.expected is None


def test_an_option_leaves_the_others_open(monkeypatch, tmp_path, gray, rehearsed):
    trainer, (_, model, _) = built(monkeypatch, tmp_path, gray, window_size=4)
    assert (model.window_size, model.image_size, model.mask_patch_size) == (4, [64], 8)
    assert "window_size" not in trainer.plan.automatic.choices
    trainer, (_, model, _) = built(monkeypatch, tmp_path / "larger", gray, image_size=96)
    assert (model.window_size, model.image_size, model.mask_patch_size) == (6, [96], 16)


def test_masks_and_rates_fit_an_encoder_that_was_given(monkeypatch, tmp_path, gray, rehearsed):
    """Masks of 32 px would hide whole quarters of so small an image, and the rate of a large encoder learns nothing."""
    encoder = json.dumps(vit_config(image_size=64, patch_size=8, num_channels=1).to_diff_dict() | {"model_type": "vit"})
    trainer, (_, model, arguments) = built(monkeypatch, tmp_path, gray, encoder=encoder)
    assert model.mask_patch_size == trainer.processing_class.mask_patch_size == 8
    assert arguments.learning_rate == pytest.approx(1e-3)
    assert trainer.plan.lines(arguments, 57)["  learning_rate"] == "0.001: for swin-mini at a batch size of 16"


def test_a_part_of_the_objective_leaves_the_target_alone(monkeypatch, tmp_path, gray, rehearsed):
    for number, given in enumerate(({"target": "rgb"}, {"loss": "l1"}, {"head": "linear"})):
        trainer, _ = built(monkeypatch, tmp_path / str(number), gray, **given)
        assert trainer.model.config.target == "rgb"
        assert "target" not in trainer.plan.automatic.choices


def test_a_run_of_an_older_version_keeps_its_objective(monkeypatch, tmp_path, gray, rehearsed):
    built(monkeypatch, tmp_path, gray)
    path = tmp_path / "run" / "run.json"
    before = json.loads(path.read_text())
    del before["chosen"]["target"], before["chosen"]["target_options"]
    path.write_text(json.dumps(before))
    trainer, _ = built(monkeypatch, tmp_path, gray)
    assert trainer.model.config.target == "rgb"


def test_a_recipe_is_taken_to_the_digit(monkeypatch, tmp_path, gray, rehearsed):
    trainer, (_, model, arguments) = built(
        monkeypatch, tmp_path, gray, recipe="small_budget__cpu", num_channels=1, per_device_train_batch_size=4
    )
    assert trainer.plan.automatic.choices == {}
    assert (model.mask_patch_size, arguments.num_train_epochs, arguments.learning_rate) == (16, 50, 1e-3)
    assert trainer.plan.expected is not None


def test_hours_size_the_run(monkeypatch, tmp_path, gray, rehearsed):
    trainer, (_, _, arguments) = built(monkeypatch, tmp_path, gray, recipe="small_budget__cpu", num_channels=1,
                                       per_device_train_batch_size=4, hours=0.05)  # fmt: skip
    # 180 s, of which the start and 18 evaluations take 17.6; 57 images at 100 a second.
    assert arguments.num_train_epochs == 284
    assert arguments.eval_steps == arguments.save_steps == 15 * 57 // 4
    assert list(trainer.plan.automatic.choices) == [
        "num_train_epochs", "eval_strategy", "eval_steps", "save_strategy", "save_steps"
    ]  # fmt: skip


def test_batches_that_do_not_fit_are_accumulated(monkeypatch, tmp_path, gray, rehearsed):
    rehearsed.largest = 5
    _, (_, _, arguments) = built(monkeypatch, tmp_path, gray)
    assert rehearsed.batches == [16, 8, 4]
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (4, 4)
    with pytest.raises(ValueError, match="A batch of 6 images does not fit the memory"):
        built(monkeypatch, tmp_path / "other", gray, per_device_train_batch_size=6)


@pytest.mark.parametrize(
    ("compiled", "options", "expected"),
    [
        (
            Rehearsal(0.4, 125.0, 300.0, GIB, 0, 30.0),
            {"hours": 1},
            "True: steps are 1.25 times as fast, and compiling takes 30 s",
        ),
        # Faster by less than the compiling takes, and slower.
        (
            Rehearsal(0.499, 100.2, 300.0, GIB, 0, 30.0),
            {"hours": 1},
            "False: steps are 1.00 times as fast, and compiling takes 30 s",
        ),
        (
            Rehearsal(0.6, 83.0, 300.0, GIB, 0, 30.0),
            {"hours": 1},
            "False: steps are 0.83 times as fast, and compiling takes 30 s",
        ),
        (None, {"hours": 1}, "False: it failed (RuntimeError: Failed to find a C compiler)"),
        # Too short to be tried, and not left open.
        (Rehearsal(0.1, 500.0, 300.0, GIB, 0, 30.0), {"hours": 0.1}, None),
        (Rehearsal(0.1, 500.0, 300.0, GIB, 0, 30.0), {"hours": 1, "recompute_activations": True}, None),
    ],
)
def test_blocks_are_compiled_where_that_pays(monkeypatch, tmp_path, gray, rehearsed, compiled, options, expected):
    monkeypatch.setattr(automatic_module, "COMPILED_ON", ("cpu",))
    rehearsed.compiled = compiled
    is_chosen = str(expected).startswith("True")
    trainer, (_, _, arguments) = built(monkeypatch, tmp_path, gray, **options)
    assert arguments.compile_blocks == is_chosen
    # 16 images in 0.4 or 0.5 s, and some time for evaluations and saves.
    speed = 16 / (0.4 if is_chosen else 0.5)
    assert 0.97 * speed < trainer.plan.expected.images_per_second < speed
    reason = trainer.plan.lines(arguments, 57).get("  compile_blocks")
    assert reason == expected
    if is_chosen:
        # A resumed run is compiled too, without another trial.
        rehearsed.compiled = None
        monkeypatch.setattr(pretrain, "prepare_output_dir", lambda arguments: tmp_path / "run" / "checkpoint-1")
        monkeypatch.setattr(pretrain, "settle_settings", lambda arguments, settings, checkpoint: settings)
        assert built(monkeypatch, tmp_path, gray, **options)[1][2].compile_blocks


def test_on_processors_no_compiling_is_tried(monkeypatch, tmp_path, gray, rehearsed):
    _, (_, _, arguments) = built(monkeypatch, tmp_path, gray, hours=1)
    assert not arguments.compile_blocks
    assert len(rehearsed.batches) == 1


def test_a_resumed_run_keeps_its_choices(monkeypatch, tmp_path, gray, rehearsed):
    built(monkeypatch, tmp_path, gray)
    path = tmp_path / "run" / "run.json"
    before = json.loads(path.read_text())
    before["chosen"] |= {"image_size": 32, "mask_patch_size": 4, "num_train_epochs": 7, "learning_rate": 0.003}
    path.write_text(json.dumps(before))
    trainer, (_, _, arguments) = built(monkeypatch, tmp_path, gray, machine=LARGE_GPU)
    assert trainer.model.config.image_size == (32, 32)
    assert trainer.model.config.encoder_config.embed_dim == 48
    assert (arguments.num_train_epochs, arguments.learning_rate) == (7, 0.003)
    assert trainer.plan.automatic.choices["encoder"].reason == "as before"


def test_a_run_with_a_checkpoint_is_not_measured_again(monkeypatch, tmp_path, gray, rehearsed):
    rehearsed.largest = 8
    first, _ = built(monkeypatch, tmp_path, gray)
    assert len(rehearsed.batches) == 2
    monkeypatch.setattr(pretrain, "prepare_output_dir", lambda arguments: tmp_path / "run" / "checkpoint-1")
    monkeypatch.setattr(pretrain, "settle_settings", lambda arguments, settings, checkpoint: settings)
    again, (_, _, arguments) = built(monkeypatch, tmp_path, gray)
    assert len(rehearsed.batches) == 2
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (8, 2)
    assert arguments.num_train_epochs == first.args.num_train_epochs
    assert (arguments.eval_steps, arguments.save_steps) == (first.args.eval_steps, first.args.save_steps)
    assert again.plan.expected == first.plan.expected


def test_what_takes_too_long_is_said(monkeypatch, tmp_path, gray, rehearsed):
    trainer, (_, _, arguments) = built(
        monkeypatch, tmp_path, gray, recipe="small_budget__cpu", num_channels=1,
        per_device_train_batch_size=4, num_train_epochs=1_000_000,
    )  # fmt: skip
    (note,) = trainer.plan.notes(arguments, 57)
    assert "days on processors. Add --hours 8 for what fits" in note
    assert trainer.plan.lines(arguments, 57)["Note 1"] == note
    outcome = trainer.plan.outcome(arguments, 100, 20.0)
    assert outcome.startswith(f"{trainer.plan.expected}; it took 20 s at 100 images/s, ")
    assert outcome.endswith(" of memory, 0 MB of disk")
