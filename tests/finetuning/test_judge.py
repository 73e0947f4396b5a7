"""Scores that a judge gave: what is not a score is refused in one line, whatever it is."""

import pytest

from lowmem.errors import Failed
from lowmem.finetuning import judge

ROW = '{"question_id": 81, "score": 7}\n'


def judged(tmp_path, text):
    (tmp_path / judge.SCORES).write_text(text, encoding="utf-8")
    return judge.judged(tmp_path)


@pytest.mark.parametrize("score", ["Infinity", "NaN", "1e9", "true", '"7"', "null", "[7]", "{}", "1" + "0" * 400, "11"])
def test_what_is_no_score_is_one_line(tmp_path, score):
    with pytest.raises(Failed, match=r"judged\.jsonl") as caught:
        judged(tmp_path, ROW + f'{{"question_id": 82, "score": {score}}}\n')
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("row", ["[1]", '"question_id score"', "5", "null", "[" * 5000, "{"])
def test_what_is_no_row_is_one_line(tmp_path, row):
    with pytest.raises(Failed, match=r"judged\.jsonl, line 2"):
        judged(tmp_path, ROW + row + "\n")


def test_a_question_counts_once(tmp_path):
    with pytest.raises(Failed, match="judged twice"):
        judged(tmp_path, ROW * 2)


def test_two_turns_of_a_question_are_two_scores(tmp_path):
    assert (
        judged(tmp_path, '{"question_id": 1, "turn": 1, "score": 4}\n{"question_id": 1, "turn": 2, "score": 8}\n') == 6
    )


def test_signs_that_python_takes_for_ends_of_lines_may_stand_in_a_text(tmp_path):
    assert judged(tmp_path, '{"question_id": "a\u2028b\u0085c", "score": 4}\n') == 4
