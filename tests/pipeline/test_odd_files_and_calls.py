"""Odd files and calls that others tried: nothing is lost, nothing waits, and each ends in one line that says what to do."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from checkout import ROOT
from synthetic import checkout
from toy_run import CONFIG, RUN

from lowmem import cli, files, kept_files, provenance
from lowmem.data import fetch, schemas
from lowmem.data.sources import folder as own_files
from lowmem.errors import Failed, Misuse
from lowmem.files import strict_yaml
from lowmem.pipeline import archive, estimate, experiments, rates, record, verify
from lowmem.reporting import runs
from lowmem.training import job

LLAMA = {
    **{"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4},
    **{"num_hidden_layers": 2, "vocab_size": 64},
}


@pytest.fixture
def root(tmp_path):
    root = checkout(tmp_path)
    job.run_job(root, [RUN])
    return root


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '"x"'])
def test_where_the_map_of_moves_is_damaged_records_are_left_alone(root, tmp_path, monkeypatch, content):
    path = record.folder(root, RUN) / "record.json"
    before = path.read_bytes()
    (tmp_path / "provenance").mkdir()
    (tmp_path / "provenance/moved.json").write_text(content)
    for found in (provenance.moved, provenance._back, provenance._definitions):
        found.cache_clear()
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    with pytest.raises(Failed, match="git checkout"):
        job.run_job(root, [RUN])
    assert path.read_bytes() == before
    monkeypatch.undo()
    for found in (provenance.moved, provenance._back, provenance._definitions):
        found.cache_clear()


def test_a_pipe_in_the_place_of_a_lock_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / ".run.lock")
    with pytest.raises(Failed, match="cannot lock"), files.locked(tmp_path / "run"):
        pass


def test_no_tier_writes_where_archives_are_unpacked(tmp_path):
    with pytest.raises(Misuse, match="archived records"):
        record.folder(tmp_path, {**RUN, "tier": "kept"})


def test_what_is_unpacked_counts_only_as_it_was_packed(root):
    (root / "data/records/own").mkdir(parents=True)
    archive.keep(root, "own/toy")
    place = archive.folder(root, "own/toy")
    (place / "strange").write_text("x")
    assert not (archive.folder(root, "own/toy") / "strange").exists()
    kept_files.write_json(place / archive.MARK, {"archive": "x", "files": [1]})
    assert (archive.folder(root, "own/toy") / "only/seed0/record.json").is_file()


@pytest.mark.parametrize("at", [40, 60, 80, 120, 200, 300])
def test_a_flipped_bit_of_an_archive_is_one_line(root, at):
    (root / "data/records/own").mkdir(parents=True)
    archive.keep(root, "own/toy")
    path = archive.archive(root, "own/toy")
    with zipfile.ZipFile(path) as zipped:
        start = zipped.infolist()[0].header_offset
    data = bytearray(path.read_bytes())
    data[start + at] ^= 4
    path.write_bytes(data)
    whole = {path.name: path.read_bytes() for path in record.folder(root, RUN).iterdir() if path.is_file()}
    try:
        place = archive.folder(root, "own/toy") / "only/seed0"
    except Failed as error:
        assert "git checkout" in str(error)
    else:  # a bit of a date, or of another field that says nothing of the content
        assert all(whole[path.name] == path.read_bytes() for path in place.iterdir())


@pytest.mark.parametrize("name", ["table/md", "../x", ".hidden", ""])
def test_a_seal_names_files_beside_it(tmp_path, name):
    (tmp_path / "table.sha256").write_text(f"{'0' * 64}  {name}\n")
    with pytest.raises(kept_files.Damaged):
        kept_files.check_together(tmp_path / "table")


@pytest.mark.parametrize(
    "text", ["a: 010", "a: 1:30", "a: 0x10", "a: 0b1", "a: 2020-01-01", "a: !!binary YQ==", "a: !!set {b}"]
)
def test_numbers_are_decimal_and_values_are_those_of_json(text):
    with pytest.raises(strict_yaml.InvalidYaml, match=r"line 1: .*quotes"):
        strict_yaml.load(text)


def test_ordinary_numbers_are_read():
    assert strict_yaml.load("{a: 10, b: -3, c: 1_000, d: 0, e: 1.0e-3, f: '010', g: yes}") == {
        **{"a": 10, "b": -3, "c": 1000, "d": 0, "e": 1e-3, "f": "010", "g": True}
    }


def test_a_key_that_is_a_number_is_refused(tmp_path):
    with pytest.raises(Misuse, match="the key 1 is not text; put it in quotes"):
        schemas.check(ROOT, {**CONFIG, "measure": {"blocks": {1: {"values": [1]}}}}, "run", tmp_path / "run.yaml")


@pytest.mark.parametrize("like", ["own", "smoke"])
def test_a_tier_is_like_no_tier_that_is_like_another(tmp_path, like):
    tiers = tmp_path / "workflow/config/tiers"
    tiers.mkdir(parents=True)
    text = (ROOT / "workflow/config/tiers/smoke.yaml").read_text()
    (tiers / "own.yaml").write_text(f"like: {like}\n{text}")
    (tiers / "smoke.yaml").write_text(f"like: own\n{text}")
    with pytest.raises(Misuse, match="name a tier that is like no other"):
        experiments.load_tier(tmp_path, "own")


@pytest.mark.parametrize("change", [{"device": "cpu"}, {"ended": None}, {"started": "yesterday"}])
def test_a_record_that_does_not_say_when_is_not_run_again(root, change, capsys):
    path = record.folder(root, RUN) / "record.json"
    kept_files.write_json(path, {**json.loads(path.read_text()), **change})
    assert verify.verify(root, [root / "results"], rerun=1) in (0, 1)
    assert "equal when run again" not in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--rerun", "-1"], ["--minutes", "nan"], ["--tier", "/etc"], ["--tier", "nope"]])
def test_records_verify_refuses_what_means_nothing(arguments, capsys):
    assert cli.main(["records", "verify", *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--tier", "nope"], ["--option", "a=b"], ["--all"], ["--save-costs"]])
def test_a_plan_of_a_model_takes_no_settings_of_a_tier(arguments, capsys):
    assert cli.main(["plan", "gpt2:125m", *arguments]) == 2
    assert "is about a tier's runs, gpt2:125m is a model; name one of them" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--option", "tier=paper"], ["--option", "cora=url", "--option", "cora=hub"]])
def test_an_option_is_given_once_and_is_no_tier(options, capsys):
    assert cli.main(["plan", "--tier", "smoke", *options]) == 2
    assert "--option" in capsys.readouterr().err


@pytest.mark.parametrize(
    "note", ['{"files": [], "source": {}}', '{"files": "x"}', '{"source": "x", "files": {}}', "[]"]
)
def test_a_note_of_another_form_is_no_finished_download(tmp_path, note):
    (tmp_path / "fetched.json").write_text(note)
    assert not fetch.finished(tmp_path, [{"folder": str(tmp_path), "kind": "folder", "spec": "x", "files": {}}])


def copied(folder, into, work):
    work.mkdir()
    names = own_files.get({"folder": str(folder)}, into, work, lambda done: None)
    work.rmdir() if not any(work.iterdir()) else None
    return names


def test_a_folder_that_changed_its_shape_is_copied_anew(tmp_path):
    folder, into = tmp_path / "mine", tmp_path / "raw"
    (folder / "a").mkdir(parents=True)
    (folder / "a/b").write_text("1")
    (folder / "fetched.json").mkdir()
    (folder / "fetched.json/x").write_text("1")
    into.mkdir()
    assert copied(folder, into, tmp_path / "w1") == ["a/b"]
    (folder / "a/b").unlink()
    (folder / "a").rmdir()
    (folder / "a").write_text("2")
    assert copied(folder, into, tmp_path / "w2") == ["a"] and (into / "a").read_text() == "2"
    (folder / "a").unlink()
    (folder / "a/b").mkdir(parents=True)
    (folder / "a/b/c").write_text("3")
    assert copied(folder, into, tmp_path / "w3") == ["a/b/c"] and (into / "a/b/c").read_text() == "3"


def test_a_file_name_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    with open(os.fsencode(tmp_path / "mine") + b"/\xff", "w") as file:
        file.write("x")
    (tmp_path / "raw").mkdir()
    with pytest.raises(Misuse, match="rename it"):
        copied(tmp_path / "mine", tmp_path / "raw", tmp_path / "work")


def test_a_file_name_of_any_characters_is_copied(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/two\nlines\u00a0.txt").write_text("x")
    (tmp_path / "raw").mkdir()
    assert copied(tmp_path / "mine", tmp_path / "raw", tmp_path / "work") == ["two\nlines\u00a0.txt"]


@pytest.mark.parametrize("at", range(1, 4))
def test_an_option_stands_anywhere_among_the_names(at, root, capsys):
    words = ["diff", str(root / "results"), str(root / "results")]
    words[at:at] = ["--tier", "smoke"]
    assert cli.main(["records", *words]) == 0
    assert capsys.readouterr().out == "equal\n"


@pytest.mark.parametrize("asked", [["--help"], ["plan", "--help"], ["--version"]])
def test_help_that_cannot_be_written_fails(asked):
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "lowmem", *asked], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "No space left" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_link_to_nothing_is_named(root, capsys, monkeypatch):
    (root / "data/records/own").mkdir(parents=True)
    archive.keep(root, "own/toy")
    (root / "results/kept").symlink_to(root / "nowhere")
    monkeypatch.setattr(cli.commands, "claims", lambda root, _: archive.folder(root, "own/toy"))
    monkeypatch.setattr(cli, "find_root", lambda: root)
    assert cli.main(["claims"]) == 1
    assert "results/kept: a link to nothing; remove it" in capsys.readouterr().err


ASCII = [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}]


@pytest.mark.parametrize("environment", ASCII)
def test_a_terminal_that_knows_only_ascii_shows_the_rest_as_question_marks(environment):
    code = "from lowmem import cli; cli.commands.claims = lambda *_: print('\\u2013'); raise SystemExit(cli.main(['claims']))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0 and "?" in done.stdout, done.stderr


def test_a_rank_without_a_world_is_ignored(tmp_path):
    done = tmp_path / "done.json"
    (tmp_path / "run.json").write_text(json.dumps({"config": CONFIG}))
    root = checkout(tmp_path / "root")
    command = [sys.executable, "-m", "lowmem", "train", str(tmp_path / "run.json"), "--done", str(done)]
    environment = {**os.environ, "RANK": "1", "LOWMEM_ROOT": str(root)}
    environment.pop("WORLD_SIZE", None)
    made = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root)
    assert made.returncode == 0 and done.is_file(), made.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3"),
        ({"num_key_value_heads": 8}, "4 attention heads cannot share 8"),
        ({"intermediate_size": 0}, "intermediate_size is '0'"),
        ({"vocab_size": 10**12}, "vocab_size is '1000000000000'"),
        ({"hidden_size": 10**9}, "hidden_size is '1000000000'"),
    ],
)
def test_a_model_that_cannot_be_is_refused_before_it_is_built(tmp_path, capsys, change, words):
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, **change}))
    assert cli.main(["plan", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("asked", [[], ["--json"]])
def test_a_model_of_packed_weights_says_what_is_planned(tmp_path, capsys, asked):
    packed = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, **packed}))
    assert cli.main(["plan", str(tmp_path), "--optimizer", "adamw", *asked]) == 0
    assert "is stored in gptq; planned is the training of whole weights" in capsys.readouterr().err


def test_a_curve_that_a_measuring_run_finds_is_not_its_own(root):
    folder = record.folder(root, RUN)
    made = record.load(folder)
    stray = folder / "curve.jsonl"
    stray.write_text('{"step": 1}\n')
    record.write(folder, {**made, "config": {**made["config"], "task": "quadratic"}, "curve": None})
    assert record.load(folder)["curve"] is None and not stray.exists()


def test_a_record_under_another_runs_name_is_not_shown(root):
    folder = record.folder(root, RUN)
    other = folder.parent / "seed7"
    shutil.copytree(folder, other)
    found = runs.outcome_of(root, {**RUN, "id": RUN["id"].replace("seed0", "seed7")}, other)
    assert found.status == "missing" and f"it is that of {RUN['id']}" in found.reason


def test_rates_that_were_altered_are_not_taken(tmp_path):
    place = rates.place(tmp_path, "laptop")
    place.parent.mkdir(parents=True)
    kept_files.write_json(place, {"rule": rates.RULE, "experiments": {"tune": {"a": {"lr": 0.1, "reason": None}}}})
    assert rates.chosen(tmp_path, "laptop", "tune", "a") == 0.1
    for text in (place.read_text().replace("0.1", "0.4"), "[]", "{}"):
        place.write_text(text)
        os.utime(place, ns=(1, len(text)))
        with pytest.raises(Failed, match="altered"):
            rates.chosen(tmp_path, "laptop", "tune", "a")


def test_times_of_another_form_are_one_line(tmp_path):
    (tmp_path / "data/published").mkdir(parents=True)
    (tmp_path / estimate.COSTS).write_text("[]")
    with pytest.raises(Failed, match="holds no times by run"):
        estimate.costs(tmp_path)


def test_what_was_unpacked_from_an_archive_that_is_gone_is_not_shown(root):
    (root / "data/records/own").mkdir(parents=True)
    archive.keep(root, "own/toy")
    assert any(archive.folder(root, "own/toy").iterdir())
    archive.archive(root, "own/toy").unlink()
    assert not archive.folder(root, "own/toy").exists()
