"""ResNet, ViT, Swin, the U-Net of DDPM, DiT and the autoencoder: sizes, what they compute, and their blocks."""

import pytest
import torch
from torch import nn

from lowmem import partition
from lowmem.errors import Misuse
from lowmem.models import autoencoder, dit, resnet, swin, unet, vit


def on_meta(build, **settings):
    with torch.device("meta"):
        return build(**settings)


def count(model):
    return sum(p.numel() for p in model.parameters())


# Published counts. ResNet, ViT and Swin with 1000 classes; the U-Net of DDPM for CIFAR-10; DiT with the two outputs per
# channel of the released networks (their position table, which does not train, is counted with them: side^2 x width).
COUNTS = [
    (resnet, {"size": "resnet18"}, 11_689_512),
    (resnet, {"size": "resnet34"}, 21_797_672),
    (vit, {"size": "vit-s16"}, 22_050_664),
    (vit, {"size": "vit-b16"}, 86_567_656),
    (swin, {"size": "swin-t"}, 28_288_354),
    (unet, {}, 35_746_307),
    (dit, {"size": "dit-s2", "n_output_channel": 8}, 32_963_360 - 256 * 384),
    (dit, {"size": "dit-b2", "n_output_channel": 8}, 130_512_416 - 256 * 768),
    (dit, {"size": "dit-l2", "n_output_channel": 8}, 458_102_816 - 256 * 1024),
    (dit, {"size": "dit-xl2", "n_output_channel": 8}, 675_129_632 - 256 * 1152),
]


@pytest.mark.parametrize("module, settings, parameters", COUNTS, ids=[str(c[1].get("size", "ddpm")) for c in COUNTS])
def test_models_have_the_published_number_of_parameters(module, settings, parameters):
    assert count(on_meta(module.build, **settings)) == parameters


def test_every_named_size_is_counted():
    named = {(m, size) for m in (resnet, vit, swin, dit) for size in m.SIZES}
    assert named == {(module, settings["size"]) for module, settings, _ in COUNTS if settings}


SMALL = [
    (resnet, {"width": 8, "depths": (1, 1), "stem": "small"}),
    (resnet, {"width": 8, "depths": (1, 1), "stem": "imagenet"}),
    (vit, {"n_layer": 1, "n_head": 2, "n_embd": 8, "image_size": 16, "patch_size": 4}),
    (swin, {"n_embd": 8, "depths": (2, 2), "heads": (1, 2), "image_size": 16, "patch_size": 2, "window": 4}),
]


@pytest.mark.parametrize("module, settings", SMALL)
def test_classifiers_give_a_logit_per_class_or_the_mean_loss_of_targets(module, settings):
    torch.manual_seed(0)
    model = module.build(n_channel=1, n_output=5, **settings).eval()
    images, targets = torch.rand(3, 1, 16, 16), torch.tensor([0, 4, 2])
    logits = model(images)
    assert logits.shape == (3, 5)
    torch.testing.assert_close(model(images, targets), nn.functional.cross_entropy(logits, targets))


def test_swin_windows_come_back_as_the_image():
    x = torch.rand(2, 8, 8, 3)
    cut = swin.windows_of(x, 4)
    assert cut.shape == (8, 16, 3)
    assert torch.equal(swin.image_of(cut, 4, 8), x)
    assert torch.equal(cut[1].view(4, 4, 3), x[0, :4, 4:])


def test_shifted_windows_see_no_token_from_the_opposite_edge():
    """A change at one edge of the image may not reach the other edge through a window that wraps around."""
    torch.manual_seed(0)
    block = swin.Block(8, 2, resolution=8, window=4, shifted=True, drop_path=0.0).eval()
    assert block.shift == 2
    x = torch.rand(1, 8, 8, 8)
    other = x.clone()
    other[0, 0, 3] = torch.rand(8)  # first row
    moved = (block(other) - block(x)).abs().amax(-1)[0] > 1e-6  # (8, 8)
    assert moved[:2, 2:6].all() and not moved[2:].any()  # its shifted window: rows 0 to 1 without the last two rows
    plain = swin.Block(8, 2, resolution=8, window=4, shifted=False, drop_path=0.0).eval()
    assert not ((plain(other) - plain(x)).abs().amax(-1)[0] > 1e-6)[4:].any()


def test_relative_places_depend_on_the_offset_alone():
    places = swin.relative_places(3)
    assert places.shape == (9, 9) and places.unique().numel() == 25 and places.max() == 24
    assert places[0, 1] == places[3, 4] == places[7, 8] != places[1, 0]


def test_left_out_residuals_keep_their_mean():
    torch.manual_seed(0)
    block = swin.Block(8, 1, resolution=4, window=4, shifted=False, drop_path=0.25)
    x = torch.ones(4000, 1, 1, 1)
    assert block.kept(x).mean().item() == pytest.approx(1, abs=0.05) and (block.kept(x) == 0).any()
    assert torch.equal(block.eval().kept(x), x)


