"""Trains runs of `compare ablation` in plain PyTorch, and says how far from ours they are.

    python experiments/results/compare/pytorch/replicate.py FOLDER [ARM ...]

with what `hand_over` wrote into the folder: initial values, rows of tokens, and our numbers to
compare with. Everything else is written here from the documentation: the model, the loss, the
schedule, clipping and which parameters decay. Gradients are autograd's, AdamW is PyTorch's.
"""

import copy
import itertools
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

HERE = Path(__file__).resolve().parent

END_OF_TEXT = 256
NORM_EPS, POLY_NORM_EPS = 1e-5, 1e-6
ROPE_THETA = 10_000.0
WARMS_UP_OVER, DECAYS_OVER = 0.05, 0.2
CLIP_NORM, WEIGHT_DECAY, BETAS, EPS = 1.0, 0.1, (0.9, 0.95), 1e-8
UNDECAYED = ("norm", "coeffs")
ARMS = ("swiglu", "poly_norm")
BOUNDS, LATER = (0, 1, 10, 100, 300), (0, 296, 592, 888, 1184, 2220)
SLIP_UPDATES = 100
SLIPS: Mapping[str, Mapping[str, Any]] = {
    "as it is": {},
    "attention and positions run across documents": {"END_OF_TEXT": -1},
    "epsilon of RMSNorm 1e-6": {"NORM_EPS": 1e-6},
    "norms decay, too": {"UNDECAYED": ("coeffs",)},
    "decay of 0.09": {"WEIGHT_DECAY": 0.09},
    "epsilon of AdamW 1e-7": {"EPS": 1e-7},
    "no clipping": {"CLIP_NORM": math.inf},
    "clipping at 0.9": {"CLIP_NORM": 0.9},
    "warm-up one update longer": {"WARMS_UP_OVER": 113 / 2240},
}
"""What an independent version could have got wrong."""

Params = dict[str, Any]
"""Name -> tensor; those of layers are stacked, as `hand_over` writes them."""


def rms_norm(x: Any, eps: float) -> Any:
    """Over the last axis."""
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps)


def poly_norm(x: Any, coeffs: Any) -> Any:
    """a_0 + sum_i a_i x^i / rms(x^i)."""
    return coeffs[0] + sum(coeffs[i] * rms_norm(x**i, POLY_NORM_EPS) for i in (1, 2, 3))


def feed_forward(arm: str, layer: Params, x: Any) -> Any:
    """Down(silu(gate x) * up x), or down(PolyNorm(up x))."""
    up = x @ layer["ffn/w_up"]
    if arm == "swiglu":
        hidden = torch.nn.functional.silu(x @ layer["ffn/w_gate"]) * up
    else:
        hidden = poly_norm(up, layer["ffn/activation/coeffs"])
    return hidden @ layer["ffn/w_down"]


def rotated(x: Any, positions: Any) -> Any:
    """RoPE of [batch, time, head, channel]; the two halves of a head are the pairs."""
    half = x.shape[-1] // 2
    rates = ROPE_THETA ** (-torch.arange(half, dtype=x.dtype) / half)
    angles = (positions[..., None].to(x.dtype) * rates)[:, :, None]
    first, second = x[..., :half], x[..., half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def attention(layer: Params, x: Any, positions: Any, seen: Any) -> Any:
    """Causal, within a document."""
    q, k, v = (
        torch.einsum("btd,dhc->bthc", x, layer[f"attention/w_{name}"]) for name in ("q", "k", "v")
    )
    q, k = rotated(q, positions), rotated(k, positions)
    scores = torch.einsum("bthc,bshc->bhts", q, k) / math.sqrt(q.shape[-1])
    shares = scores.masked_fill(~seen[:, None], -math.inf).softmax(-1)
    mixed = torch.einsum("bhts,bshc->bthc", shares, v)
    return torch.einsum("bthc,hcd->btd", mixed, layer["attention/w_o"])


def nats(arm: str, params: Params, rows: Any) -> Any:
    """-log p of each target of these rows, which are a window and the token behind it."""
    tokens, targets = rows[:, :-1], rows[:, 1:]
    begins, index = tokens == END_OF_TEXT, torch.arange(tokens.shape[1])
    documents = begins.cumsum(1)
    positions = index - (begins * index).cummax(1).values
    seen = (documents[:, :, None] == documents[:, None]) & (index[:, None] >= index)
    x = params["embed"][tokens]
    for i in range(len(params["layers/ffn/norm"])):
        layer = {
            name.removeprefix("layers/"): value[i]
            for name, value in params.items()
            if name.startswith("layers/")
        }
        normed = rms_norm(x, NORM_EPS) * layer["attention/norm"]
        x = x + attention(layer, normed, positions, seen)
        normed = rms_norm(x, NORM_EPS) * layer["ffn/norm"]
        x = x + feed_forward(arm, layer, normed)
    logits = rms_norm(x, NORM_EPS) * params["final_norm"] @ params["embed"].T
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none"
    )


