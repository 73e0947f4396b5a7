"""ReMax (Li et al., arXiv 2310.10505): REINFORCE whose baseline is the reward of the greedy answer to the same prompt.

For a prompt x draw one answer a from the policy and take the likeliest answer g. The gradient of

    E[r(x, a)] - beta KL(policy || reference)   is the mean of   sum_t w_t grad log policy(a_t | x, a_<t)

with w_t = r(x, a) - r(x, g) - beta sum_{s >= t} log(policy / reference)(a_s). That is kl "full". With "one_step", as the
official script has it, a token pays only for its own log ratio, so the second sum has one term. The reference is the
policy before the first step. The reward is learned (a run of task reward) or a rule (rewards.share).
"""

import copy
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lowmem import distributed
from lowmem.errors import Misuse
from lowmem.finetuning import dialogues, earlier_run, judge, rewards, text_task
from lowmem.finetuning.examples import Example, padded, picked
from lowmem.finetuning.generation import generate
from lowmem.training import fsdp
from lowmem.training.task import Task, micro_batch
from lowmem.weights import pretrained

# reward: {share: pattern} or the configuration of a run of task reward. part: whose questions are asked. answer_tokens:
# an answer ends there at the latest. beta, kl: see above. prompts, eval_prompts: at most so many. frozen_dtype: how the
# reference is stored (null: as the policy). eval_batch: prompts answered at once. questions: for a judge, see judge.py.
DEFAULTS = {"template": "human", "longest": 256, "part": "pairs", "answer_tokens": 512, "beta": 0.1, "kl": "one_step"}
DEFAULTS |= {"reward": None, "prompts": None, "eval_prompts": 500, "eval_batch": 64, "frozen_dtype": None}
DEFAULTS |= {"questions": None}


