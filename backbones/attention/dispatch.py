"""Which formula serves a call of the attention core, and the record of what was chosen and why.

Precedence of a wish, first stated wins: the call's ``backend`` argument, ``with force(name)``, ``set_default(name)``
(the ``--attention`` flag), the environment variable ``GRAFTWORK_ATTENTION``. Torch is imported only to probe.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from graftwork.errors import ConfigError
from graftwork.names import unknown

if TYPE_CHECKING:
    import torch

VARIABLE = "GRAFTWORK_ATTENTION"
BACKENDS = ("xformers", "sdpa", "math")
"""Of ``attend``."""
NATTEN = "natten"
"""Serves neighborhood attention only; wanted in general, it leaves all other operators at ``auto``."""
NAMES = ("auto", *BACKENDS, NATTEN)

logger = logging.getLogger("graftwork.attention")
_forced: ContextVar[str | None] = ContextVar("graftwork_attention", default=None)
_forced_for_graphs: str | None = None
"""The same once more: before a compiled graph runs again it checks the globals it read, but no context variables."""
_default: str | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a backend must know of a call to say whether it can serve it.

    Attributes:
        device: Where the tensors are.
        dtype: Type the products are computed in; under autocast its type.
        batch: Samples, B.
        queries: Query tokens, Lq.
        keys: Key tokens, Lk.
        heads: Heads, H.
        width: Channels of a head of queries and keys.
        value_width: Channels of a head of values.
        bias: Whether a bias is given, and of which kind.
        bias_grad: The bias needs a gradient.
        causal: Query i must not see later keys.
        lengths: Key counts per sample are given.
        dropout: Share of weights dropped.
        needs_grad: Queries, keys or values need a gradient.
        packed: Sequences lie one after the other in a batch of one, and each sees itself only.
    """

    device: torch.device
    dtype: torch.dtype
    batch: int
    queries: int
    keys: int
    heads: int
    width: int
    value_width: int
    bias: Literal["none", "bool", "float"] = "none"
    bias_grad: bool = False
    causal: bool = False
    lengths: bool = False
    dropout: float = 0.0
    needs_grad: bool = False
    packed: bool = False

    @property
    def mask_free(self) -> bool:
        """No tensor says which keys are seen; causality needs none."""
        return self.bias == "none" and not self.lengths


