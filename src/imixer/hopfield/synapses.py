"""Couplings between layers: what each layer receives, given the activations of those it is connected to.

g_a, g_b: activations of the first and the second connected layer, (B, *shape of the layer).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from imixer.errors import check_whole, in_short
from imixer.hopfield.differentiation import gradients
from imixer.hopfield.lagrangian import Lagrangian
from imixer.hopfield.lagrangians import lagrangian as named
from imixer.hopfield.lagrangians.parts import inverse_temperature, real_numbers
from imixer.hopfield.neurons import fits, require_fit

Shape = tuple[int, ...]

_FAILURES = (RuntimeError, TypeError, IndexError)  # of a function that is given tensors of another shape or number


class Synapse(nn.Module):
    """An energy of the activations of one or more layers. Each layer receives minus its gradient.

    Write a subclass for a coupling that none of those here is: give it `energy`, and `inputs` where the gradient has a
    closed form. For one that needs no parameters of its own, `EnergySynapse` takes the function alone.
    """

    @property
    def symmetric(self) -> bool:
        """Whether the inputs are minus the gradient of the energy."""
        return True

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the coupling in a drawing: one, or two if it is not symmetric, from first to last and back."""
        return (type(self).__name__.removesuffix("Synapse").lower(),) * (1 if self.symmetric else 2)

    def connect(self, *shapes: Shape) -> None:
        """Refuse layers of shapes that do not fit. Called once, by the network, with one shape per layer.

        Raises:
            ValueError: If they do not fit.
        """

    def energy(self, *g: Tensor) -> Tensor:
        """Compute the energy per sample, (B,)."""
        raise NotImplementedError(f"{type(self).__name__} has no energy")

    def growth(self, *shapes: Shape) -> Tensor | None:
        """Bound how fast the energy can fall as activations grow, by a symmetric matrix K with entries >= 0.

        The energy is at least -<n, K n> / 2 - C, where n are the norms of the layers' activations and C is some number.

        Args:
            shapes: Those of the joined layers.

        Returns:
            K, one row per joined layer. Infinite off the diagonal: at most proportional to the norms of both layers.
            None if there is no such bound, or none is known.
        """
        return None

    def inputs(self, *g: Tensor) -> tuple[Tensor, ...]:
        """Compute what each connected layer receives, of the shapes of g."""
        return gradients(lambda *g: -self.energy(*g), *g)


class EnergySynapse(Synapse):
    """Any energy of activations, differentiated by autograd. Choose it to try an energy out without writing a class.

    Args:
        function: Takes the activations g_a, g_b, ... of the connected layers, each (B, *shape), and gives the energy
            per sample (B,). A module's parameters become the network's.
        bounded_below: Whether that energy has a lower bound over all activations. It is taken at your word.
    """

    def __init__(self, function: Callable[..., Tensor], *, bounded_below: bool = False) -> None:
        super().__init__()
        self.function = function
        self.bounded_below = bounded_below

    def connect(self, *shapes: Shape) -> None:
        """Refuse layers that do not fit.

        Raises:
            ValueError: If the function fails on their shapes, or does not give one number per sample.
        """
        try:
            energy: object = self._probe(shapes)
        except _FAILURES as error:
            said = in_short(error)
            raise ValueError(f"no energy for layers of shapes {', '.join(map(str, shapes))}: {said}") from error
        if not isinstance(energy, Tensor) or energy.shape != (2,):
            what = f"has shape {tuple(energy.shape)}" if isinstance(energy, Tensor) else f"is {type(energy).__name__}"
            raise ValueError(f"the energy of 2 samples {what}; give one number per sample, a tensor (B,)")

    def energy(self, *g: Tensor) -> Tensor:
        """Compute the given function, (B,)."""
        return self.function(*g)

    def growth(self, *shapes: Shape) -> Tensor | None:
        """Return zeros, if the energy is said to be bounded from below."""
        return torch.zeros(len(shapes), len(shapes)) if self.bounded_below else None

    def _probe(self, shapes: tuple[Shape, ...]) -> Tensor:
        like = next(self.parameters(), torch.zeros(()))
        try:
            return self.function(*(like.new_zeros(2, *shape) for shape in shapes))
        except _FAILURES:  # it may use tensors of double precision
            return self.function(*(like.new_zeros(2, *shape, dtype=torch.float64) for shape in shapes))


