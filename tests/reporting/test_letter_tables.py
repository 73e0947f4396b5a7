"""Tables of letters as a scale for losses: their entropies are right, and their lines stand where a panel reaches them."""

import importlib.util

import numpy as np
import pytest
from synthetic import ROOT

from lowmem.pipeline import experiments
from lowmem.reporting import plots
from lowmem.reporting.panels import losses
from lowmem.reporting.runs import load


@pytest.fixture(scope="module")
def entropies():
    spec = importlib.util.spec_from_file_location("ngram_entropies", ROOT / "benchmarks/ngram_entropies.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.cross_entropies


def chain(length, seed):
    """Bytes 0 and 1: the next one differs from the last with a chance of 0.1."""
    changes = np.random.default_rng(seed).random(length) < 0.1
    return (np.cumsum(changes) % 2).astype(np.uint8)


def test_a_table_of_two_bytes_knows_a_text_whose_letters_depend_on_the_last_one(entropies):
    one, two, three = entropies(chain(200_000, 0), chain(50_000, 1), 256)
    assert one == pytest.approx(np.log(2), abs=0.01)
    rate = -(0.1 * np.log(0.1) + 0.9 * np.log(0.9))
    assert two == pytest.approx(rate, abs=0.01) and three == pytest.approx(rate, abs=0.01)


def test_what_training_never_showed_costs_more_than_one_of_all_symbols(entropies):
    for symbols in (256, 96):
        numbers = entropies(np.zeros(1000, np.uint8), np.full(100, 7, np.uint8), symbols)
        assert numbers[0] > np.log(symbols) and np.isfinite(numbers).all()


def test_lines_of_tables_stand_where_the_panel_reaches_and_nowhere_for_other_texts():
    for tier in ("laptop", "overnight"):
        runs = load(ROOT, ["gpt2_sizes"], tier, {}).all
        assert {(run.config["data"]["dataset"], run.config["data"]["tokenizer"]) for run in runs} <= losses.TEXTS.keys()
    with plots.style():
        _, panels = plots.figure([["near", "far", "other"]])
    panels["near"].set_ylim(2.4, 2.7)
    losses.letter_tables(panels["near"], runs, 2.6)
    assert [text.get_text() for text in panels["near"].texts] == ["bigram table"]
    panels["far"].set_ylim(3, 4)
    losses.letter_tables(panels["far"], runs, 3.5)
    panels["other"].set_ylim(2, 3)
    paper = load(ROOT, ["gpt2_sizes"], "paper", {}).all
    losses.letter_tables(panels["other"], paper, 2.5)
    assert not panels["far"].texts and not panels["other"].texts
    assert experiments.runs(ROOT, "gpt2_sizes", "paper")[0]["config"]["data"]["tokenizer"] != "byte"


def test_a_curve_that_ends_far_above_the_others_does_not_stretch_the_axis():
    close, failed = [[3.0, 2.60], [3.1, 2.63], [3.0, 2.70]], [6.1, 6.0]
    assert losses.near([*close, failed, failed]) == close
    assert losses.near([[3.0, 2.5], [6.0, 5.5]]) == [[3.0, 2.5], [6.0, 5.5]]  # of two, neither is the odd one
    assert losses.near([]) == []
