"""The pictures in README and docs, from fresh runs, by one command, offline.

    python examples/gallery.py                 # about four minutes on two cores
    python examples/gallery.py --results DIR   # from runs that are there (an --out of compare)
    python examples/gallery.py --smoke         # two methods, seconds

Curves, matrices, costs and the page are of the embedded stream; the routing maps are of the two
photographs that scikit-learn brings, by a model that was trained on pieces of them.
Needs ``pip install avalanche-rwf[test]`` and, for the screenshots, Chromium with its driver
(``apt-get install chromium chromium-driver``); without it they are left out.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from avalanche_rwf.cli import main as avalanche_rwf
from avalanche_rwf.leaderboard import plots, read_runs
from avalanche_rwf.leaderboard.aggregate import protocols

METHODS = "rwf,rwf-mean,rwf-lda,layers-lda,slda,ncm,linear-probe,single-prompt,dualprompt,l2p"
COLOURS = 256  # of a palette: a picture in a repository must be small
NEAR = 40  # the square of a distance between colours that nobody sees
MANY = 20_000
SCREEN = 1280
# What is photographed: name of the file, part of the page, theme, height.
SHOTS = (
    ("report", "main", "light", 1060),
    ("report-dark", "main", "dark", 1060),
    ("report-routing", "routing", "dark", 1180),
)


def verb(*words: str) -> None:
    """Do what the command line does."""
    if avalanche_rwf(list(words)):
        raise SystemExit(f"avalanche-rwf {words[0]} failed; see above.")


def save_small(image: Image.Image, path: Path) -> None:
    """Write a picture with a palette of its own."""
    pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    colours, place, counts = np.unique(pixels, axis=0, return_inverse=True, return_counts=True)
    if len(colours) > MANY:  # of photographs
        small = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    else:
        # The most frequent colours that can be told apart: the usual palette mixes thin lines'.
        colours = colours.astype(np.int64)
        palette = np.empty((0, 3), np.int64)
        for colour in colours[np.argsort(-counts)]:
            if len(palette) < COLOURS and (((palette - colour) ** 2).sum(1) > NEAR).all():
                palette = np.vstack([palette, colour])
        nearest = ((colours[:, None] - palette) ** 2).sum(-1).argmin(1)
        shape = (image.height, image.width)
        small = Image.fromarray(nearest[place].reshape(shape).astype(np.uint8), "P")
        small.putpalette(palette.ravel().tolist())
    small.save(path, optimize=True)
    print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


def draw(figure, path: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        drawn = Path(scratch) / "figure.png"
        figure.savefig(drawn, dpi=150)
        with Image.open(drawn) as image:
            save_small(image, path)


def photographs(folder: Path, pieces: int) -> list[Path]:
    """Make four classes of pieces of two photographs: their left and their right halves.

    Returns the middle of each photograph, as what is explained.
    """
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    middles = []
    for name, pixels in zip(("temple", "flower"), load_sample_images().images, strict=True):
        image = Image.fromarray(pixels)
        width, height = image.size
        for half, left in {"left": 0, "right": width // 2}.items():
            for split, count in {"train": pieces, "test": max(1, pieces // 6)}.items():
                place = folder / split / f"{name}-{half}"
                place.mkdir(parents=True)
                for number in range(count):
                    side = int(rng.integers(100, 200))
                    x = left + int(rng.integers(width // 2 - side))
                    y = int(rng.integers(height - side))
                    image.crop((x, y, x + side, y + side)).save(place / f"{number}.png")
        middle = image.crop(((width - height) // 2, 0, (width + height) // 2, height))
        middles.append(folder / f"{name}.png")
        middle.resize((256, 256)).save(middles[-1])
    return middles


def screenshots(page: Path, out: Path) -> None:
    """Photograph the report: ranking and curves in both themes, and the section on routing."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        print("No screenshots: Chromium and its driver are not installed.")
        return
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory() as scratch:
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for flag in (
            "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--hide-scrollbars", f"--user-data-dir={scratch}/profile",
        ):  # fmt: skip
            options.add_argument(flag)
        chrome = webdriver.Chrome(options=options, service=Service(driver))
        try:
            for name, section, theme, height in SHOTS:
                shot = Path(scratch) / "shot.png"
                chrome.execute_cdp_cmd(
                    "Emulation.setDeviceMetricsOverride",
                    {"width": SCREEN, "height": height, "deviceScaleFactor": 1, "mobile": False},
                )
                chrome.execute_cdp_cmd(
                    "Emulation.setEmulatedMedia",
                    {"features": [{"name": "prefers-color-scheme", "value": theme}]},
                )
                chrome.get("about:blank")
                chrome.get(page.as_uri())
                there = chrome.execute_script(
                    "const s = document.getElementById(arguments[0]);"
                    "document.documentElement.style.scrollBehavior = 'auto';"
                    "if (arguments[0] !== 'main') s.scrollIntoView();"
                    "return !s.hidden",
                    section,
                )
                if not there:
                    continue
                time.sleep(4)  # plots are drawn when they come into view
                chrome.save_screenshot(str(shot))
                with Image.open(shot) as image:
                    save_small(image, out / f"{name}.png")
        finally:
            chrome.quit()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="two methods and one seed, seconds")
    parser.add_argument("--results", type=Path, help="runs that are there already")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[1] / "docs" / "images",
        help="folder for the pictures",
    )  # fmt: skip
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)

    with tempfile.TemporaryDirectory() as scratch:
        results = args.results or Path(scratch) / "results"
        if args.results is None:
            small = ["--methods", "rwf-lda,ncm", "--seeds", "0", "--experiences", "2"]
            words = small if args.smoke else ["--methods", METHODS]
            verb("compare", *words, "--out", str(results), "--quiet")
        report = Path(scratch) / "report"
        verb("report", str(results), "--out", str(report))
        screenshots(report / "index.html", args.out)

        runs = protocols(read_runs(results).frame)[0]
        draw(plots.anytime_accuracy(runs), args.out / "curves.png")
        draw(plots.accuracy_matrices(runs), args.out / "matrices.png")
        draw(plots.accuracy_against_cost(runs), args.out / "cost.png")

        stream = Path(scratch) / "stream.png"
        verb("inspect", "--stream", "si-blurry", "--seed", "1", "--plot", str(stream))
        with Image.open(stream) as image:
            save_small(image, args.out / "stream.png")

        photos, maps = Path(scratch) / "photographs", Path(scratch) / "maps"
        temple, flower = photographs(photos, 6 if args.smoke else 60)
        methods = {"rwf-lda": temple} if args.smoke else {"rwf-lda": temple, "rwf": flower}
        verb("compare", "--benchmark", f"folder:{photos}", "--methods", ",".join(methods),
             "--seeds", "0", "--experiences", "2", "--image-size", "128",
             "--set", "rwf.routed_blocks=0,2,4", "--set", "rwf.num_prompts=6",
             "--out", str(maps), "--quiet")  # fmt: skip
        for run in read_runs(maps).frame.to_dict("records"):
            image = methods[run["method"]]
            verb("explain", str(image), "--run", str(maps / run["run_dir"]), "--out", scratch)
            with Image.open(Path(scratch) / f"{image.stem}-routes.png") as drawn:
                save_small(drawn, args.out / f"routes-{run['method']}.png")


if __name__ == "__main__":
    main()
