"""Attention of other people's code: rows in another order, layers in wrappers, words that nobody described."""

import threading
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lowmem import partition
from lowmem.blocks import Misfit

WIDTH, HEADS, SIZE = 24, 4, 6


class Fused(nn.Module):
    """Attention over one fused layer; `order` says how its rows are read."""

    def __init__(self, order="concatenated", layer=None, name="qkv", **said):
        super().__init__()
        self.num_heads, self.order, self.name = HEADS, order, name
        setattr(self, name, layer or nn.Linear(WIDTH, 3 * WIDTH))
        self.proj = nn.Linear(WIDTH, WIDTH)
        for key, value in said.items():
            setattr(self, key, value)

    def forward(self, x):
        batch, n, _ = x.shape
        joint = getattr(self, self.name)(x)
        if self.order == "concatenated":
            q, k, v = joint.view(batch, n, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4)
        elif self.order == "head after head":
            q, k, v = joint.view(batch, n, HEADS, 3 * SIZE).transpose(1, 2).chunk(3, -1)
        else:  # values first
            v, q, k = joint.view(batch, n, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, n, WIDTH))


def segments(model, name="0.qkv.weight"):
    """Where blocks of this parameter end."""
    blocks = partition(model)[name]
    ends = [end for start, stop, size in blocks.segments for end in range(start + size, stop + 1, size)]
    assert len(ends) == blocks.count
    return ends


IN_TURN = [18 * head + end for head in range(4) for end in (6, 12, *range(13, 19))]


@pytest.mark.parametrize("said", [{}, {"head_first": True}, {"key_dim": SIZE, "val_dim": SIZE}], ids=str)
def test_query_key_and_value_of_head_after_head_are_cut_so(said):
    assert segments(nn.Sequential(Fused("head after head", **said))) == IN_TURN


def test_the_usual_order_and_values_first_are_cut_as_the_forward_reads_them():
    usual = [*range(6, 49, 6), *range(49, 73)]
    assert segments(nn.Sequential(Fused())) == usual
    values_first = [*range(1, 25), *range(30, 73, 6)]
    assert segments(nn.Sequential(Fused("values first"))) == values_first


def test_trying_attention_leaves_it_as_it_was():
    model = nn.Sequential(Fused("head after head")).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(3)
    partition(model)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1)) and model[0].training and model[0].proj.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


class Memory(Fused):
    def forward(self, x, memory):
        return super().forward(x + memory)


class Masked(Fused):
    def forward(self, x, mask):
        return super().forward(x if mask is None else x * mask)


class Sized(Fused):
    def forward(self, x, height, width):
        return super().forward(x.view(1, height, width, -1).flatten(1, 2))


class Windowed(Fused):
    """Swin's: of 49 positions, with a table of their offsets."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.table = nn.Parameter(torch.zeros(13 * 13, HEADS))

    def forward(self, x):
        return super().forward(x + self.table.sum() * x.view(1, 49, -1))


@pytest.mark.parametrize("kind", [Memory, Masked, Sized, Windowed])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_attention_that_asks_for_more_than_features_is_tried_too(kind, mode):
    model = nn.Sequential(kind("head after head"))
    with mode():
        assert segments(model) == IN_TURN


def test_attention_that_cannot_be_tried_alone_keeps_the_usual_order():
    class Asks(Fused):
        def forward(self, x, memory):
            return super().forward(x + memory["tokens"])

    with pytest.warns(UserWarning, match=r"Asks: running it alone did not tell in which order.*head_first=True"):
        assert segments(nn.Sequential(Asks()))[:8] == [6, 12, 18, 24, 30, 36, 42, 48]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Asks: running it alone")
        assert segments(nn.Sequential(Asks(head_first=False)))[:2] == [6, 12]


def test_attention_without_weights_is_tried_with_others():
    with torch.device("meta"):
        model = nn.Sequential(Fused("head after head"))
    assert segments(model) == IN_TURN and all(p.is_meta for p in model.parameters())
    model[0].lock = threading.Lock()  # cannot be copied
    with pytest.warns(UserWarning, match="Fused: running it alone did not tell"):
        assert segments(model)[:2] == [6, 12]


class OwnNorm(nn.Module):
    """RMSNorm as every repository writes it anew."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class StrangeBlock(nn.Module):
    def __init__(self, inner=WIDTH):
        super().__init__()
        self.norm = OwnNorm(WIDTH)
        self.first, self.last = nn.Linear(WIDTH, 3 * inner), nn.Linear(inner, WIDTH)


def test_a_transformer_of_unusual_words_and_norms_is_warned_about_with_its_number_of_scalars():
    model = nn.Sequential(nn.Embedding(10, WIDTH), StrangeBlock(), StrangeBlock(), nn.Linear(WIDTH, 10))
    count = sum(p.numel() if "bias" in name else 1 for name, p in model.named_parameters())
    with pytest.warns(UserWarning, match=rf"no attention was recognised .* \({count} second moments") as caught:
        assert partition(model).scalars == count
    assert len(caught) == 1


