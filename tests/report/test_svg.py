import os
import pathlib
import subprocess
import sys

import pytest

from selftrain_jax.report import svg

ROOT = pathlib.Path(__file__).resolve().parents[2]


def draw():
    return svg.figure("Title", "Caption", lambda axes: axes.plot([1, 2], [3, 4], label="one")).svg


@pytest.mark.parametrize("setting", [{"text.usetex": True}, {"font.size": 40.0, "axes.facecolor": "red"}], ids=str)
def test_what_a_user_has_set_for_plots_changes_no_page(setting):
    wanted = draw()
    import matplotlib

    with matplotlib.rc_context(setting):
        assert draw() == wanted
        assert {name: matplotlib.rcParams[name] for name in setting} == setting


def test_files_of_the_plotting_library_cannot_stop_a_report(tmp_path):
    """None of them can be read: in the working directory, in the user's folder, and what the environment names."""
    (tmp_path / "matplotlib").mkdir()
    for path in (tmp_path / "matplotlibrc", tmp_path / "matplotlib" / "matplotlibrc"):
        path.write_bytes(b"\xff\xfe")
    script = "import sys; from tests.report.test_svg import draw; sys.stdout.write(draw())"
    environment = {"PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(tmp_path), "MPLBACKEND": "nonsense"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == draw()


def test_no_two_hues_look_alike_and_every_line_is_named(recwarn):
    """Matplotlib's legend leaves out a name that begins with an underscore, and a line without a name could be any."""
    hues = [svg.nth(range(4, 7), i) for i in range(9)] + list(range(4))
    looks = [svg.look(hue, f"{'_' * (hue % 2)}arm{hue} (self)") for hue in hues]
    assert len({(look["color"], look["marker"]) for look in looks}) == len(hues)
    assert {look["color"] for look in looks} == {svg.colour(hue) for hue in range(7)}
    assert len({(look["color"], str(look["ls"])) for look in looks}) == len(hues)
    page = svg.figure("T", "C", lambda axes: [axes.plot([1, 2], [3, i], **look) for i, look in enumerate(looks)]).svg
    assert all(f"{'_' * (hue % 2)}arm{hue} (self)</text>" in page for hue in hues) and "#00fe" not in page
    assert not recwarn
