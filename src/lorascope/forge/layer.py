"""``SiteLayer``: the base layer at a site, as N adapters see it at once.

    rows(x) [N, rows, in] → ΔW of each adapter → [N, rows, out] → place → the shape that the layer itself gives

The leading dimension of x is N · b, adapter by adapter. A convolution's rows are its patches, so that ΔW is a matrix
[out, channels · kernel] there too. An embedding has no rows: x Aᵀ is a look-up in A. So a kind of adapter is written
once, for matrices.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorascope.adapter import Layer
from lorascope.errors import ForgeError

CONVOLUTIONS: tuple[tuple[type[nn.Module], Layer], ...] = (
    (nn.Conv1d, "conv1d"),
    (nn.Conv2d, "conv2d"),
    (nn.Conv3d, "conv3d"),
)


class SiteLayer(ABC):
    """The base layer at one site; frozen, and never changed.

    Attributes:
        site: its module path.
        module: the layer itself.
        kernel: (channels, *kernel) of a convolution, else empty.
        is_transposed: whether the weight is stored as [in, out].
        kept: what kinds work out once for all adapters of a stack.
    """

    layer: Layer = "linear"
    is_transposed: bool = False
    kernel: tuple[int, ...] = ()

    def __init__(self, site: str, module: Any) -> None:
        self.site, self.module = site, module
        self.kept: dict[Any, Any] = {}

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(out, in) of ΔW."""

    @property
    def base_shape(self) -> tuple[int, ...]:
        """The shape that the weight is stored in."""
        out, in_ = self.shape
        return (out, *self.kernel) if self.kernel else (in_, out) if self.is_transposed else (out, in_)

    @property
    def weight(self) -> Tensor:
        """W as a matrix [out, in], without gradient.

        Raises:
            ForgeError: where it is quantised, so that no matrix can be read off it.
        """
        weight = self.module.weight.detach()
        if not weight.is_floating_point() or weight.element_size() < 2:
            raise ForgeError(
                "this kind of adapter needs the weight of the base, which is quantised",
                key=self.site,
                found=str(weight.dtype),
                hint="use a kind that does not look at it, such as lora, or load the base unquantised",
            )
        return weight.T if self.is_transposed else weight.reshape(weight.shape[0], -1)

    @property
    def bias(self) -> Tensor | None:
        """The bias [out], None where there is none."""
        return getattr(self.module, "bias", None)

    @property
    def dtype(self) -> torch.dtype:
        """Of the adapters' parameters: float64 over a float64 base, else float32."""
        return torch.float64 if self.module.weight.dtype == torch.float64 else torch.float32

    @property
    def device(self) -> torch.device:
        """Where the layer is."""
        return self.module.weight.device

    @cached_property
    def row_squares(self) -> Tensor:
        """‖W_o‖² of each row [out]."""
        return self.weight.to(self.dtype).square().sum(1)

    def zeros(self, *shape: int) -> Tensor:
        """Zeros of the parameters' dtype."""
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def keep(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made once for this key: tensors that are one object are held once for all adapters."""
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    def singular(self, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """Uᵀ [rank, out], S [rank] and Vᵀ [rank, in] of the largest singular values of W, in float64.

        Raises:
            ForgeError: where W has not so many, or is quantised.
        """
        if rank > min(self.shape):
            raise ForgeError(
                "the weight has not so many singular values",
                key=self.site,
                expected=f"a rank of at most {min(self.shape)}",
                found=rank,
            )
        U, S, Vt = _decomposed(self.module, self.weight)
        return U.T[:rank], S[:rank], Vt[:rank]

    def base(self, x: Tensor) -> Tensor:
        """What the layer gives without any adapter; of its class, as its own ``forward`` may be replaced just now."""
        return type(self.module).forward(self.module, x)

    @abstractmethod
    def rows(self, x: Tensor, count: int) -> Tensor:
        """x [N · b, …] as [N, rows, in]."""

    def project(self, x: Tensor, A: Tensor) -> Tensor:
        """x Aᵀ of each adapter: A [N, r, in] → [N, rows, r]."""
        return torch.bmm(self.rows(x, len(A)).to(A.dtype), A.transpose(1, 2))

    @abstractmethod
    def place(self, rows: Tensor, like: Tensor) -> Tensor:
        """[N, rows, out] in the shape and dtype of ``like``, an output of the layer."""

    @abstractmethod
    def outputs(self, y: Tensor, count: int) -> Tensor:
        """An output of the layer as [N, rows, out]: the inverse of ``place``."""


class LinearLayer(SiteLayer):
    """``nn.Linear``, and ``Conv1D`` of GPT-2, which stores its weight as [in, out]."""

    def __init__(self, site: str, module: Any) -> None:
        super().__init__(site, module)
        self.is_transposed = not isinstance(module, nn.Linear)

    @property
    def shape(self) -> tuple[int, int]:
        if self.is_transposed:
            return self.module.weight.shape[1], self.module.weight.shape[0]
        return self.module.out_features, self.module.in_features

    def rows(self, x: Tensor, count: int) -> Tensor:
        return x.reshape(count, -1, x.shape[-1])

    def place(self, rows: Tensor, like: Tensor) -> Tensor:
        return rows.reshape(like.shape).to(like.dtype)

    def outputs(self, y: Tensor, count: int) -> Tensor:
        return y.reshape(count, -1, y.shape[-1])


class ConvolutionLayer(SiteLayer):
    """``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d`` of one group; its rows are the patches under the kernel."""

    def __init__(self, site: str, module: Any, layer: Layer) -> None:
        super().__init__(site, module)
        self.layer = layer
        self.kernel = (module.in_channels, *module.kernel_size)

    @property
    def shape(self) -> tuple[int, int]:
        weight = self.module.weight
        return weight.shape[0], weight[0].numel()

    def rows(self, x: Tensor, count: int) -> Tensor:
        module = self.module
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        for axis, (size, stride, dilation) in enumerate(
            zip(module.kernel_size, module.stride, module.dilation, strict=True), start=2
        ):
            x = x.unfold(axis, (size - 1) * dilation + 1, stride)[..., ::dilation]
        # [N · b, channels, *places, *kernel] → [N · b, *places, channels, *kernel]
        places = len(module.kernel_size)
        x = x.movedim(1, 1 + places)
        return x.reshape(count, -1, self.shape[1])

    def place(self, rows: Tensor, like: Tensor) -> Tensor:
        spatial = rows.reshape(like.shape[0], *like.shape[2:], like.shape[1])
        return spatial.movedim(-1, 1).to(like.dtype)

    def outputs(self, y: Tensor, count: int) -> Tensor:
        return y.movedim(1, -1).reshape(count, -1, y.shape[1])


class EmbeddingLayer(SiteLayer):
    """``nn.Embedding``: the weight is stored as [in, out], where in counts the entries."""

    layer = "embedding"
    is_transposed = True

    @property
    def shape(self) -> tuple[int, int]:
        return self.module.embedding_dim, self.module.num_embeddings

    def rows(self, x: Tensor, count: int) -> Tensor:
        raise ForgeError("an embedding has no rows of inputs", key=self.site, hint="adapt it with the kind lora")

    def project(self, x: Tensor, A: Tensor) -> Tensor:
        count, rank, entries = A.shape
        table = A.transpose(1, 2).reshape(count * entries, rank)
        first = entries * torch.arange(count, device=x.device).view(-1, 1)
        entry = x.reshape(count, -1)
        h = F.embedding(entry + first, table)
        if self.module.padding_idx is None:
            return h
        return torch.where((entry == self.module.padding_idx).unsqueeze(-1), h.detach(), h)  # it is never trained

    def place(self, rows: Tensor, like: Tensor) -> Tensor:
        return rows.reshape(like.shape).to(like.dtype)

    def outputs(self, y: Tensor, count: int) -> Tensor:
        return y.reshape(count, -1, y.shape[-1])


_SVD = tuple[Tensor, Tensor, Tensor]
_DECOMPOSED: WeakKeyDictionary[nn.Module, tuple[Tensor, _SVD]] = WeakKeyDictionary()


def _decomposed(module: nn.Module, weight: Tensor) -> _SVD:
    """U, S and Vᵀ of a weight in float64: worked out once for a module, whose weight stays the same as a rule.

    It is held as long as the module is, beside a copy of the weight, which tells whether it has changed after all.
    """
    if module in _DECOMPOSED:
        of, svd = _DECOMPOSED[module]
        if of.dtype == weight.dtype and of.device == weight.device and torch.equal(of, weight):
            return svd
    svd = torch.linalg.svd(weight.double(), full_matrices=False)
    _DECOMPOSED[module] = weight.clone(), svd
    return svd


def layer_at(site: str, module: nn.Module) -> SiteLayer:
    """The layer at a site.

    Raises:
        ForgeError: where the module is of a class that no adapter can be put on.
    """
    if isinstance(module, nn.Linear) or (
        type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers")
    ):
        return LinearLayer(site, module)
    if isinstance(module, nn.Embedding):
        if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
            raise ForgeError(
                "an embedding that rescales its rows or gradients would mix the adapters of a batch", key=site
            )
        return EmbeddingLayer(site, module)
    for kind, convolution in CONVOLUTIONS:
        if not isinstance(module, kind):
            continue
        if module.groups != 1:
            raise ForgeError(
                "a convolution in groups cannot be adapted: ΔW of a low rank is not defined group by group",
                key=site,
                expected="groups=1",
                found=f"groups={module.groups}",
            )
        return ConvolutionLayer(site, module, convolution)
    raise ForgeError(
        "no adapter can be put on this layer",
        key=site,
        expected="Linear, Conv1d, Conv2d, Conv3d, Embedding, or Conv1D of GPT-2",
        found=type(module).__name__,
    )


def refuse_uncalled(is_called: Mapping[str, bool]) -> None:
    """Refuse a base that goes past a site: it was run, and the layer was not.

    Args:
        is_called: whether the layer was called, by site.

    Raises:
        ForgeError: naming the site.
    """
    for site, called in is_called.items():
        if not called:
            raise ForgeError(
                "the layer was not called: the base takes its weight directly or does not use it, so that an "
                "adapter there would do nothing",
                key=site,
                hint="leave this site out, or run the base so that it calls its layers (nn.MultiheadAttention "
                "takes the weight of its out_proj directly)",
            )


@contextmanager
def replaced_forwards(
    layers: Iterable[SiteLayer], forward_of: Callable[[SiteLayer], Callable[[Tensor], Tensor]]
) -> Iterator[None]:
    """Give the layers another ``forward`` for a while.

    On the instance, not on the class: the base stays unmodified and other models are not touched. One that stood on
    the instance before stands there again after.
    """
    layers = list(layers)
    before = [vars(layer.module).get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.module.forward = forward_of(layer)
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            vars(layer.module).pop("forward", None)
            if own is not None:
                layer.module.forward = own
