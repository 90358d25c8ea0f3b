"""A GPU that is made up: its tensors have a device, a shape and a dtype, and no numbers.

Whoever mixes devices is told so by torch. Whoever asks for a number of such a tensor, or copies between host and device
without `non_blocking`, makes the host wait: that is refused, or counted. torch's own autograd engine refuses fake
tensors for want of streams; here another one walks the same graph.
"""

import math
import sys
from collections import defaultdict
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import cycle
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import imixer.implicit  # noqa: F401  (whose modules are looked up below)
from imixer.implicit.random_state import RandomState

GPU = torch.device("cuda", 0)
_ASK_IF_ALL_IS_WELL = ("solve", "functional", "gradients")
aten = torch.ops.aten


class Waits(AssertionError):
    """Something makes the host wait for the device."""


@contextmanager
def fake_gpu(default=False, may_wait=False):
    """Make all tensors fake, let backward passes go through, and yield what counts the waits.

    Whoever asks for a number gets 1. A comparison holds throughout, and what is negated, unequal or not finite nowhere,
    so that what is checked is well. Solvers to a tolerance are told after some steps that all have converged.

    Args:
        default: Whether tensors are made on the GPU where nobody says where. Without, one that is made beside others
            and should have been made where they are is found.
        may_wait: Whether the host may wait.
    """
    hooks = defaultdict(list)
    host = _Host(may_wait)
    done = cycle([False, False, False, True])
    register = Tensor.register_hook

    def register_hook(tensor, hook):
        hooks[_edge(tensor)].append(hook)
        return register(tensor, hook)

    def run(roots, given, keep_graph, create_graph, inputs=(), allow_unreachable=False, accumulate_grad=False):
        with torch.set_grad_enabled(create_graph):
            return _walk(hooks, roots, given, inputs or (), accumulate_grad)

    def numpy(tensor, *, force=False):
        if tensor.device.type != "cpu":
            raise TypeError(f"a tensor on {tensor.device} is no array")
        return np.ones(tensor.shape, str(tensor.dtype).removeprefix("torch."))

    changes = {
        (torch.autograd, "_engine_run_backward"): run,
        (Tensor, "register_hook"): register_hook,
        (Tensor, "numpy"): numpy,
        (torch, "Generator"): host.generator,
        (torch.cuda, "Event"): mock.Mock,
        (torch.cuda, "is_current_stream_capturing"): lambda: False,
        (torch.cuda, "is_bf16_supported"): lambda *_, **__: True,
        (torch.cuda, "get_rng_state"): lambda device=None: torch.get_rng_state(),
        (torch.cuda, "set_rng_state"): lambda state, device=None: None,
        (torch.nn.Module, "_apply"): _apply,
        (FakeTensorMode, "__deepcopy__"): lambda self, memo: self,  # a copied tensor is of the same mode
        (torch.cuda.amp.common, "amp_definitely_not_available"): lambda: False,
        (RandomState, "differs"): lambda self, other: True,  # as if F drew at random
        **{(sys.modules[f"imixer.implicit.{name}"], "every"): lambda mask: True for name in _ASK_IF_ALL_IS_WELL},
        (sys.modules["imixer.implicit.solvers"], "every"): lambda mask: next(done),
    }
    with ExitStack() as stack:
        for (owner, name), new in changes.items():
            stack.enter_context(mock.patch.object(owner, name, new, create=name == "__deepcopy__"))
        for each in (FakeTensorMode(), host, GPU if default else nullcontext()):
            stack.enter_context(each)
        yield host


class _Host(TorchDispatchMode):
    """The host: it gives the numbers that a fake tensor does not have, and counts how often it waited for them.

    Attributes:
        waits: What it waited for.
    """

    def __init__(self, may_wait):
        super().__init__()
        self.may_wait, self.waits = may_wait, []
        self._of_gpu = []

    @contextmanager
    def building(self):
        """Make tensors on the GPU, and wait for what it takes to build a model there."""
        before, self.may_wait = self.may_wait, True
        with GPU:
            yield
        self.may_wait = before

    def generator(self, device="cpu"):
        made = _Generator()
        if torch.device(device).type != "cpu":
            self._of_gpu.append(made)
        return made

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self._check_generator(func, args, kwargs)
        if func is aten._pin_memory.default:
            return args[0]
        if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            indices = [index for given in args[1] for index in self._without_masks(func, given)]
            return func(args[0], indices, *args[2:], **kwargs)
        if func in _CHOSEN_BY_NUMBERS:
            self._wait(func, args[0])
            return _CHOSEN_BY_NUMBERS[func](*args, **kwargs)
        if func in (aten._to_copy.default, aten.copy_.default):
            in_place = func is aten.copy_.default
            source = args[1] if in_place else args[0]
            target = torch.device(args[0].device if in_place else kwargs.get("device") or source.device)
            queued = kwargs.get("non_blocking") or (in_place and args[2:] == (True,))
            if source.device.type != target.type and not queued:
                self._wait(func, source, target)
        if isinstance(made := func(*args, **kwargs), Tensor) and made.dtype == torch.bool:
            made.nowhere = _holds_nowhere(func, args)
        return made

    def _wait(self, func, tensor, target=None):
        if target is not None or tensor.device.type != "cpu":
            self.waits.append(str(func))
            if not self.may_wait:
                raise Waits(f"{func} of {tuple(tensor.shape)} makes the host wait")

    def _without_masks(self, func, index):
        if index is None or index.dtype not in (torch.bool, torch.uint8):
            return [index]
        self._wait(func, index)
        return _places(index).unbind(1)

    def _check_generator(self, func, args, kwargs):
        generator = next((each for each in (*args, *kwargs.values()) if isinstance(each, torch._C.Generator)), None)
        if generator is None:
            return
        tensor = next((each for each in args if isinstance(each, Tensor)), None)
        device = tensor.device if tensor is not None else torch.device(kwargs.get("device") or "cpu")
        own = any(generator._cdata == each._cdata for each in self._of_gpu)
        assert own == (device.type != "cpu"), f"{func} on {device} draws from another device's generator"


