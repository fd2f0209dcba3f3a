"""One self-contained file of a module of ours: all that it takes from the package is written out above it.

Of each name that the module imports from the package, the text of its definition is taken as it stands, and so of all that this
definition uses, and of nothing else. So such a file can't differ from what the package itself computes with. Where the module
defines a name, that stands in place of the package's own of this name. Annotations are not followed: they are never evaluated.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

_PACKAGE = "tsdfm"
_DEFINITIONS = (ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)


def bundled(module: str) -> str:
    """The text of the file. `module`: its full name; it is read, not imported.

    Raises ValueError where two definitions that are needed have one name, or a module imports another whole.
    """
    root = _Source(module)
    bundle = _Bundle(module, dict.fromkeys(root.definitions, module))
    own = [node for node in root.tree.body if isinstance(node, _DEFINITIONS)]
    for node in own:
        bundle.follow(root, node)
    docstring = ast.get_docstring(root.tree, clean=False)
    head = [f'"""{docstring}"""', "from __future__ import annotations", "\n".join(sorted(bundle.imports))]
    return "\n\n".join(head) + "\n\n\n" + "\n\n\n".join([*bundle.texts, *map(root.text, own)]) + "\n"


class _Source:
    """The source of a module: its definitions and imports, by the names that they give."""

    def __init__(self, module: str) -> None:
        spec = find_spec(module)
        if spec is None or spec.origin is None:
            raise ValueError(f"{module}: no source")
        self.module, text = module, Path(spec.origin).read_text(encoding="utf-8")
        self.lines, self.tree = text.splitlines(), ast.parse(text)
        self.definitions: dict[str, ast.stmt] = {}
        self.ours: dict[str, tuple[str, str]] = {}  # name -> the module of the package, and its name there
        self.others: dict[str, str] = {}  # name -> the statement that imports it
        for node in self.tree.body:
            self._note(node)

    def _note(self, node: ast.stmt) -> None:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            self.definitions[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = (each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name))
            self.definitions |= dict.fromkeys(names, node)
        elif isinstance(node, ast.Import):
            self.others |= {(alias.asname or alias.name).partition(".")[0]: f"import {_named(alias)}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if node.module.partition(".")[0] == _PACKAGE:
                    self.ours[alias.asname or alias.name] = (node.module, alias.name)
                else:
                    self.others[alias.asname or alias.name] = f"from {node.module} import {_named(alias)}"

    def text(self, node: ast.stmt) -> str:
        """The lines of a definition, its decorators and the comment above it included."""
        decorators = node.decorator_list if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
        start = min([node.lineno, *(each.lineno for each in decorators)]) - 1
        while start and self.lines[start - 1].startswith("#"):
            start -= 1
        return "\n".join(self.lines[start : node.end_lineno])


@dataclass
class _Bundle:
    """Definitions in an order in which each can be evaluated, and the imports that they need."""

    root: str  # the module that is bundled
    where: dict[str, str]  # name -> module of its definition
    texts: list[str] = field(default_factory=list)
    imports: set[str] = field(default_factory=set)
    sources: dict[str, _Source] = field(default_factory=dict)

    def follow(self, source: _Source, node: ast.stmt) -> None:
        """Take what a definition uses."""
        for name, evaluated in _names(node):
            if name in source.others:
                self.imports.add(source.others[name])
            elif evaluated and name in source.definitions:
                self._take(name, source.module, name)
            elif evaluated and name in source.ours:
                self._take(name, *source.ours[name])

    def _take(self, name: str, module: str, original: str) -> None:
        if name in self.where:
            if self.where[name] not in (module, self.root):
                raise ValueError(f"{name}: both {module} and {self.where[name]} define it; name one of them otherwise")
            return
        if module not in self.sources:
            self.sources[module] = _Source(module)
        source = self.sources[module]
        if original != name or original not in source.definitions:
            raise ValueError(f"{name}: {module} does not define it; import what is needed from where it is defined")
        node = source.definitions[original]
        self.where |= {each: module for each, defined in source.definitions.items() if defined is node}
        self.follow(source, node)
        self.texts.append(source.text(node))


def _named(alias: ast.alias) -> str:
    return f"{alias.name} as {alias.asname}" if alias.asname else alias.name


def _names(node: ast.AST) -> Iterator[tuple[str, bool]]:
    """Every name that is read in a definition, and whether it is evaluated: those of annotations are not."""
    for part, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST):
                continue
            annotation = part in ("annotation", "returns")
            if isinstance(child, ast.Name):
                yield child.id, not annotation
            else:
                yield from ((name, evaluated and not annotation) for name, evaluated in _names(child))
