"""Groups and schedules against the numbers of the authors' code."""

import json
from types import SimpleNamespace

import pytest
import torch
from golden import golden_model, our_names
from paths import FIXTURES
from tiny import ENCODER_CONFIGS, beit_config, swin_config, vit_config
from transformers import PvtConfig, ResNetConfig, Trainer, TrainingArguments, ViTForImageClassification

from hf_simmim import SimMIMConfig, SimMIMForImageClassification, SimMIMForMaskedImageModeling
from hf_simmim.model.encoder_stages import encoder_layers
from hf_simmim.training.arguments import SimMIMTrainingArguments
from hf_simmim.training.labeled_trainers import ClassifierTrainer
from hf_simmim.training.optimization import (
    SimMIMSchedule,
    create_optimizers,
    create_schedule,
    decay_parameter_names,
    parameter_groups,
    planned_steps,
)

LAYER_DECAY = json.loads((FIXTURES / "layer_decay.json").read_text())
SCHEDULES = json.loads((FIXTURES / "lr_schedules.json").read_text())
WEIGHT_DECAY = json.loads((FIXTURES / "pretrain_weight_decay.json").read_text())
LEARNING_RATE = 1.25e-3


def golden_classifier(encoder: str) -> SimMIMForImageClassification:
    """What the authors fine-tuned."""
    return SimMIMForImageClassification(golden_model(encoder).config.for_fine_tuning())


def classifier_names(name: str, encoder: str) -> list[str]:
    """Our parameters that hold what one of the authors' classifier holds."""
    architecture = {"vit": "beit"}.get(encoder, encoder)
    heads = {"head.weight": "classifier.weight", "head.bias": "classifier.bias"}
    heads |= {"fc_norm.weight": "norm.weight", "fc_norm.bias": "norm.bias"}
    return [heads[name]] if name in heads else our_names(name, architecture)


def by_name(model: torch.nn.Module, groups: list[dict]) -> dict[str, dict]:
    """The group of each parameter."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: group for group in groups for parameter in group["params"]}


def golden_differences(encoder: str, layer_decay: float) -> list[str]:
    """Parameters whose rate, scale or weight decay are not those of the authors' code to 1e-9."""
    model = golden_classifier(encoder)
    groups = by_name(model, parameter_groups(model, LEARNING_RATE, 0.05, layer_decay))
    different, seen = [], set()
    for name, expected in LAYER_DECAY[encoder]["params"].items():
        for ours in classifier_names(name, encoder):
            group = groups[ours]
            seen.add(ours)
            found = (group["lr"], group["lr_scale"], group["weight_decay"])
            figures = (expected["lr"], expected["lr_scale"], expected["weight_decay"])
            is_in_place = layer_decay == 1 or group["name"] == expected["layer"]
            if found != pytest.approx(figures, rel=1e-9) or not is_in_place:
                different.append(ours)
    assert seen == set(groups)
    return different


@pytest.mark.parametrize("encoder", ["swin", "vit"])
def test_layer_decay_is_as_released(encoder):
    assert golden_differences(encoder, LAYER_DECAY[encoder]["layer_decay"]) == []


@pytest.mark.parametrize("encoder", ["swin", "vit"])
def test_constant_rate_over_depth_is_not(encoder):
    """The check above would see it."""
    different = golden_differences(encoder, 1.0)
    heads = [name for name, values in LAYER_DECAY[encoder]["params"].items() if values["lr_scale"] == 1.0]
    assert len(different) > 5 * len(heads)


@pytest.mark.parametrize("encoder", ["swin", "vit"])
def test_pretraining_weight_decay_is_as_released(encoder):
    model = golden_model(encoder)
    decayed = set(decay_parameter_names(model))
    for group, is_decayed in (("decay", True), ("no_decay", False)):
        for name in WEIGHT_DECAY[encoder][group]:
            for ours in our_names(name, encoder):
                assert (ours in decayed) is is_decayed, name


