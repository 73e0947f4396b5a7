"""Rates: chosen by the rule from tuning seeds alone, kept with what they were chosen from, read by judging runs."""

import pytest
from checkout import edit

from lowmem import kept_files
from lowmem.errors import Failed, Misuse
from lowmem.files import read_json
from lowmem.pipeline import experiments, rates
from lowmem.reporting import rate_choice
from lowmem.reporting.numbers.rate_grids import tuned
from lowmem.reporting.runs import Outcome, Run
from lowmem.training import job

FILE = "workflow/config/experiments/llama_scaling.yaml"
SIZES = {"10k": 0.01, "20k": 0.02, "42k": 0.03}


def run(group, lr, seed, loss):
    """A tuning run with this final loss; None diverged, "missing" was not run."""
    status = "diverged" if loss is None else "missing" if loss == "missing" else "done"
    record = {"metrics": {"final": {"val_loss": loss}}} if status == "done" else None
    axes = {**dict(zip(("size", "optimizer"), group.split("-"))), "lr": lr}
    outcome = Outcome(status, status, record)
    return Run(f"t/{group}-{lr}/seed{seed}", "t", f"{group}-{lr}", seed, {"optimizer": {"lr": lr}}, outcome, axes)


def grid(group, losses):
    """{rate: (loss of seed 100, loss of seed 101)} as runs."""
    return [run(group, lr, 100 + k, loss) for lr, found in losses.items() for k, loss in enumerate(found)]


def test_the_lowest_mean_over_tuning_seeds_is_chosen():
    found = rate_choice.choose(grid("a-adamw", {0.01: (2.0, 2.2), 0.02: (2.05, 1.9), 0.04: (1.8, 2.4)}))
    assert found["a-adamw"]["lr"] == 0.02 and found["a-adamw"]["reason"] is None
    assert [row["mean"] for row in found["a-adamw"]["grid"]] == pytest.approx([2.1, 1.975, 2.1])
    assert found["a-adamw"]["grid"][0]["losses"] == {"100": 2.0, "101": 2.2}


def test_a_rate_with_a_diverged_run_is_worse_than_any_number():
    found = rate_choice.choose(grid("a", {0.01: (2.5, 2.5), 0.02: (2.4, 2.4), 0.03: (2.45, 2.5), 0.04: (1.0, None)}))
    assert found["a"]["lr"] == 0.02


@pytest.mark.parametrize(("losses", "side"), [((1.0, 2.0, 3.0), "below"), ((3.0, 2.0, 1.0), "above")])
def test_a_best_rate_at_the_edge_is_no_choice(losses, side):
    found = rate_choice.choose(grid("a", {lr: (loss, loss) for lr, loss in zip((0.01, 0.02, 0.04), losses)}))
    assert found["a"]["lr"] is None and f"extend the grid {side} it" in found["a"]["reason"]


def test_a_grid_that_is_not_finished_gives_no_rate():
    found = rate_choice.choose(grid("a", {0.01: (2.5, 2.5), 0.02: (2.4, "missing"), 0.04: (2.5, 2.5)}))
    assert found["a"]["lr"] is None and found["a"]["reason"] == "not run: t/a-0.02/seed101"


def test_judging_seeds_choose_nothing():
    with pytest.raises(Misuse, match="seed 3 judges; a rate is chosen from seeds of 100 and more"):
        rate_choice.choose([run("a", 0.01, 3, 2.0)])


def test_every_method_gets_as_many_rates():
    runs = grid("a-adamw", {0.01: (2.0, 2.0), 0.02: (2.0, 2.0)}) + grid("a-lion", {0.01: (2.0, 2.0)})
    with pytest.raises(Misuse, match=r"a: \[1, 2\] rates; every method must get as many"):
        rate_choice.choose(runs)


def test_another_model_may_have_a_longer_grid():
    short = {0.01: (2.1, 2.1), 0.02: (2.0, 2.0), 0.04: (2.2, 2.2)}
    long = {**short, 0.04: (1.9, 1.9), 0.08: (2.0, 2.0)}
    runs = [
        run
        for size, rates in (("a", short), ("b", long))
        for o in ("adamw", "lion")
        for run in grid(f"{size}-{o}", rates)
    ]
    assert {group: one["lr"] for group, one in rate_choice.choose(runs).items()} == {
        "a-adamw": 0.02,
        "a-lion": 0.02,
        "b-adamw": 0.04,
        "b-lion": 0.04,
    }


