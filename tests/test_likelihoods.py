"""Loss and scores of questions: what a padded batch, a packed one and a tree of tokens have in common."""

import numpy as np
import pytest
import torch
from questions import built, chosen, prepared, words
from torch.nn import functional as F

from lowmem import answers, likelihoods
from lowmem.tasks import superglue as task


@pytest.fixture
def root(tmp_path):
    return prepared(tmp_path)


def test_the_loss_is_that_of_the_answer_alone(root):
    made = built(root)
    batch = made.batch(0)
    examples = chosen(root)
    index = answers.order(examples, 0, 0, 8, 1)[0]
    losses = []
    for k in index:
        example = examples[k]
        text = torch.tensor([example.source + example.options[example.label]])
        logits = made.model(text[:, :-1])[0]
        losses += F.cross_entropy(logits, text[0, 1:], reduction="none")[len(example.source) - 1 :].tolist()
    assert made.loss(made.model, batch).item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.mark.parametrize("rule", ["sum", "mean"])
def test_scores_are_those_of_each_option_alone(root, rule):
    made = built(root, measure={"score": rule, "eval_tokens": 400})
    examples = task.examples(root / "data/prepared/superglue_wic/val.jsonl", "wic", task.DEFAULTS, words(), 256, 1000)
    hits = 0
    for example in examples:
        costs = []
        for option in example.options:
            text = torch.tensor([example.source + option])
            losses = F.cross_entropy(made.model(text[:, :-1])[0], text[0, 1:], reduction="none")[
                len(example.source) - 1 :
            ]
            costs.append((losses.sum() if rule == "sum" else losses.mean()).item())
        hits += costs.index(min(costs)) == example.label
    with torch.no_grad():
        found = made.evaluate(made.model)
    assert found["accuracy"] == pytest.approx(100 * hits / len(examples))
    assert found["most"] == pytest.approx(100 * 6 / 11)


ADAPTERS = {"none": {}, "lora": {"adapter": {"kind": "lora"}}, "prefix": {"adapter": {"kind": "prefix", "length": 3}}}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_texts_without_padding_have_the_loss_and_gradients_of_padded_ones(root, adapter):
    made = built(root, model=ADAPTERS[adapter])
    made.model.eval()  # no dropout
    chosen = task.examples(root / "data/prepared/superglue_wic/train.jsonl", "wic", task.DEFAULTS, words(), 256, 7)
    losses, gradients = [], []
    for batch in (answers.padded(chosen, words().end, "cpu"), answers.packed(chosen, "cpu")):
        made.model.zero_grad()
        loss = answers.loss(made.model, batch)
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in made.model.parameters() if p.grad is not None]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


def test_a_batch_without_padding_reads_only_the_tokens_of_its_texts(root):
    batch = built(root).batch(0)
    assert batch["tokens"].shape == (1, sum(batch["lengths"])) and len(batch["lengths"]) == 8
    assert len(set(batch["lengths"])) > 1


def paragraph(root, adapter="none"):
    """Questions that share a text in groups, out of order, and a model."""
    made = built(root, model=ADAPTERS[adapter])
    made.model.eval()
    texts = [list(range(50, 100)), list(range(100, 150)), [7, 8]]
    options = [[1, 3], [1, 4], [2, 3, 5]]
    found = [task.Example(texts[k % 3] + [10 + k // 3, 20], [options[0], options[1 + k % 2]], k % 2) for k in range(8)]
    return made.model, found


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("tokens", [1, 100, 4096])
def test_questions_on_one_text_cost_in_a_tree_what_each_costs_alone(root, adapter, tokens):
    model, found = paragraph(root, adapter)
    with torch.no_grad():
        shared = likelihoods.costs(model, found, likelihoods.passes(likelihoods.trees(found), tokens), "cpu")
        for k, example in enumerate(found):
            for option, answer in enumerate(example.options):
                text = torch.tensor([example.source + answer])
                losses = F.cross_entropy(model(text[:, :-1])[0], text[0, 1:], reduction="none")
                alone = losses[len(example.source) - 1 :].sum().item()
                assert shared.nats[k, option] == pytest.approx(alone, rel=1e-4), (k, option)
    assert shared.tokens.tolist()[1] == [2, 3] and shared.labels.tolist() == [k % 2 for k in range(8)]


def test_what_questions_share_is_read_once(root):
    _, found = paragraph(root)
    grown = likelihoods.trees(found)
    assert len(grown) == 2 + 2  # the two short ones begin with too little in common
    assert sum(len(tree.tokens) for tree in grown) < 0.5 * sum(len(example.source) for example in found)


def test_auc_is_the_share_of_pairs_in_the_right_order():
    leaning, second = torch.randn(60).numpy().round(1), torch.arange(60).numpy() % 3 == 0
    pairs = [(a > b) + 0.5 * (a == b) for a in leaning[second] for b in leaning[~second]]
    assert likelihoods.auc(leaning, second) == pytest.approx(sum(pairs) / len(pairs))
    assert likelihoods.auc(second.astype(float), second) == 1 and likelihoods.auc(0.0 * leaning, second) == 0.5


def test_a_model_that_knows_how_frequent_answers_are_has_their_entropy_as_loss():
    labels = np.array([0] * 3 + [1] * 7)
    nats = np.tile(-np.log([0.3, 0.7]), (10, 1)) + 5.0  # what both answers cost alike does not count
    found = likelihoods.scores(likelihoods.Costs(nats, np.full((10, 2), 2), labels), "sum")
    assert found["choice_loss"] == pytest.approx(-0.3 * np.log(0.3) - 0.7 * np.log(0.7))
    assert (found["accuracy"], found["most"], found["auc"]) == pytest.approx((70, 70, 0.5))


def test_sum_and_mean_rank_answers_of_different_length_differently(root):
    short, long = [5], [5, 5, 5, 5]
    group = [task.Example([1, 2], [short, long], 0)]

    class Even(torch.nn.Module):
        def forward(self, tokens, positions, mask, at, lengths):
            logits = torch.zeros(len(at[0]), 10)
            logits[2:, 5] = 3.0  # later tokens of the long answer are easy
            return logits

    found = likelihoods.costs(Even(), group, likelihoods.passes(likelihoods.trees(group), 100), "cpu")
    assert likelihoods.scores(found, "sum")["accuracy"] == 100
    assert likelihoods.scores(found, "mean")["accuracy"] == 0