def test_weight_decay_as_the_paper_means_it():
    """Neither tokens nor relative position tables, and all else as released."""
    for encoder in ("swin", "vit", "swinv2"):
        model = golden_model(encoder)
        released, meant = set(decay_parameter_names(model)), set(decay_parameter_names(model, official=False))
        spared = ("relative_position_bias_table", "mask_token", "logit_scale", "continuous_position_bias_mlp")
        assert meant < released
        assert all(any(part in name for part in spared) for name in released - meant)
        assert not any(part in name for name in meant for part in spared)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_as_released(name):
    golden = SCHEDULES[name]
    steps = golden["epochs"] * golden["iters_per_epoch"]
    options = {"warmup_lr_rate": golden["warmup_lr"] / golden["base_lr"]}
    if golden["kind"] == "cosine":
        options["min_lr_rate"] = golden["min_lr"] / golden["base_lr"]
    else:
        options |= {"milestones": [m / golden["epochs"] for m in golden["milestones"]], "gamma": golden["gamma"]}
    arguments = SimpleNamespace(
        lr_scheduler_type=f"simmim_{golden['kind']}",
        lr_scheduler_kwargs=options,
        learning_rate=golden["base_lr"],
        warmup_steps=golden["warmup_epochs"] / golden["epochs"],
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=golden["base_lr"])
    schedule = create_schedule(optimizer, arguments, steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx(golden["lr_before_step_t"], rel=1e-9)


@pytest.mark.parametrize("encoder", ENCODER_CONFIGS)
def test_rates_fall_with_depth(encoder):
    """Every encoder: each layer has a rate of its own, in the order in which gradients reach them."""
    config = SimMIMConfig(encoder_config=ENCODER_CONFIGS[encoder]())
    layers = encoder_layers(config)
    depths = getattr(config.encoder_config, "depths", None) or [config.encoder_config.num_hidden_layers]
    assert len(layers.names) == sum(depths)
    model = SimMIMForImageClassification(config)
    groups = by_name(model, parameter_groups(model, 1.0, 0.05, 0.5))
    assert groups["classifier.weight"]["lr"] == 1.0
    for index, layer in enumerate(layers.names, start=1):
        rates = {group["lr"] for name, group in groups.items() if name.startswith(f"simmim.encoder.{layer}.")}
        assert rates == {0.5 ** (len(layers.names) + 1 - index)}
    lowest = min(groups.items(), key=lambda item: item[1]["lr"])
    assert lowest[1]["lr"] == 0.5 ** (len(layers.names) + 1)
    # The parameters that see the pixels.
    first = next(name for name, parameter in model.named_parameters() if parameter.ndim == 4)
    assert groups[first]["lr"] == lowest[1]["lr"]


def test_what_lies_between_stages_goes_with_the_layer_before():
    config = SimMIMConfig(encoder_config=ResNetConfig(depths=[1, 2], hidden_sizes=[8, 16], embedding_size=8))
    assert encoder_layers(config).names == (
        *("encoder.stages.0.layers.0", "encoder.stages.1.layers.0"),
        "encoder.stages.1.layers.1",
    )
    # Embeddings in a list, with positions of their own, are no layers.
    config = SimMIMConfig(encoder_config=PvtConfig(image_size=64, depths=[1, 2, 1, 1]))
    assert len(encoder_layers(config).names) == 5
    depths = encoder_layers(SimMIMConfig(encoder_config=swin_config())).depths
    assert depths["encoder.layers.0.downsample.reduction.weight"] == 2
    assert depths["layernorm.weight"] == 6


@pytest.mark.parametrize(
    ("make", "ends"), [(swin_config, True), (vit_config, True), (beit_config, True), (ENCODER_CONFIGS["resnet"], False)]
)
def test_final_norms_are_found(make, ends):
    config = SimMIMConfig(encoder_config=make())
    assert encoder_layers(config).ends_in_norm is ends
    if make is beit_config:
        assert not encoder_layers(config.for_fine_tuning()).ends_in_norm


def test_every_trained_parameter_is_in_one_group():
    model = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=vit_config()))
    frozen = model.head.projection.bias.requires_grad_(False)
    for layer_decay in (1.0, 0.7):
        groups = parameter_groups(model, 1.0, 0.05, layer_decay)
        listed = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(listed) == sorted(id(parameter) for parameter in model.parameters() if parameter is not frozen)
        assert groups[0]["lr"] == 1.0


def test_what_is_new_can_have_a_rate_of_its_own():
    model = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=vit_config()))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for layer_decay in (1.0, 0.7):
        groups = parameter_groups(model, 0.5, 0.05, layer_decay, full_rate=("mask_token",), new_factor=10)
        new = [group for group in groups if group["name"].startswith("new_")]
        assert groups[-len(new) :] == new
        assert {group["lr"] for group in new} == {5.0}
        found = {names[id(parameter)] for group in new for parameter in group["params"]}
        assert found == {name for name in names.values() if name.startswith("head.") or name.endswith("mask_token")}
        assert (groups[0]["lr"], len(groups) - len(new)) == (0.5, 2 if layer_decay == 1 else 7)
        assert sum(len(group["params"]) for group in groups) == len(names)


def test_wrapped_models_keep_their_rates():
    model = SimMIMForImageClassification(SimMIMConfig(encoder_config=swin_config()))
    expected = [group["name"] for group in parameter_groups(model, 1.0, 0.05, 0.7)]
    assert [group["name"] for group in parameter_groups(torch.compile(model), 1.0, 0.05, 0.7)] == expected


def test_adapters_have_the_rate_of_their_layer():
    model = SimMIMForImageClassification(SimMIMConfig(encoder_config=swin_config()))
    model.requires_grad_(False)
    query = model.get_submodule("simmim.encoder.encoder.layers.0.blocks.1.attention.self.query")
    query.lora_A = torch.nn.Linear(16, 2, bias=False)
    model.classifier.lora_A = torch.nn.Linear(16, 2, bias=False)
    scales = [(group["lr_scale"], len(group["params"])) for group in parameter_groups(model, 1.0, 0.05, 0.5)]
    # Five layers and the head above them; this is the second.
    assert scales == [(1.0, 1), (0.5**4, 1)]