def build(config: dict, seed: int, root: Path, device: str) -> Task:
    """Task from config keys data, model, train and measure (see DEFAULTS)."""
    train, settings = config["train"], text_task.settled(config, DEFAULTS)
    if settings["kl"] not in ("one_step", "full"):
        raise Misuse(f"measure.kl is {settings['kl']!r}; choose one_step or full")
    questions = judge.asked(root, settings)
    begun = text_task.start(config, root, device)
    folder, model, tokenizer = begun.folder, begun.model, begun.words
    limit = settings["longest"] + settings["answer_tokens"]
    if limit > model.config.block_size:
        raise Misuse(
            f"measure.longest + answer_tokens is {limit}, the model reads {model.config.block_size}; lower one"
        )
    learn, held_out, paths = [], [], []
    for split, into, count in (("train", learn, "prompts"), ("val", held_out, "eval_prompts")):
        path, rows = dialogues.rows(folder, settings["part"], split)
        into += prompts(rows, tokenizer, settings, settings[count])
        paths.append(path)
    reference = copy.deepcopy(model).eval().requires_grad_(False)
    if settings["frozen_dtype"]:
        reference = reference.to(pretrained.DTYPES[settings["frozen_dtype"]])
    reference = fsdp.shard_model(reference) if distributed.world() > 1 else reference
    worth_of = reward_of(root, settings["reward"], tokenizer, device)
    size = train["batch_size"]
    parts = size // micro_batch(train)

    def batch(index: int) -> tuple[list[list[int]], int]:
        return picked(learn, seed, index, size, parts), index

    def loss(model: torch.nn.Module, batch: tuple[list[list[int]], int]) -> Tensor:
        asked, index = batch
        draw = torch.Generator(device).manual_seed(1_000_003 * seed + index)
        model.eval()
        found = generate(model, asked * 2, settings["answer_tokens"], tokenizer.end, draw, greedy=len(asked))
        model.train()
        worth = worth_of(asked * 2, found)
        gain = worth[: len(asked)] - worth[len(asked) :]  # (B,)
        answered = [Example(prompt, [answer], 0) for prompt, answer in zip(asked, found)]
        return surrogate(
            model, reference, padded(answered, tokenizer.end, device), gain, settings["beta"], settings["kl"]
        )

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        draw, worth, ratios, tokens = torch.Generator(device).manual_seed(0), [], 0.0, 0
        for first in range(0, len(held_out), settings["eval_batch"]):
            asked = held_out[first : first + settings["eval_batch"]]
            found = generate(model, asked, settings["answer_tokens"], tokenizer.end, draw)
            worth += worth_of(asked, found).tolist()
            at = padded([Example(p, [a], 0) for p, a in zip(asked, found, strict=True)], tokenizer.end, device)
            ratios += (token_logs(model, at) - token_logs(reference, at)).sum().item()
            tokens += len(at["targets"])
        reward = sum(worth) / len(worth)
        found = {"reward": reward, "kl": ratios / len(worth), "answer_length": tokens / len(worth)}
        return {"val_loss": -reward, **found}

    def finish(model: torch.nn.Module) -> tuple[dict, dict | None]:
        counts = {"excluded": dialogues.excluded(folder), "prompts": len(learn), "eval_prompts": len(held_out)}
        return counts, judge.answers(model, tokenizer, questions, settings)

    inputs = (*paths, *judge.questions_file(root, settings))
    return Task(model, batch, loss, evaluate, units=size // parts, unit="prompt", inputs=inputs, finish=finish)


def prompts(rows: list[dict], words, settings: dict, count: int | None) -> list[list[int]]:
    """Questions of at most measure.longest tokens, none twice."""
    made = {tuple(words.encode(dialogues.question(row["turns"], settings["template"]), start=True)) for row in rows}
    fitting = sorted(prompt for prompt in made if len(prompt) <= settings["longest"])
    if not fitting:
        raise Misuse(f"no question has at most measure.longest = {settings['longest']} tokens; raise it")
    return [list(prompt) for prompt in dialogues.drawn(fitting, count)]


def reward_of(root: Path, settings: dict | None, words, device: str):
    """A function (prompts, answers) -> their worth (B,)."""
    if not isinstance(settings, dict) or not {"share", "config"} & settings.keys():
        raise Misuse("measure.reward is {share: pattern} or {experiment, variant} of a reward model")
    if "share" in settings:
        pattern = rewards.checked(settings["share"])

        def ruled(asked: list[list[int]], answers: list[list[int]]) -> Tensor:
            texts = [words.decode([token for token in answer if token != words.end]) for answer in answers]
            return torch.tensor([rewards.share(pattern, text) for text in texts], device=device)

        return ruled
    model, others = earlier_run.trained(root, settings, device)
    if others.size != words.size:
        raise Misuse(
            f"the reward model reads {others.size} tokens and the policy {words.size}; give both one tokenizer"
        )
    model.eval().requires_grad_(False)
    if distributed.world() > 1:
        fsdp.shard_model(model)

    @torch.no_grad()
    def learned(asked: list[list[int]], answers: list[list[int]]) -> Tensor:
        return rewards.scores(
            model, [prompt + answer for prompt, answer in zip(asked, answers, strict=True)], words.end
        )

    return learned


def token_logs(model: torch.nn.Module, at: dict[str, Tensor]) -> Tensor:
    """Log-probability of each answer token, (N,), in fp32; `at` as answers.padded gives it."""
    logits = model(at["tokens"], at=(at["rows"], at["columns"])).float()  # (N, V)
    return -F.cross_entropy(logits, at["targets"], reduction="none")


def surrogate(model, reference, at: dict[str, Tensor], gain: Tensor, beta: float, kl: str) -> Tensor:
    """A scalar whose gradient is minus the one above, averaged over the answers. gain (B,): r(x, a) - r(x, g)."""
    logs = token_logs(model, at)  # (N,), the answers' tokens one behind the other
    with torch.no_grad():
        ratios = logs.detach() - token_logs(reference, at)
        weights = gain[at["rows"]] - beta * (ratios if kl == "one_step" else to_come(ratios, at["rows"]))
    return -(weights * logs).sum() / len(gain)


def to_come(ratios: Tensor, rows: Tensor) -> Tensor:
    """For each token the sum over it and the later ones of its row; both (N,), rows in order."""
    whole = torch.zeros(int(rows.max()) + 1, device=ratios.device).index_add_(0, rows, ratios)  # (B,)
    before = ratios.cumsum(0) - ratios  # of all tokens, earlier rows too
    earlier_rows = whole.cumsum(0) - whole
    return whole[rows] - (before - earlier_rows[rows])
