"""Modules of strangers that are run once to see how their rows are used: what that finds, and that nothing of it stays."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lowmem.blocks import Misfit, partition
from lowmem.optim import AdamMini


class Caching(nn.Module):
    """Attention that counts its calls, keeps what it has seen, and shows its map."""

    def __init__(self):
        super().__init__()
        self.n_head = 2
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.past = self.map = None
        self.seen = []
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        q, k, v = (t.view(1, -1, 2, 4).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        self.calls += 1
        self.seen.append(x.shape)
        if self.past is not None:
            k, v = (torch.cat(pair, 2) for pair in zip(self.past, (k, v)))
        if not self.training:
            self.past = (k, v)
        self.map = (q @ k.transpose(-1, -2)).softmax(-1)
        return self.proj(F.dropout((self.map @ v).transpose(1, 2).reshape(1, -1, 8), 0.1, self.training))


class Square(nn.Module):
    """A linear layer of equal sizes that computes x @ weight, with dropout and a counter."""

    def __init__(self, init=nn.init.normal_, transposed=True):
        super().__init__()
        self.in_features = self.out_features = 8
        self.weight = nn.Parameter(init(torch.empty(8, 8)))
        self.transposed = transposed
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return F.dropout(x @ (self.weight if self.transposed else self.weight.T), 0.1, self.training)


class Separate(nn.Module):
    def __init__(self, output=None, width=16):
        super().__init__()
        self.num_heads = 4
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.proj = output or nn.Linear(width, width)

    def split(self, rows):
        return rows.view(1, -1, 4, 4).transpose(1, 2)  # (heads, size): as usual

    def forward(self, x):
        q, k, v = (self.split(layer(x)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        return self.proj(((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).reshape(1, -1, 16))


class Interleaved(Separate):
    def split(self, rows):
        return rows.view(1, -1, 4, 4).permute(0, 3, 1, 2)  # (size, heads)


@pytest.mark.parametrize("make", [Caching, lambda: nn.Sequential(Square()), Separate])
def test_a_trial_leaves_module_and_random_numbers_as_they_were(make):
    torch.manual_seed(0)
    model = make()
    twin, noticed = copy.deepcopy(model), []
    for child in model.modules():
        child.register_forward_hook(lambda *arguments: noticed.append(arguments))
    before = torch.random.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        AdamMini(model)
    assert torch.equal(torch.random.get_rng_state(), before) and not noticed
    assert all(child.training for child in model.modules())
    for (name, mine), (_, other) in zip(model.named_buffers(), twin.named_buffers(), strict=True):
        assert torch.equal(mine, other), name
    copy.deepcopy(model)  # as an average of weights does: no tensor of the trial's graph is left on it
    x = torch.randn(1, 3, 16 if make is Separate else 8)
    assert torch.equal(model.eval()(x), twin.eval()(x))


def test_what_a_forward_collects_in_lists_and_attributes_is_forgotten():
    model = Caching()
    AdamMini(model)
    assert (model.seen, model.past, model.map) == ([], None, None)
    copy.deepcopy(model)


@pytest.mark.parametrize("init", [nn.init.normal_, nn.init.zeros_, nn.init.eye_, nn.init.ones_])
@pytest.mark.parametrize("transposed", [True, False])
def test_a_square_layer_is_cut_by_outputs_whatever_its_first_weights(init, transposed):
    model = Separate(Square(init, transposed), width=8)
    model.num_heads = 2
    assert partition(model)["proj.weight"].axis == transposed


def test_heads_whose_rows_do_not_lie_together_are_refused():
    assert partition(Separate())["q_proj.weight"].segments == ((0, 16, 4),)
    with pytest.raises(Misfit, match="rows of one head of Interleaved do not lie together"):
        partition(Interleaved())


class HeadLinear(nn.Module):
    def __init__(self, width, heads, size):
        super().__init__()
        self.in_features, self.out_features = width, heads * size
        self.weight = nn.Parameter(torch.randn(heads, width, size))


def test_weights_with_an_axis_of_heads_are_refused():
    model = Separate()
    model.q_proj, model.k_proj, model.v_proj = (HeadLinear(16, 8, 4) for _ in range(3))
    with pytest.raises(Misfit, match="which axes of a weight of 3 axes count heads is not known"):
        partition(model)


def test_a_small_map_that_all_heads_share_is_refused():
    model = Separate(nn.Linear(32, 32))
    model.q_proj, model.k_proj, model.v_proj = (nn.Linear(8, 8) for _ in range(3))
    with pytest.raises(Misfit, match="8 query rows of Separate seem to serve all of its 4 heads"):
        partition(model)


class Talking(nn.Module):
    """Heads that are mixed before the softmax, so that rows of one head feed all of them."""

    def __init__(self):
        super().__init__()
        self.num_heads = 2
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.register_buffer("mix", torch.randn(2, 2))

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(1, -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        a = torch.einsum("gh,bhij->bgij", self.mix, q @ k.transpose(-1, -2)).softmax(-1)
        return self.proj((a @ v).transpose(1, 2).reshape(1, -1, 16))


def test_heads_that_are_mixed_with_each_other_are_said_to_be_assumed():
    with pytest.warns(UserWarning, match="running it alone did not tell"):
        assert partition(Talking())["qkv.weight"].segments == ((0, 32, 8), (32, 48, 1))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads = 2
        self.inp, self.out = nn.Linear(16, 48), nn.Linear(16, 16)


def test_attention_of_unusual_words_without_a_table_of_tokens_is_warned_of():
    model = nn.Sequential(nn.Linear(48, 16), Mixer(), nn.LayerNorm(16), Mixer(), nn.Linear(16, 10))
    with pytest.warns(UserWarning, match="no attention was recognised in Sequential"):
        partition(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        partition(nn.Sequential(nn.Linear(48, 16), nn.LayerNorm(16), nn.Linear(16, 10)))


class Conv1D(nn.Module):
    def __init__(self, outputs, inputs):
        super().__init__()
        self.nf = outputs
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))


@pytest.mark.parametrize("later", [False, True])
def test_parts_and_numbers_divide_the_outputs_of_transposed_layers(later):
    model = nn.ModuleDict({"c_attn": Conv1D(72, 24), "up": Conv1D(24, 12)})
    overrides = {"c_attn.weight": (("head", 4), ("head", 4), "row"), "up.weight": 3}
    found = partition(model, neurons=False).override(overrides) if later else partition(model, overrides=overrides)
    fused, up = found["c_attn.weight"], found["up.weight"]
    assert (fused.axis, fused.segments) == (1, ((0, 48, 6), (48, 72, 1)))
    assert (up.axis, up.segments) == (1, ((0, 24, 8),))


def test_recurrent_cells_beside_attention_are_placed():
    model = nn.ModuleDict({"attention": Separate(), "cell": nn.LSTMCell(16, 16), "units": nn.GRUCell(16, 16)})
    assert partition(model)["cell.weight_ih"].count >= 1
