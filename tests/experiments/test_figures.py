"""Every figure of `figures/` is drawn from the CSV files beside it, and nothing runs."""

import pathlib
import shutil

import pytest
import scripts

pytest.importorskip("matplotlib")

FIGURES = scripts.ROOT / "figures"
# Script, folder -> its figures.
DRAWN = {
    ("mnist_natgrad", "."): {"mnist_convergence.png", "mnist_step_cost.png"},
    ("loss_curvature", "."): {"loss_curvature.png", "loss_curvature_density.png"},
    ("policy_curvature", "."): {
        "policy_curvature.png",
        "policy_lines.png",
        "policy_surface.png",
        "policy_variance.png",
    },
    ("trpo", "."): {"trpo_learning.png", "trpo_curvature.png"},
    ("pde", "."): {"pde.png", "pde_solutions.png"},
    ("races", "."): {f"races_{name}.png" for name in ("blog", "mlp", "conv", "autoencoder", "regression")},
    ("races", "defaults"): {
        f"races_{name}.png"
        for name in ("blog", "mlp", "conv", "autoencoder_low", "sigmoid", "deep", "resnet", "regression")
    },
    ("races", "kfac"): {
        f"races_{name}.png" for name in ("mlp", "conv", "autoencoder_low", "sigmoid", "deep", "resnet")
    },
}


@pytest.fixture
def captions(monkeypatch):
    """How many lines the captions have of the figures that are written, by name."""
    from matplotlib.figure import Figure

    found, savefig = {}, Figure.savefig

    def spy(self, path, **options):
        # The text under the axes is the last one.
        found[pathlib.Path(path).name.split(".")[1]] = self.texts[-1].get_text().count("\n") + 1
        assert max(self.get_size_inches() * options["dpi"]) < 2600
        return savefig(self, path, **options)

    monkeypatch.setattr(Figure, "savefig", spy)
    return found


@pytest.mark.parametrize(("name", "folder"), DRAWN)
def test_the_recorded_rows_give_every_figure(name, folder, tmp_path, monkeypatch, captions):
    for path in (FIGURES / folder).glob("*.csv"):
        shutil.copy(path, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with scripts.imported(name) as script:
        for function in ("run_all", "train"):
            monkeypatch.setattr(script, function, lambda *arguments: pytest.fail("it ran"), raising=False)
        assert script.main(["--replot", "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.glob("*.png")} == DRAWN[name, folder]
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.csv")} == before
    assert {f"{figure}.png" for figure in captions} == DRAWN[name, folder]
    assert max(captions.values()) <= 3


def test_no_figure_is_without_its_script():
    drawn = {FIGURES / folder / name for (_, folder), names in DRAWN.items() for name in names}
    assert {path.resolve() for path in FIGURES.rglob("*.png")} == {path.resolve() for path in drawn}
