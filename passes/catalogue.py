"""The catalogue: every pass by name, the presets, and the door for passes from elsewhere."""

from __future__ import annotations

import importlib
import importlib.metadata
from functools import cache

from passes.kit.contract import Exactness, Pass
from passes.kit.options import OptionError, check, closest
from passes.kit.recipe import Recipe, RecipeError

ENTRY_POINTS = "lathe.passes"

_BUILT_IN: dict[str, str] = {
    "simplify": "passes.clean.simplify:Simplify",
    "fold-constants": "passes.clean.fold_constants:FoldConstants",
    "tidy": "passes.clean.tidy:Tidy",
    "fold-batchnorm": "passes.fuse.fold_batchnorm:FoldBatchnorm",
    "fuse-activation": "passes.fuse.fuse_activation:FuseActivation",
    "fuse-gelu": "passes.fuse.fuse_gelu:FuseGelu",
    "fuse-layernorm": "passes.fuse.fuse_layernorm:FuseLayernorm",
    "plain-residual": "passes.fuse.plain_residual:PlainResidual",
    "pool-reduce-mean": "passes.fuse.pool_reduce_mean:PoolReduceMean",
    "requantize-form": "passes.quantize.requantize_form:RequantizeForm",
    "equalize": "passes.quantize.equalize:Equalize",
    "smooth": "passes.quantize.smooth:Smooth",
    "absorb-bias": "passes.quantize.absorb_bias:AbsorbBias",
    "round-adaptively": "passes.quantize.round_adaptively:RoundAdaptively",
    "open-clip": "passes.quantize.open_clip:OpenClip",
    "quantize-dynamic": "passes.quantize.quantize_dynamic:QuantizeDynamic",
    "quantize-static": "passes.quantize.quantize_static:QuantizeStatic",
    "quantize-static16": "passes.quantize.quantize_static16:QuantizeStatic16",
    "quantize-fp8": "passes.quantize.quantize_fp8:QuantizeFp8",
    "convert-float16": "passes.quantize.convert_float16:ConvertFloat16",
    "quantize-weights": "passes.quantize.quantize_weights:QuantizeWeights",
    "prune-channels": "passes.prune.prune_channels:PruneChannels",
    "prune-heads": "passes.prune.prune_heads:PruneHeads",
    "prune-magnitude": "passes.prune.prune_magnitude:PruneMagnitude",
    "prune-nm": "passes.prune.prune_nm:PruneNm",
    "refit": "passes.prune.refit:Refit",
}

LOSSLESS = Recipe.parse(
    "tidy, fold-constants, simplify, fold-batchnorm, fuse-activation, fuse-gelu, fuse-layernorm, plain-residual, "
    "pool-reduce-mean, requantize-form, tidy"
)
"""What ``-O1`` runs and every higher level starts with: clean first, quantize after. A model that came quantized gets
the integer types that the target runs fast."""


def names() -> tuple[str, ...]:
    """All known pass names: built in first, then those that installed packages offer."""
    return (*_BUILT_IN, *sorted(_entry_points()))


def find(name: str) -> type[Pass]:
    """The pass class of that name. Raises :class:`RecipeError` with the closest match."""
    where = _BUILT_IN.get(name)
    if where is not None:
        return load(where)
    entry = _entry_points().get(name)
    if entry is None:
        raise RecipeError(f"no pass '{name}'{closest(name, names())}; `lathe passes` lists them")
    return _checked(entry.load(), entry.value)


def load(where: str) -> type[Pass]:
    """The pass class at ``module:Class``. Raises :class:`RecipeError` when there is none."""
    module, _, attribute = where.partition(":")
    try:
        return _checked(getattr(importlib.import_module(module), attribute), where)
    except RecipeError:
        raise
    except (Exception, SystemExit) as error:  # a stranger's module runs whatever it likes when it is imported
        kind = "" if isinstance(error, (ImportError, AttributeError)) else f"{type(error).__name__}: "
        raise RecipeError(f"cannot load the pass '{where}': {kind}{error}") from error


def build(recipe: Recipe, extra: dict[str, type[Pass]] | None = None) -> tuple[Pass, ...]:
    """The passes of a recipe, options checked. ``extra`` adds classes by name. Raises :class:`RecipeError`."""
    built = []
    for step in recipe.steps:
        cls = (extra or {}).get(step.name) or find(step.name)
        try:
            built.append(cls(**check(cls, dict(step.options))))
        except OptionError as error:
            raise RecipeError(f"{step.name}: {error}") from error
    return tuple(built)


@cache
def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    return {e.name: e for e in importlib.metadata.entry_points(group=ENTRY_POINTS)}


def _checked(found: object, where: str) -> type[Pass]:
    if not (isinstance(found, type) and issubclass(found, Pass)):
        raise RecipeError(f"'{where}' is not a subclass of passes.kit.contract.Pass")
    said = getattr(found, "name", None), getattr(found, "exactness", None)
    if not isinstance(said[0], str) or not isinstance(said[1], Exactness):
        raise RecipeError(f"the pass '{where}' lacks its name or its exactness")
    return found
