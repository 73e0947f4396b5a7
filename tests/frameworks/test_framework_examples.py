"""Examples with Hugging Face and DeepSpeed, run as a reader would."""

import pytest
from run_example import falls, losses

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("how", ["adam_mini", "create_optimizer", "lomo"])
def test_trainer(tmp_path, how):
    assert falls(losses("trainer.py", how, str(tmp_path)), 20)


@pytest.mark.parametrize("name", ["adam_mini", "lomo"])
def test_accelerate(name):
    assert falls(losses("accelerate_loop.py", name), 40)


@pytest.mark.parametrize("name", ["adam_mini", "lomo"])
def test_lora(name):
    found = losses("lora.py", name)
    assert len(found) == 30 and found[-1] < found[0]


@pytest.mark.parametrize("arguments", [("1",), ("3", "offload")])
def test_deepspeed(arguments):
    assert falls(losses("deepspeed_zero.py", *arguments, processes=2), 20)
