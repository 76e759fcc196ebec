"""Settings as they stand in YAML files: read as plain data, named as on the command line, compared."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file as plain data, references unresolved; a key that stands there twice is an error.

    Raises:
        ValueError: there is no such file, or it is no YAML.
    """
    try:
        return OmegaConf.to_container(OmegaConf.load(path))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except YAMLError as error:
        raise ValueError(f"{path}: {error}") from None


def by_name(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a configuration by its name on the command line, which leaves `init_args` out."""
    if not isinstance(content, dict) or not content:
        yield prefix, content
        return
    for key, inner in content.items():
        yield from by_name(inner, prefix if key == "init_args" else f"{prefix}.{key}".lstrip("."))


def changes(before: Any, now: Any) -> dict[str, tuple[Any, Any]]:
    """What differs between two configurations: its name → what it was and what it is; None where it is not there."""
    old, new = dict(by_name(before)), dict(by_name(now))
    return {name: (old.get(name), new.get(name)) for name in old | new if old.get(name) != new.get(name)}
