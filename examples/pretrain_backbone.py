"""Pretrain the packaged backbone, a 32x32 vision transformer, on CIFAR-10 and drawn letters.

The weights in ``avalanche_rwf/data`` were made by this script; its model card states the command.
One backbone and two linear heads are trained together, supervised: CIFAR-10 images (optional, a
``.tar.gz`` of ``train|test/<class>/*.jpg``, read in memory and never unpacked), and letters and
symbols drawn with the fonts that matplotlib ships. No digit is ever drawn, so that the data has no
overlap with the embedded stream of handwritten digits.

    python examples/pretrain_backbone.py --cifar10 cifar10.tar.gz --out weights.safetensors
    python examples/pretrain_backbone.py --smoke                      # seconds, generated data
    python examples/pretrain_backbone.py --evaluate weights.safetensors --out-card card.md

With the same arguments, thread count, libraries and processor type a run repeats itself exactly.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import tarfile
import tempfile
import time
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from avalanche_rwf.models.backbone import build_packaged_architecture

NAME = "rwf_vit_mini_patch8_32"
IMAGE_SIZE = 32
GLYPH_SIZE = 48  # side of the stored drawings; larger than the image so that scaling keeps detail
CIFAR_SHARE = 0.4

# One class per shape (size is normalised): letters that other scripts or the lower case draw alike
# (A and Alpha, C and c) are named once; letters drawn like a digit in most fonts (Cyrillic ze and
# small be) are left out.
GLYPHS = (
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    "abdefghijkmnpqrtuy"
    "ΓΔΘΛΞΠΣΦΨΩ"
    "αβγδεζηθλμξπσςτφω"
    "БДЖИЙЛЦЧШЩЪЫЭЮЯ"
    "ЂЉЊЄЏЋ"
    "ÆŒßÞþðØæœÅÇÑÖéå"
    "!#$&()*+/<=>?@[]{}%~^"
    "£¥€§¶©®†‡«¿×÷±"
    "∀∂∃∇∈∋√∞∠∩∪∫∴≈≠≡≤≥⊂⊆⊕⊗⊥⌈⌊◊"
    "←↑→↓↔⇐⇒⇔"
)

_DEJAVU = tuple(
    f"DejaVu{family}.ttf"
    for family in (
        "Sans", "Sans-Bold", "Sans-Oblique", "Sans-BoldOblique",
        "SansMono", "SansMono-Bold", "SansMono-Oblique", "SansMono-BoldOblique",
        "Serif", "Serif-Bold", "Serif-Italic", "Serif-BoldItalic",
    )
)  # fmt: skip
_STIX = ("STIXGeneral.ttf", "STIXGeneralBol.ttf", "STIXGeneralItalic.ttf", "STIXGeneralBolIta.ttf")
# Computer Modern keeps Latin letters, and nothing else, at their usual code points.
_CM = ("cmb10.ttf", "cmr10.ttf", "cmss10.ttf", "cmti10.ttf", "cmtt10.ttf")
FONTS = _DEJAVU + _STIX + _CM
HELD_OUT_FONTS = ("DejaVuSerif-Italic.ttf", "STIXGeneralBol.ttf", "cmss10.ttf")


# ------------------------------------------------------------------------------------------- data


def is_digit_like(text: str) -> bool:
    """Return whether any code point of `text`, or of its decomposition, has a numeric value."""
    return any(
        unicodedata.numeric(part, None) is not None
        for part in text + unicodedata.normalize("NFKD", text)
    )


def draw_glyph(font: ImageFont.FreeTypeFont, glyph: str) -> np.ndarray | None:
    """Draw one glyph, centred, its longer side 40 of 48 pixels; uint8, or None if it is empty."""
    left, top, right, bottom = map(int, font.getbbox(glyph))
    if right <= left or bottom <= top:
        return None
    ink = Image.new("L", (right - left + 8, bottom - top + 8))
    ImageDraw.Draw(ink).text((4 - left, 4 - top), glyph, font=font, fill=255)
    box = ink.getbbox()
    if box is None:
        return None
    ink = ink.crop(box)
    scale = 40 / max(ink.size)
    width, height = (max(2, round(side * scale)) for side in ink.size)
    canvas = Image.new("L", (GLYPH_SIZE, GLYPH_SIZE))
    canvas.paste(
        ink.resize((width, height), Image.Resampling.BICUBIC),
        ((GLYPH_SIZE - width) // 2, (GLYPH_SIZE - height) // 2),
    )
    return np.asarray(canvas)


@dataclass
class GlyphBank:
    """Drawings (N, 48, 48) uint8, and for each class a row of indices into them, repeated to fit.

    Classes without a drawing in these fonts have `counts` 0 and are never drawn.
    """

    drawings: Tensor
    table: Tensor
    counts: Tensor


def build_glyph_bank(fonts: tuple[str, ...]) -> GlyphBank:
    """Draw every glyph in every font that has it; refuses any code point with a numeric value."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    drawings: list[np.ndarray] = []
    rows: list[list[int]] = [[] for _ in GLYPHS]
    for name in fonts:
        path = folder / name
        charmap = FT2Font(str(path)).get_charmap()
        font = ImageFont.truetype(str(path), 64)
        for label, glyph in enumerate(GLYPHS):
            if is_digit_like(glyph):
                raise ValueError(f"glyph {glyph!r} is a number; digits must not be drawn")
            if name in _CM and not (glyph.isascii() and glyph.isalpha()):
                continue
            if charmap.get(ord(glyph), 0) == 0:  # 0 is .notdef, the empty box
                continue
            drawing = draw_glyph(font, glyph)
            if drawing is not None:
                rows[label].append(len(drawings))
                drawings.append(drawing)
    counts = torch.tensor([len(row) for row in rows])
    table = torch.zeros(len(rows), max(1, int(counts.max())), dtype=torch.long)
    for label, row in enumerate(rows):
        table[label, : len(row)] = torch.tensor(row, dtype=torch.long)
    return GlyphBank(torch.from_numpy(np.stack(drawings)), table, counts)