def test_an_unknown_attention_beside_a_known_one_is_warned_about_by_the_name_of_its_layer():
    model = nn.ModuleDict({"known": nn.MultiheadAttention(WIDTH, HEADS), "strange": StrangeBlock()})
    with pytest.warns(UserWarning, match=r"strange\.first\.weight: one layer of StrangeBlock seems to hold several"):
        partition(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        partition(model, overrides={"strange.first.weight": 12})


def test_a_feed_forward_layer_and_a_gated_one_are_not_warned_about():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.both, self.down = nn.Linear(WIDTH, 128), nn.Linear(64, WIDTH)

    plain = nn.Sequential(nn.Linear(WIDTH, 96), nn.GELU(), nn.Linear(96, WIDTH))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        partition(nn.ModuleList([nn.MultiheadAttention(WIDTH, HEADS), Gated(), plain]))


class FromTheRight(nn.Module):
    """y = x @ weight + bias, as some code bases store it, while saying in_features and out_features."""

    def __init__(self, i, o):
        super().__init__()
        self.in_features, self.out_features = i, o
        self.weight, self.bias = nn.Parameter(torch.randn(i, o)), nn.Parameter(torch.randn(o))

    def forward(self, x):
        return x @ self.weight + self.bias


@pytest.mark.parametrize("out", [36, WIDTH], ids=["oblong", "square"])
def test_a_layer_stored_the_other_way_round_is_cut_by_its_outputs(out):
    model = nn.ModuleList([nn.MultiheadAttention(WIDTH, HEADS), FromTheRight(WIDTH, out), nn.Linear(WIDTH, WIDTH)])
    found = partition(model)
    assert (found["1.weight"].axis, found["1.weight"].count) == (1, out)
    assert found["2.weight"].axis == 0


def test_queries_and_keys_stored_the_other_way_round_are_cut_by_heads():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_heads = HEADS
            self.q, self.k, self.v = (FromTheRight(WIDTH, WIDTH) for _ in range(3))

    found = partition(Attention())
    assert [(found[f"{n}.weight"].axis, found[f"{n}.weight"].count) for n in "qkv"] == [(1, 4), (1, 4), (1, 24)]


class ConvBN(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.c, self.bn = nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)


@pytest.mark.parametrize(
    "make, weight",
    [
        (lambda: nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), nn.BatchNorm2d(WIDTH)), "0.weight"),
        (lambda: ConvBN(WIDTH), "c.weight"),
        (lambda: nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, groups=WIDTH), nn.Conv2d(WIDTH, WIDTH, 1)), "1.weight"),
        (lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.1)), "0.weight"),
        (lambda: nn.Conv2d(WIDTH, WIDTH, 1), "weight"),
    ],
    ids=["sequential", "own class", "depthwise first", "linear in a sequential", "plain"],
)
def test_query_and_key_layers_inside_others_are_cut_by_heads(make, weight):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_heads = HEADS
            self.q, self.k, self.v = make(), make(), make()

    found = partition(Attention())
    assert found[f"q.{weight}"].count == found[f"k.{weight}"].count == HEADS
    assert found[f"v.{weight}"].count == WIDTH


def test_query_convolutions_of_a_shape_that_nobody_knows_are_asked_about():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_heads = HEADS
            self.q, self.k, self.v = (
                nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3), nn.Conv2d(WIDTH, WIDTH, 1)) for _ in range(3)
            )

    with pytest.raises(Misfit, match=r"q\.0\.weight: Attention is attention in which"):
        partition(Attention())


def test_queries_beside_keys_and_values_in_modules_without_sizes_are_asked_about():
    class Own(nn.Module):
        def __init__(self, rows):
            super().__init__()
            self.matrix = nn.Parameter(torch.ones(rows, WIDTH))

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads, self.to_q, self.to_kv = HEADS, Own(WIDTH), Own(2 * WIDTH)

    with pytest.raises(Misfit, match=r"to_.*matrix"):
        partition(Attention())


def test_a_fused_projection_can_be_placed_by_its_parts():
    layer = nn.ModuleDict({"strange": nn.Linear(WIDTH, 48, bias=False)})
    blocks = partition(layer, overrides={"strange.weight": (("head", 4), ("head", 2), "row")})["strange.weight"]
    assert blocks.segments == ((0, 36, 6), (36, 48, 1)) and blocks.count == 4 + 2 + 12
    for wrong in ((("head", 5), "row"), ("row",), (("tail", 2),), (("head", 0),)):
        with pytest.raises(Misfit, match=r"strange\.weight"):
            partition(layer, overrides={"strange.weight": wrong})


