"""Fine-tuning on instructions, reward models and ReMax: what is learned from, the gradients, and the cache."""

import itertools
import json

import alignment_runs
import pytest
import torch
from alignment_runs import RULE, TINY, WORDS, config, model, run_of

from lowmem.errors import Failed, Misuse
from lowmem.files import write_json
from lowmem.finetuning import dialogues, earlier_run, rewards
from lowmem.finetuning.examples import Example, padded
from lowmem.finetuning.generation import generate
from lowmem.models import llama
from lowmem.pipeline import experiments, record
from lowmem.tasks import remax, reward, sft
from lowmem.training import job, loop

root = alignment_runs.root  # the fixture

END = WORDS.end


# -- sampling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", [1, 2])
def test_a_cache_gives_the_logits_of_the_whole_text(kv):
    net, tokens = (
        model(n_layer=2, n_kv_head=kv),
        torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(1)),
    )
    whole, cache = net(tokens), net.empty_cache()
    for first, last in ((0, 4), (4, 5), (5, 9)):
        places = torch.arange(first, last).expand(2, -1)
        mask = torch.arange(last) <= torch.arange(first, last)[:, None]
        part = net(tokens[:, first:last], positions=places, mask=mask[None, None], cache=cache)
        torch.testing.assert_close(part, whole[:, first:last], rtol=1e-4, atol=1e-5)


def test_a_prefix_and_a_cache_go_together():
    from lowmem.models import prefix

    net, tokens = model(), torch.tensor([[5, 6, 7]])
    prefix.attach(net, length=3)
    cache, whole = net.empty_cache(), net(tokens)
    for k in range(3):
        mask = torch.ones(1, 1, 1, k + 1, dtype=torch.bool)
        part = net(tokens[:, k : k + 1], positions=torch.tensor([[k]]), mask=mask, cache=cache)
        torch.testing.assert_close(part[:, 0], whole[:, k], rtol=1e-4, atol=1e-5)


def test_greedy_answers_are_those_of_one_text_at_a_time_without_a_cache():
    net, prompts = model(n_layer=2), [[1, 2, 3, 4, 5, 6], [9], [7, 8]]
    for prompt, answer in zip(prompts, generate(net, prompts, 5, END), strict=True):
        text = list(prompt)
        for _ in range(5):
            text.append(net(torch.tensor([text]))[0, -1].argmax().item())
        assert answer == text[len(prompt) :]


def test_draws_follow_the_model_and_depend_on_the_generator_alone():
    net = model(vocab_size=4)
    draw = lambda seed: generate(net, [[1]] * 4000, 1, 99, torch.Generator().manual_seed(seed), greedy=100)  # noqa: E731
    found = draw(3)
    assert found == draw(3) != draw(4)
    expected = net(torch.tensor([[1]]))[0, -1].softmax(0)
    counted = torch.bincount(torch.tensor(found[:-100]).flatten(), minlength=4) / 3900
    torch.testing.assert_close(counted, expected, atol=0.03, rtol=0)
    assert {row[0] for row in found[-100:]} == {expected.argmax().item()}


def test_an_answer_stops_at_its_end_token():
    net = model(vocab_size=3)
    found = generate(net, [[0]] * 50, 12, 2, torch.Generator().manual_seed(0))
    assert all(2 not in row[:-1] for row in found) and {len(row) for row in found} > {1, 2}
    assert all(row[-1] == 2 or len(row) == 12 for row in found)


# -- what is learned from ----------------------------------------------------------------------------------------------


def test_the_loss_of_fine_tuning_is_that_of_the_answers_tokens_alone():
    net = model()
    examples = [Example([1, 2, 3], [[4, 5, END]], 0), Example([6], [[7, END]], 0)]
    total = 0.0
    for example in examples:
        text = torch.tensor([example.source + example.options[0]])
        logs = net(text).log_softmax(-1)[0]
        total -= sum(logs[k - 1, text[0, k]] for k in range(len(example.source), text.shape[1]))
    found = sft.held_out_loss(net, [examples], END, "cpu")
    assert found == pytest.approx((total / 5).item(), rel=1e-5)
    torch.testing.assert_close(sft.loss(net, padded(examples, END, "cpu")).item(), found, rtol=1e-5, atol=0)


