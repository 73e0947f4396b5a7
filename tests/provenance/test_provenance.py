"""Which code a record depends on, and what may happen to it without making the record stale."""

import json
import shutil

import checkout
import pytest

from lowmem import provenance

QUADRATIC = {"task": "quadratic", "measure": {"blocks": {"a": {"values": [1, 2]}}, "size": 3, "horizons": [4]}}
RULE = {
    "src/lowmem/kept.py": '''"""Archived records."""
from lowmem import helpers

LIMIT = 3


def keep(rows):
    """Keep some."""
    return shown(helpers.sort(rows))[:LIMIT]


def shown(rows):
    return [row for row in rows if row]
''',
    "src/lowmem/helpers.py": "def sort(rows):\n    return sorted(rows)\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two modules in place of this one; write(files, moved) puts others there."""
    place = tmp_path / "src/lowmem"

    def write(files, moved=None):
        shutil.rmtree(place, ignore_errors=True)
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        (place / "provenance").mkdir()
        (place / "provenance/moved.json").write_text(json.dumps(moved or {}))
        for cached in (provenance.moved, provenance._back, provenance._definitions, provenance.imported):
            cached.cache_clear()
        written = [tmp_path / name for name in sorted(files)]
        return {provenance.name_of(path): provenance.code_hash(path) for path in written}

    monkeypatch.setattr(provenance, "PACKAGE", place)
    yield write
    for cached in (provenance.moved, provenance._back, provenance._definitions, provenance.imported):
        cached.cache_clear()


def edited(old: str, new: str) -> dict[str, str]:
    files = {name: text.replace(old, new) for name, text in RULE.items()}
    assert files != RULE
    return files


def test_a_file_that_is_known_by_its_sha256_drifts_with_every_byte(package, tmp_path):
    files = {"src/lowmem/kernel.c": "int a = 1;\n"}
    old = package(files)
    assert provenance.drifted(tmp_path, old) == []
    package({"src/lowmem/kernel.c": "int a = 2;\n"})
    assert provenance.drifted(tmp_path, old) == ["src/lowmem/kernel.c"]


def test_a_record_of_before_with_plain_hashes_is_still_read(package, tmp_path):
    package(RULE)
    old = {name: provenance.sha256(tmp_path / name) for name in RULE}
    assert provenance.drifted(tmp_path, old) == []
    package(edited('"""Keep some."""', '"""Keep a few."""'))
    assert provenance.drifted(tmp_path, old) == ["src/lowmem/kept.py"]


def test_a_docstring_leaves_a_hash_and_a_constant_does_not(package, tmp_path):
    old = package(RULE)
    assert package(edited('"""Keep some."""', '"""Keep a few."""  # of many')) == old
    package(edited("LIMIT = 3", "LIMIT = 4"))
    assert provenance.drifted(tmp_path, old) == ["src/lowmem/kept.py"]


def test_a_deleted_file_drifts(package, tmp_path):
    old = package(RULE)
    package({"src/lowmem/kept.py": RULE["src/lowmem/kept.py"]})
    assert provenance.drifted(tmp_path, old) == ["src/lowmem/helpers.py"]


MOVED = {
    "src/lowmem/pipeline/archive.py": RULE["src/lowmem/kept.py"].replace("helpers", "order").replace(
        "from lowmem import", "from lowmem.ground import"
    ),
    "src/lowmem/ground/order.py": RULE["src/lowmem/helpers.py"],
}  # fmt: skip
MOVES = {"lowmem.kept": "lowmem.pipeline.archive", "lowmem.helpers": "lowmem.ground.order"}


def test_moved_modules_keep_old_records_whole(package, tmp_path):
    old = package(RULE)
    new = package(MOVED, MOVES)
    assert provenance.drifted(tmp_path, old) == []
    assert set(new.values()) == set(old.values()) and provenance.drifted(tmp_path, new) == []


def test_what_changes_after_a_move_is_named(package, tmp_path):
    old = package(RULE)
    package({name: text.replace("LIMIT = 3", "LIMIT = 4") for name, text in MOVED.items()}, MOVES)
    assert provenance.drifted(tmp_path, old) == ["src/lowmem/kept.py"]


def test_a_move_that_the_map_does_not_know_is_drift(package, tmp_path):
    old = package(RULE)
    package(MOVED)
    assert provenance.drifted(tmp_path, old) == list(old)


SPLIT = {
    "src/lowmem/kept.py": "from lowmem import helpers\nfrom lowmem.rows import shown\n\nLIMIT = 3\n\n\ndef keep(rows):\n"
    "    return shown(helpers.sort(rows))[:LIMIT]\n",
    "src/lowmem/rows.py": "def shown(rows):\n    return [row for row in rows if row]\n",
    "src/lowmem/helpers.py": RULE["src/lowmem/helpers.py"],
}


@pytest.mark.parametrize(
    ("move", "whole"),
    [({"lowmem.kept.shown": "lowmem.rows.shown"}, True), ({"lowmem.kept": "lowmem.rows"}, True), ({}, False)],
)
def test_a_definition_that_moves_to_another_file_keeps_old_records_whole(package, tmp_path, move, whole):
    old = package(RULE)
    package(SPLIT, move)
    assert (provenance.drifted(tmp_path, old) == []) == whole


def test_a_definition_that_leaves_a_module_that_had_moved_keeps_the_records_of_both_times_whole(package, tmp_path):
    first = package(RULE)
    moved = {name.replace("kept.py", "pipeline/archive.py"): text for name, text in RULE.items()}
    second = package(moved, {"lowmem.kept": "lowmem.pipeline.archive"})
    split = {name.replace("kept.py", "pipeline/archive.py"): text for name, text in SPLIT.items()}
    package(split, {"lowmem.kept": "lowmem.pipeline.archive", "lowmem.kept.shown": "lowmem.rows.shown"})
    assert first != second
    assert provenance.drifted(tmp_path, first) == provenance.drifted(tmp_path, second) == []


def test_a_changed_definition_that_moved_is_drift(package, tmp_path):
    old = package(RULE)
    changed = {name: text.replace("if row]", "if not row]") for name, text in SPLIT.items()}
    package(changed, {"lowmem.kept.shown": "lowmem.rows.shown"})
    assert provenance.drifted(tmp_path, old) == ["src/lowmem/kept.py"]


def test_a_moved_file_that_is_not_python_is_found_by_its_path(package, tmp_path):
    old = package({"src/lowmem/kernel.c": "int a;\n"})
    package({"src/lowmem/core/kernel.c": "int a;\n"}, {"src/lowmem/kernel.c": "src/lowmem/core/kernel.c"})
    assert provenance.drifted(tmp_path, old) == []


def test_the_map_leads_from_names_that_are_gone_to_files_that_are_there():
    for old, new in provenance.moved().items():
        if "/" in new:
            assert (provenance.PACKAGE.parent / new.removeprefix("src/")).is_file(), new
        else:
            home = provenance.file_of(new) or provenance.file_of(new.rpartition(".")[0])
            names = {new, *(name for name, _ in provenance.definitions(home))} if home else set()
            assert home and (provenance.file_of(new) or provenance.origin(new) in names), f"{old}: no {new}"


# -- what a run depends on -------------------------------------------------------------------------------------------


def reached(**config) -> set[str]:
    return {path.relative_to(provenance.PACKAGE).as_posix() for path in provenance.code_paths(config)}


def rules(names: set[str]) -> set[str]:
    return {name for name in names if name.startswith("optim/")}


def test_a_run_of_one_rule_does_not_depend_on_others_or_on_updates_inside_backward():
    found = reached(task="pretrain", model={"name": "gpt2"}, optimizer={"name": "sm3"})
    assert {
        "training/loop.py",
        "models/gpt2.py",
        "optim/sm3.py",
        "optim/_factory.py",
        "optim/core/rule_optimizer.py",
    } <= found
    others = {
        "lomo",
        "adalomo",
        "adam_mini",
        "adamw",
        "core/fused_backward",
        "core/combined",
        "core/autograd_graph",
        "core/data_parallel",
        "core/cpu_kernel",
        "core/zero1",
    }
    assert not rules(found) & {f"optim/{name}.py" for name in others} and "optim/core/adam_kernel.c" not in found


@pytest.mark.parametrize(
    ("optimizer", "needed"),
    [
        ({"name": "adam_mini"}, {"adam_mini.py", "core/adam_kernel.c"}),
        ({"name": "adam_mini", "backward": {}}, {"adam_mini.py", "core/fused_backward.py"}),
        ({"name": "lomo"}, {"lomo.py", "core/fused_backward.py"}),
        (
            {"name": "lomo", "beside": {"name": "adamw"}},
            {"lomo.py", "core/fused_backward.py", "core/combined.py", "adamw.py"},
        ),
    ],
)
def test_what_an_optimizer_runs_with_is_what_its_settings_ask_for(optimizer, needed):
    found = rules(reached(task="pretrain", model={"name": "gpt2"}, optimizer=optimizer))
    assert {f"optim/{name}" for name in needed} <= found
    for name, asked in (("core/fused_backward", "lomo"), ("core/combined", "beside")):
        assert (f"optim/{name}.py" in found) == (
            asked in str(optimizer) or ("backward" in optimizer and asked == "lomo")
        )


def test_a_quadratic_run_depends_on_neither_loop_nor_optimizers():
    found = reached(**QUADRATIC)
    assert "tasks/quadratic.py" in found and "training/loop.py" not in found and not rules(found)


def test_a_task_that_compares_optimizers_depends_on_all_that_it_names():
    measure = {"optimizers": {"a": {"name": "came"}, "b": {"name": "adam_mini", "backward": {}}}}
    found = reached(task="equal_batch", model={"name": "gpt2"}, measure=measure)
    assert {
        "optim/came.py",
        "optim/adam_mini.py",
        "optim/core/fused_backward.py",
    } <= found and "optim/lion.py" not in found


def test_measuring_tasks_depend_on_no_loop():
    measuring = [
        path.stem for path in (provenance.PACKAGE / "tasks").glob("[a-z]*.py") if provenance.measures(path.stem)
    ]
    assert len(measuring) > 5
    assert [task for task in measuring if "training/loop.py" in reached(task=task, optimizer={"name": "adamw"})] == []


def test_an_edit_of_a_comment_keeps_the_records_of_a_checkout_and_one_of_a_constant_does_not(tmp_path):
    """With files as they lie on disk and processes as Snakemake starts them."""
    project = checkout.copy(tmp_path / "project")
    (project / "run.json").write_text(json.dumps({"config": QUADRATIC}))
    code, path = project / "src/lowmem/analysis/quadratics.py", project / "results/own/run/only/seed0/record.json"

    def said() -> str:
        return checkout.command(project, "lowmem", "train", "run.json").stderr

    assert "record kept" not in said()
    before = path.read_text()
    code.write_text("# A remark.\n" + code.read_text())
    assert "record kept" in said() and path.read_text() == before
    code.write_text(code.read_text() + "\n\nMORE = 1\n")
    assert "record kept" not in said()
    [(name, value)] = set(json.loads(path.read_text())["code"]["files"].items()) - set(
        json.loads(before)["code"]["files"].items()
    )
    assert name == "src/lowmem/analysis/quadratics.py" and value.startswith(provenance.TREE)


def test_a_record_says_of_each_file_what_kind_of_hash_it_holds():
    files = provenance.code_files({"task": "pretrain", "model": {"name": "gpt2"}, "optimizer": {"name": "adamw"}})
    plain = {name for name, value in files.items() if not value.startswith(provenance.TREE)}
    assert plain == {f"src/lowmem/optim/core/{name}_kernel.c" for name in ("adam", "eight_bit")} and len(files) > 20
