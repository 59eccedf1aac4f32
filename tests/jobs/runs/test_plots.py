"""Colours of plots."""

import matplotlib.image
from promptmm.jobs.runs.plots import color_of, write_plot


def test_twenty_series_have_twenty_colours(tmp_path):
    def draw(axes):
        for number in range(20):
            axes.fill_between([number, number + 1], [1, 1])

    write_plot(f"{tmp_path}/bars.png", "bars", draw)
    picture = matplotlib.image.imread(tmp_path / "bars.png")[..., :3]
    shown = {tuple(round(255 * float(x)) for x in pixel) for pixel in picture.reshape(-1, 3)}
    wanted = {tuple(int(color_of(number)[at : at + 2], 16) for at in (1, 3, 5)) for number in range(20)}
    assert len(wanted) == 20
    assert wanted <= shown
