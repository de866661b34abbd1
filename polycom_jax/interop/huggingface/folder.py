"""`load` and `save`: a folder to (config, parameters) and back, one tensor at a time."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from polycom_jax import models
from polycom_jax import params as pm
from polycom_jax._errors import InputError, require, unknown
from polycom_jax.hosts import meet
from polycom_jax.interop.huggingface import files
from polycom_jax.interop.huggingface.config import from_json, to_json
from polycom_jax.interop.huggingface.families import FAMILIES
from polycom_jax.interop.huggingface.generation import Generation, write_generation
from polycom_jax.interop.huggingface.names import (
    DERIVED,
    Constant,
    Tensor,
    all_tensors,
    constants,
    tensors,
)
from polycom_jax.models import ModelConfig
from polycom_jax.params import Params, ParamSpec
from polycom_jax.sharding import Rules, fetch
from polycom_jax.training import model_specs

WeightDtype = Literal["float32", "bfloat16", "float16"]

ALIGNED = 64
"""Bytes: what XLA's CPU client asks of memory that it shares."""
SHARD_BYTES = 2 << 30
"""Files of a large model are at most this large."""

_FIXED = np.dtype("float32")
"""Of what is no parameter here."""
_LISTED = 12
"""Problems of one kind that an error spells out."""
_TORCH_FILES = "torch_models"


def load(
    path: str | Path, *, mesh: Mesh | None = None, rules: Rules | None = None
) -> tuple[ModelConfig, Params]:
    """Reads a folder of Llama, OLMoE, Apertus or a PolyCom model that `save` wrote.

    Parameters are as `models.init` gives them: float32 whatever the folder has (float32, bfloat16,
    float16, float64; one file or several with an index), vocabulary padded. Besides them the host
    holds the parameter that is read, of all layers, and at times the one before it; where the host
    is the device, no more than the tensor that is read.

    Args:
        path: the folder, with config.json and safetensors files.
        mesh: devices to lay the parameters out on; each process reads what its own devices hold.
            None: the default device.
        rules: how; as in `training.make_state`.

    Returns:
        The model's config and its parameters.

    Raises:
        InputError: a model that we have no counterpart of (the field is named), a tensor that is
            not finite, or tensors that are missing, unknown, there twice or of another shape: one
            error that lists them, the first dozen of each kind.
    """
    folder = Path(path).expanduser()
    require(folder.is_dir(), f"{folder} is no folder; give one that holds config.json.")
    adapter = folder / "adapter_config.json"
    require(
        not adapter.exists(),
        f"{adapter}: transformers changes the weights by this adapter, which is not read here;"
        " merge it into them (PEFT's merge_and_unload), or take it away.",
    )
    described = files.read_json(folder / "config.json")
    cfg, model_type = from_json(described), described["model_type"]
    specs = models.specs(cfg) if mesh is None else model_specs(cfg, mesh, rules)
    stored = files.Tensors(folder)
    _check(folder, cfg, model_type, stored)

    def leaf(path: tuple[Any, ...], spec: ParamSpec, target: jax.ShapeDtypeStruct) -> jax.Array:
        parts = tensors(pm.path_name(path), spec, model_type)
        if target.sharding is None:
            everything = tuple(slice(None) for _ in spec.shape)
            # Not jnp.asarray: on a CPU it copies once more.
            value = jax.device_put(_values(spec, parts, stored.read, everything))
        else:
            value = jax.make_array_from_callback(
                spec.shape,
                target.sharding,
                lambda box: _values(spec, parts, stored.read, box or ()),
            )
        return jax.block_until_ready(value)  # the host's values go before the next ones come

    layout = pm.abstract(specs, mesh, rules)
    return cfg, jax.tree_util.tree_map_with_path(leaf, specs, layout, is_leaf=pm.is_spec)


def _values(
    spec: ParamSpec,
    parts: list[Tensor],
    read: Callable[[str], np.ndarray],
    index: tuple[slice, ...],
) -> np.ndarray:
    """`parameter[index]`, filled from the tensors that lie in it; padding rows are zero."""
    box = [range(size)[piece] for size, piece in zip(spec.shape, index, strict=True)]
    out = _aligned([len(span) for span in box], np.dtype(spec.dtype))
    for part in parts:
        depth = len(part.index)
        if any(i not in span for i, span in zip(part.index, box, strict=False)):
            continue
        place = tuple(span.index(i) for i, span in zip(part.index, box, strict=False))
        # Rows that a tensor has not are padding: the slice ends with it.
        values = part.to_ours(read(part.name))[index[depth:]]
        target = out[(*place, *(slice(size) for size in values.shape), ...)]
        with np.errstate(over="ignore"):  # of float64: refused below
            target[...] = values
        require(
            bool(np.isfinite(target).all()),
            f"{part.name} holds numbers that are not finite in float32 (NaN or infinity), so that"
            " nothing that the model computes means anything; the folder is damaged, or the"
            " training that it is of went wrong.",
        )
    return out