def test_other_models_are_refused_where_depth_matters():
    from transformers import ViTConfig

    stock = ViTForImageClassification(ViTConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1))
    with pytest.raises(ValueError, match="no SimMIM encoder"):
        parameter_groups(stock, 1.0, 0.05, 0.9, official=False)
    for official in (True, False):
        assert parameter_groups(stock, 1.0, 0.05, official=official)[0]["lr"] == 1.0
    model = SimMIMForImageClassification(SimMIMConfig(encoder_config=swin_config()))
    with pytest.raises(ValueError, match="layer_decay=1.5"):
        parameter_groups(model, 1.0, 0.05, 1.5)


def training_arguments(folder, **kwargs) -> SimMIMTrainingArguments:
    defaults = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "dataloader_num_workers": 0,
        "base_learning_rate": LEARNING_RATE,
    }
    return SimMIMTrainingArguments(**(defaults | kwargs))


class LabeledNoise(torch.utils.data.Dataset):
    """Ten images with one of two labels."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(3, 32, 32, generator=generator), "labels": index % 2}


@pytest.mark.parametrize(("accumulation", "drop_last"), [(1, False), (2, False), (4, True)])
def test_unmodified_trainer_takes_them(tmp_path, accumulation, drop_last):
    arguments = training_arguments(
        tmp_path,
        num_train_epochs=3,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=accumulation,
        dataloader_drop_last=drop_last,
    )
    assert arguments.learning_rate == LEARNING_RATE * 3 * accumulation / 512
    model = SimMIMForImageClassification(SimMIMConfig(encoder_config=swin_config(), num_labels=2))
    steps = planned_steps(arguments, 10)
    optimizers = create_optimizers(model, arguments, steps, layer_decay=0.8)
    trainer = Trainer(model=model, args=arguments, train_dataset=LabeledNoise(), optimizers=optimizers)
    trainer.train()
    assert trainer.state.global_step == steps
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert len(logged) == steps
    peak = arguments.learning_rate
    assert logged == pytest.approx([optimizers[1]._rate(step, peak) for step in range(steps)], rel=1e-9)
    assert optimizers[0].param_groups[-1]["lr_scale"] == pytest.approx(0.8**6)
    # Its card asks the schedule for its value.
    trainer.create_model_card()
    assert "simmim_cosine" in (tmp_path / "README.md").read_text()


def test_the_trainer_of_classifiers_has_a_rate_for_each_layer(tmp_path):
    """It makes the optimizer itself: with FSDP, Trainer refuses one that it is given."""
    arguments = training_arguments(tmp_path, max_steps=2, per_device_train_batch_size=3)
    arguments.layer_decay = 0.8
    model = SimMIMForImageClassification(SimMIMConfig(encoder_config=swin_config(), num_labels=2))
    trainer = ClassifierTrainer(model=model, args=arguments, train_dataset=LabeledNoise())
    trainer.train()
    groups = parameter_groups(model, arguments.learning_rate, arguments.weight_decay, 0.8)
    assert len(groups) == 14
    for ours, expected in zip(trainer.optimizer.param_groups, groups, strict=True):
        assert [id(one) for one in ours["params"]] == [id(one) for one in expected["params"]]
        assert (ours["lr_scale"], ours["weight_decay"]) == (expected["lr_scale"], expected["weight_decay"])
    assert type(trainer.lr_scheduler) is SimMIMSchedule


def test_a_longer_run_goes_on_with_its_own_shape():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    arguments = SimpleNamespace(
        lr_scheduler_type="simmim_cosine", lr_scheduler_kwargs=None, learning_rate=1.0, warmup_steps=0
    )
    short, long = create_schedule(optimizer, arguments, 10), create_schedule(optimizer, arguments, 100)
    for _ in range(5):
        optimizer.step()
        short.step()
    long.load_state_dict(short.state_dict())
    assert long.get_lr()[0] > 0.99 > short.get_lr()[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr_scheduler_type": "cosin"}, "simmim_cosine"),
        ({"lr_scheduler_kwargs": '{"min_lr": 0.1}'}, "min_lr_rate"),
        ({"lr_scheduler_kwargs": '{"min_lr_rate": 5}'}, "min_lr_rate=5"),
        ({"lr_scheduler_type": "simmim_multistep", "lr_scheduler_kwargs": '{"milestones": [700]}'}, "milestones"),
    ],
)
def test_mistakes_are_refused(tmp_path, changes, message):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match=message):
        create_schedule(optimizer, training_arguments(tmp_path, **changes), 10)


def test_schedules_of_transformers_stay(tmp_path):
    arguments = training_arguments(tmp_path, lr_scheduler_type="linear", warmup_steps=0)
    assert isinstance(arguments, TrainingArguments)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = create_schedule(optimizer, arguments, 4)
    rates = []
    for _ in range(4):
        optimizer.step()
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
    assert rates == pytest.approx([0.75, 0.5, 0.25, 0.0])
