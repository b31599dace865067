"""Which configuration keys are there, all on one page? From the same sources as `rl.config.explain`, as Markdown.

python -m rl explain --markdown > docs/keys.md
"""

from collections.abc import Iterator, Sequence

from rl.config.explain import default_lines, one_line, other_defaults, owning_kinds, type_text, unit_of
from rl.config.keys import Key, children, find_key, one_of

HEAD = """# Configuration keys

Written by `python -m rl explain --markdown`; to change a meaning, edit the docstring under the key.
`python -m rl explain KEY` prints one key in the terminal. Each heading is a section of the YAML, and
`train.num_steps=50` on the command line sets a key of it. `*` stands for an environment's id.

A policy that a run builds, and a checkpoint of less than 20 million weights, have the first default. A pretrained
checkpoint may have another one. A value that is set stays.

`python -m sft` reads the same file. Its own keys are those of `sft`, `dpo` and `reward_model`; it also reads `run_dir`,
`seed`, `policy`, `precision` and `learner.cpus`, and for gold conversations `environments`, `budget` and `rollout`.
"""


def keys_page() -> str:
    """The page: a heading for each section, with a table of its keys."""
    root = find_key(())
    assert root is not None
    return "\n".join([HEAD, *_section(root, "Top level")])


def _section(key: Key, prefix: str) -> Iterator[str]:
    """The lines of a section, and after it those of the sections below it."""
    kind, below = one_of(key.field), children(key)
    yield f"## {prefix if key.name == '' else f'`{prefix}`'}\n"
    if kind:
        yield from (f"- `{kind.key}: {name}`: {one_line(one.__doc__ or '')}" for name, one in kind.kinds.items())
        yield ""
    elif key.sections:
        yield one_line(key.sections[0].__doc__ or "") + "\n"
    if key.field is not None and key.field.description:
        yield one_line(key.field.description) + "\n"
    yield "| key | value | default | meaning |\n|---|---|---|---|"
    for child in below:
        owners = owning_kinds(kind, child.name)
        name = child.name if key.name == "" else f"{prefix}.{child.name}"
        owned = f" (only {', '.join(owners)})" if owners else ""
        yield _row(Key(name, child.field, child.sections), owned, other_defaults(kind, child.name))
    yield ""
    for child in below:
        name = child.name if key.name == "" else f"{prefix}.{child.name}"
        if child.sections:
            yield from _section(child, name)
        elif (names := children(child)) and names[0].sections:  # a mapping whose names the user chooses
            yield from _section(names[0], f"{name}.{names[0].name}")


def _row(key: Key, owned: str, of_kinds: Sequence[str]) -> str:
    assert key.field is not None
    name = key.name.rpartition(".")[2]
    value = ", in ".join(filter(None, (type_text(key.field), unit_of(key.name))))
    first, *others = default_lines(key)
    default = "; ".join([f"`{first}`" if " " not in first else first, *others, *of_kinds])
    section = key.sections[0].__doc__ if key.sections else ""
    cells = (f"`{name}`", value, default, one_line(key.field.description or section or "") + owned)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