def with_choice(project, lr):
    edit(project / FILE, "adamw: {optimizer: {name: adamw}}", "adamw: {optimizer: {name: adamw, lr: {chosen: tune/a}}}")
    if lr is not None:
        groups = {"a": {"lr": lr or None, "reason": None if lr else "best rate 1 at the edge", "grid": []}}
        place = rates.place(project, "laptop")
        place.parent.mkdir(parents=True, exist_ok=True)
        kept_files.write_json(place, {"rule": rates.RULE, "experiments": {"tune": groups}})


def test_a_judging_run_reads_the_number_that_was_chosen(project):
    with_choice(project, 0.0125)
    found = {
        run["variant"]: run["config"]["optimizer"]["lr"] for run in experiments.runs(project, "llama_scaling", "laptop")
    }
    assert found["42k-adamw"] == 0.0125 and found["42k-adam_mini"] == 6.0e-3


@pytest.mark.parametrize(
    ("lr", "words"), [(None, "run that experiment"), (0, "tune/a has no rate: best rate 1 at the edge")]
)
def test_a_rate_that_is_not_chosen_is_one_line_that_says_what_to_do(project, lr, words):
    with_choice(project, lr)
    with pytest.raises(Misuse, match=words):
        experiments.runs(project, "llama_scaling", "laptop")


def test_a_run_with_a_stand_in_rate_is_planned_but_never_made(project):
    stand_in = "adamw: {optimizer: {name: adamw, lr: {chosen: tune/a, until: 0.002}}}"
    edit(project / FILE, "adamw: {optimizer: {name: adamw}}", stand_in)
    runs = {run["variant"]: run for run in experiments.runs(project, "llama_scaling", "laptop")}
    assert runs["42k-adamw"]["config"]["optimizer"]["lr"] == 0.002 and "waits" not in runs["42k-adam_mini"]
    with pytest.raises(Misuse, match="no rate is chosen yet; run tune in tier laptop, then lowmem rates tune"):
        job.run_job(project, [runs["42k-adamw"]])


def test_two_readings_that_agree_on_the_rate_share_their_runs(project):
    edit(
        project / FILE,
        "    adam_mini: {optimizer: {name: adam_mini}}",
        "    adam_mini: {optimizer: {name: adam_mini, lr: {chosen: tune/a}}}\n"
        "    own_rate: {optimizer: {name: adam_mini, lr: {chosen: tune/a}}}",
    )
    with_choice(project, 0.0125)
    variants = {run["variant"] for run in experiments.runs(project, "llama_scaling", "laptop")}
    assert "42k-adam_mini" in variants and "42k-own_rate" not in variants


def test_kept_choices_hold_the_rule_and_every_loss(project, monkeypatch):
    runs = grid("a", {0.01: (2.5, 2.5), 0.02: (2.4, 2.4), 0.04: (2.5, 2.6)})
    monkeypatch.setattr("lowmem.reporting.runs.load", lambda *_: type("Runs", (), {"all": runs}))
    rate_choice.keep(project, "overnight", "tune")
    kept = read_json(rates.place(project, "overnight"))
    assert kept["rule"] == rates.RULE and kept["experiments"]["tune"]["a"]["lr"] == 0.02
    assert kept["experiments"]["tune"]["a"]["grid"][2]["losses"] == {"100": 2.5, "101": 2.6}
    runs[:] = grid("a", {0.01: (2.3, 2.3), 0.02: (2.4, 2.4)})
    with pytest.raises(Failed, match=r"tune .tier overnight.: a: best rate 0.01 at the edge"):
        rate_choice.keep(project, "overnight", "tune")


def with_pattern(project, until=""):
    edit(
        project / FILE,
        "    adam_mini: {optimizer: {name: adam_mini}}",
        f'    adam_mini: {{optimizer: {{name: adam_mini, lr: {{chosen: "tune/{{size}}-adamw"{until}}}}}}}',
    )


def rates_of_adam_mini(project):
    found = {
        run["variant"]: run["config"]["optimizer"]["lr"] for run in experiments.runs(project, "llama_scaling", "laptop")
    }
    return {variant: lr for variant, lr in found.items() if variant.endswith("adam_mini")}