_Generator = torch.Generator


_NOT = {aten.bitwise_not, aten.logical_not}
_RARE = {aten.ne, aten.isnan, aten.isinf}


def _holds_nowhere(func, args):
    """Tell whether a mask that a function made holds nowhere; otherwise it holds throughout."""
    masks = [each for each in args if isinstance(each, Tensor) and each.dtype == torch.bool]
    masks = [getattr(each, "nowhere", False) for each in masks]
    packet = func.overloadpacket
    if packet is aten.ne and isinstance(args[1], float) and args[1] == math.inf:  # a part of `isfinite`
        return False
    if packet in _NOT:
        return not any(masks)
    if packet in _RARE or not masks:
        return packet in _RARE
    return all(masks) if packet in (aten.bitwise_or, aten.logical_or) else any(masks)


def _places(mask):
    """List the places where a mask holds, all of them or none."""
    count = 0 if getattr(mask, "nowhere", False) else mask.numel()
    return torch.zeros(count, mask.dim(), dtype=torch.int64, device=mask.device)


_CHOSEN_BY_NUMBERS = {
    aten._local_scalar_dense.default: lambda x: (
        not getattr(x, "nowhere", False) if x.dtype == torch.bool else 1.0 if x.is_floating_point() else 1
    ),
    aten.equal.default: lambda x, y: True,
    aten.allclose.default: lambda x, y, *_, **__: True,
    aten.nonzero.default: _places,
    aten.masked_select.default: lambda x, mask: x.flatten(),
    aten._unique2.default: lambda x, *_, **__: (x.flatten()[:1], *(x.flatten().long() for _ in range(2))),
    aten.bincount.default: lambda x, weights=None, minlength=0: torch.zeros(
        max(minlength, 1), dtype=torch.int64 if weights is None else torch.float64, device=x.device
    ),
}


def _apply(module, function, recurse=True):
    """Replace the tensors of a module, as `module.to` does. torch would swap them, which fake ones do not bear."""
    for child in module.children() if recurse else ():
        child._apply(function)
    for name, parameter in module._parameters.items():
        with torch.no_grad():
            made = parameter if parameter is None else function(parameter)
        if made is not parameter:
            module._parameters[name] = torch.nn.Parameter(made, parameter.requires_grad)
    for name, buffer in module._buffers.items():
        module._buffers[name] = buffer if buffer is None else function(buffer)
    return module


def _walk(hooks, roots, given, inputs, accumulate):
    """Lead gradients from the roots back through the graph, as `torch.autograd.backward` and `grad` ask for it."""
    begin, found = [_edge(root) for root in roots], {}
    leaves = {id(t) for t in inputs if t.grad_fn is None}
    wanted = [id(t) if id(t) in leaves else _edge(t) for t in inputs]
    arrived = defaultdict(dict)
    for place, g in zip(begin, given, strict=True):
        _add(arrived, place, g)
    for node in _in_order([node for node, _ in begin]):
        grads = arrived.pop(node, {})
        for number, g in grads.items():
            for hook in hooks[node, number]:
                changed = hook(g)
                grads[number] = g = g if changed is None else changed
            if (node, number) in wanted:
                found[node, number] = g
        if not grads:
            continue
        if (variable := getattr(node, "variable", None)) is not None:
            found[id(variable)] = grads[0]
            if accumulate and not inputs:
                variable.grad = grads[0] if variable.grad is None else variable.grad + grads[0]
            continue
        for place, g in _back(node, [grads.get(i) for i in range(len(node._input_metadata))]):
            if place[0] is not None and g is not None:
                _add(arrived, place, g)
    return tuple(found.get(place) for place in wanted)


def _edge(tensor):
    """Return the node of the graph that a tensor's gradient arrives at, and the number of the tensor among its own."""
    node, number, *_ = torch.autograd.graph.get_gradient_edge(tensor)
    return node, number


def _in_order(roots):
    """List nodes so that each comes after all that lead gradients to it."""
    order, seen = [], set()
    for root in roots:
        stack = [] if root in seen else [(root, iter(root.next_functions))]
        seen.add(root)
        while stack:
            node, left = stack[-1]
            parent = next((p for p, _ in left if p is not None and p not in seen), None)
            if parent is None:
                stack.pop()
                order.append(node)
            else:
                seen.add(parent)
                stack.append((parent, iter(parent.next_functions)))
    return reversed(order)


def _back(node, grads):
    """Apply the backward of a node. Return the places that its results go to, each with its gradient or None."""
    if not hasattr(node, "apply"):  # torch's own
        results = node(*grads)
        return zip(node.next_functions, results if isinstance(results, tuple) else (results,), strict=True)
    results = node.apply(*grads)  # of a function in Python, which also answers for arguments that are no tensors
    results = results if isinstance(results, tuple) else (results,)
    asked = [g for g, needed in zip(results, node.needs_input_grad, strict=True) if needed]
    return zip([place for place in node.next_functions if place[0] is not None], asked, strict=True)


def _add(arrived, place, g):
    """Add a gradient to what has arrived at a place, summed over axes along which it was repeated."""
    node, number = place
    metadata = node._input_metadata[number]
    assert g.device == metadata.device, f"a gradient of a tensor on {metadata.device} is on {g.device}"
    g = g.sum_to_size(tuple(metadata.shape)).to(metadata.dtype)
    before = arrived[node].get(number)
    arrived[node][number] = g if before is None else before + g
