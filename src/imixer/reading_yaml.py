"""Read YAML that somebody typed. Whatever is wrong with it is said in one line that names the file.

Apart from `reading`, which the models need: they do without PyYAML.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from imixer.errors import InputError
from imixer.escaping import is_encodable
from imixer.reading import read_text

_LARGEST = 2**20  # bytes
_MOST_VALUES = 100_000  # of a file whose aliases are written out
_DEEPEST = 100  # levels: more could be read, and not be written again
_LONGEST_NUMBER = 400  # characters, for the same reason


def read_yaml(file: Path) -> Any:
    """Read a YAML file of plain values.

    Args:
        file: The file.

    Raises:
        InputError: If it cannot be read, or `parse_yaml` refuses it.
    """
    return parse_yaml(read_text(file, _LARGEST), str(file))


def parse_yaml(text: str, name: str) -> Any:
    """Parse YAML of plain values.

    Args:
        text: The YAML.
        name: The name of it in messages.

    Raises:
        InputError: If it is not YAML, a key stands twice in a mapping, its aliases hold each other or far more values
            than anybody wrote, it nests too deep, or it has endless numbers or halves of letters.
    """
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is None:
            return None
        _require_writable(node, name)
        _require_few_values(node, name)
        _require_single_keys(node, name)
        return yaml.safe_load(text)
    except RecursionError as error:
        raise InputError(f"{name} nests too deep to be read") from error
    except (yaml.YAMLError, ValueError) as error:  # the latter of dates and numbers that are none
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name}: not YAML: {' '.join(str(error).split())}") from error
    except (
        AttributeError,
        LookupError,
        TypeError,
    ) as error:  # PyYAML's, where a tag such as !!bool is put on other text
        raise InputError(
            f"{name}: a value is not what its tag !!... says; leave the tag out, or mend the value"
        ) from error


def _require_writable(root: Any, name: str) -> None:
    """Refuse what could be read and not be written again: many levels, endless numbers, halves of letters."""
    level, seen = {id(root): root}, set[int]()
    for _ in range(_DEEPEST):
        seen |= level.keys()
        for node in level.values():
            if not isinstance(node, yaml.ScalarNode):
                continue
            line = node.start_mark.line + 1
            if node.tag == "tag:yaml.org,2002:int" and len(node.value) > _LONGEST_NUMBER:
                raise InputError(f"{name}: the number in line {line} has {len(node.value):,} digits; give fewer")
            if not is_encodable(node.value):
                raise InputError(f"{name}: the text in line {line} has half a letter, \\ud800 to \\udfff; write it out")
        inside = (child for node in level.values() for child in _children(node))
        level = {id(child): child for child in inside if id(child) not in seen}
    if level:
        line = next(iter(level.values())).start_mark.line + 1
        raise InputError(f"{name} nests too deep, in line {line}; give at most {_DEEPEST} levels")


def _require_few_values(root: Any, name: str) -> None:
    """Refuse aliases that stand for far too many values, which are counted without being written out."""
    sizes: dict[int, int] = {}
    entered: set[int] = set()

    def size(node: Any) -> int:
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in entered:
            raise InputError(f"{name} holds an alias of itself, in line {node.start_mark.line + 1}; write it out")
        entered.add(id(node))
        sizes[id(node)] = 1 + sum(map(size, _children(node)))
        return sizes[id(node)]

    if size(root) > _MOST_VALUES:
        raise InputError(
            f"{name} holds {sizes[id(root)]:.3g} values by its aliases, more than {_MOST_VALUES:,}; give fewer"
        )


def _require_single_keys(root: Any, name: str) -> None:
    """Refuse a key that stands twice in a mapping, of which PyYAML would silently keep the last."""
    seen: set[int] = set()
    left = [root]
    while left:
        node = left.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            keys = [key for key in keys if isinstance(key, str)]
            if twice := [key for key in keys if keys.count(key) > 1]:
                raise InputError(f"{name}: {twice[0]} stands twice, in line {node.start_mark.line + 1} and below")
        left += _children(node)


def _children(node: Any) -> list[Any]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
