"""Examples that need PyTorch only, run as a reader would."""

import pytest
from run_example import falls, losses

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("processes", [None, 2])
def test_plain_loop_and_ddp(processes):
    assert falls(losses("nanogpt.py", processes=processes), 20)


def test_fsdp2_with_adam_mini_continues_on_another_number_of_processes(tmp_path):
    first = losses("fsdp2.py", "adam_mini", str(tmp_path), processes=2)
    assert falls(first, 10)
    again = losses("fsdp2.py", "adam_mini", str(tmp_path), processes=3)
    assert len(again) == 10 and max(again) < min(first)


def test_fsdp2_with_lomo():
    assert falls(losses("fsdp2.py", "lomo", processes=2), 10)


def test_state_split_over_ddp():
    assert falls(losses("zero1.py", processes=2), 20)
