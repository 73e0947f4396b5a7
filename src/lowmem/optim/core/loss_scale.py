"""The factor on a loss in fp16, whose gradients would be too small otherwise: a constant, or one that follows overflows."""

from __future__ import annotations

import math

from lowmem.optim.core.hyperparameters import is_number

START, GROWTH, WINDOW, SMALLEST = 2.0**16, 2.0, 1000, 1.0  # the paper's scripts


class LossScale:
    """setting: None (no scale), a number, or "dynamic": halved by an overflow, doubled after WINDOW clean steps.

    value: the factor. clean_steps: how many steps of a dynamic scale have not overflowed.
    """

    def __init__(self, setting: float | str | None):
        self.dynamic = setting == "dynamic"
        self.value = START if self.dynamic else float(setting or 1.0)
        self.clean_steps = 0

    def read(self, saved: dict) -> tuple[float, int]:
        """(value, clean steps) of a saved state, the current ones where it has none, or where one of the two is constant.

        ValueError for invalid ones.
        """
        if not isinstance(saved, dict):
            raise ValueError(f"'fused' in the state is {type(saved).__name__}, expected a dictionary")
        value, steps = saved.get("scale", self.value), saved.get("clean_steps", self.clean_steps)
        if not is_number(value) or not 0 < float(value) < math.inf or not is_number(steps) or not 0 <= steps < math.inf:
            raise ValueError(f"the saved loss scale is {value!r} after {steps!r} clean steps, expected finite numbers")
        dynamic = self.dynamic and saved.get("dynamic", True)
        return (float(value), int(steps)) if dynamic else (self.value, self.clean_steps)

    def saved(self) -> dict:
        """What read() takes."""
        return {"scale": self.value, "clean_steps": self.clean_steps, "dynamic": self.dynamic}

    def overflow(self, name: str) -> None:
        """Halve a dynamic scale. FloatingPointError, naming the parameter, where it cannot fall further."""
        if self.value <= SMALLEST:
            raise FloatingPointError(f"{name}: gradient overflows at the smallest loss scale; nothing was updated")
        self.value, self.clean_steps = max(self.value / GROWTH, SMALLEST), 0

    def clean(self) -> None:
        """Note a step without overflow."""
        self.clean_steps += self.dynamic

    def updated(self) -> None:
        """After the update of a clean step: a dynamic scale may grow, from the next step on."""
        if self.dynamic and self.clean_steps % WINDOW == 0:
            self.value *= GROWTH
