"""torchtitan's debug model on a CPU process with the optimizer builder; needs .venv/torchtitan.

On one process: torchtitan scales gradients by a reduction that gloo does not have.
"""

import shutil

import pytest
import torch
from run_example import losses
from torchtitan.models.llama3 import model_registry

from lowmem import partition
from lowmem.integrations.torchtitan import Optimizers, fused_blocks

pytestmark = pytest.mark.slow


def test_the_debug_model_trains_with_clipping_and_resumes_from_its_checkpoint(tmp_path):
    first = losses("torchtitan_debug.py", str(tmp_path), "4", processes=1)
    assert len(first) >= 4 and first[-1] < first[0]
    shutil.rmtree(tmp_path / "checkpoint" / "step-4")
    resumed = losses("torchtitan_debug.py", str(tmp_path), "4", processes=1)
    assert resumed == first[-len(resumed) :] and 0 < len(resumed) < len(first)


def debug_model() -> torch.nn.Module:
    with torch.device("meta"):
        return model_registry("debugmodel", attn_backend="flex").model.build()


def test_blocks_of_the_joint_projection_are_heads_of_queries_and_keys_and_rows_of_values():
    model = debug_model()
    known = fused_blocks(model)
    joint = partition(model, overrides=known)["layers.0.attention.qkv_linear.wqkv.weight"]
    assert joint.count == 16 + 16 + 256  # query heads, key heads, rows of values
    assert joint.segments[:4] == ((0, 32, 16), (32, 48, 1), (48, 80, 16), (80, 96, 1))
    built = Optimizers(Optimizers.Config(name="adam_mini", settings={"lr": 0.1}), model_parts=[model]).optimizers[0]
    assert built.blocks(model.layers["0"].attention.qkv_linear.wqkv.weight).signature == joint.signature


def test_an_optimizer_that_works_inside_backward_is_refused():
    with pytest.raises(ValueError, match="lomo works inside backward, which torchtitan's trainer calls itself"):
        Optimizers(Optimizers.Config(name="lomo", settings={"lr": 0.1}), model_parts=[debug_model()])
