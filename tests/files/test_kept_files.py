"""The one way to keep a file: whole or absent, its hash beside or inside it, checked where it is read."""

import hashlib
import os
import stat
import subprocess
import zipfile

import pytest

from lowmem import kept_files
from lowmem.errors import Failed
from lowmem.kept_files import Damaged


def test_a_sealed_file_answers_with_the_hash_of_its_bytes_and_to_sha256sum(tmp_path):
    data = os.urandom(300_000)
    path = tmp_path / "weights.pt"
    known = kept_files.write(path, data)
    assert path.read_bytes() == data and known == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": 300_000}
    assert kept_files.check(path) == known["sha256"]
    done = subprocess.run(["sha256sum", "-c", "weights.pt.sha256"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "weights.pt: OK" in done.stdout


@pytest.mark.parametrize("how", ["cut", "empty", "flipped", "zeros", "swapped", "gone", "unsealed", "seal of another"])
@pytest.mark.parametrize("dated_back", [False, True])
def test_a_file_that_is_not_what_was_written_is_not_read(tmp_path, how, dated_back):
    path = tmp_path / "a.pt"
    kept_files.write(path, bytes(range(200)))
    kept_files.write(tmp_path / "b.pt", bytes(reversed(range(200))))
    assert kept_files.check(path)  # so that an answer of this process could be remembered
    before, data = path.stat(), path.read_bytes()
    wrong = {
        "cut": data[:-1],
        "empty": b"",
        "flipped": data[:9] + bytes([data[9] ^ 128]) + data[10:],
        "zeros": bytes(len(data)),
        "swapped": (tmp_path / "b.pt").read_bytes(),
    }
    if how in wrong:
        path.write_bytes(wrong[how])
    elif how == "gone":
        path.unlink()
    elif how == "unsealed":
        kept_files.seal_of(path).unlink()
    else:
        kept_files.seal_of(path).write_bytes(kept_files.seal_of(tmp_path / "b.pt").read_bytes())
    if dated_back and path.exists():
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(Damaged, match=r"a\.pt"):
        kept_files.check(path)


def packed(path, numbers: bytes):
    """A zip file of two entries, stored as torch.save stores them."""
    with kept_files.writing_archive(path) as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", numbers)
        archive.writestr("b", b"end")


def test_no_bit_of_a_sealed_zip_file_can_flip(tmp_path):
    path = tmp_path / "a.pt"
    packed(path, bytes(range(40)))
    whole = path.read_bytes()
    assert kept_files.check(path).startswith("zip-")
    for at in range(8 * len(whole)):
        path.write_bytes(whole[: at // 8] + bytes([whole[at // 8] ^ 1 << at % 8]) + whole[at // 8 + 1 :])
        with pytest.raises(Damaged):
            kept_files.check(path)
    path.write_bytes(whole)
    assert kept_files.check(path)


def test_a_zip_file_in_the_place_of_another_is_not_read(tmp_path):
    packed(tmp_path / "a.pt", bytes(40))
    packed(tmp_path / "b.pt", bytes(39) + b"1")
    os.replace(tmp_path / "b.pt", tmp_path / "a.pt")
    with pytest.raises(Damaged):
        kept_files.check(tmp_path / "a.pt")


@pytest.mark.parametrize("size, offset", [(2**63, 0), (0, 2**40), (10, 3)])
def test_a_zip_file_whose_entries_cannot_be_is_no_zip_file(tmp_path, size, offset):
    path = tmp_path / "a.pt"
    packed(path, bytes(40))
    kept_files.write(path, b"no zip file")
    with pytest.raises(Damaged):
        kept_files.around_entries(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"x" * 10)
        archive.writestr("b", b"y" * 10)
        archive.infolist()[1].header_offset = offset
        archive.infolist()[1].compress_size = size
    with pytest.raises(Damaged):
        kept_files.around_entries(path, entries=True)


def test_a_json_file_with_any_byte_changed_is_not_read(tmp_path):
    path = tmp_path / "meta.json"
    written = kept_files.write_json(path, {"a": [1, 2.5, None], "b": {"c": "text"}})
    whole = path.read_bytes()
    assert kept_files.read_json(path) == written
    for at, byte in enumerate(whole):
        if not whole[at : at + 1].isspace():
            path.write_bytes(whole[:at] + bytes([byte ^ 1]) + whole[at + 1 :])
            with pytest.raises(Failed):
                kept_files.read_json(path)
    path.write_bytes(whole.replace(b'"digest"', b'"digost"'))
    with pytest.raises(Damaged):
        kept_files.read_json(path)


def test_a_write_that_fails_leaves_the_old_file_and_its_seal(tmp_path):
    path = tmp_path / "a.pt"
    kept_files.write(path, b"old")
    with pytest.raises(KeyError), kept_files.writing_archive(path) as file:
        file.write(b"new")
        raise KeyError
    assert path.read_bytes() == b"old" and kept_files.check(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt", "a.pt.sha256"]


@pytest.mark.parametrize("umask, mode", [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_the_umask_decides_who_may_read(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        kept_files.write(tmp_path / "a.pt", b"x")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()] == [mode, mode]


def test_a_link_in_the_place_of_a_file_is_replaced_and_what_it_points_at_stays(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / "a.pt").symlink_to(tmp_path / "thesis.tex")
    kept_files.write(tmp_path / "a.pt", b"x")
    assert (tmp_path / "thesis.tex").read_text() == "mine" and not (tmp_path / "a.pt").is_symlink()


def test_a_large_file_is_hashed_once_per_process(tmp_path, monkeypatch):
    path, calls = tmp_path / "a.pt", []
    kept_files.write(path, b"x")
    real = kept_files.files.sha256
    monkeypatch.setattr(kept_files.files, "sha256", lambda path: calls.append(path) or real(path))
    assert kept_files.check(path) == kept_files.check(path) and len(calls) == 1
    kept_files.write(path, b"y")
    assert kept_files.check(path) and len(calls) == 2


@pytest.mark.parametrize("blocked", ["a file where the folder should be", "a folder where the file should be"])
def test_what_cannot_be_written_is_one_line(tmp_path, blocked):
    (tmp_path / "taken").write_text("") if "a file" in blocked[:6] else (tmp_path / "taken/a.pt").mkdir(parents=True)
    with pytest.raises(Failed, match=r"cannot write .*a\.pt: .*(check permissions|remove that folder)"):
        kept_files.write(tmp_path / "taken/a.pt", b"x")


def test_a_pipe_in_the_place_of_a_kept_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "val.bin")
    with pytest.raises(Damaged, match="is not a regular file"):
        kept_files.check(tmp_path / "val.bin", "0" * 64)
    with pytest.raises(Damaged, match="is not a regular file"):
        kept_files.read_json(tmp_path / "val.bin")
