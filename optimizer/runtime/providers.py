"""Providers: their names and options, which of them are here, and opening an onnxruntime session on exactly the one
asked for.

The only file that imports onnxruntime, together with ``jobs`` which runs in workers.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping
from typing import Any

from optimizer.faults import bad_input, cannot, usage
from optimizer.plan import OPENVINO_RUNTIME, PROVIDERS, ProviderText
from passes.kit.options import closest

MISSING_RUNTIME = "install one flavour: pip install 'lathe[cpu]' (or [cuda], [openvino])"

INSTALLS = {
    "CUDAExecutionProvider": "pip uninstall onnxruntime, then pip install 'lathe[cuda]'",
    "TensorrtExecutionProvider": "pip uninstall onnxruntime, then pip install 'lathe[cuda]' tensorrt",
    "OpenVINOExecutionProvider": "pip install 'lathe[openvino-runtime]' (or [openvino] in place of onnxruntime)",
    OPENVINO_RUNTIME: "pip install 'lathe[openvino-runtime]'",
}
"""What brings a provider that is not here."""

REMOTE = ("AzureExecutionProvider",)
"""Providers that send data to a service: nothing is ever tried on them unasked."""

OPTIONS: Mapping[str, tuple[str, ...]] = {
    PROVIDERS["cpu"]: (),
    PROVIDERS["cuda"]: (
        "arena_extend_strategy", "cudnn_conv1d_pad_to_nc1d", "cudnn_conv_algo_search", "cudnn_conv_use_max_workspace",
        "device_id", "do_copy_in_default_stream", "enable_cuda_graph", "enable_skip_layer_norm_strict_mode",
        "fuse_conv_bias", "gpu_mem_limit", "prefer_nhwc", "sdpa_kernel", "tunable_op_enable",
        "tunable_op_tuning_enable", "use_ep_level_unified_stream", "use_tf32", "user_compute_stream",
    ),
    PROVIDERS["tensorrt"]: (
        "device_id", "trt_auxiliary_streams", "trt_bf16_enable", "trt_build_heuristics_enable",
        "trt_builder_optimization_level", "trt_context_memory_sharing_enable", "trt_cuda_graph_enable",
        "trt_dla_core", "trt_dla_enable", "trt_engine_cache_enable", "trt_engine_cache_path",
        "trt_engine_cache_prefix", "trt_engine_hw_compatible", "trt_ep_context_file_path", "trt_fp16_enable",
        "trt_int8_enable", "trt_layer_norm_fp32_fallback", "trt_max_partition_iterations", "trt_max_workspace_size",
        "trt_min_subgraph_size", "trt_profile_max_shapes", "trt_profile_min_shapes", "trt_profile_opt_shapes",
        "trt_sparsity_enable", "trt_tactic_sources", "trt_timing_cache_enable", "trt_timing_cache_path",
        "user_compute_stream",
    ),
    PROVIDERS["openvino"]: (
        "cache_dir", "device_type", "disable_dynamic_shapes", "enable_opencl_throttling", "enable_qdq_optimizer",
        "layout", "load_config", "model_priority", "num_of_threads", "num_streams", "precision", "reshape_input",
    ),
}  # fmt: skip
"""Options that providers are known to take, to catch misspelt ones; others are the runtime's to judge, because it knows
what its version takes. Source: onnxruntime's pages on its execution providers. The openvino package says by itself
what it takes."""

CUSTOM_OPS: list[str] = []
"""Libraries that every session of this process loads; filled in workers only, with what the user named."""


def parse(text: str) -> ProviderText:
    """The provider's full name and its options. Raises a usage Fault with the closest match.

    ``openvino`` is onnxruntime's provider where the installed onnxruntime has it, else the ``openvino`` package.
    """
    try:
        told = ProviderText.parse(text)
    except ValueError as error:
        raise usage(str(error)) from error
    full = ProviderText(_full_name(told.name), told.options)
    if told.name.lower() == "openvino" and full.name not in (here := everywhere()) and OPENVINO_RUNTIME in here:
        full = ProviderText(OPENVINO_RUNTIME, told.options)
    known = OPTIONS.get(full.name)
    for key, _ in full.options if known is not None else ():
        near = closest(key, known or ())
        if key not in (known or ()) and (near or not known):
            raise usage(f"{full.name} has no option '{key}'{near}", hint="" if near else "It has none.")
    return full


def full_name(text: str) -> str:
    """The full name of a provider given by any of its names, with its options. Raises a usage Fault."""
    return parse(text).text


def named(text: str) -> str:
    """The full name alone. For what strangers wrote: options can name files and libraries to load."""
    return _full_name(text.partition(":")[0].strip())


def _full_name(name: str) -> str:
    full = {known.lower(): known for known in PROVIDERS.values()}
    found = full.get(name.lower()) or PROVIDERS.get(name.lower())
    if found is None and name.endswith("ExecutionProvider") and name in available():
        return name  # one that we have no word for
    if found is None:
        known = (*PROVIDERS, *PROVIDERS.values())
        raise usage(f"no provider '{name}'{closest(name, known)}", hint=f"Known: {', '.join(PROVIDERS)}.")
    return found


def short_name(name: str) -> str:
    """The short name of a provider, else the full one."""
    return next((short for short, full in PROVIDERS.items() if full == name), name)


def runtime() -> Any:
    """The onnxruntime module. Raises a Fault that says how to install it."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise cannot("onnxruntime is not installed", hint=MISSING_RUNTIME, code="missing-package")
    import onnxruntime

    if hasattr(onnxruntime, "disable_telemetry_events"):
        onnxruntime.disable_telemetry_events()  # what someone compiles is nobody else's business
    return onnxruntime


