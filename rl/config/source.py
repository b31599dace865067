"""How are the YAML, its base file and the overrides merged into one tree, and where does each key come from?

Later sources win: the `base:` file (one file, which may not have a base itself), the YAML, the `key=value` overrides.
Sections are merged key by key. Only the override `key={}` empties a section, because merging an empty section would
change nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rl.config.errors import ConfigError, Problem
from rl.config.yaml_text import KeyPath, Tree, YamlMistake, read_value, read_yaml

COMMAND_LINE = "command line"


@dataclass(slots=True)
class Source:
    """The merged tree, and the file and line of each of its keys."""

    tree: Tree
    places: dict[KeyPath, str]


def read_with_base(path: Path) -> Source:
    source = _read(path, "give the path of an experiment's YAML file")
    if "base" not in source.tree:
        return source
    name = source.tree.pop("base")
    place = source.places.pop(("base",))
    if not isinstance(name, str):
        raise ConfigError([Problem(place, "base", f"{name!r} is not a path", "give one path relative to this file")])
    base = _read(path.parent / name, f"correct `base:` in {place}; the path is relative to that file")
    if "base" in base.tree:
        fix = f"merge the two by hand: the base of {path} may not have a base of its own"
        raise ConfigError([Problem(base.places[("base",)], "base", "a base file has a base", fix)])
    return Source(_merge(base.tree, source.tree), base.places | source.places)


def _read(path: Path, fix: str) -> Source:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        wrong = f"there is no file {path}" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise ConfigError([Problem(str(path), "", wrong, fix)]) from None
    try:
        tree, lines = read_yaml(text)
    except YamlMistake as error:
        raise ConfigError(
            [Problem(f"{path}, line {line}", "", wrong, fix) for line, wrong, fix in error.found]
        ) from None
    return Source(tree, {key: f"{path}, line {line}" for key, line in lines.items()})


def apply_overrides(source: Source, overrides: Sequence[str]) -> None:
    problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        keys = _split_key(key, source.tree)
        if not equals or not all(keys) or any(name != name.strip() for name in keys):
            fix = "write overrides as key=value without blanks, such as train.num_steps=100"
            problems.append(Problem(COMMAND_LINE, "", f"override {override!r} is not of the form key=value", fix))
            continue
        if keys == ("base",):
            fix = "write `base:` in the experiment's file"
            problems.append(Problem(COMMAND_LINE, "base", "the base file cannot be overridden", fix))
            continue
        try:
            value = read_value(text)
        except YamlMistake as error:
            fix = f"write the value as YAML and quote it for the shell: '{key}=...'"
            problems.append(Problem(COMMAND_LINE, key, f"value {text!r} is not YAML: {error.found[0][1]}", fix))
            continue
        _override(source, keys, value, f"{COMMAND_LINE}, {override}")
    if problems:
        raise ConfigError(problems)


def _override(source: Source, keys: KeyPath, value: object, place: str) -> None:
    """Put the value into the tree, and record the place of each key that it sets or replaces."""
    here: object = source.tree
    for end in range(1, len(keys)):
        here = here.get(keys[end - 1]) if isinstance(here, dict) else None
        if not isinstance(here, dict):  # new, or replaced
            source.places[keys[:end]] = place
    if value == {}:
        source.tree = _merge(source.tree, _nested(keys, None))
    source.tree = _merge(source.tree, _nested(keys, value))
    if not isinstance(value, dict) or not value:
        source.places = {path: where for path, where in source.places.items() if path[: len(keys)] != keys}
    source.places[keys] = place
    if isinstance(value, dict):
        source.places |= {(*keys, *below): place for below in key_paths(value)}


def _nested(keys: KeyPath, value: object) -> Tree:
    tree: Tree = {keys[-1]: value}
    for name in reversed(keys[:-1]):
        tree = {name: tree}
    return tree


def _split_key(key: str, tree: Tree) -> KeyPath:
    """The names of a dotted key. A name that is already in the tree may contain dots, such as `module:Class`."""
    for name, value in tree.items():
        if "." in name and (key == name or key.startswith(f"{name}.")):
            rest = key[len(name) + 1 :]
            return (name, *_split_key(rest, value if isinstance(value, dict) else {})) if rest else (name,)
    name, dot, rest = key.partition(".")
    below = tree.get(name)
    return (name, *_split_key(rest, below if isinstance(below, dict) else {})) if dot else (name,)


def _merge(below: Tree, above: Tree) -> Tree:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def place_of(places: Mapping[KeyPath, str], path: KeyPath, file: str) -> str:
    """File and line of the key, or of the nearest key above it."""
    for end in range(len(path), 0, -1):
        if path[:end] in places:
            return places[path[:end]]
    return file


def file_of(place: str) -> Path | None:
    """The file of a place; None for one of the command line."""
    file, _, line = place.rpartition(", line ")
    return Path(file) if line.isdigit() and not place.startswith(COMMAND_LINE) else None


def key_paths(tree: Tree) -> Iterator[KeyPath]:
    """The path of each key of a tree."""
    for key, value in tree.items():
        yield (key,)
        if isinstance(value, dict):
            yield from ((key, *below) for below in key_paths(value))
