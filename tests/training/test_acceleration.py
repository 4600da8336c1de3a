"""What makes steps faster changes nothing but their time, and trainings use it."""

# Fixtures of a pre-training are arguments here.
# ruff: noqa: F401, F811
import gc
import os
import subprocess
import sys
import weakref
from collections import Counter

import pytest
import torch
from pretraining import options, photos
from tiny import ENCODER_CONFIGS, batch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling
from hf_simmim.cli import pretrain
from hf_simmim.model.swin import SwinBlock, plain_attention
from hf_simmim.training import acceleration, resumable_trainer
from hf_simmim.training.acceleration import (
    CastsOfAStep,
    compile_blocks,
    faster_kernels,
    linear_by_onednn,
    recompute_activations,
)
from hf_simmim.training.resumable_trainer import ResumableTrainer

FAULTS = """
import resource, torch
from hf_simmim.training.acceleration import keep_freed_memory
print(keep_freed_memory() if {keep} else False)
def step(): return torch.ones(2**23).sum()
for _ in range(3): step()  # until the heap is as large as a step needs
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10): step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(keep: bool, **environment: str) -> tuple[bool, int]:
    """Whether the setting was made in a new process, and pages that the system had to clear in ten steps of 32 MiB."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_") and key != "LD_PRELOAD"}
    program = [sys.executable, "-c", FAULTS.format(keep=keep)]
    result = subprocess.run(program, check=True, capture_output=True, text=True, env=plain | environment)
    made, faults = result.stdout.split()
    return made == "True", int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_freed_memory_is_kept():
    made, kept = page_faults(True)
    assert made
    _, returned = page_faults(False)
    assert kept < 100 < 1000 < returned
    # The user's own choice stands.
    assert not page_faults(True, MALLOC_ARENA_MAX="2")[0]


FREED = """
import gc, psutil, torch
from hf_simmim.training.acceleration import keep_freed_memory, prepare_to_fork
keep_freed_memory()
memory = lambda: psutil.Process().memory_info().rss // 2**20
before = memory()
torch.ones(2**25).sum()
kept = memory() - before
prepare_to_fork("{device}")
print(kept, memory() - before, gc.get_freeze_count() > 1000)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_freed_memory_is_not_shared_with_workers(device):
    plain = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_") and key != "LD_PRELOAD"}
    program = [sys.executable, "-c", FREED.format(device=device)]
    kept, left, is_frozen = subprocess.run(
        program, check=True, capture_output=True, text=True, env=plain
    ).stdout.split()
    assert int(kept) > 100
    assert (int(left) < 60) == (device == "cpu")
    assert is_frozen == "True"


def test_a_training_prepares_to_fork_its_workers(photos, tmp_path, monkeypatch):
    prepared, prepare = [], resumable_trainer.prepare_to_fork

    def noted(device):
        prepared.append(device)
        prepare(device)

    monkeypatch.setattr(resumable_trainer, "prepare_to_fork", noted)
    settings = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    pretrain.COMMAND.main(options(photos, tmp_path / "workers", dataloader_num_workers=1, **settings))
    # Workers of training and evaluation, which stay.
    assert prepared == ["cpu", "cpu"]
    assert not gc.get_freeze_count()
    pretrain.COMMAND.main(options(photos, tmp_path / "none", dataloader_num_workers=0, **settings))
    assert len(prepared) == 2


@pytest.mark.parametrize("encoder", ["swin", pytest.param("swinv2", marks=pytest.mark.slow), "vit"])
def test_compiled_blocks_compute_the_same(encoder):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=ENCODER_CONFIGS[encoder]())).train()
    pixel_values, mask = batch(model.config)
    names = [name for name, _ in model.named_parameters()]

    def step() -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        loss = model(pixel_values, bool_masked_pos=mask, skip_visible=True).loss
        loss.backward()
        return loss.detach(), [value.grad.clone() for value in model.parameters() if value.grad is not None]

    loss, gradients = step()
    settings = model.config.encoder_config
    number = sum(settings.depths) if hasattr(settings, "depths") else settings.num_hidden_layers
    assert compile_blocks(model, backend="aot_eager") == number
    blocks = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    assert all(block._compiled_call_impl is not None for block in blocks)
    compiled_loss, compiled_gradients = step()
    assert torch.allclose(compiled_loss, loss, rtol=1e-6)
    for gradient, expected in zip(compiled_gradients, gradients, strict=True):
        assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-6)
    assert [name for name, _ in model.named_parameters()] == names
    torch._dynamo.reset()


class Kept(TorchDispatchMode):
    """Bytes of the results of all operators that are still there."""

    def __init__(self):
        super().__init__()
        self.storages = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                self.storages[storage._cdata] = weakref.ref(storage), storage.nbytes()
        return result

    def size(self):
        return sum(size for storage, size in self.storages.values() if storage() is not None)


@pytest.mark.parametrize(("encoder", "share"), [("swin", 0.7), ("swinv2", 0.7), ("vit", 0.95), ("dinov2", 0.95)])
def test_recomputed_activations_give_the_same_gradients_and_are_not_kept(encoder, share):
    torch.manual_seed(0)
    model = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=ENCODER_CONFIGS[encoder]())).train()
    pixel_values, mask = batch(model.config)
    results = {}
    for recompute in (False, True):
        if recompute:
            blocks = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
            assert recompute_activations(model) == len(blocks) > 0
        torch.manual_seed(1)
        with Kept() as kept:
            loss = model(pixel_values, bool_masked_pos=mask).loss
            size = kept.size()
        loss.backward()
        results[recompute] = (loss.detach(), {name: value.grad for name, value in model.named_parameters()}, size)
        model.zero_grad()
    (loss, gradients, size), (again, others, smaller) = results[False], results[True]
    assert torch.equal(again, loss)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, others[name]) if gradient is not None else others[name] is None
    assert smaller < share * size


class InPlace(GradientCheckpointingLayer):
    """A block that changes the output of its product in place, where torch does not see it."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(4, 4, bias=False)

    def forward(self, tokens):
        output = self.dense(tokens)
        output += tokens
        return output.tanh()