class BilinearSynapse(Synapse):
    """Two layers a and b; b receives xi g_a (`up`), a receives xi~ g_b (`down`). Symmetric if xi~ = xi^T.

    The energy is that of the symmetric part, -<g_b, (xi + xi~^T) g_a> / 2, which is -<g_b, xi g_a> if symmetric.

    Write a subclass for a linear map that is neither `LinearSynapse` nor `ConvSynapse`: give it `up` and `down`,
    and `symmetric` if these are no transposes.
    """

    def up(self, g_a: Tensor) -> Tensor:
        """Compute xi g_a, of the shape of layer b."""
        raise NotImplementedError

    def down(self, g_b: Tensor) -> Tensor:
        """Compute xi~ g_b, of the shape of layer a."""
        raise NotImplementedError

    @property
    def norm(self) -> float:
        """A bound of the spectral norm of (xi + xi~^T) / 2 as a map from all of layer a to all of b; inf if none."""
        return math.inf

    def growth(self, *shapes: Shape) -> Tensor | None:
        """Bound the energy by the product of both layers' norms and `norm`."""
        return _between(self.norm)

    def inputs(self, *g: Tensor) -> tuple[Tensor, ...]:
        """Compute xi~ g_b and xi g_a, of the shapes of g."""
        g_a, g_b = g
        return self.down(g_b), self.up(g_a)

    def energy(self, *g: Tensor) -> Tensor:
        """Compute -<g_b, xi g_a>, or that of the symmetric part, (B,)."""
        g_a, g_b = g
        up = _inner(g_b, self.up(g_a))
        return -up if self.symmetric else -(up + _inner(g_a, self.down(g_b))) / 2


