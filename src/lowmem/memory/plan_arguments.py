"""The arguments of `lowmem plan MODEL`; without PyTorch."""

import argparse

NOT_TRACED = {  # what others split over GPUs that is not traced here, and why
    "--pipeline-parallel": "stages of layers and the batches under way in them; --tensor-parallel and --zero are",
    "--context-parallel": "sequences split over GPUs; --tensor-parallel and --checkpointing save activations too",
}


class NotTraced(argparse.Action):
    """An argument that is understood and refused, with the reason."""

    def __call__(self, parser, namespace, values, option_string=None):
        parser.error(f"{self.option_strings[0]}: not traced: {NOT_TRACED[self.option_strings[0]]}")


def whole(text: str) -> int:
    """A whole number, 0 or more, as argparse wants to be told."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def above_zero(text: str) -> int:
    """A whole number, 1 or more."""
    if whole(text.removeprefix("-")) < 1 or text.startswith("-"):
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return int(text)


def add(added: argparse.ArgumentParser) -> None:
    """Arguments of `plan`: of MODEL first, then of a tier."""
    added.add_argument("model", nargs="?", help="llama2-7b, gpt2:125m, ..., or a Hugging Face folder or name")
    added.add_argument(
        "--optimizer",
        action="append",
        metavar="NAME",
        help="compared with adamw; may be repeated; adam_mini+backward updates inside backward, +int8 keeps an 8-bit moment; "
        "all: every one of them",
    )
    added.add_argument("--gpu", default="a100-80gb", help="a800-80gb, rtx-3090, h100-80gb, ...")
    for flag, default, about in (
        ("--gpus", 1, "how many"),
        ("--seq-len", None, "tokens per sequence (default 2048, or what the model knows)"),
        ("--batch", None, "sequences per GPU that must fit (default: find the largest)"),
        ("--zero", 3, "what data-parallel GPUs split: 0 nothing, 1 state, 2 also gradients, 3 also weights"),
        ("--tensor-parallel", 1, "GPUs that share each layer"),
        ("--expert-parallel", 1, "GPUs that divide the experts of each layer"),
        ("--checkpoint-every", 1, "with --checkpointing, recompute one layer in so many"),
        ("--accumulate", 1, "batches whose gradients are added up for a step"),
        ("--lora", None, "train adapters of this rank, freeze the rest"),
    ):
        kind = whole if flag == "--zero" else above_zero
        added.add_argument(flag, type=kind, default=default, metavar="N", help=about)
    added.add_argument(
        "--precision", help="fp32, bf16 (default with --lora or --state), mixed (default), or master (cell.py)"
    )
    added.add_argument("--state", choices=["int8"], help="first moments of one byte, where an optimizer has them")
    added.add_argument("--attention", default="fused", help="fused or eager")
    added.add_argument("--checkpointing", action="store_true", help="recompute each layer in backward")
    added.add_argument("--targets", metavar="NAMES", help="layers with adapters: q_proj,v_proj (default: all-linear)")
    added.add_argument("--base", metavar="KIND", help="frozen weights: 16 (default), nf4, nf4-dq (QLoRA), or gptq")
    added.add_argument("--fsdp1", action="store_true", help="adapters under the older FSDP, which holds more")
    added.add_argument("--offload", action="store_true", help="keep moments in host memory")
    added.add_argument(
        "--document-tokens",
        type=above_zero,
        metavar="N",
        help="documents of N tokens are packed into each sequence, and attention stays within them",
    )
    for flag in NOT_TRACED:
        added.add_argument(flag, action=NotTraced, help=argparse.SUPPRESS)
    form = added.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="the answer as JSON (memory/plan.schema.json)")
    form.add_argument("--markdown", action="store_true", help="the answer in Markdown, to paste into an issue")
    form.add_argument("--explain", action="store_true", help="what each column means")
    added.add_argument("--all", action="store_true", help="every tier; keeps the costs of all runs for later estimates")
    added.add_argument("--save-costs", action="store_true", help="keep the times of the records at hand for estimates")