def test_a_group_can_be_named_by_the_axes_of_a_run(project):
    with_pattern(project)
    groups = {f"{size}-adamw": {"lr": lr, "reason": None} for size, lr in SIZES.items()}
    kept_files.write_json(rates.place(project, "laptop"), {"rule": rates.RULE, "experiments": {"tune": groups}})
    assert rates_of_adam_mini(project) == {f"{size}-adam_mini": lr for size, lr in SIZES.items()}


def test_a_rate_until_the_choice_counts_only_before_it(project):
    with_pattern(project, ", until: 0.5")
    assert set(rates_of_adam_mini(project).values()) == {0.5}
    groups = {f"{size}-adamw": {"lr": lr, "reason": None} for size, lr in SIZES.items()}
    kept_files.write_json(rates.place(project, "laptop"), {"rule": rates.RULE, "experiments": {"tune": groups}})
    assert rates_of_adam_mini(project) == {f"{size}-adam_mini": lr for size, lr in SIZES.items()}
    groups["42k-adamw"] = {"lr": None, "reason": "best rate 1 at the edge"}
    kept_files.write_json(rates.place(project, "laptop"), {"rule": rates.RULE, "experiments": {"tune": groups}})
    with pytest.raises(Misuse, match="tune/42k-adamw has no rate: best rate 1 at the edge"):
        experiments.runs(project, "llama_scaling", "laptop")


def test_a_multiple_of_the_choice_is_asked_for_by_times(project):
    with_pattern(project, ", times: 4")
    groups = {f"{size}-adamw": {"lr": lr, "reason": None} for size, lr in SIZES.items()}
    kept_files.write_json(rates.place(project, "laptop"), {"rule": rates.RULE, "experiments": {"tune": groups}})
    assert rates_of_adam_mini(project) == {f"{size}-adam_mini": 4 * lr for size, lr in SIZES.items()}


@pytest.mark.parametrize("times", ["0", "-2", "two", "true"])
def test_a_multiple_that_is_no_positive_number_is_refused(project, times):
    with_pattern(project, f", times: {times}")
    with pytest.raises(Misuse, match=r"optimizer\.lr"):
        experiments.runs(project, "llama_scaling", "laptop")


def test_the_rate_chosen_beforehand_is_the_best_one_whatever_the_judging_seeds_say():
    def judged(rate, lr, loss):
        config, record = {"optimizer": {"lr": lr}}, {"metrics": {"final": {"val_loss": loss}}}
        status = "done" if loss else "diverged"
        axes, outcome = {"optimizer": "lion", "rate": rate}, Outcome(status, status, record)
        return Run(f"t/lion-{rate}/seed0", "t", f"lion-{rate}", 0, config, outcome, axes, own_rate=True)

    found = tuned([judged("own", 0.1, 2.0), judged("same", 0.4, 1.9)])["lion"]
    assert (found.lr, found.rate, [run.final("val_loss") for run in found.best]) == (0.1, "0.1", [2.0])
    axes = {"optimizer": "lion", "rate": "same"}
    other = Run("t/lion-same/seed0", "t", "lion-same", 0, {"optimizer": {"lr": 0.4}}, axes=axes, own_rate=True)
    assert tuned([judged("own", 0.1, 2.0), other])["lion"].lr == 0.1  # what was not run is another question
    assert tuned([judged("1e.1", 0.1, 2.0), judged("4e.1", 0.4, 1.9)])["lion"].rate == "0.4 (edge)"
    assert tuned([judged("own", 0.1, None), judged("same", 0.4, 1.9)])["lion"].lr == 0.4  # diverged: the other one


def test_a_tier_that_runs_as_another_takes_that_ones_choice(project):
    with_choice(project, 0.0125)
    assert experiments.set_by(project, "llama_large", "overnight") == "laptop"
    edit(
        project / "workflow/config/experiments/llama_large.yaml",
        "optimizer: {lr: 6.0e-3}",
        "optimizer: {lr: {chosen: tune/a}}",
    )
    assert {run["config"]["optimizer"]["lr"] for run in experiments.runs(project, "llama_large", "overnight")} == {
        0.0125
    }