def test_templates_open_the_answer_and_long_texts_are_cut_and_counted():
    turns = [["system", "Be kind."], ["user", "Hi"], ["assistant", "Hello"], ["user", "Bye"]]
    assert dialogues.question(turns, "human") == "Be kind.\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye\n\nAssistant:"
    assert dialogues.question(turns[:1], "chatml") == "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>assistant\n"
    rows = [{"turns": [["user", "a" * 50]], "answer": "b" * 50}, {"turns": [["user", "a"]], "answer": "c"}]
    found, counts = dialogues.examples(rows, ("answer",), WORDS, "human", 60, 40)
    assert counts == {"rows": 2, "questions_cut": 1, "answers_cut": 1, "equal_when_cut": 0}
    assert len(found[0].source) == 40 and WORDS.decode(found[0].source).endswith("Assistant:")
    assert END not in found[0].options[0] and found[1].options[0] == [*b" c", END]
    with pytest.raises(Misuse, match="choose human or chatml"):
        dialogues.question(turns, "none")


def test_pairs_that_are_equal_once_cut_are_left_out_and_none_left_is_an_error():
    rows = [{"turns": [["user", "a"]], "chosen": "same start, x", "rejected": "same start, y"}]
    with pytest.raises(Failed, match=r"no row is left: .*'equal_when_cut': 1"):
        dialogues.examples(rows, ("chosen", "rejected"), WORDS, "human", 34, 28)
    kept, _ = dialogues.examples(rows, ("chosen", "rejected"), WORDS, "human", 60, 30)
    assert len(kept) == 1


# -- reward ------------------------------------------------------------------------------------------------------------


def test_the_gradient_of_bradley_terry_is_minus_the_chance_of_being_wrong():
    better = torch.tensor([0.3, -1.0, 2.0], dtype=torch.double, requires_grad=True)
    worse = torch.tensor([0.1, 0.5, -2.0], dtype=torch.double, requires_grad=True)
    rewards.bradley_terry(better, worse).backward()
    wrong = 1 - torch.sigmoid((better - worse).detach())
    torch.testing.assert_close(better.grad, -wrong / 3)
    torch.testing.assert_close(worse.grad, wrong / 3)


def test_a_score_is_that_of_the_text_alone_whatever_stands_beside_it():
    net = rewards.with_scalar_head(model(), "cpu")
    texts = [[1, 2, 3, 4, 5], [6, 7], [8]]
    together = rewards.scores(net, texts, END)
    alone = torch.cat([rewards.scores(net, [text], END) for text in texts])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert together.std() > 0


def test_a_reward_model_learns_which_answers_are_preferred(root):
    made = job.train_run(root, run_of(config("reward", steps=40, eval_every=20)))
    assert made["status"] == "done", made["reason"]
    assert made["metrics"]["final"]["accuracy"] == 100 and made["metrics"]["final"]["excluded"] == 3
    hits = record.read_arrays(record.folder(root, run_of(config("reward"))), made)["hits"]
    assert hits.shape == (8,) and hits.mean() == 1


def test_a_rule_counts_characters_and_refuses_what_is_no_rule():
    assert rewards.share("[aeiou]", "banana!") == pytest.approx(3 / 7) and rewards.share("[aeiou]", "") == 0
    for wrong, told in (("[a", "not a regular expression"), ("a*", "also matches nothing")):
        with pytest.raises(Misuse, match=told):
            rewards.checked(wrong)


# -- ReMax -------------------------------------------------------------------------------------------------------------

WORTH = {0: 0.2, 1: 1.0, 2: -0.4}  # of each token in an answer


def every_answer(new=3):
    """All answers over tokens 0, 1 and 2, of which 2 ends one."""
    for size in range(1, new + 1):
        for row in itertools.product(range(3), repeat=size):
            if 2 not in row[:-1] and (row[-1] == 2 or size == new):
                yield list(row)


def expected_objective(net, reference, prompts, beta):
    """E[r] - beta KL(policy || reference) by enumeration, mean over prompts."""
    total = 0.0
    for prompt in prompts:
        for answer in every_answer():
            at = padded([Example(prompt, [answer], 0)], 2, "cpu")
            logs, others = remax.token_logs(net, at).sum(), remax.token_logs(reference, at).sum()
            total = total + logs.exp() * (sum(WORTH[t] for t in answer) - beta * (logs - others.detach()))
    return total / len(prompts)


