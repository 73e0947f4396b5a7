"""The first words of captions: how large what was trained is, counted from configurations and records."""

import types

import pytest

from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.rate_grids import RateGrid, choice


def run(steps, batch, status="done", weights=None, **model):
    config = {"train": {"steps": steps, "batch_size": batch}, "model": model}
    memory = None if weights is None else {"parameters": weights}
    return types.SimpleNamespace(config=config, status=status, record={"memory": memory})


def test_models_of_pictures_are_as_large_as_their_records_count_and_open_runs_count_nothing():
    runs = [run(200, 32, weights=284_000), run(240, 32, weights=544_000), run(9, 9, "missing", weights=8)]
    told = scale.counted(runs, "training pictures")
    assert told == "Models of 71k to 136k parameters, 6.4k to 7.68k training pictures each. "
    assert scale.counted([run(100, None, weights=4000)], "epochs") == "Models of 1k parameters, 100 epochs each. "
    assert scale.counted([run(9, 9, "missing"), run(5, 5)], "epochs") == ""


def test_a_caption_counts_the_seeds_of_each_variant_that_ended_and_planned_ones_only_where_none_did():
    def of(variant, seeds, status="done"):
        return [types.SimpleNamespace(experiment="e", variant=variant, seed=s, status=status) for s in range(seeds)]

    assert scale.seeds(of("a", 3) + of("b", 3)) == "3 seeds"
    assert scale.seeds(of("a", 5) + of("b", 3)) == "3 to 5 seeds"
    assert scale.seeds(of("a", 2) + of("a", 1, "diverged") + of("b", 3) + of("c", 8, "missing")) == "3 seeds"
    assert scale.seeds(of("a", 8, "missing")) == "8 seeds"
    assert scale.seeds(of("a", 1)) == "1 seed"


def test_rates_are_said_to_be_chosen_beforehand_only_where_every_method_has_a_chosen_one():
    grid = RateGrid("a", {1e-3: [], 3e-3: [], 1e-2: []})
    told = RateGrid("b", {1e-3: [], 3e-3: []}, chosen=1e-3)
    assert choice([grid]) == "Every method at the best of 3 rates run here"
    assert choice([grid, told]) == "Every method at the best of 2 to 3 rates run here"
    assert choice([told]) == "Every method at a rate of its own, chosen beforehand on other seeds"
    assert choice([RateGrid("c", {6e-4: []}), RateGrid("d", {6e-4: []})]) == "Every method at the rate 0.0006"


@pytest.mark.parametrize(
    ("weights", "name"),
    [("smollm2", "SmolLM2-135M"), ("huggyllama/llama-7b", "huggyllama/llama-7b"), (None, "A model with fresh weights")],
)
def test_fine_tuning_says_the_model_and_how_many_questions_it_read(weights, name):
    asked, short, long = (run(steps, 8, pretrained=weights) for steps in (0, 10, 125))
    assert scale.fine_tuned([asked, short, long]) == f"{name}, fine-tuned on 80 to 1k questions. "
    assert scale.fine_tuned([asked]) == ""


def test_captions_of_what_was_trained_open_with_its_size(everything):
    sizes = ("Models of ", "SmolLM2-135M, ", "A Llama of ")
    for id in (f"adam_mini_fig{k}" for k in (1, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16)):
        assert everything[1][id].caption.startswith(sizes), id
    for id in (
        "adam_mini_table4",
        "adalomo_fig1",
        "lomo_clipping",
        "lomo_table3",
        "lomo_fig3",
        "lomo_fig4",
        "lomo_fig5",
    ):
        assert everything[1][id].caption.startswith(sizes), id


def test_a_rate_that_is_planned_alone_was_not_tried():
    done, broken, absent = (types.SimpleNamespace(id="i", status=status) for status in ("done", "diverged", "missing"))
    assert RateGrid("a", {1e-3: [done, absent], 3e-3: [broken], 1e-2: [absent]}).rates_tried == "0.001, 0.003"
