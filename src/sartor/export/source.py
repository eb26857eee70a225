"""A network as readable Python that needs torch and safetensors only, to be edited by a person."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from sartor.errors import UserError
from sartor.export.code import Expressions, constructor, holder, literal
from sartor.export.files import write_atomic

LINE = 120
COMMENT = 20
# Values of a buffer that is not saved with the weights and so must stand in the source.
MAX_INLINE_VALUES = 64
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def to_source(module: nn.Module, class_name: str, input_shape: tuple[int, ...] | None = None) -> str:
    """Python source of a class `class_name` that computes what `module` computes in evaluation mode, and of `load(path)`.

    Every module that is not of torch.nn becomes a small class of its own (equal ones share it), its forward taken from a torch.fx
    trace. Names are kept, so the keys of the state dict are the module's. With `input_shape` (C, H, W) the layers carry their output
    shapes as comments, and the source is executed and must return the module's outputs bit for bit.

    Raises UserError for a class name that is no identifier, and for a module whose forward depends on the values or the shape of its input.
    """
    if not class_name.isidentifier():
        raise UserError(f"to_source: the class name must be a Python identifier, got {class_name!r}.")
    module = copy.deepcopy(module).cpu().eval()
    writer = _Writer(_shapes(module, input_shape) if input_shape is not None else {}, class_name)
    writer.add_class(module, "", class_name)
    body = "\n\n\n".join(writer.classes)
    ordered = "from collections import OrderedDict\n" if "OrderedDict(" in body else ""
    functional = "from torch.nn import functional as F\n" if re.search(r"\bF\.", body) else ""
    shape = f" Input: (batch, {', '.join(map(str, input_shape))}); comments give shapes without it." if input_shape else ""
    tensor = "Tensor, " if "Tensor" in body else ""
    whole = "import torch\n" if re.search(r"\btorch\.", body) else ""
    source = (
        f'"""{class_name}, a network in plain PyTorch.{shape}\n\n'
        'Needs torch and safetensors. `load()` reads the weights beside this file."""\n\n'
        f"from __future__ import annotations\n\n{ordered}from pathlib import Path\n\n"
        f"{whole}from safetensors.torch import load_file\nfrom torch import {tensor}nn\n{functional}\n\n{body}\n\n\n"
        f"def load(path: str | Path | None = None) -> {class_name}:\n"
        f'    """The network with its trained weights, in evaluation mode; by default from model.safetensors beside this file."""\n'
        f"    net = {class_name}()\n"
        f'    net.load_state_dict(load_file(path or Path(__file__).with_name("model.safetensors")))\n'
        f"    return net.eval()\n"
    )
    _check(source, class_name, module, input_shape)
    return source


def save_source(module: nn.Module, folder: str | Path, name: str, input_shape: tuple[int, ...] | None = None) -> tuple[Path, Path]:
    """Write `folder`/model.py (:func:`to_source`, class `name`) and `folder`/model.safetensors; returns both paths."""
    from safetensors.torch import save

    source = to_source(module, name, input_shape)
    # Copies: safetensors refuses tensors that share memory, as the weights of a layer used twice do.
    state = {key: value.detach().cpu().contiguous().clone() for key, value in module.state_dict().items()}
    weights = write_atomic(Path(folder) / "model.safetensors", save(state))
    return write_atomic(Path(folder) / "model.py", source), weights