def load_cifar10(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Decode the archive's images in memory: {'train'|'test': (uint8 (N, 3, 32, 32), labels)}."""
    images: dict[str, dict[str, np.ndarray]] = {"train": {}, "test": {}}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            parts = member.name.split("/")
            if not member.isfile() or len(parts) != 3 or parts[0] not in images:
                continue
            if not parts[2].endswith(".jpg") or member.size > 100_000:
                continue
            stream = archive.extractfile(member)
            if stream is None:
                continue
            picture = Image.open(io.BytesIO(stream.read()))
            if picture.size != (IMAGE_SIZE, IMAGE_SIZE):
                raise ValueError(f"{member.name} is not {IMAGE_SIZE}x{IMAGE_SIZE}")
            images[parts[0]][member.name] = np.asarray(picture.convert("RGB"))
    names = sorted({name.split("/")[1] for part in images.values() for name in part})
    splits = {}
    for split, part in images.items():
        order = sorted(part)
        pixels = torch.from_numpy(np.stack([part[name] for name in order])).permute(0, 3, 1, 2)
        labels = torch.tensor([names.index(name.split("/")[1]) for name in order])
        splits[split] = (pixels.contiguous(), labels)
    return splits


def generated_images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ten classes of coloured noise, for ``--smoke`` only: uint8 (count, 3, 32, 32), labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    base = torch.randint(0, 200, (10, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    pixels = F.interpolate(base.float(), size=IMAGE_SIZE)[labels]
    pixels = pixels + 55 * torch.rand(pixels.shape, generator=generator)
    return pixels.to(torch.uint8), labels


def normalise(images: Tensor) -> Tensor:
    """Map [0, 1] to [-1, 1]: mean and standard deviation 0.5 in every channel."""
    return (images - 0.5) / 0.5


# ----------------------------------------------------------------------------------- augmentation


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)


def glyph_batch(bank: GlyphBank, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw `count` distorted glyphs: normalised images (count, 3, 32, 32) and labels (count,).

    Order: stroke width, affine and elastic warp, ink made binary (half of them), area
    down-sampling to 8..16 pixels with bilinear up-sampling (most of them), contrast, noise.
    """
    present = bank.counts.nonzero().squeeze(1)
    labels = present[torch.randint(len(present), (count,), generator=generator)]
    pick = (torch.rand(count, generator=generator) * bank.counts[labels]).long()
    ink = bank.drawings[bank.table[labels, pick]].float().div_(255).unsqueeze(1)

    stroke = torch.rand(count, 1, 1, 1, generator=generator)
    thick = F.max_pool2d(ink, 3, 1, 1)
    thicker = F.max_pool2d(thick, 3, 1, 1)
    thin = 0.3 * ink - 0.7 * F.max_pool2d(-ink, 3, 1, 1)
    ink = torch.where(stroke < 0.35, thick, ink)
    ink = torch.where(stroke < 0.15, thicker, ink)
    ink = torch.where(stroke > 0.88, thin, ink)

    angle = _uniform(count, -math.pi / 12, math.pi / 12, generator).view(-1)
    shear = _uniform(count, -0.3, 0.3, generator).view(-1)
    wide = _uniform(count, 0.78, 1.35, generator).view(-1)
    high = _uniform(count, 0.78, 1.15, generator).view(-1)
    shift = 0.24 * torch.rand(count, 2, generator=generator) - 0.12
    cos, sin = angle.cos(), angle.sin()
    first = torch.stack([cos * wide, (shear * cos - sin) * high, shift[:, 0]], 1)
    second = torch.stack([sin * wide, (shear * sin + cos) * high, shift[:, 1]], 1)
    grid = F.affine_grid(
        torch.stack([first, second], 1), [count, 1, IMAGE_SIZE, IMAGE_SIZE], align_corners=False
    )
    bend = torch.randn(count, 2, 4, 4, generator=generator) * _uniform(count, 0.0, 0.11, generator)
    bend = F.interpolate(bend, size=IMAGE_SIZE, mode="bicubic", align_corners=False)
    images = F.grid_sample(ink, grid + bend.permute(0, 2, 3, 1), align_corners=False)

    edge = _uniform(count, 0.25, 0.6, generator)
    binary = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    images = torch.where(binary, (images > edge).float(), images)

    # Every sample is independent, so fixed slices of the batch stand for random choices.
    parts, start = [], 0
    for size, share in ((8, 0.4), (10, 0.1), (12, 0.15), (16, 0.15), (IMAGE_SIZE, 0.2)):
        stop = count if size == IMAGE_SIZE else start + int(share * count)
        part = images[start:stop]
        if size != IMAGE_SIZE and len(part):
            part = F.adaptive_avg_pool2d(part, size)
            part = F.interpolate(part, size=IMAGE_SIZE, mode="bilinear", align_corners=False)
        parts.append(part)
        start = stop
    images = torch.cat(parts)

    images = images.clamp(0, 1) ** _uniform(count, 0.7, 1.4, generator)
    low = _uniform(count, -0.15, 0.15, generator).clamp(min=0)
    top = _uniform(count, 0.65, 1.2, generator).clamp(max=1)
    images = low + (top - low) * images
    invert = torch.rand(count, 1, 1, 1, generator=generator) < 0.12
    images = torch.where(invert, 1 - images, images)
    level = _uniform(count, -0.06, 0.06, generator).clamp(min=0)
    images = images + level * torch.randn(images.shape, generator=generator)
    return normalise(images.clamp(0, 1)).expand(-1, 3, -1, -1), labels


def cifar_batch(
    images: Tensor, labels: Tensor, rows: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Crop (padding 4), flip, and lightly change the colours of the chosen rows; normalised."""
    count = len(rows)
    padded = F.pad(images[rows].float().div_(255), (4, 4, 4, 4), mode="reflect")
    corner = torch.randint(0, 9, (2, count, 1), generator=generator)
    span = torch.arange(IMAGE_SIZE)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(flip, IMAGE_SIZE - 1 - span, span) + corner[1]
    lines = span + corner[0]
    sample = torch.arange(count).view(-1, 1, 1, 1)
    channel = torch.arange(3).view(1, -1, 1, 1)
    picture = padded[sample, channel, lines[:, None, :, None], columns[:, None, None, :]]

    picture = picture * _uniform(count, 0.75, 1.25, generator)
    mean = picture.mean(dim=(1, 2, 3), keepdim=True)
    picture = mean + (picture - mean) * _uniform(count, 0.75, 1.25, generator)
    grey = picture.mean(dim=1, keepdim=True)
    colour = _uniform(count, 0.7, 1.3, generator)
    drop = torch.rand(count, 1, 1, 1, generator=generator) < 0.1
    picture = grey + (picture - grey) * torch.where(drop, torch.zeros_like(colour), colour)
    return normalise(picture.clamp(0, 1)), labels[rows]


# --------------------------------------------------------------------------------------- training


class TwoHeads(nn.Module):
    """The backbone with one linear head for CIFAR-10 and one for glyphs, on the class token."""

    def __init__(self, backbone: VisionTransformer, glyph_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.cifar = nn.Linear(backbone.embed_dim, 10)
        self.glyph = nn.Linear(backbone.embed_dim, glyph_classes)

    def features(self, images: Tensor) -> Tensor:
        """Final class token after the last normalisation: (B, 3, 32, 32) -> (B, width)."""
        return self.backbone.forward_features(images)[:, 0]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """No decay on biases, normalisation, class token and position embedding."""
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        small = parameter.ndim < 2 or name.endswith(("cls_token", "pos_embed"))
        (plain if small else decay).append(parameter)
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up, then half a cosine to zero at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train(
    args: argparse.Namespace,
    cifar: tuple[Tensor, Tensor] | None,
    bank: GlyphBank,
    metadata: dict[str, str],
) -> TwoHeads:
    """Train for ``args.steps`` steps; a partial file is written every ``args.save_every`` steps."""
    torch.manual_seed(args.seed)
    model = TwoHeads(build_packaged_architecture(), len(GLYPHS)).train()
    generator = torch.Generator().manual_seed(args.seed + 1)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, args.weight_decay), lr=args.lr, betas=(0.9, 0.999)
    )
    warmup = max(1, min(300, args.steps // 10))
    from_cifar = int(CIFAR_SHARE * args.batch_size) if cifar is not None else 0
    order = torch.empty(0, dtype=torch.long)
    begin = last = time.perf_counter()
    sums = torch.zeros(3)
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, warmup, args.lr)
        images, glyph_labels = glyph_batch(bank, args.batch_size - from_cifar, generator)
        if cifar is not None:
            if len(order) < from_cifar:
                order = torch.cat([order, torch.randperm(len(cifar[0]), generator=generator)])
            rows, order = order[:from_cifar], order[from_cifar:]
            natural, labels = cifar_batch(*cifar, rows, generator)
            images = torch.cat([images, natural])
        tokens = model.features(images)
        split = len(glyph_labels)
        scores = model.glyph(tokens[:split])
        loss = F.cross_entropy(scores, glyph_labels, label_smoothing=0.1) * split
        sums[1] += (scores.argmax(1) == glyph_labels).float().mean()
        if cifar is not None:
            scores = model.cifar(tokens[split:])
            loss = loss + F.cross_entropy(scores, labels, label_smoothing=0.1) * len(labels)
            sums[2] += (scores.argmax(1) == labels).float().mean()
        loss = loss / len(images)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        sums[0] += loss.detach()
        if (step + 1) % args.log_every == 0 or step + 1 == args.steps:
            now = time.perf_counter()
            count = (step % args.log_every) + 1
            loss_mean, glyph_mean, cifar_mean = (sums / count).tolist()
            print(
                f"step {step + 1}/{args.steps} loss {loss_mean:.3f} glyph {glyph_mean:.3f} "
                f"cifar {cifar_mean:.3f} {count * args.batch_size / (now - last):.0f} images/s "
                f"{(now - begin) / 60:.1f} min",
                flush=True,
            )
            sums.zero_()
            last = now
        if args.save_every and (step + 1) % args.save_every == 0 and step + 1 < args.steps:
            partial = dict(metadata, status=f"partial: step {step + 1} of {args.steps}")
            save_weights(model.backbone, args.out, partial)
    metadata["training_minutes"] = f"{(time.perf_counter() - begin) / 60:.1f}"
    return model.eval()


def save_weights(backbone: VisionTransformer, path: Path, metadata: dict[str, str]) -> None:
    """Write half-precision weights in one step, so that no reader sees a half-written file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().half().contiguous() for k, v in backbone.state_dict().items()}
    scratch = path.with_name(path.name + ".writing")
    save_file(tensors, str(scratch), metadata={k: str(v) for k, v in metadata.items()})
    scratch.chmod(0o644)  # safetensors writes files that only their owner can read
    scratch.replace(path)


def load_backbone(path: Path) -> tuple[VisionTransformer, dict[str, str]]:
    """Load a weights file strictly into the architecture (float32, eval mode), with metadata."""
    with safe_open(str(path), "pt") as handle:
        metadata = dict(handle.metadata() or {})
    backbone = build_packaged_architecture()
    backbone.load_state_dict({k: v.float() for k, v in load_file(str(path)).items()})
    return backbone.eval(), metadata


# ------------------------------------------------------------------------------------- evaluation


@torch.inference_mode()
def class_tokens(backbone: VisionTransformer, images: Tensor) -> Tensor:
    """Final normalised class token of normalised images, in chunks: (N, 3, 32, 32) -> (N, D)."""
    return torch.cat([backbone.forward_features(part)[:, 0] for part in images.split(256)])


@torch.inference_mode()
def head_accuracy(
    model: TwoHeads, cifar_test: tuple[Tensor, Tensor] | None, bank: GlyphBank, count: int
) -> dict[str, float]:
    """Accuracy of both heads: CIFAR-10's test images, and glyphs of held-out fonts, distorted."""
    result = {}
    if cifar_test is not None:
        tokens = class_tokens(model.backbone, normalise(cifar_test[0].float() / 255))
        hits = model.cifar(tokens).argmax(1) == cifar_test[1]
        result["cifar10_test_accuracy"] = hits.float().mean().item()
    images, labels = glyph_batch(bank, count, torch.Generator().manual_seed(12345))
    hits = model.glyph(class_tokens(model.backbone, images)).argmax(1) == labels
    result["glyph_held_out_font_accuracy"] = hits.float().mean().item()
    return result


def digits_images(limit: int | None = None) -> tuple[Tensor, np.ndarray]:
    """scikit-learn's digits as the backbone sees them: normalised (1797, 3, 32, 32), labels.

    `limit` keeps the first images only.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images[:limit]).float().unsqueeze(1) / 16
    images = F.interpolate(images, size=IMAGE_SIZE, mode="bilinear", align_corners=False)
    return normalise(images).expand(-1, 3, -1, -1), digits.target[:limit]


def digits_probe(features: np.ndarray, labels: np.ndarray, draws: int) -> dict[str, float]:
    """Logistic regression on features (N, D): full (75 %/25 %) and with five images a class.

    ``standardised`` puts every feature to mean 0, variance 1 of the training part first, which
    is kinder to untrained features, whose variance is small.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = np.arange(len(labels))
    fit, test = train_test_split(rows, test_size=0.25, stratify=labels, random_state=0)
    pairs = [("probe", fit, test)]
    for draw in range(draws):
        few, _ = train_test_split(fit, train_size=50, stratify=labels[fit], random_state=draw)
        pairs.append(("few_shot", few, test))
    scores: dict[str, list[float]] = {}
    for kind, chosen, held_out in pairs:
        for suffix, steps in (("", []), ("_standardised", [StandardScaler()])):
            classifier = make_pipeline(*steps, LogisticRegression(max_iter=2000))
            classifier.fit(features[chosen], labels[chosen])
            score = classifier.score(features[held_out], labels[held_out])
            scores.setdefault(kind + suffix, []).append(float(score))
    return {kind: float(np.mean(values)) for kind, values in scores.items()}


def evaluate_digits(
    backbone: VisionTransformer, random_seeds: int, draws: int, limit: int | None = None
) -> dict[str, dict[str, float]]:
    """Digits probes of these weights, of random weights (mean of seeds) and of the 64 pixels.

    `limit` keeps the first images only, which a smoke run does to save time.
    """
    from sklearn.datasets import load_digits

    images, labels = digits_images(limit)
    result = {"pretrained": digits_probe(class_tokens(backbone, images).numpy(), labels, draws)}
    runs = []
    for seed in range(random_seeds):
        torch.manual_seed(1000 + seed)
        features = class_tokens(build_packaged_architecture().eval(), images)
        runs.append(digits_probe(features.numpy(), labels, draws))
    result["random"] = {k: float(np.mean([run[k] for run in runs])) for k in runs[0]}
    result["random_best_seed"] = {k: max(run[k] for run in runs) for k in runs[0]}
    result["pixels"] = digits_probe(load_digits().data[:limit] / 16.0, labels, draws)
    return result


# ------------------------------------------------------------------------------------ command line


def describe(args: argparse.Namespace, bank: GlyphBank, sizes: dict[str, int]) -> dict[str, str]:
    """Everything a reader of the weights file needs, as safetensors metadata (strings only)."""
    command = f"python examples/pretrain_backbone.py --steps {args.steps}"
    command += f" --batch-size {args.batch_size} --lr {args.lr} --weight-decay {args.weight_decay}"
    command += f" --threads {args.threads} --seed {args.seed}"
    if args.smoke:
        command = "python examples/pretrain_backbone.py --smoke"
    elif args.cifar10 is not None:
        command += f" --cifar10 {args.cifar10.name}"
    return {
        "name": NAME,
        "status": "final",
        "architecture": "timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=160, "
        "depth=6, num_heads=5, num_classes=0)",
        "image_size": str(IMAGE_SIZE),
        "mean": "[0.5, 0.5, 0.5]",
        "std": "[0.5, 0.5, 0.5]",
        "interpolation": "bilinear",
        "crop_pct": "1.0",
        "data": f"CIFAR-10 train: {sizes.get('train', 0)} images; letters and symbols drawn with "
        f"matplotlib's fonts: {int((bank.counts > 0).sum())} classes, {len(bank.drawings)} "
        "drawings; no digits",
        "recipe": f"supervised, two linear heads, label smoothing 0.1, AdamW lr {args.lr} "
        f"weight decay {args.weight_decay}, cosine, {args.steps} steps of {args.batch_size} "
        f"images ({CIFAR_SHARE if sizes else 0:.0%} CIFAR-10), gradient clip 1, seed {args.seed}",
        "licence": "MIT",
        "created_by": command,
    }


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar10", type=Path, help="archive of train|test/<class>/*.jpg")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help=f"weights file (default {NAME}.safetensors)")
    parser.add_argument("--out-card", type=Path, help="model card to write (default: none)")
    parser.add_argument("--save-every", type=int, default=0, help="steps between partial files")
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--evaluate", type=Path, metavar="FILE", help="evaluate only")
    parser.add_argument("--smoke", action="store_true", help="seconds, on generated data")
    args = parser.parse_args(argv)
    for name in ("steps", "batch_size", "threads", "log_every"):
        if getattr(args, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} must be positive, got {getattr(args, name)}")
    if args.cifar10 is not None and not args.cifar10.is_file():
        parser.error(f"--cifar10 takes an archive, and there is no file {args.cifar10}")
    if args.evaluate is not None and not args.evaluate.is_file():
        parser.error(f"--evaluate takes a weights file, and there is no file {args.evaluate}")
    return args


def measure(
    args: argparse.Namespace,
    path: Path,
    cifar_test: tuple[Tensor, Tensor] | None,
    held_out: GlyphBank,
) -> dict[str, Any]:
    """Every figure of the card for a weights file; heads only if its ``.full`` file is beside it.

    That file holds the backbone before rounding to half precision, and both heads.
    """
    backbone, _ = load_backbone(path)
    seeds, draws, count = (1, 2, 200) if args.smoke else (5, 20, 20_000)
    limit = 300 if args.smoke else None
    figures: dict[str, Any] = {"digits": evaluate_digits(backbone, seeds, draws, limit)}
    figures["settings"] = {"random_seeds": seeds, "few_shot_draws": draws, "glyphs": count}
    full_path = full_file(path)
    if full_path.is_file():
        model = TwoHeads(build_packaged_architecture(), len(GLYPHS)).eval()
        model.load_state_dict(load_file(str(full_path)))
        images, labels = digits_images(limit)
        figures["float32"] = head_accuracy(model, cifar_test, held_out, count)
        tokens = class_tokens(model.backbone, images).numpy()
        figures["float32"]["digits_probe"] = digits_probe(tokens, labels, 0)["probe"]
        model.backbone = backbone
        figures["heads"] = head_accuracy(model, cifar_test, held_out, count)
    return figures


def full_file(path: Path) -> Path:
    """Where training leaves the unrounded backbone with its heads: beside the weights file."""
    return path.with_name(path.stem + ".full.safetensors")


CARD = """# Model card: {name}

A small vision transformer for 32x32 images, made for this package's tests, examples and the
embedded stream of handwritten digits (`split-digits`), so that they run offline.

| | |
| --- | --- |
| File | `{file}`, {size:,} bytes, half precision on disk |
| SHA-256 | `{sha256}` |
| Architecture | `{architecture}` |
| Parameters | {parameters:,} (16 patches and a class token, no head) |
| Input | {image_size}x{image_size} RGB in [0, 1], mean {mean}, standard deviation {std} |
| Other images | resized ({interpolation}); grey ones with three equal channels |
| Status | {status} |
| Licence of the weights | {licence} |

## Data

{data}.
Fonts held out from training: {held_out_fonts}.

- **Natural images.** CIFAR-10 (A. Krizhevsky, *Learning Multiple Layers of Features from Tiny
  Images*, 2009): its training images; its test images serve only for the figure below. The
  authors gave the set no formal licence; it is used throughout research. No image is in this file.
- **Letters and symbols.** Latin, Greek and Cyrillic letters, punctuation, arrows and mathematical
  symbols, drawn with DejaVu, STIX and Computer Modern as matplotlib ships them. The licences of
  these fonts permit drawing with them; no font is in this file.
- **No digits.** The script refuses to draw a code point that has a numeric value, alone or in its
  decomposition (so no superscripts, fractions, circled or Roman numbers). Letters that are mostly
  drawn like a digit (Cyrillic ze, small be) are left out too; letters such as O, I, S and B stay.
  No image of scikit-learn's digits, MNIST or any other set of digits was used to train, to choose
  the recipe or to choose a checkpoint: the last step is the one published.

## Recipe

{recipe}.

Images are normalised to [-1, 1]. Glyphs: change of stroke width, rotation up to 15 degrees,
shear, scale, shift, elastic bend, ink made binary (half), area down-sampling to 8 to 16 pixels
with bilinear up-sampling (four of five), contrast, inversion (one of eight), noise. CIFAR-10: crop
with padding 4, flip, light change of colours.

    {created_by}

Training took {training_minutes} minutes on a server processor (see `--threads`), without a GPU. The
same command, libraries and processor type give the same weights, but not the same file hash,
which also covers this duration; another processor or thread count may round differently.

## Accuracy

The embedded stream's images (scikit-learn's 1,797 handwritten digits, 8x8, resized to 32x32):
logistic regression on the final class token after its normalisation, fixed stratified split
(75 % to fit, 25 % to test). Five a class: mean of {few_shot_draws} draws of 50 images from the
first part. Random weights: mean of {random_seeds} seeds (in brackets the best). "Standardised":
every feature first brought to mean 0 and variance 1, which is kinder to untrained features.

| Features | all, raw | all, standardised | five a class, raw | five a class, standardised |
| --- | --- | --- | --- | --- |
{digits_rows}

{heads_text}

## Limits

- It is small, and saw few images: it is no substitute for a backbone trained on millions of them.
  Results with it say how methods compare on an easy stream, not how good they can be.
- It was trained on small, mostly grey letters, which digits resemble, and the distortions were
  designed knowing the format of the embedded stream (8x8 pixels, light strokes on a dark ground).
  Its accuracy on digits is no measure of how general its features are. The row of raw pixels says
  how easy these digits are when all of them are available at once.
- Ten classes of natural images at 32x32 are all it knows of photographs.
- For one input size: another needs its position embedding resized, which was not tested.
"""


def percent(value: float) -> str:
    """Two decimals, as the card prints every accuracy."""
    return f"{100 * value:.2f} %"


def write_card(path: Path, weights: Path, figures: dict[str, Any]) -> None:
    """Write the model card of a weights file from its metadata and measured figures."""
    backbone, metadata = load_backbone(weights)
    digits = figures["digits"]
    kinds = ("probe", "probe_standardised", "few_shot", "few_shot_standardised")
    rows = []
    for title, key in (("these weights", "pretrained"), ("random weights", "random")):
        cells = [percent(digits[key][kind]) for kind in kinds]
        if key == "random":
            best = digits["random_best_seed"]
            cells = [f"{a} ({percent(best[k])})" for a, k in zip(cells, kinds, strict=True)]
        rows.append(f"| {title} | " + " | ".join(cells) + " |")
    cells = [percent(digits["pixels"][kind]) for kind in kinds]
    rows.append("| no backbone: the 64 pixels | " + " | ".join(cells) + " |")
    heads_text = "The training heads were not at hand when this card was written."
    if "heads" in figures:
        heads, full = figures["heads"], figures["float32"]
        lines = ["Training heads (not in the file), and what rounding to half precision does:"]
        lines += ["", "| | before rounding | this file |", "| --- | --- | --- |"]
        titles = {
            "cifar10_test_accuracy": "CIFAR-10, 10,000 test images",
            "glyph_held_out_font_accuracy": "glyphs of held-out fonts, distorted as in training",
        }
        for key, title in titles.items():
            if key in heads:
                lines.append(f"| {title} | {percent(full[key])} | {percent(heads[key])} |")
        probe = percent(full["digits_probe"]), percent(digits["pretrained"]["probe"])
        lines.append(f"| digits, all, raw | {probe[0]} | {probe[1]} |")
        heads_text = "\n".join(lines)
    values = {
        **dict.fromkeys(("training_minutes", "name", "status", "created_by"), "not stated"),
        **metadata,
        **figures["settings"],
        "file": weights.name,
        "size": weights.stat().st_size,
        "sha256": file_sha256(weights),
        "parameters": sum(p.numel() for p in backbone.parameters()),
        "held_out_fonts": ", ".join(name.removesuffix(".ttf") for name in HELD_OUT_FONTS),
        "digits_rows": "\n".join(rows),
        "heads_text": heads_text,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(CARD.format(**values), encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    torch.set_num_threads(args.threads)
    if args.smoke:
        args.steps, args.batch_size, args.log_every = 4, 20, 2
    weights = args.evaluate or args.out
    if weights is None:
        folder = Path(tempfile.mkdtemp()) if args.smoke else Path()
        weights = folder / f"{NAME}.safetensors"
    args.out = weights
    train_fonts = tuple(name for name in FONTS if name not in HELD_OUT_FONTS)
    held_out = build_glyph_bank(HELD_OUT_FONTS[:1] if args.smoke else HELD_OUT_FONTS)
    splits = None
    if args.smoke:
        splits = {"train": generated_images(200, 1), "test": generated_images(100, 2)}
    elif args.cifar10 is not None:
        splits = load_cifar10(args.cifar10)
    if args.evaluate is None:
        bank = build_glyph_bank(train_fonts[:3] if args.smoke else train_fonts)
        sizes = {k: len(v[0]) for k, v in splits.items()} if splits else {}
        print(
            f"{len(GLYPHS)} glyphs, {len(bank.drawings)} drawings, held-out fonts "
            f"{len(held_out.drawings)}; images {sizes}",
            flush=True,
        )
        metadata = describe(args, bank, sizes)
        model = train(args, splits["train"] if splits else None, bank, metadata)
        save_weights(model.backbone, weights, metadata)
        save_file(
            {k: v.detach().contiguous() for k, v in model.state_dict().items()},
            str(full_file(weights)),
        )
    figures = measure(args, weights, splits["test"] if splits else None, held_out)
    print(json.dumps({"file": weights.name, "sha256": file_sha256(weights), **figures}, indent=2))
    if args.out_card is not None:
        write_card(args.out_card, weights, figures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
