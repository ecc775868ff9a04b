"""``inspect`` says what a stream brings."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from .command import call


@pytest.mark.parametrize(
    ("stream", "says"),
    [
        (["split"], "split, seed 3"),
        (["si-blurry", "--blurry", "30"], "si-blurry (disjoint=50, blurry=30, remainder=keep)"),
        (["i-blurry", "--remainder", "drop"], "i-blurry (disjoint=50, blurry=10, remainder=drop)"),
        (["k-shot"], "k-shot (shots=4)"),
        (["fscil", "--base", "4", "--way", "3"], "fscil (base=4, way=3, shots=5)"),
        (["repetition", "--repeat", "1"], "repetition (repeat=1.0)"),
    ],
)
def test_inspect_shows_one_stream_as_table_json_and_picture(stream, says, capsys, tmp_path):
    """Table, JSON and picture of one stream agree."""
    line = ["inspect", "--stream", *stream, "--seed", 3, "--plot", tmp_path / "stream.png"]
    status, out, err = call(capsys, *line)
    assert status == 0, err
    title, header, *rows, total = out.splitlines()
    assert title.startswith("split-digits, stream ") and says in title
    assert header.split()[:4] == ["exp", "samples", "test", "classes"]
    assert Image.open(tmp_path / "stream.png").convert("L").getextrema() == (0, 255)

    status, out, _ = call(capsys, *line, "--json")
    values = json.loads(out)  # nothing else on stdout
    assert status == 0
    assert set(values) == {
        "benchmark", "stream", "seed", "num_classes", "class_names", "options", "experiences",
    }  # fmt: skip
    assert (values["benchmark"], values["stream"], values["seed"]) == ("split-digits", stream[0], 3)
    assert len(values["experiences"]) == len(rows)
    seen: list[str] = []
    for row, e in zip(rows, values["experiences"], strict=True):
        assert set(e) == {"size", "classes", "class_counts", "labels", "first_seen", "test_size"}
        assert [int(cell) for cell in row.split()[1:5]] == [
            e["size"], e["test_size"], len(e["classes"]), len(e["first_seen"]),
        ]  # fmt: skip
        assert e["size"] == sum(e["class_counts"].values())
        assert list(e["class_counts"]) == e["classes"]
        assert e["classes"] == [values["class_names"][label] for label in e["labels"]]
        assert e["first_seen"] == [name for name in e["classes"] if name not in seen]
        seen += e["first_seen"]
    assert seen == values["class_names"] and len(seen) == values["num_classes"] == 10
    assert total.split()[:4] == [
        "all", *(str(sum(e[key] for e in values["experiences"])) for key in ("size", "test_size")),
        "10",
    ]  # fmt: skip


def test_inspect_of_a_folder_reads_no_image(images, capsys, monkeypatch):
    def read(*args, **kwargs):
        pytest.fail("an image was opened")

    from avalanche_rwf.benchmarks.datasets import folder

    folder._memory.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", read)
        status, out, _ = call(
            capsys, "inspect", "--benchmark", f"folder:{images}", "--class-order", "d,c,b,a",
            "--classes-per-experience", "3,1", "--json",
        )  # fmt: skip
    assert status == 0
    assert [e["class_counts"] for e in json.loads(out)["experiences"]] == [
        {"d": 5, "c": 5, "b": 5}, {"a": 5},
    ]  # fmt: skip


def test_inspect_says_what_is_left_out_on_stderr_and_in_json(images, capsys, tmp_path):
    root = shutil.copytree(images, tmp_path / "set")
    shutil.copytree(root / "test", root / "val")
    (root / "train" / "a" / "notes.txt").write_text("x")
    status, out, err = call(capsys, "inspect", "--benchmark", f"folder:{root}", "--json")
    assert status == 0
    notes = json.loads(out)["notes"]
    assert len(notes) == 2 and err.splitlines() == notes
    assert "val" in notes[0] and "notes.txt" in notes[1]


def test_inspect_leaves_out_what_compare_would(spoilt, capsys):
    status, out, _ = call(
        capsys, "inspect", "--benchmark", f"folder:{spoilt}/corrupt", "--skip-corrupt", "--json"
    )
    assert status == 0
    assert sorted(e["size"] for e in json.loads(out)["experiences"]) == [1, 2]