def _aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Zeros from a multiple of `ALIGNED` bytes on: a CPU device takes these without a copy."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.zeros(size + ALIGNED, np.uint8)
    start = -raw.ctypes.data % ALIGNED
    return raw[start : start + size].view(dtype).reshape(shape)


def _check(folder: Path, cfg: ModelConfig, model_type: str, stored: files.Tensors) -> None:
    """Raises one `InputError` with all that is wrong with a folder's tensors."""
    blocks = cfg.num_layers * max(1, cfg.moe.num_experts)
    require(
        blocks <= len(stored.shapes),
        f"{folder}: config.json asks for {blocks} blocks (layers, times experts), and the files"
        f" hold {len(stored.shapes)} tensors, too few for them: another model's, or some are"
        " missing.",
    )
    fixed = constants(cfg)
    wanted = {tensor.name: tensor.shape for tensor in all_tensors(cfg, model_type)}
    wanted |= dict.fromkeys(fixed, ())
    embed, head = "model.embed_tokens.weight", "lm_head.weight"
    if cfg.tie_embeddings and embed not in stored.shapes and head in stored.shapes:
        stored.rename(head, embed)  # one matrix, by either name
    found = {name: s for name, s in stored.shapes.items() if not name.endswith(DERIVED)}
    kinds = {"in the files": list(stored.problems)}
    if cfg.tie_embeddings and head in found:
        # Older folders hold the one matrix twice; then both must say the same.
        same = found.get(embed) == found.pop(head)
        if same and not stored.problems:
            same = bool(np.array_equal(stored.read(embed), stored.read(head)))
        if not same:
            kinds["in the files"].append(f"{head} is not {embed}, which config.json ties it to")
    kinds["missing"] = [f"{name} is missing" for name in wanted if name not in stored.shapes]
    if kinds["missing"] == [f"{head} is missing"]:
        kinds["missing"][0] += " (if it is the matrix of the embedding, tie_word_embeddings=true)"
    kinds["unknown"] = [f"{name} is unknown" for name in found if name not in wanted]
    kinds["shapes"] = [
        f"{name} is {list(found[name])}, not {list(shape)}"
        for name, shape in wanted.items()
        if found.get(name, shape) != shape
    ]
    if not any(kinds.values()):
        kinds["values"] = [*_other_values(fixed, stored)]
    if any(kinds.values()):
        raise InputError(
            f"{folder}: {sum(map(len, kinds.values()))} of its tensors do not fit its config.json:"
            f" {'; '.join(map(_listed, filter(None, kinds.values())))}."
        )


def _other_values(fixed: Mapping[str, Constant], stored: files.Tensors) -> Iterator[str]:
    """What is wrong with numbers that our models do not let vary."""
    for name, constant in fixed.items():
        value = float(stored.read(name))
        if not constant.fits(value):
            yield f"{name} is {value}, and our models compute with {constant.words}"


def _listed(problems: list[str]) -> str:
    """The first of one kind, and how many more: a large model must not hide the other kinds."""
    more = len(problems) - _LISTED
    return "; ".join(problems[:_LISTED]) + (f"; and {more:,} more such" if more > 0 else "")