def test_the_expected_gradient_of_remax_is_that_of_the_objective():
    """Enumerated over all answers, weighted by their probability, with the greedy answer as baseline."""
    torch.manual_seed(0)
    small = {**TINY, "vocab_size": 3, "n_embd": 8, "n_hidden": 8, "block_size": 16}
    net, reference = (llama.build(**{k: v for k, v in small.items() if k != "name"}).double() for _ in range(2))
    prompts = [[0, 1], [1]]
    objective = expected_objective(net, reference, prompts, 0.3)
    wanted = torch.autograd.grad(objective, list(net.parameters()))
    greedy = generate(net, prompts, 3, 2)
    found = 0.0
    for prompt, baseline in zip(prompts, greedy, strict=True):
        for answer in every_answer():
            at = padded([Example(prompt, [answer], 0)], 2, "cpu")
            chance = remax.token_logs(net, at).sum().exp().detach()
            gain = torch.tensor([sum(WORTH[t] for t in answer) - sum(WORTH[t] for t in baseline)])
            found = found - chance * remax.surrogate(net, reference, at, gain, 0.3, "full") / len(prompts)
    for ours, theirs in zip(torch.autograd.grad(found, list(net.parameters())), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kl", ["one_step", "full"])
def test_the_loss_is_that_of_a_literal_twin(kl):
    net, reference = model(), model(n_hidden=16)
    asked, answers, gain = [[1, 2], [3]], [[4, 5, END], [6, 7]], torch.tensor([0.5, -0.25])
    total = 0.0
    for prompt, answer, g in zip(asked, answers, gain, strict=True):
        text = torch.tensor([prompt + answer])
        ours, theirs = (m(text).log_softmax(-1)[0] for m in (net, reference))
        places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
        ratios = [(ours[p, t] - theirs[p, t]).item() for p, t in zip(places, answer, strict=True)]
        for k, (p, t) in enumerate(zip(places, answer, strict=True)):
            penalty = ratios[k] if kl == "one_step" else sum(ratios[k:])
            total = total - (g - 0.1 * penalty) * ours[p, t] / 2
    at = padded([Example(p, [a], 0) for p, a in zip(asked, answers, strict=True)], END, "cpu")
    torch.testing.assert_close(remax.surrogate(net, reference, at, gain, 0.1, kl), total, rtol=1e-4, atol=1e-5)


def test_the_rule_is_learned_and_the_reference_stays(root):
    measure = {**RULE, "eval_prompts": 8, "beta": 0.0}
    made = job.train_run(root, run_of(config("remax", measure, steps=30, batch_size=16, eval_every=30)))
    assert made["status"] == "done", made["reason"]
    first, last = curve_ends(root, run_of(config("remax", measure, steps=30, batch_size=16, eval_every=30)))
    assert last["reward"] > first["reward"] + 0.2 and first["kl"] == 0 and last["kl"] > 0


def curve_ends(root, run):
    lines = [json.loads(line) for line in (record.folder(root, run) / "curve.jsonl").read_text().splitlines()]
    found = [line for line in lines if line.get("reward") is not None]
    return found[0], found[-1]


WRONG = [{"reward": None}, {"kl": "two"}, {"answer_tokens": 999}, {"lenght": 3}, {"questions": "none.jsonl"}]


@pytest.mark.parametrize("wrong", WRONG)
def test_settings_that_do_not_fit_are_one_line(root, wrong):
    made = job.train_run(root, run_of(config("remax", {**RULE, **wrong})))
    assert made["status"] == "failed" and "\n" not in made["reason"] and "train.log" not in made["reason"]


def test_another_question_for_the_judge_asks_for_another_run(root):
    (root / "asked.jsonl").write_text('{"question_id": 1, "turns": ["Why?"]}\n')
    run = run_of(config("sft", {"questions": "asked.jsonl", "answer_tokens": 4}))
    made = job.train_run(root, run)
    assert made["status"] == "done" and "asked.jsonl" in made["code"]["files"], made["reason"]
    assert b'"question_id": 1' in record.read_arrays(record.folder(root, run), made)["answers"].tobytes()
    assert record.reusable(root, run)
    (root / "asked.jsonl").write_text('{"question_id": 2, "turns": ["Why not?"]}\n')
    assert record.reusable(root, run) is None


# -- trainings before a run --------------------------------------------------------------------------------------------


def test_weights_of_an_earlier_run_are_those_it_ended_with_and_leave_the_random_numbers_alone(root):
    first = {**run_of(config("sft")), "keep_weights": True}
    made = job.train_run(root, first)
    start = {"config": first["config"], "weights": str(record.folder(root, first) / record.WEIGHTS)}
    before = torch.get_rng_state()
    one, words = earlier_run.trained(root, start, "cpu")
    two, _ = earlier_run.language_model(root, {"name": "llama", "pretrained": start}, "cpu")
    assert torch.equal(before, torch.get_rng_state()) and words.end == END
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    held = sft.build(first["config"], 0, root, "cpu").evaluate(one.eval())
    assert held["val_loss"] == made["metrics"]["final"]["val_loss"]


@pytest.mark.parametrize("task", ["sft", "reward", "remax"])
def test_an_interrupted_run_gives_the_record_of_an_uninterrupted_one(root, tmp_path, task, monkeypatch):
    """Stopped after step 3 of 4 by an error, with a checkpoint at step 2; ReMax starts from fine-tuned weights."""
    measure, start = ({**RULE, "reward": config("reward")}, {"name": "llama", "pretrained": config("sft")})
    settings = config(task, measure, start, checkpoint_every=2) if task == "remax" else config(task, checkpoint_every=2)
    whole, cut = run_of(settings, variant="whole"), run_of(settings, variant="cut")
    assert job.train_run(root, whole)["status"] == "done"
    step = loop.Loop.one_step

    def stop(self, curve):
        step(self, curve)
        if self.step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.Loop, "one_step", stop)
    with pytest.raises(KeyboardInterrupt):
        job.train_run(root, cut)
    monkeypatch.setattr(loop.Loop, "one_step", step)
    made = job.train_run(root, cut)
    assert made["resumed_from"] == [2]
    assert record.equal(record.folder(root, whole), record.folder(root, cut)) == []


