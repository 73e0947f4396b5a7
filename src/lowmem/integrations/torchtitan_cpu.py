"""torchtitan 0.3 knows accelerators only. Import this before torchtitan, and it trains on CPU processes with gloo.

For trying things out: device memory is reported as zero, attention runs over a dense mask, since PyTorch's
FlexAttention has no backward on CPUs, and time-outs stay as they were, since gloo has no barrier over devices.
"""

import collections
import types

import torch
from torch.nn.attention.flex_attention import create_mask
from torch.nn.functional import scaled_dot_product_attention

device = types.ModuleType("cpu_as_a_device")
device.__dict__.update({name: getattr(torch.cpu, name) for name in dir(torch.cpu) if not name.startswith("__")})
device.get_device_name = lambda *_: "CPU"
device.get_device_properties = lambda *_: types.SimpleNamespace(total_memory=1, name="CPU")
device.memory_stats = lambda *_: collections.defaultdict(int)
device.reset_peak_memory_stats = device.empty_cache = lambda *_: None
torch._utils._get_available_device_type = lambda: "cpu"
torch._utils._get_device_module = lambda _: device

from torchtitan.distributed import utils  # noqa: E402  (reads the lines above when it is imported)
from torchtitan.models.common.attention import FlexAttention  # noqa: E402


def dense_attention(q, k, v, *, block_mask, scale, enable_gqa, **_unused):
    """(attention output, None) like flex_attention. q (B, N, L, H), k and v (B, K, L, H)."""
    mask = create_mask(block_mask.mask_mod, q.shape[0], 1, q.shape[2], k.shape[2], device="cpu")
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=enable_gqa), None


FlexAttention._compiled_flex_attn = staticmethod(dense_attention)
utils.set_pg_timeouts = lambda *_, **__: None
