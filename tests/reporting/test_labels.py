"""Names in figures: none over another, none out of its panel, each beside what it names or joined to it."""

import itertools
import random

import pytest

from lowmem.reporting import labels, plots


def settled(write, names):
    """(Figure, its panel) after write(axes, names) and the last placing."""
    with plots.style():
        drawn, panels = plots.figure([["a", "b"]])
        axes = panels["a"]
        axes.margins(0.15)
        for x, y, _, colour in names:
            axes.plot([0, x], [1, y], marker="o", color=colour)
        write(axes, names)
        plots.settle(drawn)
        drawn.draw_without_rendering()
    return drawn, axes


def boxes(axes):
    return [text.get_window_extent() for text in axes.texts if text.get_text()]


def overlaps(found):
    return [(a, b) for a, b in itertools.combinations(found, 2) if a.overlaps(b)]


@pytest.mark.parametrize("seed", range(4))
def test_names_of_near_points_neither_overlap_nor_leave_their_panel(seed):
    at = random.Random(seed)
    words = ["embedding as one block", "embedding by Adam", "Adam-mini", "AdamW", "1-norm", "2-norm", "maximum"]
    names = [(1 + at.choice([0, 0, 0.02, 0.3]), 1 + at.choice([0, 0.01, 0.2]), word, "k") for word in words]
    _, axes = settled(plots.point_labels, names)
    assert len(boxes(axes)) == len(words) and not overlaps(boxes(axes))
    for box in boxes(axes):
        assert axes.bbox.x0 <= box.x0 + 2 and box.x1 <= axes.bbox.x1 + 2
        assert axes.bbox.y0 <= box.y0 + 2 and box.y1 <= axes.bbox.y1 + 2


def test_a_lone_point_has_its_name_at_its_right_and_not_on_its_mark():
    _, axes = settled(plots.point_labels, [(0.5, 2.0, "AdamW", "k"), (2.0, 0.0, "SM3", "k")])
    (box, _), x = boxes(axes), axes.transData.transform((0.5, 2.0))[0]
    assert x + 5 < box.x0 < x + 20


def test_a_far_name_is_joined_to_its_point():
    _, axes = settled(plots.point_labels, [(1, 1, f"name {k}", "k") for k in range(12)])
    joined = [text for text in axes.texts if text.arrow_patch is not None]
    assert joined and not overlaps(boxes(axes))


def test_heights_move_apart_by_as_little_as_they_can():
    assert labels.nearest_apart([0, 50, 100], 11) == [0, 50, 100]
    assert labels.nearest_apart([50, 50, 50], 10) == [40, 50, 60]
    assert labels.nearest_apart([0, 1, 100, 100], 10) == [-4.5, 5.5, 95, 105]


def test_names_at_line_ends_are_joined_to_them_only_where_they_had_to_move_far():
    drawn, axes = settled(plots.end_labels, [(1, 1.5, f"name {k}", "k") for k in range(5)])
    assert sum(text.arrow_patch is not None for text in axes.texts) == 5 and not overlaps(boxes(axes))
    assert all(box.x1 < drawn.axes[1].bbox.x0 for box in boxes(axes))
    _, axes = settled(plots.end_labels, [(1, k, f"name {k}", "k") for k in range(5)])
    assert not any(text.arrow_patch for text in axes.texts)
