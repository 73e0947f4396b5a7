"""Files of a machine whose clock was wrong."""

import os
import time

from lowmem.files import fix_future_mtimes


def test_files_from_the_future_are_dated_now_and_others_are_left_alone(tmp_path):
    ahead, skewed, old = (tmp_path / name for name in ("ahead", "skewed", "old"))
    for path, shift in ((ahead, 20 * 365 * 86400), (skewed, 60), (old, -86400)):
        path.write_text("")
        os.utime(path, (time.time() + shift,) * 2)
    before = [path.stat().st_mtime for path in (skewed, old)]
    assert fix_future_mtimes([ahead, skewed, old, tmp_path / "missing"]) == [ahead]
    assert abs(ahead.stat().st_mtime - time.time()) < 60
    assert [path.stat().st_mtime for path in (skewed, old)] == before