def available() -> tuple[str, ...]:
    """Full names of the providers that the installed onnxruntime was built with."""
    return tuple(runtime().get_available_providers())


def version_of(provider: str) -> str:
    """The version of the package that has this provider (full name)."""
    if ProviderText.parse(provider).name == OPENVINO_RUNTIME:
        return f"openvino {importlib.metadata.version('openvino')}"
    return str(runtime().__version__)


def everywhere() -> tuple[str, ...]:
    """Full names of all providers that are here: onnxruntime's, and the ``openvino`` package where it is installed."""
    own = (OPENVINO_RUNTIME,) if importlib.util.find_spec("openvino") is not None else ()
    return (*available(), *own)


def choose(text: str) -> str:
    """The full name, with options, of a provider that is here. Raises a Fault (exit 4) that says what is."""
    told, here = parse(text), everywhere()
    name = told.name
    if name not in here:
        have = ", ".join(short_name(p) for p in here if p not in REMOTE)
        way = INSTALLS.get(name, "Install the flavour of onnxruntime that has it")
        hint = f"Available: {have}. To get it: {way}."
        raise cannot(f"the provider {name} is not available here", hint=hint, code="missing-provider")
    return told.text


def require(text: str) -> str:
    """Like :func:`choose`, for what only onnxruntime's own providers can do: looking inside a model while it runs."""
    found = choose(text)
    if ProviderText.parse(found).name == OPENVINO_RUNTIME:
        hint = (
            "Use --provider cpu here: what ships is timed with openvino too, and a line says so where it is faster. "
            "To compare: lathe benchmark ARTIFACT --provider cpu --provider openvino"
        )
        message = "the openvino package can run models (benchmark, gate), but here onnxruntime must look inside them"
        raise cannot(message, hint=hint, code="missing-provider")
    return found


SESSION = {"graph_optimization": "ORT_ENABLE_ALL", "inter_op_threads": 1, "execution": "sequential"}
"""How :func:`open_session` sets the runtime, beside the threads that it is asked for."""


def open_session(
    path: str,
    provider: str,
    threads: int,
    *,
    optimize: bool = True,
    profile: str = "",
    keep: str = "",
    prepack: bool = True,
) -> Any:
    """An inference session on ``provider``, given by its full name and options, with the CPU behind it for operators
    that it lacks (and CUDA behind TensorRT).

    Without ``optimize`` the runtime neither rewrites the graph nor packs weights, so that every node is computed as it
    stands.
    ``profile`` starts the runtime's profile under that file prefix; ``keep`` writes the graph that the runtime made
    of the model there, large weights beside it; without ``prepack`` weights stay as they are in the graph.
    Raises a Fault when the runtime refuses the model, or when it silently left the provider out.
    """
    ort = runtime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    if not (optimize and prepack):
        # A constant weight is packed for other kernels than a computed one: folding it would not be bit-equal.
        options.add_session_config_entry("session.disable_prepacking", "1")
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    if keep:
        options.optimized_model_filepath = keep
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    for library in CUSTOM_OPS:
        try:
            options.register_custom_ops_library(library)
        except Exception as error:
            raise bad_input(f"cannot load custom operators: {plain_words(error)}", where=library) from error
    told = ProviderText.parse(provider)
    behind = [PROVIDERS["cuda"]] if told.name == PROVIDERS["tensorrt"] and PROVIDERS["cuda"] in available() else []
    wanted = dict.fromkeys((told.name, *behind, PROVIDERS["cpu"]))
    given = [dict(told.options) if name == told.name else {} for name in wanted]
    try:
        # onnxruntime's Python class would load and run the model elsewhere when a provider fails, with a line on stdout
        session = ort.InferenceSession(path, options, list(wanted), given, enable_fallback=False)
    except Exception as error:
        raise bad_input(f"onnxruntime cannot load the model: {plain_words(error)}", code="runtime-refused") from error
    if told.name not in session.get_providers():
        message = f"{told.name} did not start; onnxruntime would have used the CPU silently"
        hint = "Its libraries are probably missing: see the page of this provider in onnxruntime's documentation."
        raise cannot(message, hint=hint, code="missing-provider")
    return session


_NOISE = re.compile(r"^\s*:\s*\d+\s*:\s*\w+\s*:\s*|Load model from \S+ failed:\s*")


def plain_words(error: Exception) -> str:
    """What onnxruntime said, without error numbers and paths: only the innermost of its nested messages."""
    text = " ".join(str(error).split()).rpartition("[ONNXRuntimeError]")[2]
    return _NOISE.sub("", text).strip()[:300] or type(error).__name__


REDUCED = ("required_operators.config", "required_operators_and_types.config")
"""Beside an ORT-format model: what a build with fewer operators, or fewer operators and types, takes."""


def write_ort_format(path: str, provider: str, out: str) -> None:
    """Write the ORT format of a model to ``out``, optimized, and the files :data:`REDUCED` beside it.

    The layouts of ENABLE_ALL that are blocked for one CPU's vector width are left out: the file may go elsewhere.
    """
    from pathlib import Path

    ort = runtime()
    from onnxruntime.tools.ort_format_model import create_config_from_models

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = out
    options.add_session_config_entry("session.save_model_format", "ORT")
    try:
        ort.InferenceSession(path, options, providers=[provider], disabled_optimizers=["NchwcTransformer"])
    except Exception as error:
        raise bad_input(
            f"onnxruntime cannot write its own format: {plain_words(error)}", code="not-supported"
        ) from error
    for name, with_types in zip(REDUCED, (False, True), strict=True):
        place = Path(out).parent / name
        create_config_from_models([Path(out)], place, with_types)
        told = place.read_text(encoding="utf-8").replace(out, Path(out).name)  # not where it was made
        place.write_text(told, encoding="utf-8")
