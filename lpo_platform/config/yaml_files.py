"""Configuration files that cannot be read: file, line and column instead of a parser's traceback."""

from __future__ import annotations

from pathlib import Path

import yaml
from hydra._internal.config_repository import CachingConfigRepository
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lpo_platform.config.errors import ConfigError, one_line
from lpo_platform.config.schema import CONF

# What was read, by where it was looked for, with the file's time and size.
_read: dict[tuple[str, str], tuple[tuple[int, int], ConfigResult]] = {}


class Files(CachingConfigRepository):
    """Hydra's files, with a ConfigError where one is no mapping in YAML and UTF-8, or a user's option empty.

    A process reads a file once: a sweep, or a program that trains in a loop, composes many times.
    """

    def load_config(self, config_path: str) -> ConfigResult | None:
        file = self._file(config_path)
        try:
            loaded = self._once(config_path, file)
        except (yaml.YAMLError, UnicodeError, OmegaConfBaseException, OSError) as error:
            if file is None:
                raise
            raise ConfigError(_problem(file, error)) from error
        if loaded is None or file is None:
            return loaded
        if not isinstance(loaded.config, DictConfig):
            raise ConfigError(f"{file}:1:1: a list; a configuration is a mapping of keys to values")
        ours, whole = file.is_relative_to(CONF), loaded.header.get("package") == "_global_"
        if not (loaded.config or loaded.defaults_list or ours or whole or config_path.startswith("local/")):
            raise ConfigError(f"{file}:1:1: an empty file; a configuration is a mapping of keys to values")
        return loaded

    def _once(self, config_path: str, file: Path | None) -> ConfigResult | None:
        name = f"config_path={config_path}"
        if name in self.cache:
            return self.cache[name]
        key = (" ".join(source.path for source in self.get_sources()), config_path)
        state = (file.stat().st_mtime_ns, file.stat().st_size) if file is not None else (0, 0)
        if key in _read and _read[key][0] == state:
            self.cache[name] = _read[key][1]
        elif (found := super().load_config(config_path)) is not None:
            _read[key] = (state, found)
        return self.cache.get(name)

    def _file(self, config_path: str) -> Path | None:
        """Where Hydra finds a configuration; None for what is no file of ours or the user's."""
        for source in self.get_sources():
            if source.scheme() == "file" and source.is_config(config_path):
                return Path(source.path, source._normalize_file_name(config_path))
        return None


def _problem(file: Path, error: Exception) -> str:
    """`file:line:column: what is wrong`."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{file}:{mark.line + 1}:{mark.column + 1}: {error.problem or error.context}"
    content = file.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as wrong:
        line, column = _place(content[: wrong.start].decode("utf-8"))
        return f"{file}:{line}:{column}: not UTF-8; save the file in that encoding"
    if isinstance(error, yaml.reader.ReaderError):
        line, column = _place(text[: error.position])
        return f"{file}:{line}:{column}: a character that YAML does not allow ({error.reason})"
    if isinstance(error, OSError):
        return f"{file}: {error.strerror}"
    return f"{file}:1:1: {one_line(error)}"


def _place(before: str) -> tuple[int, int]:
    """Line and column of what follows a text, from 1."""
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