@pytest.mark.parametrize("name", ["q", "qkv"])
def test_messages_never_propose_rows_for_queries_and_keys(name):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            for part in ("q", "k", "v") if name == "q" else ("qkv",):
                setattr(self, part, nn.Linear(WIDTH, 3 * WIDTH, bias=False))

    with pytest.raises(Misfit, match=rf"overrides=.*{name}\.weight': 'tensor'.*number of heads"):
        partition(Attention())


@pytest.mark.parametrize(
    "heads", [("num_heads", "num_heads_kv"), ("n_head", "n_query_groups"), ("n_head", "n_local_heads")]
)
def test_further_words_for_heads_and_projections_are_known(heads):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            setattr(self, heads[0], HEADS)
            setattr(self, heads[1], 2)
            self.c_attn = nn.Linear(WIDTH, (HEADS + 4) * SIZE)

    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.n_head = HEADS
            self.c_q, self.c_k, self.c_v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    assert partition(Attention())["c_attn.weight"].count == HEADS + 2 + 2 * SIZE
    assert [partition(Apart())[f"c_{n}.weight"].count for n in "qkv"] == [HEADS, HEADS, WIDTH]


class KeysAndValues(nn.Module):
    """to_q and to_kv, and an output in a container or a class."""

    def __init__(self, out):
        super().__init__()
        self.heads, self.to_q, self.to_kv, self.to_out = (
            HEADS,
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, 2 * WIDTH),
            out,
        )


@pytest.mark.parametrize(
    "make, counts",
    [
        (lambda: nn.Sequential(nn.Linear(WIDTH, 12), nn.Dropout(0.1)), {"to_out.0.weight": 12}),
        (lambda: nn.Sequential(nn.Linear(WIDTH, 12), nn.LayerNorm(12)), {"to_out.0.weight": 12, "to_out.1.weight": 1}),
        (lambda: nn.ModuleList([nn.Linear(WIDTH, 12), nn.Dropout(0.1)]), {"to_out.0.weight": 12}),
        (lambda: nn.Sequential(nn.Linear(WIDTH, 12), nn.GELU(), nn.Linear(12, WIDTH)),
         {"to_out.0.weight": 12, "to_out.2.weight": WIDTH}),
        (lambda: nn.Conv1d(WIDTH, 12, 1), {"to_out.weight": 1}),
        (lambda: nn.Identity(), {}),
    ],
    ids=["dropout", "norm", "list", "two layers", "convolution", "none"],
)  # fmt: skip
def test_an_output_layer_inside_others_beside_queries_has_neurons(make, counts):
    found = partition(KeysAndValues(make()))
    assert found["to_q.weight"].count == HEADS and found["to_kv.weight"].count == HEADS + WIDTH
    assert {name: found[name].count for name in counts} == counts


def test_an_output_layer_of_a_strangers_class_with_a_matrix_of_its_own_is_asked_about():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixing, self.last = nn.Parameter(torch.ones(HEADS, HEADS)), nn.Linear(WIDTH, WIDTH)

    with pytest.raises(Misfit, match=r"to_out\.(mixing|last\.weight)"):
        partition(KeysAndValues(Own()))


@pytest.mark.parametrize(
    "name, shape, rows",
    [("scale_shift_table", (6, WIDTH), 6), ("scale_shift_table", (1, 2, WIDTH), 2), ("modulation", (1, 6, WIDTH), 6),
     ("cls_token", (1, 1, WIDTH), 1), ("prompts", (7, WIDTH), 7)],
)  # fmt: skip
def test_learned_tables_have_a_block_for_each_row(name, shape, rows):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(WIDTH, HEADS)
            setattr(self, name, nn.Parameter(torch.randn(shape)))

    assert partition(Block())[name].count == rows


class Clip(nn.Module):
    """The end of CLIP's towers: what the norm gives, times a bare matrix (width, out)."""

    def __init__(self, name, shape):
        super().__init__()
        self.attn, self.ln_final = nn.MultiheadAttention(WIDTH, HEADS), nn.LayerNorm(WIDTH)
        setattr(self, name, nn.Parameter(torch.randn(shape)))


@pytest.mark.parametrize("name", ["text_projection", "proj", "image_projection"])
def test_a_projection_stored_as_width_by_out_is_cut_by_its_outputs(name):
    blocks = partition(Clip(name, (WIDTH, 10)))[name]
    assert (blocks.axis, blocks.count) == (1, 10)


@pytest.mark.parametrize("name, shape", [("proj", (10, WIDTH)), ("proj", (WIDTH, WIDTH)), ("mixing", (WIDTH, 10))])
def test_a_bare_matrix_whose_sides_do_not_tell_is_asked_about(name, shape):
    with pytest.raises(Misfit, match=rf"{name}: a bare parameter of shape"):
        partition(Clip(name, shape))