def save(
    path: str | Path,
    cfg: ModelConfig,
    params: Params,
    *,
    dtype: WeightDtype = "float32",
    end_of_text: int | None = None,
    generation: Generation | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes a folder that `transformers` loads, and `load` too, bit for bit if in float32.

    A model in muP is written as the one of the standard parametrization that computes the same.
    A gated SiLU, GELU or ReLU model is an ordinary Llama or OLMoE, and one with xIELU, or with an
    ungated function of transformers and a norm on each head, an ordinary Apertus. Every other one
    takes the PyTorch file that computes it along and is loaded with `trust_remote_code=True`. On
    several all processes call this, and the first writes.

    Args:
        path: of the folder; made, or free of a model.
        cfg: the model.
        params: its parameters.
        dtype: of matrices and embeddings; norms, router and coefficients stay float32 (PyTorch
            loads norms, router and Apertus' coefficients in `dtype`, and others never).
        end_of_text: token id that stands before and behind a document; transformers begins and ends
            with it.
        generation: what the folder that the model is from says of this; instead of `end_of_text`.
        shard_bytes: size of a file above which another is begun.
        progress: takes (files written, files).

    Raises:
        InputError: a model that transformers has no counterpart of (the field is named), parameters
            of another model, a folder that is taken, or values too large for float16.
    """
    if dtype not in files.DTYPES:
        raise unknown("dtype", dtype, files.DTYPES)
    folder = Path(path).expanduser()
    cfg, params = models.as_standard(cfg, params)
    # Written where there is none, too: absent, they would be some other model's.
    ids = {"bos_token_id": end_of_text, "eos_token_id": end_of_text, "pad_token_id": None}
    generation = generation or Generation(ids)
    stored = to_json(cfg, dtype=dtype, ids=generation.ids)
    leaves = _leaves(cfg, params)
    require(shard_bytes >= 1, f"shard_bytes={shard_bytes} must be at least 1.")

    model_type, fixed = stored["model_type"], constants(cfg)
    sizes = [
        (tensor.name, int(np.prod(tensor.shape)) * _kept_in(spec, dtype).itemsize)
        for path_name, spec, _ in leaves
        for tensor in tensors(path_name, spec, model_type)
    ]
    sizes += [(name, _FIXED.itemsize) for name in fixed]
    values = chain(
        _tensor_values(leaves, dtype, model_type),
        ((name, np.array(constant.value, _FIXED)) for name, constant in fixed.items()),
    )
    if jax.process_index() == 0:
        files.check_empty(folder)
        with files.all_or_nothing(folder):
            files.write_shards(
                folder,
                files.shards(sizes, shard_bytes),
                values,
                sum(size for _, size in sizes),
                progress=progress,
            )
            _copy_torch_files(folder, FAMILIES[model_type].file)
            write_generation(folder, generation)
            # Last: a folder without it is no model.
            files.write_json(folder / "config.json", stored)
    for _ in values:  # other processes give their parts
        pass
    meet("write the weights")


def _leaves(cfg: ModelConfig, params: Params) -> list[tuple[str, ParamSpec, Any]]:
    """(name, declaration, value) of each parameter; its padding is whatever it is."""
    specs = jax.tree_util.tree_leaves_with_path(models.specs(cfg), is_leaf=pm.is_spec)
    given = dict(jax.tree_util.tree_leaves_with_path(params))
    names = {path for path, _ in specs}
    wrong = [f"{pm.path_name(path)} is missing" for path in names - given.keys()]
    wrong += [f"{pm.path_name(path)} is not wanted" for path in given.keys() - names]
    for path, spec in specs:
        if path not in given:
            continue
        have, row = np.shape(given[path]), spec.stacked
        padded = spec.rows is not None and len(have) == len(spec.shape) and have[row] >= spec.rows
        want = tuple(have[i] if padded and i == row else size for i, size in enumerate(spec.shape))
        if have != want:
            wrong.append(f"{pm.path_name(path)} is {list(have)}, not {list(spec.shape)}")
    require(not wrong, f"Parameters do not fit the config: {'; '.join(sorted(wrong))}.")
    return [(pm.path_name(path), spec, given[path]) for path, spec in specs]


def _kept_in(spec: ParamSpec, dtype: str) -> np.dtype:
    return np.dtype(dtype if spec.role in pm.COMPUTE_CAST_ROLES else "float32")


def _tensor_values(
    leaves: list[tuple[str, ParamSpec, Any]], dtype: str, model_type: str
) -> Iterator[tuple[str, np.ndarray]]:
    for path, spec, leaf in leaves:
        whole: np.ndarray = fetch(leaf)
        for tensor in tensors(path, spec, model_type):
            ours = whole[tensor.index]
            ours = ours[: tensor.part[0]] if spec.rows is not None else ours
            with np.errstate(over="ignore"):  # refused below, with the tensor's name
                value = tensor.to_theirs(ours).astype(_kept_in(spec, dtype))
            require(
                value.dtype != np.float16 or np.isinf(value).sum() == np.isinf(ours).sum(),
                f"{tensor.name} holds values beyond {dtype}'s range; write bfloat16 or float32.",
            )
            yield tensor.name, value


def _copy_torch_files(folder: Path, file: str | None) -> None:
    """The PyTorch file and those that it imports: all of ours, they are small."""
    if file is None:
        return
    package = resources.files("polycom_jax.interop.huggingface") / _TORCH_FILES
    for source in package.iterdir():
        if source.name.endswith(".py"):
            (folder / source.name).write_bytes(source.read_bytes())