def test_a_named_run_becomes_its_configuration_and_brings_its_data():
    from lowmem.pipeline import planning

    place = experiments.find_root()
    for run in experiments.runs(place, "remax", "laptop"):
        start = run["config"]["model"]["pretrained"]
        assert start["task"] == "sft" and start["model"]["pretrained"]["task"] == "pretrain"
        assert len(list(experiments.stages(run["config"]))) == (5 if "learned" in run["variant"] else 3)
    job = planning.jobs(place, "laptop", {}, ["remax"])["remax"]
    assert set(job["data"]) == {"data/prepared/llamafactory", "data/prepared/sotu-byte"}


def test_the_estimate_of_remax_counts_every_sampled_token():
    from lowmem.pipeline.estimate import run_seconds, sampled_tokens

    settings = config("remax", {"answer_tokens": 10, "eval_prompts": 100, "eval_batch": 50}, steps=6, eval_every=3)
    assert sampled_tokens(settings) == 10 * (6 + 3 * 2) and sampled_tokens(config("sft")) == 0
    run, speeds = {"config": settings, "resources": {"gpus": 0}}, {"flops_per_second": 1e30, "seconds_per_step": 0.5}
    assert run_seconds(run, speeds) == pytest.approx(0.5 * (6 + 120))


def test_a_start_that_does_not_exist_is_refused_by_name():
    place = experiments.find_root()
    with pytest.raises(Misuse, match=r"has no variant 'full-adam' .*full-adamw"):
        experiments.with_stages(
            place, {"model": {"pretrained": {"experiment": "sft", "variant": "full-adam"}}}, "laptop", {}
        )


def test_a_start_that_is_no_run_is_refused_before_anything_is_read(tmp_path):
    from lowmem.pipeline import planning

    path = tmp_path / "run.json"
    write_json(path, {"config": config("sft", model={"name": "llama", "pretrained": {"steps": 3}})})
    with pytest.raises(Misuse, match=r"model\.pretrained: .* is not a run"):
        planning.read_run(experiments.find_root(), path)


def test_logits_of_answers_are_fp32_for_any_weights():
    at = padded([Example([1], [[2, 3]], 0)], END, "cpu")
    logs = remax.token_logs(model().bfloat16(), at)
    assert logs.dtype == torch.float32 and logs.shape == (2,)
    assert reward.hits(torch.tensor([0.5, 0.0, -2.0])).tolist() == [1, 0.5, 0]
