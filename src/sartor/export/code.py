"""Torch modules and traced calls as Python expressions."""

from __future__ import annotations

import functools
import inspect
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from sartor.errors import UserError

_INFIX: dict[Any, str] = {
    operator.add: "+", operator.iadd: "+", operator.sub: "-", operator.isub: "-", operator.mul: "*", operator.imul: "*",
    operator.truediv: "/", operator.itruediv: "/", operator.floordiv: "//", operator.mod: "%", operator.pow: "**", operator.matmul: "@",
    operator.eq: "==", operator.ne: "!=", operator.lt: "<", operator.gt: ">", operator.le: "<=", operator.ge: ">=",
}  # fmt: skip
# Arguments that torch stores as a tuple although one number says the same.
_SIZES = frozenset({"kernel_size", "stride", "padding", "dilation", "output_padding"})


def constructor(module: nn.Module) -> str:
    """`nn.Conv2d(3, 16, 3, padding=1)`: the call that builds a layer of torch.nn, without arguments at their default.

    Raises UserError for a layer that does not keep its arguments as attributes.
    """
    kind = type(module)
    arguments = []
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if name in ("self", "device", "dtype") or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if not hasattr(module, name):
            raise UserError(
                f"to_source: {kind.__name__} does not keep its argument {name!r}, so it has no source; wrap it in a module of your own."
            )
        value = getattr(module, name)
        if name == "bias" and (value is None or isinstance(value, torch.Tensor)):
            value = value is not None
        if name in _SIZES and isinstance(value, tuple) and value and len(set(value)) == 1:
            value = value[0]
        if parameter.default is parameter.empty:
            arguments.append(literal(value))
        elif value != parameter.default:
            # A pool's stride is its kernel unless said otherwise.
            if name == "stride" and parameter.default is None and value == _one(getattr(module, "kernel_size", None)):
                continue
            arguments.append(f"{name}={literal(value)}")
    return f"nn.{kind.__name__}({', '.join(arguments)})"


def _one(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) and value and len(set(value)) == 1 else value


def literal(value: Any) -> str:
    """A Python expression for numbers, strings, torch dtypes and devices, and containers of them; raises UserError for others."""
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if value is None or isinstance(value, (bool, int, float, torch.dtype, torch.memory_format)):
        return repr(value)
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, torch.device):
        return f'torch.device("{value}")'
    if value is Ellipsis:
        return "..."
    if isinstance(value, (tuple, list)):
        inner = ", ".join(literal(v) for v in value)
        if isinstance(value, list):
            return f"[{inner}]"
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    raise UserError(f"to_source: a value of type {type(value).__name__} cannot be written as source; use numbers, strings or tensors.")


class Expressions:
    """Traced nodes of one `forward` as expressions; `names` gives the variable or the inlined text of each finished node."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.names: dict[fx.Node, str] = {}
        self.inlined: set[fx.Node] = set()

    def of(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"{reference(self.root, str(node.target))}({self._arguments(node)})"
        if node.op == "get_attr":
            return reference(self.root, str(node.target))
        if node.op == "call_method":
            subject, *rest = node.args
            return f"{self._operand(subject)}.{node.target}({self._join(rest, node.kwargs)})"
        if node.op != "call_function":
            raise UserError(f"to_source: a {node.op} node cannot be written as source.")
        target = node.target
        if target in _INFIX:
            return f"{self._operand(node.args[0])} {_INFIX[target]} {self._operand(node.args[1])}"
        if target is operator.neg:
            return f"-{self._operand(node.args[0])}"
        if target is operator.getitem:
            return f"{self._operand(node.args[0])}[{self._index(node.args[1])}]"
        if target is getattr:
            return f"{self._operand(node.args[0])}.{node.args[1]}"
        return f"{_function_name(target)}({self._arguments(node)})"

    def value(self, value: Any) -> str:
        """An argument: a traced node, a literal, or a container of both."""
        if isinstance(value, fx.Node):
            return self.names[value]
        if isinstance(value, (tuple, list)):
            inner = ", ".join(self.value(v) for v in value)
            if isinstance(value, list):
                return f"[{inner}]"
            return f"({inner},)" if len(value) == 1 else f"({inner})"
        return literal(value)

    def _operand(self, value: Any) -> str:
        text = self.value(value)
        return f"({text})" if isinstance(value, fx.Node) and value in self.inlined and _is_infix(value) else text

    def _index(self, value: Any) -> str:
        if isinstance(value, tuple):
            return ", ".join(self._index(v) for v in value)
        if isinstance(value, slice):
            parts = ["" if v is None else self.value(v) for v in (value.start, value.stop)]
            return ":".join(parts) + ("" if value.step is None else f":{self.value(value.step)}")
        return self.value(value)

    def _arguments(self, node: fx.Node) -> str:
        kwargs = dict(node.kwargs)
        if node.op == "call_function":
            defaults = _defaults(node.target)
            kwargs = {k: v for k, v in kwargs.items() if k not in defaults or isinstance(v, fx.Node) or v != defaults[k]}
        return self._join(node.args, kwargs)

    def _join(self, args: Any, kwargs: Any) -> str:
        return ", ".join([*(self.value(a) for a in args), *(f"{k}={self.value(v)}" for k, v in kwargs.items())])


def holder(module: nn.Module) -> type[nn.ModuleList] | type[nn.ModuleDict] | None:
    """The container that stands for a bare `nn.Module` with children, else None.

    torch.fx keeps a ModuleList, or a module whose forward it looked into, as a bare one, with its children in the order of their first
    use and without those that are not used. A dictionary keeps names and order, and with them the state dict.
    """
    names = list(module._modules)
    if type(module) is not nn.Module or not names:
        return None
    return nn.ModuleList if names == [str(i) for i in range(len(names))] else nn.ModuleDict


def reference(root: nn.Module, path: str) -> str:
    """`self.blocks[0].conv` for the path `blocks.0.conv`."""
    text, here = "self", root
    for part in path.split("."):
        if part.isdigit() and (isinstance(here, (nn.Sequential, nn.ModuleList)) or holder(here) is nn.ModuleList):
            text += f"[{part}]"
        elif isinstance(here, nn.ModuleDict) or holder(here) is nn.ModuleDict:
            text += f'["{part}"]'
        else:
            text += f".{part}"
        following = getattr(here, part, None)
        here = following if isinstance(following, nn.Module) else here
    return text


def _is_infix(node: fx.Node) -> bool:
    return node.op == "call_function" and (node.target in _INFIX or node.target is operator.neg)


@functools.cache
def _known_functions() -> dict[int, str]:
    named: dict[int, str] = {}
    for prefix, namespace in (("F", nn.functional), ("torch", torch)):
        for name, value in vars(namespace).items():
            if callable(value) and not name.startswith("_"):
                named.setdefault(id(value), f"{prefix}.{name}")
    return named


def _function_name(target: Any) -> str:
    name = _known_functions().get(id(target))
    if name is None:
        raise UserError(
            f"to_source: the function {getattr(target, '__name__', target)!r} is not of torch or torch.nn.functional; put it in a module."
        )
    return name


def _defaults(target: Callable[..., Any] | str) -> dict[str, Any]:
    try:
        signature = inspect.signature(target)  # type: ignore[arg-type]  # a str raises TypeError, which is handled
    except (TypeError, ValueError):
        return {}
    return {name: p.default for name, p in signature.parameters.items() if p.default is not p.empty}