class CountCasts(TorchDispatchMode):
    """Counts the casts of a model's weights."""

    def __init__(self, model):
        super().__init__()
        self.weights = {parameter.data_ptr() for parameter in model.parameters()}
        self.number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += function is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.weights
        return function(*args, **(kwargs or {}))


def casts_of_training(model, **settings):
    """Casts of the weights in two steps of three batches, and the trained weights."""
    settings = {"gradient_accumulation_steps": 3, "bf16": True} | settings
    arguments = TrainingArguments(
        per_device_train_batch_size=2, max_steps=2, use_cpu=True, save_strategy="no", report_to="none", **settings
    )
    pixel_values, masks = batch(model.config, 12)
    rows = [{"pixel_values": image, "bool_masked_pos": mask} for image, mask in zip(pixel_values, masks, strict=True)]
    with CountCasts(model) as casts:
        ResumableTrainer(model, arguments, train_dataset=rows).train()
    return casts.number, model.state_dict()


def test_weights_are_cast_once_a_step(tmp_path, monkeypatch):
    torch.manual_seed(0)
    config = SimMIMConfig(encoder_config=ENCODER_CONFIGS["swin"]())
    start = SimMIMForMaskedImageModeling(config).state_dict()
    found = {}
    for name, settings in {"kept": {}, "checkpointing": {"gradient_checkpointing": True}, "as torch does": {}}.items():
        if name == "as torch does":
            monkeypatch.setattr(CastsOfAStep, "on_step_begin", lambda *args, **kwargs: None)
        model = SimMIMForMaskedImageModeling(config)
        model.load_state_dict(start)
        found[name] = casts_of_training(model, output_dir=str(tmp_path), **settings)
        # Nothing is kept afterwards: the next context would not cast what was changed since.
        assert torch.autocast_increment_nesting() == 1
        torch.autocast_decrement_nesting()
    assert 0 < 2 * found["kept"][0] < found["as torch does"][0] < found["checkpointing"][0]
    for name, weight in found["as torch does"][1].items():
        assert torch.equal(weight, found["kept"][1][name]), name


