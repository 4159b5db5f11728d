"""The judge of the embedded models: a small image-text network that has seen the drawings, never a generated picture.

Contrastive training (Radford et al. 2021, arXiv 2103.00020, figure 3), i and j run over a batch of b drawings:
    logit_ij = exp(tau) <f_i, g_j>,     f = image embedding, g = name embedding, both of length 1
    loss = (CE(logit, i) + CE(logit^T, i)) / 2
It has its own split (another one drawing in twenty than the generators leave out) and its own seed. Drawings are
moved, scaled, turned, recoloured, blurred, noised and partly covered, so that a flawed one is judged by what it shows.

    python -m reference train openmoji-evaluator --steps 1500 --seed 1 --out FOLDER
"""

import json
import re
import time
import zlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, interpolate, normalize, silu
from tqdm import tqdm

from reference.embedded.openmoji import drawings

WEIGHTS = Path(__file__).parent / "weights" / "openmoji-evaluator"
SIZE, FEATURES, TRIGRAMS = 32, 64, 2048
SPLIT = "evaluator"  # names the evaluator's own split
BATCH, LEARNING_RATE, WARM_UP, DROPPED_WORDS = 256, 2e-3, 50, 0.15
EVERY = 100


class Stage(nn.Module):
    """Half the size, then one residual step: (b, c_in, s, s) -> (b, c_out, s / 2, s / 2)."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.down = nn.Conv2d(c_in, c_out, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(8, c_out)
        self.conv = nn.Conv2d(c_out, c_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return x + self.conv(silu(self.norm(x)))


class Evaluator(nn.Module):
    """Pictures and names in one space of 64 features. `words` is the vocabulary."""

    def __init__(self, words: list[str]):
        super().__init__()
        self.words = words
        self.numbers = {word: i for i, word in enumerate(words)}
        self.picture = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), Stage(32, 64), Stage(64, 128), Stage(128, 192), nn.GroupNorm(8, 192),
            nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(192, FEATURES),
        )  # fmt: skip
        # A word is its own vector, if it is known, plus those of its letter trigrams, which unknown words have too.
        self.parts = nn.EmbeddingBag(len(words) + TRIGRAMS, 128, mode="mean")
        self.name = nn.Sequential(nn.LayerNorm(128), nn.Linear(128, 256), nn.SiLU(), nn.Linear(256, FEATURES))
        self.tau = nn.Parameter(torch.tensor(2.3))

    def image_features(self, pictures: Tensor) -> Tensor:
        """(p, 3, 32, 32) in [0, 1] -> (p, 64), not normalised."""
        return self.picture(pictures * 2 - 1)

    def text_features(self, names: list[str]) -> Tensor:
        """n names -> (n, 64), not normalised."""
        bags = [self._parts_of(name) for name in names]
        offsets = torch.tensor([0] + [len(bag) for bag in bags[:-1]]).cumsum(0)
        return self.name(self.parts(torch.tensor([i for bag in bags for i in bag]), offsets))

    def _parts_of(self, name: str) -> list[int]:
        numbers = []
        for word in re.findall(r"\w+", name.lower()):
            if word in self.numbers:
                numbers += 2 * [self.numbers[word]]
            marked = f"<{word}>"
            trigrams = (marked[i : i + 3] for i in range(len(marked) - 2))
            numbers += [len(self.words) + zlib.crc32(t.encode()) % TRIGRAMS for t in trigrams]
        return numbers

    def similarity(self, pictures: Tensor, names: list[str]) -> Tensor:
        """Cosines (p, n) between pictures in [0, 1] and names."""
        return normalize(self.image_features(pictures)) @ normalize(self.text_features(names)).T


def load_evaluator(folder: Path = WEIGHTS) -> Evaluator:
    """The trained evaluator that ships with the package, in fp32."""
    evaluator = Evaluator(json.loads((folder / "config.json").read_text())["words"])
    evaluator.load_state_dict({name: w.float() for name, w in load_file(folder / "model.safetensors").items()})
    return evaluator.eval().requires_grad_(False)


@torch.no_grad()
def ranks(evaluator: Evaluator, pictures: Tensor, prompts: list[str], gallery: list[str]) -> Tensor:
    """How many names of the gallery fit each picture better than its own prompt: (p,), 0 is best.

    A picture that holds NaN fits none: all of the gallery count as better.
    """
    cosine_pn = evaluator.similarity(pictures, gallery)
    own_p1 = cosine_pn.gather(1, torch.tensor([[gallery.index(prompt)] for prompt in prompts]))
    return (~(cosine_pn <= own_p1)).sum(1)


def augment(x: Tensor, g: torch.Generator) -> Tensor:
    """Disturb pictures (b, 3, s, s) in [0, 1], each in its own way."""
    b, size = len(x), x.shape[-1]
    uniform = lambda low, high: low + (high - low) * torch.rand(b, 1, 1, 1, generator=g)  # noqa: E731
    scale, angle = uniform(0.85, 1.25).flatten(), uniform(-0.25, 0.25).flatten()
    moves = torch.stack([scale * angle.cos(), -scale * angle.sin(), scale * angle.sin(), scale * angle.cos()], 1)
    theta = torch.cat([moves.reshape(b, 2, 2), torch.rand(b, 2, 1, generator=g) * 0.3 - 0.15], 2)
    x = 1 - grid_sample(1 - x, affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)  # on white
    coarse = interpolate(interpolate(x, size=size // 2, mode="area"), size=size, mode="bilinear")
    x = x.lerp(coarse, uniform(-0.5, 1.0).clamp(min=0))
    x = (x - 0.5) * uniform(0.7, 1.3) + 0.5 + 0.1 * torch.randn(b, 3, 1, 1, generator=g)
    x = x + uniform(-0.1, 0.2).clamp(min=0) * torch.randn(x.shape, generator=g)
    row, column = (uniform(-0.5, 1).flatten() * size for _ in range(2))
    inside = [(torch.arange(size) - start[:, None]).abs() < size / 6 for start in (row, column)]
    return x.masked_fill((inside[0][:, None, :, None] & inside[1][:, None, None, :]), 0.5).clamp(0, 1)


def train_evaluator(out: Path, steps: int, seed: int = 1) -> Evaluator:
    """Train for `steps` batches of 256 and save in bf16 to `out`, with the curve and the held-out retrieval."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    names, x = drawings(SIZE, split=SPLIT)
    x = x / 2 + 0.5
    evaluator = Evaluator(sorted({word for name in names for word in re.findall(r"\w+", name)}))
    optimizer = torch.optim.AdamW(evaluator.parameters(), LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=WARM_UP / steps)
    curve, losses, started = [], [], time.monotonic()
    bar = tqdm(range(1, steps + 1), desc="train", unit="step")
    for step in bar:
        rows = torch.randperm(len(x), generator=g)[:BATCH]
        kept = [_drop_words(names[row], g) for row in rows.tolist()]
        with torch.autocast("cpu", torch.bfloat16):
            cosine = evaluator.similarity(augment(x[rows], g), kept)
        logit = cosine.float() * evaluator.tau.clamp(max=4.6).exp()
        own = torch.arange(BATCH)
        loss = (cross_entropy(logit, own) + cross_entropy(logit.T, own)) / 2
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % EVERY == 0 or step == steps:
            curve.append({"step": step, "train": sum(losses) / len(losses)} | retrieval(evaluator))
            losses.clear()
            bar.set_postfix(loss=f"{curve[-1]['train']:.3f}", held_out=f"{curve[-1]['held_out_top5']:.3f}")
    evaluator.to(torch.bfloat16)
    out.mkdir(parents=True, exist_ok=True)
    save_file(evaluator.state_dict(), out / "model.safetensors")
    (out / "config.json").write_text(json.dumps({"words": evaluator.words}, ensure_ascii=False) + "\n")
    evaluator = load_evaluator(out)
    record = {"seed": seed, "steps": steps, "batch": BATCH, "seconds": round(time.monotonic() - started)}
    (out / "training.json").write_text(json.dumps(record | retrieval(evaluator) | {"curve": curve}, indent=1) + "\n")
    return evaluator


def retrieval(evaluator: Evaluator) -> dict[str, float]:
    """Share of real drawings whose name is found: seen ones among all names, held-out ones among the held-out names."""
    found: dict[str, float] = {}
    seen, held_out = drawings(SIZE, split=SPLIT), drawings(SIZE, held_out=True, split=SPLIT)
    for split, (names, x), gallery in (
        ("seen", seen, seen[0] + held_out[0]),
        ("held_out", held_out, held_out[0]),
    ):
        rank = ranks(evaluator, x / 2 + 0.5, names, gallery)
        found |= {f"{split}_top{k}": (rank < k).float().mean().item() for k in (1, 5)}
        found |= {f"{split}_names": len(names)}
    return found


def _drop_words(name: str, g: torch.Generator) -> str:
    """The name with each word gone at 15 %, whole if none would be left."""
    words = name.split()
    kept = [w for w, u in zip(words, torch.rand(len(words), generator=g).tolist(), strict=True) if u > DROPPED_WORDS]
    return " ".join(kept) or name
