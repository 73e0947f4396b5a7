"""Literal, slow references of every optimizer, written from the papers' algorithms: float64 NumPy, loops, no tricks.

A twin holds the state of one tensor; step(w, g) returns the new weights. Nothing here imports the package under test.
"""

import math

import numpy as np

LARGEST = 1.8e19  # whose square fp32 holds, nearly


def every(shape):
    """All index tuples of a shape; the empty tuple for a scalar."""
    return list(np.ndindex(*shape))


class AdamW:
    """Loshchilov and Hutter, Algorithm 2, with a schedule multiplier of 1 and decay lr * weight_decay."""

    def __init__(self, lr, betas, eps, weight_decay):
        self.lr, self.betas, self.eps, self.weight_decay, self.t = lr, betas, eps, weight_decay, 0

    def step(self, w, g):
        if self.t == 0:
            self.m, self.v = np.zeros(w.shape), np.zeros(w.shape)
        self.t += 1
        beta1, beta2 = self.betas
        new = w.copy()
        for i in every(w.shape):
            self.m[i] = beta1 * self.m[i] + (1 - beta1) * g[i]
            self.v[i] = beta2 * self.v[i] + (1 - beta2) * g[i] ** 2
            m_hat = self.m[i] / (1 - beta1**self.t)
            v_hat = self.v[i] / (1 - beta2**self.t)
            new[i] = w[i] - self.lr * self.weight_decay * w[i] - self.lr * m_hat / (math.sqrt(v_hat) + self.eps)
        return new


class AdamMini:
    """Zhang et al., Algorithm 1: one v per block. blocks: lists of index tuples that cover the tensor once."""

    def __init__(self, blocks, lr, betas, eps, weight_decay, reduce="mean"):
        self.blocks, self.reduce = blocks, reduce
        self.lr, self.betas, self.eps, self.weight_decay, self.t = lr, betas, eps, weight_decay, 0

    def statistic(self, squares):
        largest = LARGEST**2
        if self.reduce == "mean":
            return min(sum(squares), largest) / len(squares)
        if self.reduce == "l1":
            return min(sum(squares), largest)
        if self.reduce == "l2":
            return math.sqrt(sum(s * s for s in squares))
        return {"max": max, "min": min}[self.reduce](squares)

    def step(self, w, g):
        covered = sorted(i for block in self.blocks for i in block)
        assert covered == sorted(every(w.shape)), "the twin's own blocks must cover the tensor once"
        if self.t == 0:
            self.m, self.v = np.zeros(w.shape), [0.0] * len(self.blocks)
        self.t += 1
        beta1, beta2 = self.betas
        new = np.array(w * (1 - self.lr * self.weight_decay))
        for b, block in enumerate(self.blocks):
            self.v[b] = beta2 * self.v[b] + (1 - beta2) * self.statistic([g[i] ** 2 for i in block])
            v_hat = self.v[b] / (1 - beta2**self.t)
            for i in block:
                self.m[i] = beta1 * self.m[i] + (1 - beta1) * min(max(g[i], -LARGEST), LARGEST)
                new[i] -= self.lr * (self.m[i] / (1 - beta1**self.t)) / (math.sqrt(v_hat) + self.eps)
        return new


class SGD:
    """SGD as torch documents it; decoupled decay as the LOMO package has it."""

    def __init__(self, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, decoupled=False):
        self.lr, self.momentum, self.dampening = lr, momentum, dampening
        self.weight_decay, self.nesterov, self.decoupled, self.buffer = weight_decay, nesterov, decoupled, None

    def step(self, w, g):
        new, buffer = np.empty(w.shape), np.empty(w.shape)
        for i in every(w.shape):
            direction, kept = g[i], w[i]
            if self.decoupled:
                kept = w[i] - self.lr * self.weight_decay * w[i]
            else:
                direction = direction + self.weight_decay * w[i]
            if self.momentum:
                if self.buffer is None:
                    buffer[i] = direction
                else:
                    buffer[i] = self.momentum * self.buffer[i] + (1 - self.dampening) * direction
                direction = direction + self.momentum * buffer[i] if self.nesterov else buffer[i]
            new[i] = kept - self.lr * direction
        self.buffer = buffer
        return new