def test_an_error_in_a_step_leaves_no_casts(tmp_path):
    model = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=ENCODER_CONFIGS["swin"]()))
    model.register_forward_hook(lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        casts_of_training(model, output_dir=str(tmp_path))
    assert torch.autocast_increment_nesting() == 1
    torch.autocast_decrement_nesting()


@pytest.mark.parametrize("encoder", ["vit", "beit"])
@pytest.mark.parametrize("multiplies", [False, True])
def test_attention_of_a_training_is_not_the_fused_one_in_bfloat16(encoder, multiplies, monkeypatch):
    monkeypatch.setattr(acceleration, "MULTIPLIES_BFLOAT16", multiplies)
    torch.manual_seed(0)
    model = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=ENCODER_CONFIGS[encoder]())).train()
    pixel_values, mask = batch(model.config, 2)
    used, fused = [], torch.nn.functional.scaled_dot_product_attention

    def noted(query, *args, **kwargs):
        used.append(query.dtype)
        return fused(query, *args, **kwargs)

    def loss(dtype):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            return model(pixel_values, bool_masked_pos=mask).loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
        expected = loss(torch.float32)
        plain = loss(torch.bfloat16)
        with faster_kernels():
            # A training within a training, such as a probe's, ends without ending the outer one.
            with faster_kernels():
                pass
            wide = loss(torch.bfloat16)
            wide.backward()
            with torch.no_grad():
                loss(torch.bfloat16)
        loss(torch.bfloat16)
    # Products that are fast in bfloat16 take the place of the fused function; others stay with it, in float32.
    by_products = multiplies and encoder == "vit"
    types = [torch.float32, torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16]
    types = types[:2] + types[3:] if by_products else types
    count = len(used) // len(types)
    assert count > 0
    assert used == [dtype for dtype in types for _ in range(count)]
    torch.testing.assert_close(plain, expected, rtol=2e-2, atol=0)
    torch.testing.assert_close(wide, expected, rtol=2e-2, atol=0)
    assert all(torch.isfinite(value.grad).all() for value in model.parameters() if value.grad is not None)