@dataclass(frozen=True)
class Choice:
    """One decision of the dispatcher: ``passed_over`` maps the backends preferred to it to why they cannot serve."""

    backend: str
    device: str
    dtype: str
    wanted_by: str = ""
    passed_over: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One line of :func:`explain`: the types a backend serves on a device, and why not the others."""

    backend: str
    device: str
    dtypes: tuple[str, ...]
    reason: str


_used: dict[str, dict[tuple[str, str, str], Choice]] = {}


def _checked(name: str, where: str) -> str:
    if name not in NAMES:
        raise unknown("attention backend", name, NAMES, where=where)
    return name


@contextmanager
def force(name: str) -> Iterator[None]:
    """Use one backend for every attention call inside the ``with`` block; ``"auto"`` lifts an outer wish.

    Raises:
        ConfigError: Unknown name.
    """
    global _forced_for_graphs
    token, before = _forced.set(_checked(name, "force")), _forced_for_graphs
    _forced_for_graphs = name
    try:
        yield
    finally:
        _forced.reset(token)
        _forced_for_graphs = before


def set_default(name: str | None) -> None:
    """Set the backend for the whole process, as ``--attention`` does; None or ``"auto"`` unsets it.

    Raises:
        ConfigError: Unknown name.
    """
    global _default
    _default = None if name is None or _checked(name, "--attention") == "auto" else name


def wish(backend: str = "auto") -> tuple[str, str]:
    """The backend wanted for a call, and who wants it.

    Args:
        backend: The call's own argument.

    Returns:
        A name of :data:`NAMES` and the place it comes from, ``""`` for plain ``"auto"``.

    Raises:
        ConfigError: Unknown name, at whichever place is asked first.
    """
    if _checked(backend, "backend") != "auto":
        return backend, "backend argument"
    forced = _forced_for_graphs if _compiling() else _forced.get()
    if forced is not None:
        return forced, "attention.force"
    if _default is not None:
        return _default, "--attention"
    name = os.environ.get(VARIABLE, "").strip() or "auto"
    return _checked(name, VARIABLE), VARIABLE if name != "auto" else ""


def resolve_form(operator: str, backend: str = "auto") -> Literal["fast", "math"]:
    """Choose between the two forms of an operator that has no foreign kernels.

    Args:
        operator: Name of the operator, for the record.
        backend: The call's own argument.

    Returns:
        ``"math"`` for the paper's literal formula if that is wanted, else ``"fast"``.

    Raises:
        ConfigError: Unknown backend name.
    """
    name, source = wish(backend)
    form: Literal["fast", "math"] = "math" if name == "math" else "fast"
    _record(operator, Choice(form, "any", "any", source))
    return form


def resolve_kernel(operator: str, request: Any, kernels: tuple[str, ...], backend: str = "auto") -> str:
    """Choose for an operator that has two forms of our own and foreign kernels beside them.

    Args:
        operator: Name of the operator, for the record.
        request: What the call needs, as the kernels' ``why_not`` understands it, with ``device`` and ``dtype``.
        kernels: Backends that bring such kernels, fastest first; ``auto`` prefers them to our own form.
        backend: The call's own argument.

    Returns:
        One of ``kernels``, ``"fast"`` or ``"math"``. Backends that have no kernel for the operator give ``"fast"``.

    Raises:
        ConfigError: Unknown backend name, or one of ``kernels`` is wanted and cannot serve the call.
    """
    name, source = wish(backend)
    if name in kernels:
        candidates: tuple[str, ...] = (name,)
    else:
        candidates = kernels if name == "auto" and not exporting() else ()
    passed_over: dict[str, str] = {}
    for candidate in candidates:
        reason = refusal(candidate, request)
        if reason is None:
            _record(operator, Choice(candidate, str(request.device), _short(request.dtype), source, passed_over))
            return candidate
        passed_over[candidate] = reason
    if name in kernels:
        raise _cannot_serve(name, operator, passed_over[name], source)
    form = "math" if name == "math" else "fast"
    _record(operator, Choice(form, str(request.device), _short(request.dtype), source, passed_over))
    return form


def _cannot_serve(name: str, operator: str, reason: str, source: str) -> ConfigError:
    return ConfigError(
        f"attention backend '{name}' cannot serve this call of {operator}: {reason}",
        where=source,
        mend="Use 'auto' or 'math', or see: python -m backbones.attention",
    )


def backend_module(name: str) -> Any:
    """The module of a backend: ``why_not(request) -> str | None`` and ``run(queries, keys, values, ...)``."""
    path = f"backbones.attention.backends.{name}"
    return sys.modules.get(path) or importlib.import_module(path)  # an import would cut a compiled graph in two


def preference(request: Request) -> tuple[str, ...]:
    """Backends for a call, fastest first; the last one serves everything.

    On Hopper GPUs xformers brings flash attention 3, which knows no tensor bias; elsewhere both libraries run the
    same kernels and SDPA needs no copy of a broadcast bias. On a CPU SDPA measured faster from 11 to 2048 tokens, but
    for what :func:`_unfused` names. An exported graph gets the plain formula, which every runtime knows.
    """
    if exporting() or (request.device.type == "cpu" and _unfused(request)):
        return ("math",)
    if request.device.type == "cuda" and not (request.dtype.itemsize == 2 and request.mask_free):
        return ("sdpa", "xformers", "math")
    return ("xformers", "sdpa", "math")


def _unfused(request: Request) -> bool:
    """A CPU has no fused kernel for the call, or none that pays; measured with torch 2.10 on one core.

    It has none for dropout or a bias that needs a gradient, and SDPA is then the slower way to the same (1.0 to 1.4
    times from 16 to 1024 tokens, as slow at 2048). For half types a training step took 10 times as long as by the plain
    formula in float32 at 16 tokens, 6 at 49, 1.7 to 2 at 256 and 1.3 to 1.5 at 512 (bfloat16).
    """
    if request.dropout > 0 or request.bias_grad:
        return True
    return request.needs_grad and request.dtype.itemsize == 2 and request.keys <= 512


def exporting() -> bool:
    """The call is being traced into a graph for another runtime, neither run nor compiled for this one."""
    import torch

    # torch.compiler.is_exporting() tells the flag, but torch.compile takes it for true without asking (torch 2.10).
    exported: bool = torch.compiler._is_exporting_flag
    return exported or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing()


def eager() -> bool:
    """The call runs here and now and on numbers: nothing traces, compiles, fakes or transforms it."""
    import torch

    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._functorch.maybe_current_level() is not None:
        return False
    return type(torch.empty(0, device="meta")) is torch.Tensor  # else a mode makes tensors that are no numbers


def choose(operator: str, request: Request, backend: str = "auto") -> str:
    """Pick the backend for a call and record the decision.

    Args:
        operator: Name of the operator, for the record.
        request: What the call needs.
        backend: The call's own argument.

    Returns:
        A name of :data:`BACKENDS`.

    Raises:
        ConfigError: Unknown name, or a wanted backend that cannot serve the call; the message says why.
    """
    name, source = wish(backend)
    if name == NATTEN and backend != NATTEN:
        name = "auto"
    passed_over: dict[str, str] = {}
    for candidate in preference(request) if name == "auto" else (name,):
        reason = refusal(candidate, request)
        if reason is None:
            _record(operator, Choice(candidate, str(request.device), _short(request.dtype), source, passed_over))
            return candidate
        passed_over[candidate] = reason
    raise _cannot_serve(name, operator, passed_over[name], source)


def refusal(name: str, request: Any) -> str | None:
    """Why a backend cannot serve a call, its probe on that device and type included; None if it can."""
    reason: str | None = backend_module(name).why_not(request)
    if reason is None and name != "math" and eager():
        return probe(name, str(request.device), request.dtype)
    return reason


@cache
def probe(name: str, device: str, dtype: torch.dtype) -> str | None:
    """Run a backend once, forward and backward, beside the reference; importable is not usable.

    Args:
        name: A backend; its module may bring a ``probe`` of its own that gives results and expected ones.
        device: Device to run on.
        dtype: Type of the tensors.

    Returns:
        Why the backend is not usable there, None if it is. Remembered for the life of the process.
    """
    import torch

    # Fixed numbers instead of random ones: a probe must not move the generator of a training that is to be resumed.
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(torch.device(device).type, enabled=False):
        try:
            own = getattr(backend_module(name), "probe", _probe_pair)
            found, expected = own(name, device, dtype)
        except Exception as error:  # whatever a foreign kernel raises is the answer
            return f"probe failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    tolerance = 1e-4 if dtype.itemsize >= 4 else 5e-2
    worst = max(float((ours - theirs).abs().max()) for ours, theirs in zip(found, expected, strict=True))
    return None if worst <= tolerance else f"probe differs from math by {worst:.1e}"


def _probe_pair(name: str, device: str, dtype: torch.dtype) -> list[list[torch.Tensor]]:
    return [_probe_run(backend, device, dtype) for backend in (name, "math")]


def _probe_run(name: str, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    import torch

    tokens = torch.linspace(-1, 1, 8 * 2 * 16, dtype=torch.float32).reshape(1, 8, 2, 16).to(device, dtype)
    inputs = [(tokens * factor).requires_grad_() for factor in (1.0, -0.5, 2.0)]
    output = backend_module(name).run(*inputs, causal=True, scale=0.25)
    return [tensor.detach().float() for tensor in (output, *torch.autograd.grad(output.sum(), inputs))]


def _compiling() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.compiler.is_compiling()


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _record(operator: str, choice: Choice) -> None:
    choices = _used.setdefault(operator, {})
    key = (choice.backend, choice.device, choice.dtype)
    if key in choices:
        return
    choices[key] = choice
    if _compiling():  # a logger would cut the graph in two
        return
    wanted = f", wanted by {choice.wanted_by}" if choice.wanted_by else ""
    instead = "".join(f"; not {name}: {reason}" for name, reason in choice.passed_over.items())
    logger.info("%s on %s %s: %s%s%s", operator, choice.device, choice.dtype, choice.backend, wanted, instead)


def used() -> dict[str, list[dict[str, Any]]]:
    """Operators called so far in this process and the backends that served them, as plain types.

    Returns:
        Operator to its choices: ``backend`` (``fast`` or ``math`` for operators without foreign kernels), ``device``,
        ``dtype``, ``wanted_by`` (empty for the dispatcher's own choice), ``passed_over`` (name to reason).
    """
    return {operator: [asdict(choice) for choice in choices.values()] for operator, choices in _used.items()}


def reset_used() -> None:
    """Forget the record, so that :func:`used` tells of what comes next."""
    _used.clear()


def explain(device: str | None = None) -> list[Row]:
    """Which backends of ``attend`` are usable on a device and why the others are not.

    Args:
        device: Device to probe; a GPU if there is one, else the CPU, if omitted.

    Raises:
        ConfigError: ``device`` is no device's name.
    """
    import torch

    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ConfigError(f"'{device}' is no device", where="device", mend="Use e.g. cpu, cuda or cuda:1") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        absent = "no CUDA device here: no driver, no GPU, or a torch built without CUDA"
        return [Row(name, str(place), (), absent) for name in (*BACKENDS, NATTEN)]
    rows = []
    for name in BACKENDS:
        reasons = {}
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            request = Request(device=place, dtype=dtype, batch=1, queries=8, keys=8, heads=2, width=16, value_width=16)
            reasons[_short(dtype)] = refusal(name, request)
        usable = tuple(dtype for dtype, reason in reasons.items() if reason is None)
        rows.append(Row(name, str(place), usable, "; ".join(sorted({r for r in reasons.values() if r is not None}))))
    return [*rows, _natten_row(place)]


def _natten_row(device: torch.device) -> Row:
    """The types that kernels of natten serve, and what each kernel lacks."""
    import torch

    from backbones.attention.neighborhood import NeighborhoodRequest

    module = backend_module(NATTEN)
    usable: list[str] = []
    reasons: dict[str, None] = {"serves neighborhood attention without bias only": None}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        request = NeighborhoodRequest(device=device, dtype=dtype, width=32, value_width=32, kernel=(3, 3))
        reason = refusal(NATTEN, request)
        if reason is None:
            usable.append(_short(dtype))
            reasons |= {f"{kernel}: {lack}": None for kernel, lack in module.kernel_reasons(request).items() if lack}
        else:
            reasons[reason] = None
    if importlib.util.find_spec("natten") is None:
        reasons[module.INSTALL] = None
    return Row(NATTEN, str(device), tuple(usable), "; ".join(reasons))
