"""Execution providers: their names, which of them are here, and opening a session on exactly the one asked for.

The only file that imports onnxruntime, together with ``jobs`` which runs in workers.
"""

from __future__ import annotations

import importlib.util
import re
from typing import Any

from optimizer.faults import bad_input, cannot, usage
from optimizer.plan import PROVIDERS
from passes.kit.options import closest

MISSING_RUNTIME = "install one flavour: pip install 'lathe[cpu]' (or [cuda], [openvino])"


CUSTOM_OPS: list[str] = []
"""Libraries that every session of this process loads; filled in workers only, with what the user named."""


def full_name(name: str) -> str:
    """The onnxruntime name of a provider given by any of its names. Raises a usage Fault with the closest match."""
    if name in PROVIDERS.values():
        return name
    found = PROVIDERS.get(name.lower())
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


def require(name: str) -> str:
    """The full name of a provider that is here, or a Fault (exit 4) that says what is."""
    full = full_name(name)
    here = available()
    if full not in here:
        have = ", ".join(short_name(p) for p in here)
        hint = f"Available: {have}. Install the flavour that has it, or leave out --provider."
        raise cannot(f"the provider {full} is not available here", hint=hint, code="missing-provider")
    return full


def open_session(
    path: str, provider: str, threads: int, *, optimize: bool = True, profile: str = "", keep: str = ""
) -> Any:
    """An inference session on ``provider`` with the CPU behind it for operators that the provider lacks.

    Without ``optimize`` the runtime neither rewrites the graph nor packs weights, so that every node is computed as it
    stands.
    ``profile`` starts the runtime's profile under that file prefix; ``keep`` writes the graph that the runtime made
    of the model there, large weights beside it.
    Raises a Fault when the runtime refuses the model, or when it silently left the provider out.
    """
    ort = runtime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    if not optimize:
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
    wanted = [provider] if provider == PROVIDERS["cpu"] else [provider, PROVIDERS["cpu"]]
    try:
        session = ort.InferenceSession(path, options, providers=wanted)
    except Exception as error:
        raise bad_input(f"onnxruntime cannot load the model: {plain_words(error)}", code="runtime-refused") from error
    if provider not in session.get_providers():
        raise cannot(f"{provider} did not start; onnxruntime would have used the CPU silently", code="missing-provider")
    return session


_NOISE = re.compile(r"^\s*:\s*\d+\s*:\s*\w+\s*:\s*|Load model from \S+ failed:\s*")


def plain_words(error: Exception) -> str:
    """What onnxruntime said, without error numbers and paths: only the innermost of its nested messages."""
    text = " ".join(str(error).split()).rpartition("[ONNXRuntimeError]")[2]
    return _NOISE.sub("", text).strip()[:300] or type(error).__name__
