"""One step of Adam-mini can be read in one sitting: six files, those that docs/architecture.md names."""

import re
import sys
from pathlib import Path

import torch
from compiler import both_ways, without_kernel

from lowmem.models import llama
from lowmem.optim import AdamMini
from lowmem.optim.core import cpu_kernel

OPTIM = Path(cpu_kernel.__file__).parents[1]
MOST = 6


def table() -> dict[str, set[str]]:
    """The files that the page names, in C and by stages."""
    text = (Path(__file__).parents[2] / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_/]+\.(?:py|c))` \|[^|]*\| (x?) ?\| (x?) ?\|$", text, re.MULTILINE)
    return {"C": {name for name, c, _ in rows if c}, "stages": {name for name, _, stages in rows if stages}}


def entered(optimizer: AdamMini) -> set[str]:
    """Files of this package whose functions a step calls, and the kernel's source where that ran."""
    found = set()

    def called(frame, event, _argument):
        if event == "call":
            found.add(Path(frame.f_code.co_filename))

    before = getattr(optimizer, "step_kernel", None)
    sys.setprofile(called)
    try:
        optimizer.step()
    finally:
        sys.setprofile(None)
    ours = {
        str(path.relative_to(OPTIM.parent)).removeprefix("optim/") for path in found if OPTIM.parent in path.parents
    }
    return ours | ({"core/adam_kernel.c"} if before is not None else set())


@both_ways
def test_a_step_of_adam_mini_enters_the_six_files_that_the_page_names(monkeypatch, way):
    if way == "stages":
        without_kernel(monkeypatch)
    model = llama.build(n_layer=2, n_head=2, n_embd=16, n_hidden=24, vocab_size=32, block_size=8)
    optimizer = AdamMini(model, lr=1e-2, weight_decay=0.1)
    for _ in range(2):  # the first step makes the state
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    files = entered(optimizer)
    assert files == table()[way]
    assert len(files) <= MOST