class LinearSynapse(BilinearSynapse):
    """A matrix along one axis, shared by all others: xi kron identity.

    Choose it for a dense coupling, axis -2 for one that mixes the tokens of (tokens, channels), -1 for the channels.

    Args:
        in_features: Size of the axis in layer a.
        out_features: Size of the axis in layer b.
        axis: The axis, counted from the end: -1 mixes channels, -2 tokens. None couples all neurons with all.
        tied: xi~ = xi^T. Otherwise xi~ is a parameter of its own, `feedback`.
        gain: Factor on g_a in `up` only, broadcast to the shape of layer a: xi diag(gain), which untied couplings may
            have. It becomes a parameter.

    Raises:
        ValueError: If a size is below 1, axis is not negative, a tied coupling is given a gain, or that is no tensor of
            real and finite numbers.

    Source: paper (2), and xi^(A,B) of (15)-(17), (32). Matrix-shaped neurons are ours, see docs/theory.md, section 3.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        axis: int | None = -1,
        *,
        tied: bool = True,
        gain: Tensor | None = None,
    ) -> None:
        super().__init__()
        if axis is not None and axis >= 0:
            raise ValueError(f"axis is {axis}; count it from the end: -1, -2, ..., or None for all")
        if tied and gain is not None:
            raise ValueError("a tied coupling cannot have a gain: give tied=False")
        check_whole(in_features=in_features, out_features=out_features)
        self.axis = axis
        self.weight = nn.Parameter(_drawn(out_features, in_features))
        self.feedback = None if tied else nn.Parameter(_drawn(in_features, out_features))
        self.gain = None if gain is None else nn.Parameter(real_numbers("gain", gain).clone())
        self._shapes: tuple[Shape, ...] = ()

    @property
    def symmetric(self) -> bool:
        """Whether xi~ = xi^T."""
        return self.feedback is None

    @property
    def norm(self) -> float:
        """Spectral norm of xi; untied, the mean of both matrices' norms, with the gain's largest entry."""
        with torch.no_grad():
            up = self.weight.double()
            if self.feedback is None:
                return float(torch.linalg.matrix_norm(up, 2))
            gain = 1.0 if self.gain is None else float(self.gain.abs().max())
            # Not of their mean: a gain need not act along the axis of the matrix.
            down = self.feedback.double()
            return float(gain * torch.linalg.matrix_norm(up, 2) + torch.linalg.matrix_norm(down, 2)) / 2

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the matrices and their shapes."""
        matrices = [self.weight] if self.feedback is None else [self.weight, self.feedback]
        return tuple(f"{xi} {len(m)} × {m.shape[1]}" for xi, m in zip(("ξ", "ξ̃"), matrices, strict=False))

    @property
    def asymmetry(self) -> float:
        """||xi - xi~^T|| / (||xi|| + ||xi~||), in 0 (symmetric) to 1 (antisymmetric). 0.71 for independent matrices."""
        if self.feedback is None:
            return 0.0
        with torch.no_grad():
            up, down = self.weight, self.feedback
            return float((up - down.T).norm() / (up.norm() + down.norm()))

    def connect(self, *shapes: Shape) -> None:
        """Refuse layers that do not fit.

        Raises:
            ValueError: If they are not two, the matrix does not fit their axis, or they differ beyond it.
        """
        if len(shapes) != 2:
            raise ValueError(f"it joins {len(shapes)} layers; a linear coupling joins two")
        out_features, in_features = self.weight.shape
        sizes = [math.prod(shape) if self.axis is None else _size(shape, self.axis) for shape in shapes]
        if sizes != [in_features, out_features]:
            raise ValueError(
                f"its matrix takes {in_features} to {out_features} neurons along axis {self.axis}, "
                f"but the layers, of shapes {shapes[0]} and {shapes[1]}, have {sizes[0]} and {sizes[1]}"
            )
        if self.axis is not None and _without(shapes[0], self.axis) != _without(shapes[1], self.axis):
            raise ValueError(f"the layers' shapes {shapes[0]} and {shapes[1]} differ beyond axis {self.axis}")
        if self.gain is not None and not fits(self.gain.shape, shapes[0]):
            raise ValueError(f"its gain has shape {tuple(self.gain.shape)}, which does not broadcast to {shapes[0]}")
        self._shapes = shapes

    def up(self, g_a: Tensor) -> Tensor:
        """Compute xi g_a along the axis."""
        return self._apply_matrix(self.weight, g_a if self.gain is None else self.gain * g_a, -1)

    def down(self, g_b: Tensor) -> Tensor:
        """Compute xi~ g_b along the axis."""
        return self._apply_matrix(self.weight.T if self.feedback is None else self.feedback, g_b, 0)

    def _apply_matrix(self, matrix: Tensor, g: Tensor, target: int) -> Tensor:
        if self.axis is None:
            return fn.linear(g.flatten(1), matrix).unflatten(1, self._shapes[target])
        if self.axis == -1:
            return fn.linear(g, matrix)
        if self.axis == -2:
            return matrix @ g
        return fn.linear(g.movedim(self.axis, -1), matrix).movedim(-1, self.axis)

    def extra_repr(self) -> str:
        """Show the options in a printed module."""
        out_features, in_features = self.weight.shape
        return f"{in_features}, {out_features}, axis={self.axis}, tied={self.symmetric}"