def clip_coefficient(gradients, limit):
    """LOMO's factor for the global norm: min(1, limit / (norm + 1e-6)) over all tensors."""
    total = 0.0
    for g in gradients:
        for i in every(g.shape):
            total += float(g[i]) ** 2
    return min(1.0, limit / (math.sqrt(total) + 1e-6))


def matrices(shape):
    """(leading index, R, C) of every matrix in a tensor of two or more axes."""
    return [(lead, shape[-2], shape[-1]) for lead in every(shape[:-2])]


class Factored:
    """Shazeer and Stern, Algorithm 4: running row and column means of a squared quantity, and the rank-one estimate."""

    def __init__(self, shape):
        self.rows, self.columns = np.zeros(shape[:-1]), np.zeros(shape[:-2] + shape[-1:])

    def add(self, squares, beta):
        for lead, height, width in matrices(squares.shape):
            for r in range(height):
                mean = sum(squares[(*lead, r, c)] for c in range(width)) / width
                self.rows[(*lead, r)] = beta * self.rows[(*lead, r)] + (1 - beta) * mean
            for c in range(width):
                mean = sum(squares[(*lead, r, c)] for r in range(height)) / height
                self.columns[(*lead, c)] = beta * self.columns[(*lead, c)] + (1 - beta) * mean

    def estimate(self, shape):
        v = np.empty(shape)
        for lead, height, width in matrices(shape):
            mean = sum(self.rows[(*lead, r)] for r in range(height)) / height
            for r in range(height):
                for c in range(width):
                    v[(*lead, r, c)] = self.rows[(*lead, r)] * self.columns[(*lead, c)] / mean
        return v


class Whole:
    """The same without factoring, for tensors of fewer than two axes."""

    def __init__(self, shape):
        self.v = np.zeros(shape)

    def add(self, squares, beta):
        self.v = beta * self.v + (1 - beta) * squares

    def estimate(self, shape):
        return self.v


def rms(x):
    return math.sqrt(sum(float(x[i]) ** 2 for i in every(x.shape)) / max(x.size, 1))


class Adafactor:
    """Shazeer and Stern, Algorithms 4 to 6; beta2_cap, beta1 and no parameter scaling give Zhai et al.'s variant.

    relative: "none" (lr), "original" (min(1e-2, 1/sqrt t)), "warmup" (min(1e-6 t, 1/sqrt t)), "capped" (min(lr, 1/sqrt t)).
    decay_by_lr: weights shrink by lr * weight_decay instead of by the step's own rate.
    """

    def __init__(
        self,
        lr,
        beta1=None,
        decay_rate=-0.8,
        beta2_cap=1.0,
        eps=(1e-30, 1e-3),
        clip=1.0,
        weight_decay=0.0,
        scale=True,
        relative="none",
        decay_by_lr=False,
    ):
        self.lr, self.beta1, self.decay_rate, self.beta2_cap = lr, beta1, decay_rate, beta2_cap
        self.eps, self.clip, self.weight_decay, self.scale = eps, clip, weight_decay, scale
        self.relative, self.decay_by_lr, self.t = relative, decay_by_lr, 0

    def rate(self, w):
        root = 1 / math.sqrt(self.t)
        rho = {
            "none": self.lr,
            "original": min(1e-2, root),
            "warmup": min(1e-6 * self.t, root),
            "capped": min(self.lr, root),
        }[self.relative]
        return rho * max(self.eps[1], rms(w)) if self.scale else rho

    def step(self, w, g):
        if self.t == 0:
            self.second, self.m = (Factored if w.ndim >= 2 else Whole)(w.shape), np.zeros(w.shape)
        self.t += 1
        self.second.add(g * g + self.eps[0], min(1 - self.t**self.decay_rate, self.beta2_cap))
        u = g / np.sqrt(self.second.estimate(w.shape))
        u = u / max(1.0, rms(u) / self.clip)
        rate = self.rate(w)
        u = rate * u
        if self.beta1 is not None:
            self.m = self.beta1 * self.m + (1 - self.beta1) * u
            u = self.m
        return w - (self.lr if self.decay_by_lr else rate) * self.weight_decay * w - u


