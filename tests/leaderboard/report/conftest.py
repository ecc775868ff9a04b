"""Runs with curves, matrices and routing, made up; as many as are asked for."""

from __future__ import annotations

import json

import pytest

SHA = "3fa9c1d2" * 8


def fake_run(out, method, seed, config_hash, a_last=0.9, status="done", log="it ran", **config):
    """Write one run directory of 3 experiences of 2 classes and 300 samples."""
    path = out / "runs" / "split-digits" / "m" / config_hash / f"seed{seed}"
    path.mkdir(parents=True)
    content = {
        "config": {
            "benchmark": "split-digits", "stream": "split", "experiences": None, "seed": seed,
            "method": method, "options": {"head": "white", "mask": "seen", "readout": "cls"},
            "backbone": "rwf_vit_mini_patch8_32", "backbone_args": {}, "weights": None,
            "image_size": None, "batch_size": 16, "gradient_steps": 1, "precision": "fp32",
            "augment": "none", "eval_every_samples": 80, "holdout": 0.0, **config,
        },
        "config_hash": config_hash,
        "backbone": {"name": "rwf_vit_mini_patch8_32", "sha256": SHA, "source": "packaged"},
        "data": {"classes_per_experience": [[0, 1], [2, 3], [4, 5]], "train_size": 300,
                 "test_size": 90, "skipped": 0},
        "uses_boundaries": False, "versions": {"avalanche-rwf": "0.1.0"}, "hardware": {},
        "git": None,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(content))
    (path / "log.txt").write_text(log + "\n")
    if status != "done":
        (path / "summary.json").write_text(json.dumps({"status": status, "error": "no luck"}))
        return path
    ends = [100 + seed, 200 + seed, 300]
    rows = [f"{80 * k + 3},,accuracy_exposed,{a_last + 0.02}" for k in (1, 2)]
    for t, seen in enumerate(ends):
        rows.append(f"{seen},,accuracy_exposed,{a_last + (2 - t) * 0.03!r}")
        rows += [f"{seen},{j},accuracy,{a_last - 0.01 * (t - j)!r}" for j in range(t + 1)]
        if method.startswith("rwf"):
            rows += [f"{seen},0,prompt_drift,{0.1 * t!r}", f"{seen},0,routing_entropy,0.8"]
    text = "\n".join(["samples_seen,experience,metric,value", *rows]) + "\n"
    (path / "metrics.csv").write_text(text)
    summary = {
        "a_last": a_last, "a_avg": a_last + 0.03, "a_auc": a_last + 0.02,
        "forgetting_experience": 0.05, "forgetting_class": 0.06, "train_seconds": 2.0,
        "eval_seconds": 1.0, "train_samples_per_second": 640.0 + seed,
        "forward_passes_per_image": 1.0, "trainable_parameters": 25600,
        "peak_memory_bytes": 1000, "gradient_steps": 75, "samples_seen": 300, "status": "done",
    }  # fmt: skip
    (path / "summary.json").write_text(json.dumps(summary))
    return path


@pytest.fixture(scope="session")
def runs():
    """The function that writes one."""
    return fake_run


def fake_study(out, method, notes, importance=None):
    """Write the files of a search, a trial for each of `notes`."""
    place = out / "tuning" / "m-0123456789"
    (place / "trials").mkdir(parents=True)
    config = {"benchmark": "split-digits", "stream": "split", "backbone": "rwf_vit_mini_patch8_32"}
    about = {"method": method, "config": config, "space": {}, "seed": 3}
    (place / "study.json").write_text(json.dumps(about))
    for number, note in enumerate(notes):
        (place / "trials" / f"{number:04}.json").write_text(json.dumps(note))
    (place / "importance.json").write_text(json.dumps(importance or {}))
    return place


@pytest.fixture(scope="session")
def study():
    """The function that writes one."""
    return fake_study