class ConvSynapse(BilinearSynapse):
    """A two-dimensional convolution from layer a (channels, height, width) to layer b, and its adjoint back.

    Choose it for images whose neurons see their neighbourhood only.

    Args:
        in_channels: Channels of layer a.
        out_channels: Channels of layer b.
        kernel_size: Side of the kernel, in pixels.
        stride: Step of the kernel, as in `torch.nn.Conv2d`.
        padding: Rows and columns of zeros around layer a.
        tied: The way back is the adjoint. Otherwise it has a kernel of its own, `feedback`.

    Raises:
        ValueError: If a size is below 1, or padding negative.

    Source: Krotov, arXiv 2107.06446.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        *,
        tied: bool = True,
    ) -> None:
        super().__init__()
        check_whole(in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size)
        check_whole(stride=stride, padding=padding)
        if min(kernel_size, stride) < 1 or padding < 0:
            raise ValueError(
                f"kernel_size, stride and padding are {kernel_size}, {stride}, {padding}; give 1, 1, 0 or more"
            )
        self.stride = stride
        self.padding = padding
        fan_in = in_channels * kernel_size**2
        kernel = (out_channels, in_channels, kernel_size, kernel_size)
        self.weight = nn.Parameter(_drawn(out_channels, fan_in).view(kernel))
        self.feedback = None if tied else nn.Parameter(_drawn(out_channels, fan_in).view(kernel))
        self._left_over: tuple[int, ...] = (0, 0)  # rows and columns that no step of the stride reaches

    @property
    def symmetric(self) -> bool:
        """Whether the way back is the adjoint."""
        return self.feedback is None

    @property
    def norm(self) -> float:
        """Sum of the spectral norms of the kernel's pixels; untied, the mean of both kernels'."""
        with torch.no_grad():
            kernels = [self.weight] if self.feedback is None else [self.weight, self.feedback]
            # A shift of the image has norm 1 at most, so that the pixels of a kernel add up.
            pixels = [torch.linalg.matrix_norm(kernel.double().movedim((2, 3), (0, 1)), 2).sum() for kernel in kernels]
            return float(torch.stack(pixels).mean())

    @property
    def labels(self) -> tuple[str, ...]:
        """Size of the kernel."""
        size = self.weight.shape[-1]
        return (f"conv {size} × {size}",) * (1 if self.symmetric else 2)

    def connect(self, *shapes: Shape) -> None:
        """Refuse layers that do not fit.

        Raises:
            ValueError: If they are not two of shape (channels, height, width), or the convolution does not lead from
                one to the other.
        """
        if len(shapes) != 2 or any(len(shape) != 3 for shape in shapes):
            raise ValueError(f"it joins two layers of shape (channels, height, width), not {shapes}")
        a, b = shapes
        out_channels, in_channels, size, _ = self.weight.shape
        reach = [length + 2 * self.padding - size for length in a[1:]]
        made = (out_channels, *(r // self.stride + 1 for r in reach))
        if a[0] != in_channels or b != made:
            raise ValueError(f"it takes {(in_channels, *a[1:])} to {made}, but the layers have shapes {a} and {b}")
        self._left_over = tuple(r % self.stride for r in reach)

    def up(self, g_a: Tensor) -> Tensor:
        """Convolve g_a, (B, in_channels, height, width)."""
        return fn.conv2d(g_a, self.weight, stride=self.stride, padding=self.padding)

    def down(self, g_b: Tensor) -> Tensor:
        """Apply the adjoint of a convolution to g_b, (B, out_channels, height, width)."""
        kernel = self.weight if self.feedback is None else self.feedback
        return fn.conv_transpose2d(g_b, kernel, None, self.stride, self.padding, self._left_over)


class RestingLayerSynapse(Synapse):
    """A hidden layer that is always at rest, as the energy -L(xi g) of one layer: what an infinitely fast one gives.

    Choose it for a hidden layer of which only the effect matters, on any graph; `AdiabaticUpdate` is for chains, and a
    layer of its own for a hidden layer in time. The one layer receives xi^T f(xi g), with f = dL/dx.

    Args:
        features: Size of the layer's axis.
        hidden: Size of that axis in the hidden layer.
        lagrangian: L of the hidden layer, an instance or a name.
        axis: The axis, counted from the end: -1 mixes channels, -2 tokens.

    Raises:
        ValueError: If a size is below 1, axis is not negative, or the Lagrangian is unknown.

    Source: paper (11)-(12); Hoover et al., arXiv 2302.07253, equation 5, for ReLU.
    """

    def __init__(self, features: int, hidden: int, lagrangian: str | Lagrangian = "relu", axis: int = -1) -> None:
        super().__init__()
        if axis >= 0:
            raise ValueError(f"axis is {axis}; count it from the end: -1, -2, ...")
        check_whole(features=features, hidden=hidden)
        self.axis = axis
        self.lagrangian = named(lagrangian)
        self.weight = nn.Parameter(_drawn(hidden, features))

    @property
    def labels(self) -> tuple[str, ...]:
        """Name of the hidden layer's Lagrangian and the shape of the matrix."""
        rows, columns = self.weight.shape
        return (f"{type(self.lagrangian).__name__}(ξ {rows} × {columns})",)

    def connect(self, *shapes: Shape) -> None:
        """Refuse layers that do not fit.

        Raises:
            ValueError: If they are not one, the matrix does not fit its axis, or the Lagrangian not the hidden layer.
        """
        hidden, features = self.weight.shape
        if len(shapes) != 1 or _size(shapes[0], self.axis) != features:
            raise ValueError(f"it joins one layer with {features} neurons along axis {self.axis}, not {shapes}")
        before, after = _without(shapes[0], self.axis)
        require_fit(self.lagrangian, (*before, hidden, *after))

    def growth(self, *shapes: Shape) -> Tensor | None:
        """Bound the energy by the asymptotic slope of the hidden activation and the norm of xi."""
        slope = self.lagrangian.asymptotic_slope
        if slope is None or not math.isfinite(slope):
            return None
        with torch.no_grad():
            norm = float(torch.linalg.matrix_norm(self.weight.double(), 2))
        return torch.tensor([[slope * norm**2]], dtype=torch.float64)

    def energy(self, *g: Tensor) -> Tensor:
        """Compute -L(xi g), (B,)."""
        return -self.lagrangian.density(self._hidden(g[0])).flatten(1).sum(1)

    def inputs(self, *g: Tensor) -> tuple[Tensor, ...]:
        """Compute xi^T f(xi g), of the shape of g."""
        f = self.lagrangian.activation(self._hidden(g[0])).movedim(self.axis, -1)
        return (fn.linear(f, self.weight.T).movedim(-1, self.axis),)

    def _hidden(self, g: Tensor) -> Tensor:
        return fn.linear(g.movedim(self.axis, -1), self.weight).movedim(-1, self.axis)


