"""Rows: the settings in which two layers differ, as a table."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from jaxstate.settings._jax import Settings
from jaxstate.table import html_table, table

COLUMNS = ("torch", "jax", "setting", "in torch", "in JAX", "mend")


@dataclass(frozen=True)
class Setting:
    """One setting that differs.

    Attributes:
        name, path: of the layer, in torch and in JAX.
        setting: in torch's words.
        theirs, ours: its values.
        mend: the argument of the JAX layer that has torch's value.
    """

    name: str
    path: str
    setting: str
    theirs: str
    ours: str
    mend: str

    @property
    def cells(self) -> tuple[str, ...]:
        return (self.name, self.path, self.setting, self.theirs, self.ours, self.mend)

    def __str__(self) -> str:
        where = f"{self.name or 'the model'}: {self.setting} {self.ours} in JAX"
        return f"{where}{f' against {self.theirs} in torch' if self.theirs else ''}; mend: {self.mend}"


@dataclass(frozen=True, repr=False)
class Warnings:
    """All settings that differ, as a table; false if none does."""

    rows: tuple[Setting, ...]
    unpaired: tuple[str, ...] = ()  # torch's modules that no JAX module was found for

    def __bool__(self) -> bool:
        return bool(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Setting]:
        return iter(self.rows)

    def __str__(self) -> str:
        text = table(COLUMNS, [row.cells for row in self.rows]) if self.rows else "no setting differs"
        return f"{text}\nnot compared: {', '.join(self.unpaired)}" if self.unpaired else text

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rest = f"<br>not compared: {escape(', '.join(self.unpaired))}" if self.unpaired else ""
        return html_table(COLUMNS, [row.cells for row in self.rows]) + rest


def unlike(name: str, wanted: Mapping[str, Any], path: str, ours: Settings) -> Iterator[Setting]:
    """The settings of one layer that are not torch's."""
    for setting, value in ours.values.items():
        if setting in wanted and wanted[setting] != value:
            mend = ours.spelled(setting, wanted[setting])
            yield Setting(name, path, setting, shown(wanted[setting]), shown(value), mend)
        elif setting == "computes in" and setting not in wanted:
            yield Setting(name, path, setting, "", shown(value), ours.spelled(setting, None))


def shown(value: Any) -> str:
    """A value as a table shows it."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