def test_unet_and_dit_start_at_no_noise_and_depend_on_time_once_trained():
    torch.manual_seed(0)
    x, times, labels = torch.rand(2, 1, 16, 16), torch.tensor([3, 900]), torch.tensor([0, 1])
    models = [
        unet.build(
            image_size=16, n_channel=1, width=8, multipliers=(1, 2), attention=(8,), n_block=1, groups=4, dropout=0.0
        ),
        dit.build(image_size=16, n_channel=1, patch_size=4, n_embd=16, n_layer=1, n_head=2, n_class=2),
    ]
    for model in models:
        assert model(x, times, labels).shape == x.shape
        assert not model(x, times, labels).any() or isinstance(model, unet.UNet)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.1)
        early, late = model(x, torch.tensor([3, 3]), labels), model(x, torch.tensor([900, 900]), labels)
        assert not torch.allclose(early, late)
    assert not torch.allclose(models[1](x, times, labels), models[1](x, times))  # DiT sees classes, and their absence


def test_dit_puts_patches_back_where_they_came_from():
    model = dit.build(image_size=8, n_channel=2, patch_size=4, n_embd=32, n_layer=1, n_head=2, n_class=2)
    x = torch.rand(1, 2, 8, 8)
    cut = nn.functional.unfold(x, 4, stride=4).transpose(1, 2)  # (1, 4, 2 * 16), channels first
    cut = cut.view(1, 4, 2, 4, 4).permute(0, 1, 3, 4, 2).reshape(1, 4, 32)  # as the last layer writes them
    model.norm, model.modulation = nn.Identity(), nn.Sequential(nn.Identity())
    model.modulation.forward = lambda condition: torch.zeros(1, 64)
    model.blocks, model.last = nn.ModuleList(), nn.Identity()
    model.patches.forward = lambda images: cut.transpose(1, 2).reshape(1, 32, 2, 2)
    model.positions.zero_()
    torch.testing.assert_close(model(x, torch.tensor([0])), x)


def test_shortcuts_of_the_autoencoder_lose_only_what_averaging_loses():
    """Without its convolutions a halving and its inverse keep the mean over each 2 x 2 pixels."""
    down, up = autoencoder.Down(1, 1), autoencoder.Up(1, 1)
    for layer in (down, up):
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
    x = torch.rand(2, 1, 4, 4)
    torch.testing.assert_close(down(x), nn.functional.avg_pool2d(x, 2))
    torch.testing.assert_close(up(down(x)), nn.functional.interpolate(down(x), scale_factor=2))


def test_latents_are_as_small_as_they_say():
    model = autoencoder.build(image_size=32, n_channel=3, widths=(4, 8, 16), latent=2)
    x = torch.rand(2, 3, 32, 32)
    assert model.encode(x).shape == (2, 2, 8, 8) and model(x).shape == x.shape


# -- blocks ------------------------------------------------------------------------------------------------------------


def counts(model, **settings):
    return {blocks.name: blocks.count for blocks in partition(model, **settings)}


def test_blocks_of_a_resnet_are_tensors_and_by_neuron_filters_and_classes():
    model = on_meta(resnet.build, size="resnet18")
    plain, neurons = counts(model), counts(model, neurons=True)
    assert {plain[name] for name, p in model.named_parameters() if p.ndim > 1} == {1}
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            assert neurons[name] == len(parameter)


def test_blocks_of_vision_transformers_are_heads_neurons_and_places():
    model = on_meta(swin.build, size="swin-t")
    found = counts(model)
    assert found["layers.0.attention.wq.weight"] == 3 and found["layers.11.attention.wk.weight"] == 12
    assert found["layers.0.attention.wv.weight"] == 96 and found["layers.0.mlp.up.weight"] == 384
    assert found["layers.0.attention.relative_position_bias_table"] == 169 and found["patches.weight"] == 1
    found = counts(on_meta(vit.build, size="vit-b16"))
    assert found["pos_embed"] == 197 and found["blocks.3.attention.wq.weight"] == 12 and found["head.weight"] == 1000
    found = counts(on_meta(dit.build, size="dit-xl2"))
    assert found["labels.weight"] == 1001 and found["blocks.0.attention.wk.weight"] == 16
    assert found["blocks.0.modulation.1.weight"] == 6 * 1152


def test_attention_inside_the_unet_is_one_block_per_tensor_unless_neurons_are_asked_for():
    model = on_meta(unet.build)
    assert counts(model, neurons=False)["middle_attention.wv.weight"] == 1
    neurons = counts(model, neurons=True)
    assert neurons["middle_attention.wv.weight"] == 256 and neurons["middle_attention.wq.weight"] == 1  # one head
    assert neurons["first.weight"] == 128


@pytest.mark.parametrize(
    "module, settings, message",
    [
        (resnet, {"size": "resnet19"}, "resnet model: unknown size 'resnet19'"),
        (resnet, {"stem": "big"}, "unknown stem 'big'"),
        (vit, {"patch_size": 15}, "image_size 224 is not divisible by patch_size 15"),
        (vit, {"depth": 3}, "vit model: unknown key 'depth'"),
        (swin, {"window": 5}, "stage 1 has 56 x 56 tokens of width 96; they must divide into windows of 5"),
        (swin, {"heads": (3, 6)}, "4 depths and 2 heads"),
        (unet, {"image_size": 30}, "30 pixels cannot be halved 3 times"),
        (unet, {"groups": 48}, "width 128 does not divide into 48 groups"),
        (dit, {"patch_size": 3}, "image_size 32 is not divisible by 3"),
        (autoencoder, {"latent": 7}, "must be a multiple of latent 7"),
    ],
)
def test_settings_that_cannot_be_are_one_line(module, settings, message):
    with pytest.raises(Misuse, match=message):
        module.build(**settings)