class AttentionSynapse(Synapse):
    """Attention as an energy: -1/beta sum over heads and queries of logsumexp over keys of beta <W_q g_i, W_k g_j>.

    It joins one layer (tokens, channels) with itself, or the layer of the queries with that of the keys. A query
    receives the keys by their softmax, as in attention; a key receives the queries that look at it.

    Choose it where the tokens' activations are to decide how strongly they are coupled; `LinearSynapse` couples them by
    fixed weights.

    Args:
        features: Channels of the layers.
        num_heads: Heads.
        head_features: Width of a head. Default: features / num_heads.
        beta: Inverse temperature, one number or one per head (num_heads,). Default: 1 / sqrt(head_features).

    Raises:
        ValueError: If a size is below 1, beta not positive, or its number not that of the heads.

    Source: Hoover et al., arXiv 2302.07253, the energy of attention.
    """

    def __init__(
        self,
        features: int,
        num_heads: int = 1,
        head_features: int | None = None,
        beta: float | Tensor | None = None,
    ) -> None:
        super().__init__()
        check_whole(features=features, num_heads=num_heads)
        width = features // max(1, num_heads) if head_features is None else head_features
        check_whole(head_features=width)
        if min(features, num_heads, width) < 1:
            raise ValueError(
                f"features, num_heads and head_features are {features}, {num_heads}, {width}; give 1 or more"
            )
        self.beta: float | Tensor
        beta = inverse_temperature(1 / math.sqrt(width) if beta is None else beta)
        if isinstance(beta, Tensor) and beta.dim() == 0:
            beta = float(beta)
        if isinstance(beta, Tensor):
            if beta.shape != (num_heads,):
                raise ValueError(f"beta has shape {tuple(beta.shape)}; give one number, or {num_heads}, one per head")
            self.register_buffer("beta", beta[:, None, None])
        else:
            self.beta = beta
        self.query = nn.Parameter(_drawn(num_heads * width, features).view(num_heads, width, features))
        self.key = nn.Parameter(_drawn(num_heads * width, features).view(num_heads, width, features))

    def connect(self, *shapes: Shape) -> None:
        """Refuse layers that do not fit.

        Raises:
            ValueError: If they are not one or two of shape (tokens, features).
        """
        features = self.query.shape[-1]
        if len(shapes) not in (1, 2) or any(len(shape) != 2 or shape[1] != features for shape in shapes):
            raise ValueError(f"it joins one or two layers of shape (tokens, {features}), not {shapes}")

    def growth(self, *shapes: Shape) -> Tensor | None:
        """Bound the energy by the norm of the products W_q^T W_k."""
        # sum_i max_j <q_i, k_j> <= ||W_q^T W_k|| sum_i |g_i| max_j |g_j| <= ||W_q^T W_k|| sqrt(queries) ||g_a|| ||g_b||
        with torch.no_grad():
            products = self.query.double().mT @ self.key.double()
            strength = math.sqrt(shapes[0][0]) * float(torch.linalg.matrix_norm(products, 2).sum())
        return _between(strength) if len(shapes) == 2 else torch.tensor([[2 * strength]], dtype=torch.float64)

    def energy(self, *g: Tensor) -> Tensor:
        """Compute -1/beta sum of logsumexp(beta <q, k>) over heads and queries, (B,)."""
        q, k = self._project(*g)
        return -(torch.logsumexp(self.beta * q @ k.mT, -1, keepdim=True) / self.beta).sum((1, 2, 3))

    def inputs(self, *g: Tensor) -> tuple[Tensor, ...]:
        """Compute what queries and keys receive, of the shapes of g."""
        q, k = self._project(*g)
        p = torch.softmax(self.beta * q @ k.mT, -1)  # (B, heads, queries, keys)
        to_queries = torch.einsum("bhqd,hdc->bqc", p @ k, self.query)
        to_keys = torch.einsum("bhkd,hdc->bkc", p.mT @ q, self.key)
        return (to_queries + to_keys,) if len(g) == 1 else (to_queries, to_keys)

    def _project(self, *g: Tensor) -> tuple[Tensor, Tensor]:
        q = torch.einsum("bqc,hdc->bhqd", g[0], self.query)
        k = torch.einsum("bkc,hdc->bhkd", g[-1], self.key)
        return q, k


def _between(strength: float) -> Tensor:
    """Return the growth of an energy of -strength ||g_a|| ||g_b|| at the least."""
    return torch.tensor([[0.0, strength], [strength, 0.0]], dtype=torch.float64)


def _inner(x: Tensor, y: Tensor) -> Tensor:
    """Compute <x, y> per sample, (B, ...) -> (B,)."""
    return (x * y).flatten(1).sum(1)


def _drawn(rows: int, columns: int) -> Tensor:
    """Draw a matrix with variance 1/columns: inputs of the size of the activations."""
    if min(rows, columns) < 1:
        raise ValueError(f"a coupling of {columns} to {rows} features; give 1 or more of each")
    return torch.randn(rows, columns) / math.sqrt(columns)


def _size(shape: Shape, axis: int) -> int:
    if -axis > len(shape):
        raise ValueError(f"a layer of shape {shape} has no axis {axis}")
    return shape[axis]


def _without(shape: Shape, axis: int) -> tuple[Shape, Shape]:
    return shape[:axis], shape[len(shape) + axis + 1 :]
