"""Routing maps: the table's numbers are the model's own, the figure has a map per prompt."""

from __future__ import annotations

import csv
import json
import os
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from PIL import Image

from avalanche_rwf.cli import main
from avalanche_rwf.evaluation.routing import read_routes
from avalanche_rwf.experiments.config import RunConfig, run_directory
from avalanche_rwf.experiments.load_run import load_routed
from avalanche_rwf.experiments.run import run
from avalanche_rwf.leaderboard.explain import draw_routes, read_pixels
from avalanche_rwf.models.backbone import backbone_info
from avalanche_rwf.strategies.registry import resolve_options


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two classes of four random images, for training and as what is explained."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.RandomState(0)
    for split in ("train", "test"):
        for name in "ab":
            (root / split / name).mkdir(parents=True)
            for index in range(4):
                pixels = rng.randint(0, 256, (20, 16, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"$x {index}.png")
    return root


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """A function: method and options -> run directory of a tiny ViT trained on the images."""
    out = tmp_path_factory.mktemp("out")

    def make(method, stream="split", **options):
        config = RunConfig(
            benchmark=f"folder:{images}", method=method, options=resolve_options(method, options),
            stream=stream, experiences=2, backbone="vit_tiny_patch16_224", image_size=16,
            backbone_args={"pretrained": False, "depth": 3, "embed_dim": 16, "num_heads": 2,
                           "patch_size": 8},
        )  # fmt: skip
        assert run(config, out)["status"] == "done"
        return run_directory(out, config)

    return make


def test_figures_and_tables_of_a_run(images, trained, tmp_path, capsys):
    folder = trained("rwf", routed_blocks="0,2", num_prompts=3, heads=2)
    given = [images / "test" / name / "$x 1.png" for name in "ab"]
    words = ["explain", *map(str, given), "--run", str(folder), "--out", str(tmp_path)]
    assert main(words) == 0
    figures = [tmp_path / "-x-1-routes.png", tmp_path / "-x-1-2-routes.png"]
    assert capsys.readouterr().out.splitlines() == [str(path) for path in figures]
    for path in figures:
        with Image.open(path) as image:
            assert min(image.size) > 200
            assert image.convert("L").getextrema()[0] < 50  # not an empty page

    # The table of the second image, against the model itself.
    _, model = load_routed(folder)
    info = backbone_info(model.backbone)
    seen = read_pixels(given[1], info)
    assert seen.shape == (3, 16, 16)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (info.mean, info.std))
    routes = read_routes(model, (torch.from_numpy(seen)[None] / 255 - mean) / std)
    with figures[1].with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 2  # blocks, prompts, heads
    for row in rows:
        block, slot, head = (int(row[name]) for name in ("block", "prompt", "head"))
        found = routes[block].diagnostics
        p = found.association[0, head, slot]
        assert float(row["entropy"]) == pytest.approx(float(-(p * p.log()).sum()), abs=1e-5)
        assert float(row["free_energy"]) == pytest.approx(float(found.free_energy[0, head, slot]))
        assert float(row["class_token"]) == pytest.approx(float(p[0]), abs=1e-6)
        best = int(row["best_patch"])
        assert float(row["best_patch_share"]) == pytest.approx(float(p[1:].max()), abs=1e-6)
        assert float(p[1 + best]) == float(p[1:].max())