class CAME:
    """Luo et al., Algorithm 2; tensors of fewer than two axes have no confidence."""

    def __init__(self, lr, betas, eps, clip, weight_decay):
        self.lr, self.betas, self.eps, self.clip, self.weight_decay, self.t = lr, betas, eps, clip, weight_decay, 0

    def step(self, w, g):
        if self.t == 0:
            kind = Factored if w.ndim >= 2 else Whole
            self.second, self.residual, self.m = kind(w.shape), kind(w.shape), np.zeros(w.shape)
        self.t += 1
        beta1, beta2, beta3 = self.betas
        self.second.add(g * g + self.eps[0], beta2)
        u = g / np.sqrt(self.second.estimate(w.shape))
        u = u / max(1.0, rms(u) / self.clip)
        self.m = beta1 * self.m + (1 - beta1) * u
        step = self.m
        if w.ndim >= 2:
            self.residual.add((u - self.m) ** 2 + self.eps[1], beta3)
            step = self.m / np.sqrt(self.residual.estimate(w.shape))
        return w - self.lr * self.weight_decay * w - self.lr * step


class SM3:
    """Anil et al., SM3-II: the cover of a tensor is all slices along all axes. beta > 0: exponential accumulators."""

    def __init__(self, lr, momentum, beta, eps, weight_decay):
        self.lr, self.momentum, self.beta, self.eps, self.weight_decay, self.t = (
            lr,
            momentum,
            beta,
            eps,
            weight_decay,
            0,
        )

    def step(self, w, g):
        slices = [(axis, k) for axis in range(w.ndim) for k in range(w.shape[axis])] or [(None, 0)]
        if self.t == 0:
            self.mu, self.m = dict.fromkeys(slices, 0.0), np.zeros(w.shape)
        self.t += 1
        new, largest = np.empty(w.shape), dict.fromkeys(slices, 0.0)
        for i in every(w.shape):
            mine = [(axis, i[axis]) for axis in range(w.ndim)] or [(None, 0)]
            smallest = min(self.mu[s] for s in mine)
            old, share = (self.beta, 1 - self.beta) if self.beta > 0 else (1.0, 1.0)
            nu = old * smallest + share * g[i] ** 2
            for s in mine:
                largest[s] = max(largest[s], nu)
            step = g[i] / math.sqrt(nu + self.eps)
            if self.momentum > 0:
                self.m[i] = self.momentum * self.m[i] + (1 - self.momentum) * step
                step = self.m[i]
            new[i] = w[i] - self.lr * self.weight_decay * w[i] - self.lr * step
        self.mu = {s: max(self.mu[s], largest[s]) if self.beta > 0 else largest[s] for s in slices}
        return new


class Lion:
    """Chen et al., Algorithm 2."""

    def __init__(self, lr, betas, weight_decay):
        self.lr, self.betas, self.weight_decay, self.m = lr, betas, weight_decay, None

    def step(self, w, g):
        self.m = np.zeros(w.shape) if self.m is None else self.m
        beta1, beta2 = self.betas
        new = np.empty(w.shape)
        for i in every(w.shape):
            c = beta1 * self.m[i] + (1 - beta1) * g[i]
            self.m[i] = beta2 * self.m[i] + (1 - beta2) * g[i]
            new[i] = w[i] - self.lr * (math.copysign(1.0, c) * (c != 0) + self.weight_decay * w[i])
        return new


class Lamb:
    """You et al., Algorithm 2 with phi the identity; the ratio is 1 where a norm is zero."""

    def __init__(self, lr, betas, eps, weight_decay):
        self.lr, self.betas, self.eps, self.weight_decay, self.t = lr, betas, eps, weight_decay, 0

    def step(self, w, g):
        if self.t == 0:
            self.m, self.v = np.zeros(w.shape), np.zeros(w.shape)
        self.t += 1
        beta1, beta2 = self.betas
        direction = np.empty(w.shape)
        for i in every(w.shape):
            self.m[i] = beta1 * self.m[i] + (1 - beta1) * g[i]
            self.v[i] = beta2 * self.v[i] + (1 - beta2) * g[i] ** 2
            r = (self.m[i] / (1 - beta1**self.t)) / (math.sqrt(self.v[i] / (1 - beta2**self.t)) + self.eps)
            direction[i] = r + self.weight_decay * w[i]
        weight_norm, norm = rms(w), rms(direction)
        ratio = weight_norm / norm if weight_norm > 0 and norm > 0 else 1.0
        return w - self.lr * ratio * direction
