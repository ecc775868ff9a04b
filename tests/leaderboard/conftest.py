"""Run directories made up for the tests."""

from __future__ import annotations

import json

import pytest

SHA = "3fa9c1d2" * 8


@pytest.fixture
def make_run(tmp_path):
    """A function that writes one run directory; dots in a keyword are not possible, so: groups."""

    def write(
        method="rwf",
        seed=0,
        config_hash="aaaa",
        *,
        options=None,
        sha=SHA,
        status="done",
        summary=None,
        boundaries=False,
        out=tmp_path,
        **config,
    ):
        path = out / "runs" / "split-digits" / method / config_hash / f"seed{seed}"
        path.mkdir(parents=True)
        content = {
            "config": {
                "benchmark": "split-digits",
                "stream": "split",
                "experiences": 5,
                "seed": seed,
                "method": method,
                "options": {
                    "head": "white",
                    "mask": "seen",
                    "readout": "cls",
                    **(options or {}),
                },
                "backbone": "rwf_vit_mini_patch8_32",
                "backbone_args": {},
                "weights": None,
                "image_size": 32,
                "batch_size": 16,
                "gradient_steps": 1,
                "precision": "fp32",
                "augment": "none",
                "eval_every_samples": None,
                "holdout": 0.0,
                **config,
            },
            "config_hash": config_hash,
            "backbone": {
                "name": "rwf_vit_mini_patch8_32",
                "sha256": sha,
                "source": "packaged",
            },
            "uses_boundaries": boundaries,
            "versions": {},
            "hardware": {},
            "git": None,
        }
        values = {
            "a_last": 0.9,
            "a_avg": 0.92,
            "a_auc": 0.91,
            "forgetting_experience": 0.05,
            "forgetting_class": 0.06,
            "train_seconds": 2.0,
            "eval_seconds": 1.0,
            "train_samples_per_second": 640.0,
            "forward_passes_per_image": 1.0,
            "trainable_parameters": 25600,
            "peak_memory_bytes": 1000,
            "gradient_steps": 75,
            "samples_seen": 1200,
            "status": status,
            **(summary or {}),
        }
        (path / "config.json").write_text(json.dumps(content))
        (path / "summary.json").write_text(json.dumps(values))
        return path

    return write
