"""transformers' own common tests of models, configs and image processors, on our classes."""

import copy
import tempfile
import unittest
from typing import Any

import pytest
import torch
import transformers_mixins
from transformers import BeitConfig, PreTrainedConfig, SwinConfig
from transformers.testing_utils import torch_device
from transformers.utils import is_torchvision_available
from transformers_mixins import (
    ConfigTester,
    ImageProcessingTester,
    ImageProcessingTestMixin,
    ModelTesterMixin,
    floats_tensor,
)

from hf_simmim import (
    SimMIMConfig,
    SimMIMForMaskedImageModeling,
    SimMIMImageProcessor,
    SimMIMImageProcessorPil,
    SimMIMModel,
    masking,
)

if transformers_mixins.SKIP_REASON:
    pytest.skip(transformers_mixins.SKIP_REASON, allow_module_level=True)

transformers_mixins.add_model("simmim", "SimMIMModel", "SimMIMForMaskedImageModeling")


class SimMIMModelTester:
    """Makes the configs and inputs; the mixins read the attributes.

    Args:
        encoder_config: Config of the encoder.
        **attributes: What the mixins have to know about the encoder.
    """

    is_training = True
    batch_size = 3

    def __init__(self, encoder_config: PreTrainedConfig, **attributes: int):
        self.encoder_config = encoder_config
        vars(self).update(attributes)

    def get_config(self) -> SimMIMConfig:
        return SimMIMConfig(encoder_config=copy.deepcopy(self.encoder_config))

    def prepare_config_and_inputs_for_common(self) -> tuple[SimMIMConfig, dict[str, torch.Tensor]]:
        config = self.get_config()
        return config, {"pixel_values": floats_tensor([self.batch_size, config.num_channels, *config.image_size])}


class SimMIMModelTests(ModelTesterMixin):
    """The common tests of models and configs, for the encoder of a subclass."""

    all_model_classes = (SimMIMModel, SimMIMForMaskedImageModeling)
    # There are no token embeddings.
    test_resize_embeddings = False
    # Without this the test runs only on files with a copyright line of 2023 or later.
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self) -> None:
        self.config_tester = ConfigTester(
            self,
            config_class=SimMIMConfig,
            has_text_modality=False,
            common_properties=[
                "encoder_stride",
                "grid_size",
                "hidden_size",
                "image_size",
                "num_attention_heads",
                "num_channels",
                "num_hidden_layers",
                "patch_size",
            ],
            encoder_config=self.model_tester.get_config().to_diff_dict()["encoder_config"],
            loss_region="all",
        )

    def _prepare_for_class(
        self, inputs_dict: dict[str, Any], model_class: type, return_labels: bool = False
    ) -> dict[str, Any]:
        inputs = copy.deepcopy(inputs_dict)
        if return_labels and model_class is SimMIMForMaskedImageModeling:
            # A real mask: the mixin's own hides nothing, which gives a loss without gradients.
            grid_size = self.model_tester.get_config().grid_size
            generator = torch.Generator().manual_seed(0)
            mask = masking.random_mask(grid_size, 0.6, len(inputs["pixel_values"]), generator=generator)
            inputs["bool_masked_pos"] = mask.flatten(1).to(torch_device)
        return inputs

    def test_config(self) -> None:
        self.config_tester.run_common_tests()

    def test_model_get_set_embeddings(self) -> None:
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            assert model.get_input_embeddings() is model.base_model.encoder.embeddings.patch_embeddings
            assert model.get_output_embeddings() is None


class SimMIMSwinTest(SimMIMModelTests, unittest.TestCase):
    def setUp(self) -> None:
        # The first stage has plain and shifted windows, and one window spans the second.
        encoder_config = SwinConfig(
            image_size=32,
            patch_size=4,
            embed_dim=16,
            depths=[2, 1],
            num_heads=[2, 4],
            window_size=4,
            drop_path_rate=0.0,
        )
        self.model_tester = SimMIMModelTester(
            encoder_config,
            seq_length=64,
            hidden_size=16,
            num_hidden_layers=2,
            num_masks=40,
            mask_length=64,
            # The mixin takes those of the first stage, and its window for the sequence.
            num_attention_heads=2,
            encoder_seq_length=16,
            key_length=16,
        )
        super().setUp()

    def test_hidden_states_output(self) -> None:
        # Hidden states have all tokens, unlike attention weights.
        self.model_tester.encoder_seq_length = 64
        super().test_hidden_states_output()


class SimMIMBeitTest(SimMIMModelTests, unittest.TestCase):
    _is_composite = True

    def setUp(self) -> None:
        encoder_config = BeitConfig(
            image_size=32,
            patch_size=4,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=37,
            use_mask_token=True,
            use_shared_relative_position_bias=True,
            use_mean_pooling=False,
            layer_norm_eps=1e-6,
            drop_path_rate=0.0,
        )
        self.model_tester = SimMIMModelTester(
            encoder_config,
            seq_length=65,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_masks=40,
            mask_length=64,
        )
        super().setUp()

    def test_reverse_loading_mapping(self) -> None:
        # Our checkpoints keep the names that the model has in memory.
        super().test_reverse_loading_mapping(check_keys_were_modified=False)

    def test_sdpa_can_dispatch_composite_models(self) -> None:
        # The mixin's own looks for a text model.
        for model_class in self.all_model_classes:
            with tempfile.TemporaryDirectory() as folder:
                model_class(self.model_tester.get_config()).save_pretrained(folder)
                for chosen, expected in (({}, "sdpa"), ({"attn_implementation": "eager"}, "eager")):
                    model = model_class.from_pretrained(folder, **chosen)
                    assert model.config._attn_implementation == expected
                    assert model.base_model.encoder.config._attn_implementation == expected

    @unittest.skip("transformers' BEiT hands its shared bias to the layers by keyword, which re-entrant mode forbids")
    def test_training_gradient_checkpointing_use_reentrant_true(self) -> None:
        pass


class SimMIMImageProcessingTester(ImageProcessingTester):
    """Makes the settings and inputs; a size that is not square, so that height and width cannot be mixed up."""

    def __init__(self, parent: unittest.TestCase, **kwargs: Any):
        kwargs.setdefault("size", {"height": 64, "width": 32})
        kwargs.setdefault("mask_patch_size", 16)
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self) -> dict[str, type]:
        classes = {"pil": SimMIMImageProcessorPil}
        if is_torchvision_available():
            classes["torchvision"] = SimMIMImageProcessor
        return classes


class SimMIMImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = SimMIMImageProcessingTester
    test_cast_dtype = True

    @unittest.skipUnless(is_torchvision_available(), "without torchvision there is only the Pillow class")
    def test_new_models_require_torchvision_backend(self) -> None:
        super().test_new_models_require_torchvision_backend()

    @unittest.skip("its process imports transformers alone, which does not know our class")
    def test_pil_can_run_without_torchvision(self) -> None:
        pass

    # The same test, as 5.21 calls it.
    test_pil_can_load_without_torchvision = test_pil_can_run_without_torchvision
