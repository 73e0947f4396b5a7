"""Which 8-bit code, which block size and which rounding for a first moment: the study behind state_dtype="int8".

    python benchmarks/eight_bit_moment.py            # about a minute on one core

A Llama of 42 thousand parameters learns the bytes of this repository's documents with Adam-mini in fp32. Beside it every
candidate keeps the same moving average of the same gradients (beta1 0.95), but stores it in 8 bits after each step, so that its
errors add up as they would in training. ExhibitResult: |m' - m| / |m| over all parameters and for the embedding alone, the
average over the second half of the run; bias: how much of the error stays in its mean over these steps, about 0.56 where
rounding has none, since an error lives on for 1 / (1 - beta1) steps; size: |m'| / |m| of the embedding; bytes per element.

Found in 200 steps, blocks of 256, nearest (stochastic): linear 0.035 (0.045), dynamic 0.039 (0.055), root 0.025 (0.035). The
root has the smallest error at every block size, and at 256 no bias, while equal steps lose small numbers (0.63); twice
the scales at 64 would buy 0.004. So: root, 256, nearest.

Codes: equal steps (linear); numbers of equal relative distance, ten decades with ever more digits (dynamic, Dettmers et al.,
arXiv 2110.02861); equal steps of the square root (root). One scale per block, its largest size.
"""

import argparse
from pathlib import Path

import torch
from torch.nn import functional as F

from lowmem.models import llama
from lowmem.optim import AdamMini

ROOT = Path(__file__).parents[1]
BETA1, SEQUENCE, BATCH = 0.95, 64, 16


def levels(code: str) -> torch.Tensor:
    """The sizes from 0 to 1 that a code can keep."""
    if code == "linear":
        return torch.arange(128) / 127
    if code == "root":
        return (torch.arange(128) / 127).square()
    found = [0.0, 1.0]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1)
        found += ((edges[:-1] + edges[1:]) / 2 * 10.0 ** (i - 6)).tolist()
    return torch.tensor(sorted(found))


def stored(x: torch.Tensor, table: torch.Tensor, block: int, stochastic: bool) -> torch.Tensor:
    """x as it reads after it was kept in blocks of 8-bit codes."""
    flat = F.pad(x.reshape(-1), (0, -x.numel() % block)).view(-1, block)
    scale = flat.abs().amax(1, keepdim=True).clamp(min=1e-30)
    size = flat.abs() / scale
    upper = torch.searchsorted(table, size).clamp(1, len(table) - 1)
    low, high = table[upper - 1], table[upper]
    share = (size - low) / (high - low)
    up = torch.rand_like(share) < share if stochastic else share > 0.5
    return (torch.where(up, high, low) * scale).copysign(flat).view(-1)[: x.numel()].view(x.shape)


def study(steps: int) -> list[tuple]:
    torch.manual_seed(0)
    text = b"".join(path.read_bytes() for path in sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("*.md")]))
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    shape = dict(vocab_size=256, block_size=SEQUENCE, n_layer=2, n_head=4, n_embd=32, n_hidden=88)
    model = llama.build(**shape)
    optimizer = AdamMini(model, lr=6e-3, betas=(BETA1, 0.95), weight_decay=0.1)
    kinds = [(c, b, s) for c in ("linear", "dynamic", "root") for b in (64, 256, 1024) for s in (False, True)]
    tables = {code: levels(code) for code in ("linear", "dynamic", "root")}
    named = dict(model.named_parameters())
    exact = {name: torch.zeros_like(p) for name, p in named.items()}
    kept = {kind: {name: torch.zeros_like(p) for name, p in named.items()} for kind in kinds}
    sums = {kind: {name: [0.0, 0.0, torch.zeros_like(p), 0.0] for name, p in named.items()} for kind in kinds}
    for step in range(steps):
        at = torch.randint(len(data) - SEQUENCE - 1, (BATCH,))
        batch = torch.stack([data[i : i + SEQUENCE + 1] for i in at])
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        for name, p in named.items():
            exact[name].lerp_(p.grad, 1 - BETA1)
            for kind in kinds:
                code, block, stochastic = kind
                moved = torch.lerp(kept[kind][name], p.grad, 1 - BETA1)
                kept[kind][name] = stored(moved, tables[code], block, stochastic)
                if step >= steps // 2:
                    error, found = kept[kind][name] - exact[name], sums[kind][name]
                    found[0] += float(error.square().sum())
                    found[1] += float(exact[name].square().sum())
                    found[2] += error
                    found[3] += float(kept[kind][name].square().sum())
        optimizer.step()
    rows, counted = [], steps - steps // 2
    table = next(name for name, p in named.items() if p.shape[0] == 256)
    for kind, found in sums.items():
        of = list(found.values())
        wrong, right = sum(x[0] for x in of), sum(x[1] for x in of)
        lasting = sum(float(x[2].square().sum()) for x in of)
        alone = found[table]
        bias, size = (lasting / counted / wrong) ** 0.5, (alone[3] / alone[1]) ** 0.5
        rows.append((*kind, (wrong / right) ** 0.5, (alone[0] / alone[1]) ** 0.5, bias, size, 1 + 4 / kind[1]))
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    print("code     block  rounding    error   embedding  bias    size    bytes")
    for code, block, stochastic, share, alone, bias, size, number in study(parser.parse_args().steps):
        how = "stochastic" if stochastic else "nearest"
        print(f"{code:8} {block:5}  {how:10} {share:8.5f} {alone:8.5f} {bias:8.4f} {size:8.5f}  {number:.4f}")