def decay_start(length: int) -> int:
    """Updates of a run before its rate falls."""
    return length - round(length * DECAYS_OVER)


def rate_share(update: int, longest: int, length: int | None) -> float:
    """Rate of an update, the first is 1, in units of the peak; length None: of the trunk."""
    if length is None:
        return min(1.0, update / round(longest * WARMS_UP_OVER))
    return (length - update + 1) / (length - decay_start(length))


class Run:
    """Parameters and their optimiser."""

    def __init__(self, handed: Mapping[str, Any], dtype: Any) -> None:
        self.arm, self.peak = str(handed["arm"]), float(handed["rate"])
        self.lengths = [int(length) for length in handed["lengths"]]
        self.rows = torch.from_numpy(handed["rows"].astype(np.int64))
        self.params: Params = {
            name.removeprefix("params/"): torch.tensor(value, dtype=dtype, requires_grad=True)
            for name, value in handed.items()
            if name.startswith("params/")
        }
        decayed = [p for name, p in self.params.items() if not name.endswith(UNDECAYED)]
        rest = [p for name, p in self.params.items() if name.endswith(UNDECAYED)]
        groups = [
            {"params": decayed, "weight_decay": WEIGHT_DECAY},
            {"params": rest, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=self.peak, betas=BETAS, eps=EPS)

    def gradients(self, update: int) -> float:
        """Loss of an update's batch, the first is 1; its gradients are kept in the parameters."""
        self.optimizer.zero_grad()
        loss = nats(self.arm, self.params, self.rows[update - 1]).mean()
        loss.backward()
        return loss.item()

    def train(self, start: int, end: int, length: int | None) -> list[float]:
        """Updates start + 1 ... end; their losses."""
        losses = []
        for update in range(start + 1, end + 1):
            losses.append(self.gradients(update))
            found = [p.grad for p in self.params.values()]
            norm = torch.sqrt(sum(g.square().sum() for g in found))
            share = min(1.0, CLIP_NORM / norm.item())
            for gradient in found:
                gradient.mul_(share)
            for group in self.optimizer.param_groups:
                group["lr"] = self.peak * rate_share(update, max(self.lengths), length)
            self.optimizer.step()
        return losses

    def heldout(self, rows: np.ndarray) -> float:
        """Mean nats a token of these rows."""
        batches = torch.from_numpy(rows.astype(np.int64)).split(64)
        with torch.no_grad():
            found = [nats(self.arm, self.params, batch).double().sum() for batch in batches]
        return float(sum(found)) / rows[:, 1:].size

    def whole(self, heldout: np.ndarray) -> Iterator[tuple[str, list[float], float]]:
        """Parts of a run: name, losses of its updates, held-out loss behind them."""
        at, losses = 0, []
        for length in self.lengths:
            start = decay_start(length)
            losses += self.train(at, start, None)
            at = start
            # One call, so that the copied optimiser holds the copied parameters.
            branch = copy.copy(self)
            branch.params, branch.optimizer = copy.deepcopy((self.params, self.optimizer))
            own = branch.train(start, length, length)
            yield f"{length}", own, branch.heldout(heldout)
        yield "trunk", losses, self.heldout(heldout)


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Norm of the difference, in units of the norm of ours."""
    return float(np.linalg.norm(theirs - ours) / np.linalg.norm(ours))


def gradients(handed: Mapping[str, Any], dtype: Any) -> dict[str, float]:
    """Of the first batch: how far each parameter's is from ours."""
    run = Run(handed, dtype)
    run.gradients(1)
    return {
        name: relative(handed[f"grads/{name}"], p.grad.numpy()) for name, p in run.params.items()
    }


def trained(folder: Path, arm: str) -> Mapping[str, Any]:
    """Losses of a run, as `hand_over` names them; what the folder has is kept."""
    place = folder / f"torch-{arm}.npz"
    if not place.exists():
        handed = dict(np.load(folder / f"handed-{arm}.npz"))
        run = Run(handed, torch.float32)
        found: dict[str, Any] = {"initial": run.heldout(handed["heldout"])}
        for part, losses, end in run.whole(handed["heldout"]):
            found |= {f"losses/{part}": np.array(losses), f"heldout/{part}": end}
        np.savez_compressed(place, **found)
    return np.load(place)


def points(found: Mapping[str, Any], longest: int, steps: list[int]) -> np.ndarray:
    """Mean loss since the point before, as in our run files: of the trunk and the last branch."""
    losses = np.concatenate([found["losses/trunk"], found[f"losses/{longest}"]])
    return np.array([losses[a:b].mean() for a, b in itertools.pairwise([0, *steps])])


def within(
    bounds: Sequence[int], steps: Sequence[int], apart: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """Of each side the largest difference at steps after one bound, up to the next."""
    found, at = {}, np.array(steps)
    for low, high in itertools.pairwise(bounds):
        chosen = (at > low) & (at <= high)
        found[f"{low + 1} to {high}"] = {side: float(d[chosen].max()) for side, d in apart.items()}
    return found


def slips(folder: Path, arm: str) -> dict[str, float]:
    """Largest difference of the first losses to ours, were one thing here otherwise."""
    handed, found = dict(np.load(folder / f"handed-{arm}.npz")), {}
    for name, slip in SLIPS.items():
        with patch.dict(globals(), slip):
            losses = Run(handed, torch.float32).train(0, SLIP_UPDATES, None)
        found[name] = float(np.abs(losses - handed["losses"][:SLIP_UPDATES]).max())
    return found


def compared(folder: Path, arm: str) -> dict[str, Any]:
    """All numbers of a run: ours, PyTorch's, and those of ours with one digit changed."""
    handed = dict(np.load(folder / f"handed-{arm}.npz"))
    sides = {"torch": trained(folder, arm), "nudged": np.load(folder / f"nudged-{arm}.npz")}
    lengths = handed["lengths"].tolist()
    name = f"lr{handed['rate']}-seed{handed['seed']}-steps{'-'.join(map(str, lengths))}.json"
    kept = json.loads((HERE.parent / "ablation" / "runs" / arm / name).read_text())
    first = handed["losses"]
    apart = {side: np.abs(one["losses/trunk"][: len(first)] - first) for side, one in sides.items()}
    curves = {
        side: np.abs(points(one, lengths[-1], kept["steps"]) - kept["loss"])
        for side, one in sides.items()
    }
    return {
        "run": f"ablation/runs/{arm}/{name}",
        "first loss": {"ours": float(first[0]), "torch": float(sides["torch"]["losses/trunk"][0])},
        "initial held-out loss": {
            "ours": kept["initial"],
            "torch": float(sides["torch"]["initial"]),
        },
        "gradients of the first batch, relative": {
            f"{dtype}": gradients(handed, dtype) for dtype in (torch.float32, torch.float64)
        },
        "training loss, largest difference in updates": within(
            BOUNDS, range(1, len(first) + 1), apart
        ),
        "means of 37 updates, largest difference up to update": within(
            LATER, kept["steps"], curves
        ),
        "held-out loss after updates": {
            f"{n}": {
                "ours": ours,
                **{side: float(one[f"heldout/{n}"]) for side, one in sides.items()},
            }
            for n, ours in zip(lengths, kept["heldout"], strict=True)
        },
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, *arms = sys.argv[1:]
    found = {
        "runs": [compared(Path(folder), arm) for arm in arms or ARMS],
        "slips, largest difference in 100 updates": slips(Path(folder), ARMS[0]),
    }
    (HERE / "replicate.json").write_text(json.dumps(found, indent=1) + "\n")
