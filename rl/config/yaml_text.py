"""How is YAML text parsed and written?

With the core types of YAML 1.2: only `true` and `false` are truth values, so `budget: off` is a string, and `1e-3` is a
number. Keys are strings, a duplicate key is an error, and the line of each key is kept for error messages.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

KeyPath = tuple[str, ...]
Tree = dict[str, Any]
"""A mapping of keys as YAML holds it."""
CORE_TYPES = (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^(?:[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+)$", "-+0123456789"),
    ("float", r"^(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?)$", "-+0123456789."),
    ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", "-+."),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("merge", r"^(?:<<)$", "<"),
)


class YamlMistake(ValueError):
    """Invalid YAML text; `found` holds (line, what is wrong, fix)."""

    def __init__(self, found: list[tuple[int, str, str]]) -> None:
        self.found = found
        super().__init__("; ".join(f"line {line}: {wrong}" for line, wrong, _ in found))


class _Loader(yaml.SafeLoader):
    """Resolves plain scalars with the core types only."""

    yaml_implicit_resolvers: Tree = {}


class _Dumper(yaml.SafeDumper):
    """Quotes strings that the core types, or PyYAML's own types, would read as something else."""


for _name, _pattern, _first in CORE_TYPES:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(_pattern), list(_first))


def read_yaml(text: str) -> tuple[Tree, dict[KeyPath, int]]:
    """The mapping in `text`, and the line (from 1) of each key and list entry. Empty text is an empty mapping.

    Raises `YamlMistake` for invalid syntax, a duplicate key, or a document that is not a mapping.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return {}, {}
        if not isinstance(node, yaml.MappingNode):
            raise YamlMistake([(1, "the file is not a mapping of keys", "write lines of the form `key: value`")])
        keys = list(_keys(node, ()))
        tree = {str(key): _text_keys(item) for key, item in loader.construct_document(node).items()}
    except yaml.YAMLError as error:
        raise _syntax_mistake(error) from None
    finally:
        loader.dispose()
    lines: dict[KeyPath, int] = {}
    twice = []
    for path, line in keys:
        if path in lines:
            wrong = f"{'.'.join(path)} is given twice, first in line {lines[path]}"
            twice.append((line, wrong, "keep one of the two"))
        lines.setdefault(path, line)
    if twice:
        raise YamlMistake(twice)
    return tree, lines


def read_value(text: str) -> object:
    """Parse one value, such as the right side of an override. Raises `YamlMistake`."""
    try:
        return _text_keys(yaml.load(text, _Loader))
    except yaml.YAMLError as error:
        raise _syntax_mistake(error) from None


def dump_yaml(tree: Tree) -> str:
    """The tree as YAML. `${` in strings is escaped, so that it is not read as an interpolation."""
    return yaml.dump(_escaped(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _keys(node: yaml.Node, path: KeyPath) -> Iterator[tuple[KeyPath, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                below = (*path, str(key.value))
                yield below, key.start_mark.line + 1
                yield from _keys(value, below)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            below = (*path, str(index))
            yield below, value.start_mark.line + 1
            yield from _keys(value, below)


def _text_keys(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _text_keys(item) for key, item in value.items()}
    return [_text_keys(item) for item in value] if isinstance(value, list) else value


def _escaped(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(item) for item in value]
    # OmegaConf reads backslashes in front of `${` as escapes, so they are doubled.
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _syntax_mistake(error: yaml.YAMLError) -> YamlMistake:
    mark = getattr(error, "problem_mark", None)
    wrong = getattr(error, "problem", None) or str(error).split("\n")[0]
    fix = "correct the YAML; the cause is often the line above: a missing colon, quote or bracket, or wrong indentation"
    if "\\t" in wrong:
        fix = "indent with blanks, not with tabs"
    return YamlMistake([(mark.line + 1 if mark else 1, wrong, fix)])
