"""The command line: exit codes and one-line answers. Nothing here imports PyTorch."""

import os
import subprocess
import sys

import pytest

from lowmem import __version__, cli
from lowmem.errors import Failed


def answer(capsys, *arguments: str) -> tuple[int, str]:
    """Exit code and stderr of one call."""
    code = cli.main(list(arguments))
    return code, capsys.readouterr().err


def test_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert left.value.code == 0 and capsys.readouterr().out == f"lowmem {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "COMMAND"),
        (("trian",), "invalid choice: 'trian'"),
        (("train",), "either RUN.json or --experiment"),
        (("train", "--experiment", "gpt2_size"), "unknown experiment 'gpt2_size' (did you mean 'gpt2_sizes'?)"),
        (("train", "--experiment", "gpt2_sizes", "--tier", "smok"), "unknown tier 'smok'"),
        (("train", "--experiment", "gpt2_sizes", "--option", "openwebtext"), "write DATASET=SOURCE"),
        (("train", "--experiment", "gpt2_sizes", "--option", "sotuu=hub"), "unknown key 'sotuu'"),
        (("train", "--experiment", "gpt2_sizes", "--variant", "7b"), "no variant '7b'"),
        (("fetch", "sotu", "--source", "hubb"), "invalid choice: 'hubb'"),
        (("fetch", "sotuu"), "unknown dataset 'sotuu'"),
        (("prepare", "sotu", "--tokenizer", "words"), "words"),
        (("exhibit", "adam_mini_table"), "unknown exhibit 'adam_mini_table'"),
        (("claim", "no_such_claim"), "unknown claim 'no_such_claim'"),
        (("plan", "--tier", "labtop"), "unknown tier 'labtop' (did you mean 'laptop'?)"),
        (("records", "diff", "one"), "two folders"),
        (("blocks", "lora"), "lora is not a model by itself"),
        (("blocks", "gpt22"), "unknown model 'gpt22' (did you mean 'gpt2'?)"),
    ],
)
def test_misuse_is_one_line_and_exit_code_2(capsys, arguments, words):
    code, said = answer(capsys, *arguments)
    assert code == 2 and words in said
    assert said.startswith("lowmem: ") and said.count("\n") == 1


def test_what_could_not_be_carried_out_is_one_line_and_exit_code_1(capsys, monkeypatch):
    def fail(*_):
        raise Failed("no network; try again")

    monkeypatch.setattr("lowmem.pipeline.estimate.show", fail)
    assert answer(capsys, "plan") == (1, "lowmem: no network; try again\n")


def test_an_interrupt_says_how_to_go_on(capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lowmem.pipeline.estimate.show", interrupt)
    assert answer(capsys, "plan") == (130, "lowmem: interrupted; call again to continue\n")


def test_plan_of_all_tiers_prints_each_and_keeps_their_costs(capsys, monkeypatch):
    kept = []
    monkeypatch.setattr("lowmem.memory.costs.model_costs", lambda root, tier, options: kept.append(("modelled", tier)))
    monkeypatch.setattr("lowmem.pipeline.estimate.save_costs", lambda root, tier: kept.append(("measured", tier)))
    assert cli.main(["plan", "--all"]) == 0
    assert len(kept) == 10 and ("modelled", "paper") in kept and ("measured", "laptop") in kept
    text = capsys.readouterr().out
    assert [line.split(":")[0] for line in text.splitlines() if line.startswith("tier ")] == [
        "tier laptop",
        "tier overnight",
        "tier paper",
        "tier smoke",
        "tier workstation",
    ]


def test_blocks_prints_the_blocks_of_a_model_given_by_name(capsys):
    assert cli.main(["blocks", "llama:20m"]) == 0
    text = capsys.readouterr().out
    assert "tokens.weight" in text and "19,794,176 parameters" in text


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_leaves_early_is_no_error_to_speak_of(lines):
    code = "import sys; from lowmem import cli; from lowmem.memory import plan_columns; "
    code += f"plan_columns.explained = lambda: 'line\\n' * {lines}; sys.exit(cli.main(['plan', '--explain']))"
    theirs, ours = os.pipe()
    os.close(theirs)
    done = subprocess.run([sys.executable, "-c", code], stdout=ours, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(ours)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_pipe_that_broke_elsewhere_is_one_line(capsys, monkeypatch):
    def fail(*_):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("lowmem.pipeline.estimate.show", fail)
    code, said = answer(capsys, "plan")
    assert code == 1 and said.startswith("lowmem: Broken pipe")


def test_help_of_every_command_is_there():
    for command in ("fetch", "prepare", "train", "exhibit", "claim", "claims", "report", "plan", "blocks", "records"):
        with pytest.raises(SystemExit) as ended:
            cli.main([command, "--help"])
        assert ended.value.code == 0


def test_arguments_are_judged_before_pytorch_is_loaded(root):
    code = "import sys; from lowmem import cli; cli.main(['train', '--experiment', 'x']); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env={"PYTHONPATH": "src"}, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "False\n", done.stderr
