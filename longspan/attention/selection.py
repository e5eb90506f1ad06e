"""Which kernel serves: the first of an ordered table that fits and that has just proved itself on this device."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import attention as torch_attention

from longspan.attention.cuda import Cudnn, Flash
from longspan.attention.documents import Group, Runs
from longspan.attention.functional import Cpu, Kernel, Need, Reference, batched, tokens
from longspan.attention.online import merge
from longspan.attention.reference import reference_attention
from longspan.utils.errors import LongspanError

KERNELS: tuple[Kernel, ...] = (Cudnn(), Flash(), Cpu(), Reference())  # fastest first

# The largest difference that a sound kernel may show, as a share of the largest value of the tensor.
LIMITS = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.03}
QUERIES, OLD_KEYS = 131, 197  # of the self-test: odd, and more than one tile of every kernel
DOCUMENTS: Runs = ((0, 1), (1, 32), (32, 63), (63, QUERIES))
WINDOW = 29

Named = dict[str, Tensor]


@dataclass(frozen=True)
class Verdict:
    """One kernel and why it does not serve; an empty reason says that it may."""

    kernel: Kernel
    reason: str


def select(
    device: torch.device,
    dtype: torch.dtype,
    *,
    head_dim: int,
    ratio: int = 1,
    window: bool = False,
    short: bool = False,
) -> Kernel:
    """The fastest kernel that fits the need and passes its self-test; tried once in a process.

    On a CUDA device FlashAttention is first brought to the newest version that torch can activate.
    Raises `attention.no-kernel` if not even the reference gives right numbers here.
    """
    need = Need(device=device, dtype=dtype, head_dim=head_dim, ratio=ratio, window=window, short=short)
    activate_newest_flash(replace(need, window=False, short=False))
    for kernel in KERNELS:
        if not _reason(kernel, need):
            return kernel
    reasons = "; ".join(f"{verdict.kernel.name}: {verdict.reason}" for verdict in verdicts(need))
    raise LongspanError(
        "attention.no-kernel",
        f"no attention kernel gives right numbers for {dtype} with heads of {head_dim}",
        where=f"{device}: {reasons}",
        fix="reinstall torch for this machine; `longspan doctor` shows what fails",
    )


def verdicts(need: Need) -> tuple[Verdict, ...]:
    """Every kernel of the table in order, tried; the first without a reason is the one that `select` gives."""
    return tuple(Verdict(kernel, _reason(kernel, need)) for kernel in KERNELS)


@functools.cache
def _reason(kernel: Kernel, need: Need) -> str:
    return kernel.reason_against(need) or self_test(kernel, need)


# -- the self-test ---------------------------------------------------------------------------------------------------


def self_test(kernel: Kernel, need: Need) -> str:
    """What is wrong with the kernel's outputs and gradients on small odd shapes; empty if nothing is.

    Compared with the reference in float64 on the CPU. Two key heads, so that a wrong pairing of heads is seen; views as
    the engine has them; a row in two parts, whose backward has the merged o and lse.
    """
    try:
        for form, compare in _forms(kernel, need):
            for name, error in compare().items():
                if not error <= LIMITS[need.dtype]:  # NaN is no number to be proud of
                    return f"{form}: {name} is off by {error:.1e} of its largest value"
    # Private functions of torch may be missing, take other arguments or give back other things.
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, AssertionError) as cause:
        lines = str(cause).splitlines()
        return f"{type(cause).__name__}: {lines[0] if lines else 'no message'}"
    return ""


def _forms(kernel: Kernel, need: Need) -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
    window = WINDOW if need.window else None
    yield "rows", functools.partial(_rows, kernel, need, window)
    if need.window or need.short:
        yield "documents", functools.partial(_documents, kernel, need, window)
    else:
        yield "a row in two parts", functools.partial(_parts, kernel, need)


def _rows(kernel: Kernel, need: Need, window: int | None) -> dict[str, float]:
    """Two rows of a batch, as views of tokens in a line."""
    group = Group(0, QUERIES, 2)
    do, q, k, v = _inputs(need, tokens=2 * QUERIES)
    o, lse = kernel.forward(*batched(group, q, k, v), causal=True, window=window)
    upstream, *rows = batched(group, do, q, k, v)
    gradients = kernel.backward(upstream, rows[0], rows[1], rows[2], o, lse, causal=True, window=window)
    found = _named(*(tokens(x) for x in (o, lse, *gradients)))
    return _errors(found, (do, q, k, v), window=window, runs=((0, QUERIES), (QUERIES, 2 * QUERIES)))


def _documents(kernel: Kernel, need: Need, window: int | None) -> dict[str, float]:
    do, q, k, v = _inputs(need, tokens=QUERIES)
    o, lse = kernel.forward_documents(q, k, v, runs=DOCUMENTS, window=window)
    gradients = kernel.backward_documents(do, q, k, v, o, lse, runs=DOCUMENTS, window=window)
    return _errors(_named(o, lse, *gradients), (do, q, k, v), window=window, runs=DOCUMENTS)


def _parts(kernel: Kernel, need: Need) -> dict[str, float]:
    """The last queries of a row: a full call on the keys before them, a causal one on their own."""
    do, q, k, v = (x[None] for x in _inputs(need, tokens=OLD_KEYS + QUERIES))
    do, q = do[:, :, OLD_KEYS:], q[:, :, OLD_KEYS:]
    parts = [(k[:, :, :OLD_KEYS], v[:, :, :OLD_KEYS], False), (k[:, :, OLD_KEYS:], v[:, :, OLD_KEYS:], True)]
    results = [kernel.forward(q, key, value, causal=causal) for key, value, causal in parts]
    o, lse = merge(*results[0], *results[1])
    o = o.to(q.dtype)
    full, own = (kernel.backward(do, q, key, value, o, lse, causal=causal) for key, value, causal in parts)
    dk, dv = (torch.cat((full[i], own[i]), dim=2) for i in (1, 2))
    return _errors(_named(*(x[0] for x in (o, lse, full[0] + own[0], dk, dv))), (do[0], q[0], k[0], v[0]))


def _inputs(need: Need, *, tokens: int) -> list[Tensor]:
    """The upstream gradient and q, k, v, each `[heads, tokens, d]`: slices of larger buffers, as in the engine."""
    generator = torch.Generator().manual_seed(0)
    heads = (2 * need.ratio, 2 * need.ratio, 2, 2)
    shapes = ((count + 1, tokens, need.head_dim) for count in heads)
    return [torch.randn(shape, generator=generator).to(need.device, need.dtype)[1:] for shape in shapes]


def _errors(
    found: Named, inputs: tuple[Tensor, ...], *, window: int | None = None, runs: Runs | None = None
) -> dict[str, float]:
    spans = None if runs is None else ((0, *(stop for _, stop in runs)),)
    with torch.inference_mode(False), torch.enable_grad():
        do, q, k, v = (x[None].cpu().double().clone() for x in inputs)
        leaves = [x.requires_grad_() for x in (q, k, v)]
        o, lse = reference_attention(q, k, v, window=window, spans=spans)
        wanted = _named(*(x[0].detach() for x in (o, lse, *torch.autograd.grad(o, leaves, do))))
    pairs = ((name, found[name].cpu().double(), wanted[name]) for name in wanted)
    return {name: float((a - b).abs().max() / b.abs().max()) for name, a, b in pairs}


def _named(o: Tensor, lse: Tensor, dq: Tensor, dk: Tensor, dv: Tensor) -> Named:
    return {"o": o, "lse": lse, "dq": dq, "dk": dk, "dv": dv}


# -- newer versions of FlashAttention --------------------------------------------------------------------------------


@functools.cache
def activate_newest_flash(need: Need) -> str:
    """Let torch use FlashAttention 4 or 3 where installed and sound for the need; the name of what is active.

    Never raises. Kernels are tested again afterwards, because the same functions now do other things.
    """
    activate = getattr(torch_attention, "activate_flash_attention_impl", None)
    restore = getattr(torch_attention, "restore_flash_attention_impl", None)
    flash = Flash()
    if need.device.type != "cuda" or activate is None or restore is None:
        return "FA2" if need.device.type == "cuda" else "none"
    for version in ("FA4", "FA3"):
        try:
            activate(version)
        except (ImportError, RuntimeError, ValueError, AttributeError, OSError, TypeError):  # not installed, or unfit
            continue
        _reason.cache_clear()
        trials = (replace(need, window=True), replace(need, short=True), replace(need, window=False, short=False))
        if not any(_reason(flash, trial) for trial in trials):
            return version
        restore()
    _reason.cache_clear()
    return "FA2"
