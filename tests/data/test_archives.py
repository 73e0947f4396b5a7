"""Reading archives without extracting them."""

import io
import os
import tarfile
import zipfile

import pytest
from archive_bytes import tar_bytes, zip_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem.data import archives
from lowmem.errors import Failed

names = st.lists(st.text("abcdefghij_-", min_size=1, max_size=8), min_size=1, max_size=3).map("/".join)
contents = st.dictionaries(names, st.binary(max_size=2000), min_size=1, max_size=5)


def deb_bytes(files, control=b"odd", data_name="data.tar.xz"):
    out = b"!<arch>\n"
    data = tar_bytes(files, "w:xz")
    for name, body in (("debian-binary", b"2.0\n"), ("control.tar.xz", control), (data_name, data)):
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(body):<10}`\n".encode() + body + b"\n" * (len(body) % 2)
    return out


MAKERS = {
    "a.tar.gz": tar_bytes,
    "a.tgz": tar_bytes,
    "a.tar.xz": lambda files: tar_bytes(files, "w:xz"),
    "a.whl": zip_bytes,
    "a.deb": deb_bytes,
}


def write(folder, name, data):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    return folder / name


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=20, deadline=None)
@given(files=contents)
def test_every_member_comes_back_byte_for_byte(tmp_path_factory, name, files):
    path = write(tmp_path_factory.mktemp("a"), name, MAKERS[name](files))
    assert {member: stream.read() for member, stream in archives.members(path)} == files
    assert archives.read(path.parent, "*") == files


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("bad", ["../evil", "a/../../evil", "/etc/evil", "..\\evil", "C:/evil"])
def test_a_member_that_leaves_the_archive_is_refused(tmp_path, name, bad):
    data = MAKERS[name]({"fine": b"1", bad: b"2"})
    path = write(tmp_path / "raw", name, data)
    with pytest.raises(Failed, match="outside the archive"):
        archives.read(path.parent, "*")
    assert os.listdir(tmp_path) == ["raw"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_in_a_tar_is_never_followed(tmp_path, kind):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        info = tarfile.TarInfo("data.txt")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    path = write(tmp_path, "a.tgz", out.getvalue())
    assert list(archives.members(path)) == [("data.txt", None)]
    with pytest.raises(Failed, match="links are not followed"):
        archives.read(tmp_path, "*/data.txt")


def test_a_link_in_a_zip_is_never_followed(tmp_path):
    info = zipfile.ZipInfo("data.txt")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(Failed, match="links are not followed"):
        archives.read(tmp_path, "*/data.txt")


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_truncated_archive_fails_in_one_line(tmp_path, name, part):
    data = MAKERS[name]({f"f{i}": os.urandom(3000) for i in range(5)})
    write(tmp_path, name, data[: int(part * len(data))])
    with pytest.raises(Failed) as failure:
        archives.read(tmp_path, "*")
    assert "\n" not in str(failure.value)
    assert "damaged" in str(failure.value)


def test_an_archive_of_an_odd_length_control_part_is_read(tmp_path):
    for control in (b"odd", b"even"):
        write(tmp_path, "a.deb", deb_bytes({"x": b"1"}, control))
        assert archives.read(tmp_path, "*/x") == {"x": b"1"}


def test_a_leading_dot_slash_is_no_part_of_a_name(tmp_path):
    write(tmp_path, "a.tgz", tar_bytes({"usr/x": b"1"}, prefix="./"))
    assert archives.read(tmp_path, "*") == {"usr/x": b"1"}


def test_a_zstd_deb_is_refused_with_the_reason(tmp_path):
    write(tmp_path, "a.deb", deb_bytes({"x": b"1"}, data_name="data.tar.zst"))
    with pytest.raises(Failed, match="zstd"):
        archives.read(tmp_path, "*/x")


def test_plain_files_and_archive_members_match_the_same_pattern(tmp_path):
    write(tmp_path / "archive", "a.tgz", tar_bytes({"package/data/1.txt": b"one"}))
    write(tmp_path / "plain", "1.txt", b"one")
    assert list(archives.read(tmp_path / "archive", "*/1.txt").values()) == [b"one"]
    assert list(archives.read(tmp_path / "plain", "*/1.txt").values()) == [b"one"]


def test_nothing_found_names_folder_and_pattern(tmp_path):
    with pytest.raises(Failed, match=r"matches '\*/1.txt'"):
        archives.read(tmp_path, "*/1.txt")
    with pytest.raises(Failed, match="matches"), archives.opened(tmp_path, "*/1.txt"):
        pass
