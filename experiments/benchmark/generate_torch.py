"""Transformers' own `generate`, of a model in a folder."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmark import peers
from experiments.benchmark.calls import waiter

# Its progress bars and advice have no place in a table.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


class HuggingFaceGenerate:
    """Greedy decoding with its default cache, of exactly `count` tokens a row."""

    def __init__(self, folder: Path, dtype: str, prompt: np.ndarray, count: int) -> None:
        import torch  # pyright: ignore[reportMissingImports]
        import transformers  # pyright: ignore[reportMissingImports]

        transformers.utils.logging.disable_progress_bar()
        self._device = peers.torch_device()
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=True, dtype=getattr(torch, dtype)
        )
        self._model = self._model.to(self._device).eval()
        self._model.generation_config.eos_token_id = None  # no text ends before the others
        self._prompt = torch.from_numpy(prompt).to(self._device, torch.long)
        self._count = count

    def __call__(self) -> Any:
        """Writes `count` tokens a row behind the prompt."""
        import torch  # pyright: ignore[reportMissingImports]

        return self._model.generate(
            self._prompt,
            attention_mask=torch.ones_like(self._prompt),
            do_sample=False,
            max_new_tokens=self._count,
            pad_token_id=0,
        )

    def wait(self, outcome: Any) -> Any:
        """On a CPU they are there when it returns."""
        waiter(self._prompt)(outcome)
        return outcome

    def tokens(self) -> np.ndarray:
        """What it writes, [B, count]."""
        return self()[:, self._prompt.shape[1] :].cpu().numpy()

    def logits(self) -> np.ndarray:
        """Behind the prompt, [B, V]."""
        import torch  # pyright: ignore[reportMissingImports]

        with torch.no_grad():
            return self._model(self._prompt).logits[:, -1].float().cpu().numpy()