class _Leaves(fx.Tracer):
    """Traces one module's own forward; its children stay calls."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


class _Writer:
    def __init__(self, shapes: dict[str, tuple[str, str]], top: str) -> None:
        self.shapes = shapes
        self.classes: list[str] = []
        self.known: dict[tuple[str, str], str] = {}  # (original class, text) -> the class that already says it
        self.used = {top, "load", "Path", "Tensor", "OrderedDict", "load_file", "nn", "F", "torch"}

    def add_class(self, module: nn.Module, path: str, name: str | None = None) -> str:
        """Define the class of `module` unless an equal one exists; returns its name."""
        if _is_container(module) and not _named_sequence(module):
            base, lines = _as_subclass(self.expression(module, path, 2))
        elif isinstance(module, (nn.Sequential, nn.ModuleList)):
            base, lines = _as_subclass(self._container(module, path, 2))
            lines += ["", *self._forward(module)]
        elif _is_layer(module):
            base, lines = _as_subclass(constructor(module))
        else:
            base, lines = "nn.Module", [*self._init(module, path), "", *self._forward(module)]
        comment = " -> ".join(self.shapes[path]) if path in self.shapes else ""
        doc = [f'    """{comment}"""', ""] if comment else []
        text = "\n".join([*doc, *lines])
        original = type(module).__name__
        if name is None:
            if (original, text) in self.known:
                return self.known[original, text]
            name = self._free(original)
        self.known[original, text] = name
        self.classes.append(f"class {name}({base}):\n{text}")
        return name

    def _free(self, original: str) -> str:
        number = 1
        while f"{original}{number}" in self.used:
            number += 1
        self.used.add(f"{original}{number}")
        return f"{original}{number}"

    def expression(self, module: nn.Module, path: str, depth: int) -> str:
        """The expression that builds `module`; lines after the first are indented for `depth`."""
        if _is_container(module) or holder(module) is not None:
            return self._container(module, path, depth)
        if _is_layer(module):
            return constructor(module)
        return f"{self.add_class(module, path)}()"

    def _container(self, module: nn.Module, path: str, depth: int) -> str:
        kind = (holder(module) or next(k for k in _CONTAINERS if isinstance(module, k))).__name__
        children = list(module.named_children())
        named = kind == "ModuleDict" or [n for n, _ in children] != [str(i) for i in range(len(children))]
        parts = []
        for name, child in children:
            inner = f"{path}.{name}" if path else name
            text = self.expression(child, inner, depth + 1)
            parts.append((f'("{name}", {text})' if named else text, self._comment(inner)))
        opening, closing = {"ModuleList": ("[", "]")}.get(kind, ("", ""))
        if named:
            opening, closing = "OrderedDict([", "])"
        flat = f"nn.{kind}({opening}{', '.join(text for text, _ in parts)}{closing})"
        # Blocks deserve a line each, with their shape; conv, norm and activation fit on one.
        if len(flat) + 4 * depth < LINE - COMMENT and "\n" not in flat and len(parts) <= 4 and all("nn." in text for text, _ in parts):
            return flat
        indent = "    " * (depth + 1)
        lines = "\n".join(f"{indent}{text},{comment}" for text, comment in parts)
        return f"nn.{kind}({opening}\n{lines}\n{'    ' * depth}{closing})"

    def _init(self, module: nn.Module, path: str) -> list[str]:
        lines = ["    def __init__(self) -> None:", "        super().__init__()"]
        for name, parameter in module._parameters.items():
            value = "None" if parameter is None else f"nn.Parameter(torch.empty({', '.join(map(str, parameter.shape)) or '()'}))"
            lines.append(f"        self.{name} = {value}")
        for name, buffer in module._buffers.items():
            lines.append(f"        {_buffer(name, buffer, name not in module._non_persistent_buffers_set)}")
        for name, child in module.named_children():
            inner = f"{path}.{name}" if path else name
            lines.append(f"        self.{name} = {self.expression(child, inner, 2)}{self._comment(inner)}")
        return lines

    def _forward(self, module: nn.Module) -> list[str]:
        if _named_sequence(module):
            steps = [f"        x = self.{name}(x)" for name, _ in module.named_children()]
            return ["    def forward(self, x: Tensor) -> Tensor:", *steps, "        return x"]
        try:
            graph = _Leaves().trace(module)
        except (fx.proxy.TraceError, TypeError, RuntimeError, ValueError, AttributeError) as error:
            raise UserError(
                f"to_source: the forward of {type(module).__name__} cannot be traced ({' '.join(str(error).split())[:200]}); "
                "it must not branch on its input or on the input's shape."
            ) from error
        return _statements(graph, module)

    def _comment(self, path: str) -> str:
        return f"  # {self.shapes[path][1]}" if path in self.shapes else ""


def _statements(graph: fx.Graph, root: nn.Module) -> list[str]:
    """The lines of `forward`. A value used once, by the very next operation, is written inside it; order, and with it the effect of
    in-place operations, is therefore kept."""
    code = Expressions(root)
    nodes = [n for n in graph.nodes if n.users or n.op in ("placeholder", "output")]
    inputs = [n for n in nodes if n.op == "placeholder" and n.users]
    for node in inputs:
        code.names[node] = str(node.target)
    lines = ["    def forward(self, " + ", ".join(f"{code.names[n]}: Tensor" for n in inputs) + ") -> Tensor:"]
    spare = iter(["y", "z", "u", "v", *(f"t{i}" for i in range(len(nodes)))])
    order = [n for n in nodes if n.op != "placeholder"]
    last_use = {used: i for i, n in enumerate(order) for used in n.all_input_nodes}
    for i, node in enumerate(order):
        if node.op == "output":
            lines.append(f"        return {code.value(node.args[0])}")
            continue
        text = code.of(node)
        following = order[i + 1] if i + 1 < len(order) else None
        used_once = len(node.users) == 1 and following in node.users and following is not None
        if node.op == "get_attr" or (used_once and sum(a is node for a in _flat(following)) == 1 and len(text) < _room(following)):
            code.names[node] = text
            code.inlined.add(node)
            continue
        # The name of a value that is no longer needed is free again: x = self.stem(x).
        taken = {name for n, name in code.names.items() if last_use.get(n, -1) > i}
        earlier = [name for name in code.names.values() if name.isidentifier()]
        name = next((n for n in earlier if n not in taken), None) or next(s for s in spare if s not in taken)
        code.names[node] = name
        lines.append(f"        {name} = {text}")
    return lines


def _room(node: fx.Node | None) -> int:
    return 100 if node is not None and node.op == "output" else 80


def _flat(node: fx.Node | None) -> Iterator[Any]:
    pending = [] if node is None else [node.args, node.kwargs]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending.extend(value.values())
        elif isinstance(value, (tuple, list)):
            pending.extend(value)
        elif isinstance(value, slice):
            pending.extend((value.start, value.stop, value.step))
        else:
            yield value


def _named_sequence(module: nn.Module) -> bool:
    """A Sequential with names, such as stem and head, reads better as a class with a forward."""
    names = [name for name, _ in module.named_children()]
    own = isinstance(module, nn.Sequential) and _is_container(module)
    return own and bool(names) and all(name.isidentifier() for name in names)


def _is_container(module: nn.Module) -> bool:
    """A container of torch.nn, or a subclass that adds no forward of its own."""
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in _CONTAINERS)


def _is_layer(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.modules") and not isinstance(module, _CONTAINERS)


def _as_subclass(expression: str) -> tuple[str, list[str]]:
    base, _, arguments = expression.partition("(")
    return base, ["    def __init__(self) -> None:", f"        super().__init__({arguments}"]


def _buffer(name: str, buffer: Tensor | None, persistent: bool) -> str:
    if buffer is None:
        return f'self.register_buffer("{name}", None)'
    if persistent:
        shape = ", ".join(map(str, buffer.shape)) or "()"
        return f'self.register_buffer("{name}", torch.empty({shape}, dtype={buffer.dtype}))'
    if buffer.numel() > MAX_INLINE_VALUES:
        raise UserError(
            f"to_source: buffer {name!r} has {buffer.numel()} values and is not saved with the weights; register it with persistent=True."
        )
    return f'self.register_buffer("{name}", torch.tensor({literal(buffer.tolist())}, dtype={buffer.dtype}), persistent=False)'


def _shapes(module: nn.Module, input_shape: tuple[int, ...]) -> dict[str, tuple[str, str]]:
    """Path of a module -> (input, output) shape without the batch, as text."""
    found: dict[str, tuple[str, str]] = {}

    def hook(path: str) -> Any:
        def note(_: nn.Module, inputs: Any, output: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                found.setdefault(path, (str(tuple(inputs[0].shape[1:])), str(tuple(output.shape[1:]))))

        return note

    handles = [child.register_forward_hook(hook(path)) for path, child in module.named_modules(remove_duplicate=False)]
    try:
        with torch.no_grad():
            module(torch.zeros(1, *input_shape))
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"to_source: the module does not run on an input of shape (1, {', '.join(map(str, input_shape))}): {error}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return found


def _check(source: str, class_name: str, module: nn.Module, input_shape: tuple[int, ...] | None) -> None:
    """Execute the source once: the promise that it is the module is kept here, not left to the reader."""
    namespace: dict[str, Any] = {"__name__": "sartor_exported"}
    with _untouched_random_state():
        exec(compile(source, "model.py", "exec"), namespace)
        net: nn.Module = namespace[class_name]()
        try:
            net.load_state_dict(module.state_dict())
        except RuntimeError as error:
            raise UserError(f"to_source: {class_name} has no source of plain layers: {' '.join(str(error).split())[:300]}") from error
        if input_shape is not None:
            images = torch.rand(2, *input_shape)
            with torch.no_grad():
                expected, got = module(images), net.eval()(images)
            if not torch.allclose(expected, got, rtol=0, atol=0, equal_nan=True):
                gap = float((expected - got).abs().max())
                raise UserError(f"to_source: the source of {class_name} differs from the module by {gap:.3g}; report this.")


@contextmanager
def _untouched_random_state() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield
