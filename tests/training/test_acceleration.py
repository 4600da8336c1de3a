"""What makes steps faster changes nothing but their time."""

import os
import subprocess
import sys

import pytest
import torch
from tiny import ENCODER_CONFIGS, batch
from torch import nn

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling
from hf_simmim.training.acceleration import compile_blocks, recompute_activations

FAULTS = """
import resource, torch
from hf_simmim.training.acceleration import keep_freed_memory
print(keep_freed_memory() if {keep} else False)
def step(): return torch.ones(2**23).sum()
step()
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
    compiled_loss, compiled_gradients = step()
    assert torch.allclose(compiled_loss, loss, rtol=1e-6)
    for gradient, expected in zip(compiled_gradients, gradients, strict=True):
        assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-6)
    assert [name for name, _ in model.named_parameters()] == names
    torch._dynamo.reset()


@pytest.mark.parametrize("encoder", ["swin", "swinv2"])
def test_recomputed_activations_give_the_same_gradients_and_are_not_kept(encoder):
    torch.manual_seed(0)
    model = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=ENCODER_CONFIGS[encoder]())).train()
    pixel_values, mask = batch(model.config)
    results = {}
    for recompute in (False, True):
        if recompute:
            assert recompute_activations(model) == sum(model.config.encoder_config.depths)
        kept = []
        # Parameters are kept in any case.
        own = {value.untyped_storage().data_ptr() for value in model.parameters()}
        pack = lambda tensor, kept=kept: kept.append(tensor) or tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(pixel_values, bool_masked_pos=mask).loss
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
        loss.backward()
        gradients = [value.grad.clone() for value in model.parameters()]
        model.zero_grad()
        size = sum(number for pointer, number in storages.items() if pointer not in own)
        results[recompute] = (loss.detach(), gradients, size)
    (loss, gradients, size), (again, others, smaller) = results[False], results[True]
    assert torch.equal(again, loss)
    assert all(torch.equal(other, gradient) for other, gradient in zip(others, gradients, strict=True))
    assert smaller < 0.9 * size


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ValueError, match="is for Swin and SwinV2"):
        recompute_activations(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no blocks that repeat"):
        compile_blocks(nn.Linear(2, 2))
