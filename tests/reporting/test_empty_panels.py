"""Panels without any record take little room."""

from lowmem.reporting import plots


def drawn(mosaic, blank):
    with plots.style():
        figure, panels = plots.figure(mosaic, width=9.0, height=6.0)
        for name, axes in panels.items():
            axes.set_title(name)
            if name in blank:
                plots.empty(axes, "not run: a reason that is too long for one narrow panel")
            else:
                axes.plot([0, 1], [0, 1])
        plots.settle(figure)
    return figure, {name: axes.get_position() for name, axes in panels.items()}, panels


def test_a_figure_without_any_data_is_a_title_and_a_line():
    figure, _, panels = drawn([["a"]], "a")
    assert figure.get_size_inches()[1] < 1 and "\n" not in panels["a"].texts[0].get_text()


def test_a_row_without_data_is_low_and_a_column_narrow():
    figure, _, _ = drawn([["a", "b"], ["c", "d"]], "cd")
    assert 3 < figure.get_size_inches()[1] < 4
    _, places, _ = drawn([["a", "b"]], "b")
    assert places["b"].width < 0.6 * places["a"].width


def test_panels_beside_data_in_row_and_column_stay_as_they_are():
    figure, places, _ = drawn([["a", "b"], ["c", "d"]], "d")
    assert figure.get_size_inches()[1] == 6 and abs(places["d"].width - places["c"].width) < 0.02