class Operators(TorchDispatchMode):
    """Counts calls by the name of the operator."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[function._schema.name] += 1
        return function(*args, **(kwargs or {}))


ONEDNN = "mkldnn::_linear_pointwise"
needs_onednn = pytest.mark.skipif(acceleration.ONEDNN_LINEAR is None, reason="torch is built without oneDNN")


@pytest.fixture
def onednn(monkeypatch):
    """Products by oneDNN, whatever the processor and however small."""
    monkeypatch.setattr(acceleration, "onednn_multiplies_faster", lambda: True)
    monkeypatch.setattr(acceleration, "LEAST_PRODUCT", 0)


@needs_onednn
@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("strided", [True, False])
def test_linear_layers_by_onednn_compute_the_same(onednn, shape, has_bias, strided):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(shape, generator=generator)
    if strided:
        tokens = tokens.transpose(0, -2).contiguous().transpose(0, -2)
    weight, bias = (torch.randn(size, generator=generator) for size in ((7, 5), (7,)))
    grad = torch.randn(*shape[:-1], 7, generator=generator)
    found = []
    for linear in (torch.nn.functional.linear, linear_by_onednn):
        inputs = [value.detach().clone().requires_grad_() for value in (tokens, weight, bias)[: 2 + has_bias]]
        with Operators() as operators:
            output = linear(*inputs)
            output.backward(grad)
        assert operators.calls[ONEDNN] == (2 if linear is linear_by_onednn else 0)
        found.append([output.detach(), *(value.grad for value in inputs)])
    for expected, value in zip(*found, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_only_plain_products_in_float32_are_replaced(onednn, monkeypatch):
    tokens, weight = torch.randn(4, 8), torch.randn(3, 8)

    def calls(*inputs):
        with Operators() as operators:
            output = linear_by_onednn(*inputs)
        torch.testing.assert_close(output, acceleration.PLAIN_LINEAR(*inputs))
        return operators.calls[ONEDNN]

    assert calls(tokens, weight) == 1
    assert calls(tokens.double(), weight.double()) == 0
    assert calls(tokens.bfloat16(), weight.bfloat16()) == 0
    assert calls(tokens[0], weight) == 0
    assert calls(tokens, weight[0]) == 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert calls(tokens, weight) == 0
        with torch.autocast("cpu", enabled=False):
            assert calls(tokens, weight) == 1
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear_by_onednn(tokens, weight[:, :4])
    # What does not train has no gradient.
    frozen, trained = nn.Parameter(weight, requires_grad=False), tokens.clone().requires_grad_()
    linear_by_onednn(trained, frozen).sum().backward()
    torch.testing.assert_close(trained.grad, weight.sum(0).expand(4, -1))
    assert frozen.grad is None
    # Less than pays.
    monkeypatch.setattr(acceleration, "LEAST_PRODUCT", 97)
    assert calls(tokens, weight) == 0
    monkeypatch.setattr(acceleration, "LEAST_PRODUCT", 96)
    assert calls(tokens, weight) == 1


@needs_onednn
@pytest.mark.parametrize("encoder", ["swin", "swinv2", "vit"])
@pytest.mark.parametrize("recompute", [False, True])
def test_steps_with_products_by_onednn_compute_the_same(onednn, encoder, recompute):
    torch.manual_seed(0)
    model = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=ENCODER_CONFIGS[encoder]())).train()
    pixel_values, mask = batch(model.config)
    if recompute:
        recompute_activations(model)

    def step():
        model.zero_grad()
        with Operators() as operators:
            loss = model(pixel_values, bool_masked_pos=mask, skip_visible=True).loss
            loss.backward()
        gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
        return loss.detach(), gradients, operators.calls

    plain, expected, calls = step()
    assert ONEDNN not in calls
    with faster_kernels():
        with faster_kernels():
            pass  # a training within a training
        loss, gradients, calls = step()
    # Layers whose input has no gradient, such as the patch embedding, call it once, others twice.
    assert calls[ONEDNN] > calls["aten::mm"] > 0
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)
    assert torch.nn.functional.linear is acceleration.PLAIN_LINEAR


def test_kernels_are_chosen_by_the_processor_and_can_be_left_as_they_are(monkeypatch):
    for faster, plain, expected in [(True, "", True), (False, "", False), (True, "1", False)]:
        monkeypatch.setattr(acceleration, "onednn_multiplies_faster", lambda faster=faster: faster)
        monkeypatch.setenv("HF_SIMMIM_PLAIN_KERNELS", plain)
        attention = acceleration.ALL_ATTENTION_FUNCTIONS["sdpa"]
        with faster_kernels():
            assert (torch.nn.functional.linear is linear_by_onednn) == expected
            assert (acceleration.ALL_ATTENTION_FUNCTIONS["sdpa"] is attention) == bool(plain)
        assert torch.nn.functional.linear is acceleration.PLAIN_LINEAR


@pytest.mark.parametrize(
    ("maker", "capability", "faster"),
    [("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False), ("GenuineIntel", "AVX512", False)],
)
def test_processors_that_gain_by_onednn(monkeypatch, maker, capability, faster):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(acceleration, "ONEDNN_LINEAR", object())
    choose = acceleration.onednn_multiplies_faster.__wrapped__
    monkeypatch.setattr(acceleration.Path, "read_text", lambda *args, **kwargs: f"vendor_id : {maker}")
    assert choose() == faster

    def missing(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(acceleration.Path, "read_text", missing)
    monkeypatch.setattr(acceleration.platform, "processor", lambda: f"AMD64 Family 25 Model 17, {maker}")
    assert choose() == faster
    monkeypatch.setattr(acceleration, "ONEDNN_LINEAR", None)
    assert not choose()


@pytest.mark.parametrize(
    ("change", "is_fused"),
    [
        ({}, False),
        ({"scaling": 0.2}, False),
        ({"attention_mask": torch.zeros(1, 1, 9, 9)}, True),
        ({"position_bias": torch.zeros(1, 2, 9, 9)}, True),
        ({"is_causal": True}, True),
    ],
)
def test_attention_by_products_is_that_of_the_fused_kernel(monkeypatch, change, is_fused):
    monkeypatch.setattr(acceleration, "MULTIPLIES_BFLOAT16", True)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(3, 2, 9, 8, generator=generator) for _ in range(3)]
    grad = torch.randn(3, 9, 2, 8, generator=generator)
    options = {"attention_mask": None, "is_causal": False} | change

    def attend(function, dtype):
        own = [value.to(dtype, copy=True).requires_grad_() for value in inputs]
        with Operators() as operators:
            output, weights = function(nn.Identity(), *own, **options)
            output.backward(grad.to(dtype))
        assert weights is None
        assert output.dtype == dtype
        assert any("flash" in name for name in operators.calls) == (is_fused or dtype == torch.float32)
        return [output.detach(), *(value.grad for value in own)]

    found = attend(acceleration.attend_beside_bfloat16, torch.bfloat16)
    expected = attend(acceleration.sdpa_attention_forward, torch.float32)
    for value, other in zip(found, expected, strict=True):
        assert (value.float() - other).norm() < 0.02 * other.norm()
    if not is_fused:
        dropped = [value.bfloat16().requires_grad_() for value in inputs]
        assert not acceleration.attend_beside_bfloat16(nn.Identity(), *dropped, **options, dropout=1.0)[0].any()
    # Longer sequences would keep too many weights.
    monkeypatch.setattr(acceleration, "LONGEST_IN_PRODUCTS", 8)
    is_fused = True
    attend(acceleration.attend_beside_bfloat16, torch.bfloat16)


def test_what_cannot_be_recomputed_is_refused():
    model = InPlace().train()
    recompute_activations(model)
    with pytest.raises(ValueError, match=r"in place \(aten.add_.Tensor\)"):
        model(torch.randn(2, 3, 4, requires_grad=True))
    with pytest.raises(ValueError, match="Leave --recompute_activations out"):
        recompute_activations(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no blocks that repeat"):
        compile_blocks(nn.Linear(2, 2))


def test_a_training_uses_what_its_options_say(photos, tmp_path, monkeypatch):
    called, forward = [], SimMIMForMaskedImageModeling.forward
    monkeypatch.setattr(resumable_trainer, "keep_freed_memory", lambda: called.append("memory"))
    monkeypatch.setattr(acceleration, "compile_blocks", lambda model: called.append("compiled"))

    def noted(self, *args, **kwargs):
        if self.training:
            called.append("skips" if kwargs.get("skip_visible") else "computes all")
            called.append(all(part.gradient_checkpointing for part in self.modules() if isinstance(part, SwinBlock)))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(SimMIMForMaskedImageModeling, "forward", noted)
    for name, expected in {
        "compile_blocks": {"memory", "compiled", "skips", False},
        "recompute_activations": {"memory", "skips", True},
        "disable_tqdm": {"memory", "skips", False},
    }.items():
        pretrain.COMMAND.main(options(photos, tmp_path / name, **{"max_steps": 1, name: True}))
        assert expected == set(called)
        called.clear()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["compile_blocks", "torch_compile"], "exclude each other"),
        (["recompute_activations", "compile_blocks"], "nothing beside compile_blocks"),
        (["recompute_activations", "gradient_checkpointing"], "computes everything again"),
        (["recompute_activations", "activation_checkpointing"], "computes everything again"),
    ],
)
def test_options_that_exclude_each_other_are_refused(photos, tmp_path, names, message):
    with pytest.raises(SystemExit, match=message):
        pretrain.COMMAND.main(options(photos, tmp_path / "both", max_steps=1, **dict.fromkeys(names, True)))


class Products(TorchDispatchMode):
    """Types of the numbers that batches of matrices are multiplied in."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.bmm.default:
            self.dtypes.add(args[0].dtype)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("multiplies", [False, True])
@pytest.mark.parametrize("logits", [torch.float32, torch.bfloat16])
def test_attention_multiplies_in_bfloat16_where_that_is_fast_and_exact_enough(monkeypatch, multiplies, logits):
    monkeypatch.setattr("hf_simmim.model.swin.MULTIPLIES_BFLOAT16", multiplies)
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 2, 16, 8) for _ in range(3))
    bias = torch.randn(2, 16, 16)
    expected, _ = plain_attention(query, key, value, bias, 0.0, 0.3)
    with Products() as products:
        found, _ = plain_attention(query.to(logits), key.to(logits), value.bfloat16(), bias, 0.0, 0.3)
    is_narrow = multiplies and logits == torch.bfloat16
    assert products.dtypes == {torch.bfloat16 if is_narrow else torch.float32}
    assert (found.float() - expected).norm() < 0.02 * expected.norm()