def test_a_map_shows_the_association_over_the_patches(trained, images, tmp_path):
    folder = trained("rwf-lda", blocks="last 2", num_prompts=2)
    _, model = load_routed(folder)
    torch.manual_seed(0)
    routes = read_routes(model, torch.randn(1, 3, 16, 16))
    figure = draw_routes(np.zeros((3, 16, 16), np.uint8), routes, model, "t")
    *maps, bar = figure.axes
    axes = np.array(maps).reshape(2, 3)  # blocks; the image and two prompts
    assert "multiple" in bar.get_ylabel()
    assert "uniform" in [label.get_text() for label in bar.get_yticklabels()]
    scales = {shown.images[1].get_clim() for shown in axes[:, 1:].flat}
    ((low, high),) = scales  # one for the figure, as much above the uniform share as below
    assert low * high == pytest.approx(1)
    for line, block in enumerate((1, 2)):
        assert axes[line, 0].get_ylabel() == f"block {block}"
        for slot in (0, 1):
            shown = axes[line, slot + 1].images[1].get_array()
            p = routes[block].diagnostics.association[0].mean(0)[slot, 1:]
            assert np.allclose(shown, 5 * p.reshape(2, 2).numpy())  # of five tokens

    image = images / "test" / "a" / "$x 0.png"
    words = ["explain", str(image), "--run", str(folder), "--out", str(tmp_path)]
    assert main([*words, "--format", "svg"]) == 0
    root = ET.parse(tmp_path / "-x-0-routes.svg").getroot()
    assert root.tag.endswith("svg")


def test_a_map_of_another_image_or_run_is_never_written_over(trained, images, tmp_path, capsys):
    run, other = (trained("rwf", routed_blocks="0", num_prompts=n) for n in (1, 2))

    def draw(name, folder):
        words = [str(images / "test" / name / "$x 1.png"), "--run", str(folder)]
        assert main(["explain", *words, "--out", str(tmp_path)]) == 0
        return capsys.readouterr().out.split()[-1].rpartition("/")[2]

    assert draw("a", run) == "-x-1-routes.png"
    content = (tmp_path / "-x-1-routes.png").read_bytes()
    assert draw("b", run) == "-x-1-2-routes.png"
    assert draw("a", other) == "-x-1-3-routes.png"
    (tmp_path / "-x-1-4-routes.csv").write_text("mine")
    assert draw("b", other) == "-x-1-5-routes.png"
    assert draw("b", run) == "-x-1-2-routes.png"  # the same again
    assert draw("a", run) == "-x-1-routes.png"
    assert (tmp_path / "-x-1-routes.png").read_bytes() == content


def test_a_run_whose_classes_come_back_has_each_of_them_once(trained):
    folder = trained("rwf", "repetition", routed_blocks="all", num_prompts=1)
    classes = json.loads((folder / "config.json").read_text())["data"]["classes_per_experience"]
    assert sum(map(len, classes)) > 2
    _, model = load_routed(folder)
    assert model.head(torch.zeros(1, model.head.in_features)).shape == (1, 2)


def test_bad_input_is_one_sentence(trained, images, tmp_path, capsys):
    good = str(images / "test" / "a" / "$x 0.png")
    text = tmp_path / "text.png"
    text.write_text("no image")
    folder = trained("rwf", routed_blocks="all", num_prompts=1)

    def said(*words):
        assert main(["explain", *map(str, words), "--out", str(tmp_path / "out")]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        return lines[0]

    assert "has no config.json" in said(good, "--run", tmp_path / "none")
    assert "ncm in" in said(good, "--run", trained("ncm"))
    assert "retrieves nothing" in said(good, "--run", trained("rwf-mean", routed_blocks="all"))
    assert "no image that is known here" in said(good, text, "--run", folder)
    assert "No such file" in said(tmp_path / "none.png", "--run", folder)
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    assert "pixels" in said(tmp_path / "bomb.png", "--run", folder)
    os.mkfifo(tmp_path / "pipe.png")  # reading it would wait for ever
    assert "it is no file" in said(tmp_path / "pipe.png", "--run", folder)
    assert not (tmp_path / "out").exists()  # checked before anything is drawn
    many = trained("rwf", routed_blocks="0", num_prompts=33)
    assert "at most 32 prompts per block" in said(good, "--run", many)
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_it_says_what_to_install(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    image = str(images / "test" / "a" / "$x 0.png")
    (tmp_path / "config.json").write_text("{}")
    assert main(["explain", image, "--run", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert "pip install avalanche-rwf[report]" in err
    assert err.count("\n") == 1
