"""The peers that we are compared with, and why one cannot run here."""

import importlib.util
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping

import jax

PEERS: Mapping[str, str] = {
    "implementations": "our other versions of the same operation",
    "yardsticks": "other activations of our table: relu2 and its like",
    "copy": "a copy of the input: the floor",
    "torch-eager": "the official PyTorch formula, as it is",
    "torch-checkpoint": "the same under torch.utils.checkpoint, as its authors train",
    "torch-compile": "the same under torch.compile",
    "liger": "Liger-Kernel's Triton kernels",
    "hf-llama": "Hugging Face's LlamaForCausalLM under torch.compile",
    "hf-generate": "Hugging Face's own generate, of the model as we export it",
    "torch-loader": "PyTorch's DataLoader",
}
"""Name -> what it is."""


def unsupported_reason(peer: str) -> str | None:
    """The reason why a peer cannot be measured on this machine, or None."""
    reasons = (needed() for needed in _NEEDS.get(peer, ()))
    return next(filter(None, reasons), None)


def split(wanted: Iterable[str], possible: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """Of a suite's `possible` peers the wanted ones that can run, and the others' reasons."""
    reasons = {peer: unsupported_reason(peer) for peer in wanted if peer in possible}
    left_out = {peer: reason for peer, reason in reasons.items() if reason is not None}
    return [peer for peer in reasons if peer not in left_out], left_out


def torch_device() -> str:
    """The device that PyTorch is to use so that it runs on what JAX runs on."""
    return {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())


def _installed(module: str) -> Callable[[], str | None]:
    def reason() -> str | None:
        if importlib.util.find_spec(module) is not None:
            return None
        return f"{module} is not installed; see the extra bench, or pip install {module}"

    return reason


def _same_device() -> str | None:
    backend = jax.default_backend()
    if backend == "cpu":
        return None
    if backend != "gpu":
        return f"JAX runs on {backend}, where this peer does not"
    import torch  # pyright: ignore[reportMissingImports]

    return None if torch.cuda.is_available() else "JAX runs on a GPU, and this torch has no CUDA"


def _compiles() -> str | None:
    if jax.default_backend() == "cpu":
        found = any(map(shutil.which, ("c++", "g++", "clang++", "cl")))
        return None if found else "torch.compile needs a C++ compiler on CPU"
    return _installed("triton")()


def _on_cuda() -> str | None:
    backend = jax.default_backend()
    return None if backend == "gpu" else f"its kernels need CUDA, and JAX runs on {backend}"


_TORCH = (_installed("torch"), _same_device)
_NEEDS: Mapping[str, tuple[Callable[[], str | None], ...]] = {
    "torch-eager": _TORCH,
    "torch-checkpoint": _TORCH,
    "torch-compile": (*_TORCH, _compiles),
    "liger": (*_TORCH, _on_cuda, _installed("liger_kernel")),
    "hf-llama": (*_TORCH, _installed("transformers"), _compiles),
    "hf-generate": (*_TORCH, _installed("transformers")),
    "torch-loader": (_installed("torch"),),
}
