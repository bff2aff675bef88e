"""Writes a table's simple SQL statements for the driver.

SQLAlchemy takes ten times what SQLite takes over a small statement, and somebody waits for every
change. Its types still say how each value is written and read. What the driver raises is raised as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from sqlalchemy import Dialect, Table
from sqlalchemy.types import TypeEngine

from manifest_cache.storage.models import UTCDateTime
from manifest_cache.storage.raw_rows import reader

# SQLite takes 32,766 variables in a statement, PostgreSQL 65,535; short statements are planned sooner.
_CHUNK = 500

Item = TypeVar("Item")
_Processor: TypeAlias = Callable[[Any], Any] | None
_Names: TypeAlias = tuple[str, ...]


class Statements:
    """The statements of one table on one kind of database; columns are named as the table names them.

    They run on a cursor of the driver's. What `select` gives may be given to others too: it is not to
    be altered.
    """

    def __init__(self, table: Table, dialect: Dialect) -> None:
        quote = dialect.identifier_preparer.quote
        self._table = quote(table.name)
        self._columns = {column.name: quote(column.name) for column in table.columns}
        self._keys = tuple(column.name for column in table.primary_key)
        self._placeholder = "?" if dialect.paramstyle == "qmark" else "%s"
        types = {column.name: column.type.dialect_impl(dialect) for column in table.columns}
        self._write: dict[str, _Processor] = {
            name: _remembering(kind, kind.bind_processor(dialect)) for name, kind in types.items()
        }
        readers = [reader(column.type, dialect) for column in table.columns]
        self._read = [(number, read) for number, read in enumerate(readers) if read is not None]
        # Statements of the same kind are written out once.
        self._inserting = functools.lru_cache(maxsize=64)(self._written_insert)
        self._updating = functools.lru_cache(maxsize=64)(self._written_update)

    def select(self, cursor: Any, column: str, values: Collection[Any]) -> Iterator[list[Any]]:
        """The rows of which the column has one of the values, each as its values in the table's order."""
        columns = ", ".join(self._columns.values())
        for some in chunks(sorted(values)):
            sql = f"SELECT {columns} FROM {self._table} WHERE {self._is_one_of(column, some)}"
            for stored in cursor.execute(sql, self._parameters(column, some)).fetchall():
                row = list(stored)
                for number, read in self._read:
                    row[number] = read(row[number])
                yield row

    def insert(self, cursor: Any, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds rows; those that give the same columns go in one statement."""
        for names, alike in _by_names(rows):
            self._run_for_all(cursor, self._inserting(names), names, alike)

    def update(self, cursor: Any, changes: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> None:
        """Changes rows: of each its primary key, and the columns that become other."""
        for names, alike in _by_names([{**changed, **key} for key, changed in changes]):
            changed = tuple(name for name in names if name not in self._keys)
            self._run_for_all(cursor, self._updating(changed, self._keys), (*changed, *self._keys), alike)

    def update_where(self, cursor: Any, column: str, value: Any, changed: Mapping[str, Any]) -> int:
        """Changes the rows of which the column has this value; returns how many there are."""
        written = [self._parameters(name, [new])[0] for name, new in changed.items()]
        sql = self._updating(tuple(changed), (column,))
        cursor.execute(sql, (*written, *self._parameters(column, [value])))
        found: int = cursor.rowcount
        return found

    def delete(self, cursor: Any, column: str, values: Collection[Any]) -> int:
        """Takes away the rows of which the column has one of the values; returns how many there were."""
        found = 0
        for some in chunks(sorted(values)):
            sql = f"DELETE FROM {self._table} WHERE {self._is_one_of(column, some)}"
            cursor.execute(sql, self._parameters(column, some))
            found += cursor.rowcount
        return found

    def _written_insert(self, names: _Names) -> str:
        columns = ", ".join(self._columns[name] for name in names)
        marks = ", ".join([self._placeholder] * len(names))
        return f"INSERT INTO {self._table} ({columns}) VALUES ({marks})"

    def _written_update(self, changed: _Names, known: _Names) -> str:
        settings = ", ".join(f"{self._columns[name]} = {self._placeholder}" for name in changed)
        where = " AND ".join(f"{self._columns[name]} = {self._placeholder}" for name in known)
        return f"UPDATE {self._table} SET {settings} WHERE {where}"

    def _is_one_of(self, column: str, values: Sequence[Any]) -> str:
        marks = ", ".join([self._placeholder] * len(values))
        return f"{self._columns[column]} IN ({marks})"

    def _parameters(self, column: str, values: Iterable[Any]) -> tuple[Any, ...]:
        write = self._write[column]
        return tuple(values) if write is None else tuple(map(write, values))

    def _run_for_all(self, cursor: Any, sql: str, names: _Names, rows: Sequence[Mapping[str, Any]]) -> None:
        writing = [(name, self._write[name]) for name in names]
        for some in chunks(rows):
            parameters = [
                tuple([row[name] if write is None else write(row[name]) for name, write in writing])
                for row in some
            ]
            if len(parameters) == 1:
                cursor.execute(sql, parameters[0])
            else:
                cursor.executemany(sql, parameters)


def _remembering(kind: TypeEngine[Any], process: _Processor) -> _Processor:
    """Many rows have the moment of one transaction in several columns."""
    if process is None or not isinstance(kind, UTCDateTime):
        return process
    return functools.lru_cache(maxsize=256)(process)


@functools.lru_cache(maxsize=64)
def statements(table: Table, dialect: Dialect) -> Statements:
    """The statements of a table; made once for each engine."""
    return Statements(table, dialect)


def chunks(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """The items in portions that fit into one statement."""
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]


def _by_names(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[_Names, list[Mapping[str, Any]]]]:
    grouped: dict[_Names, list[Mapping[str, Any]]] = {}
    for row in rows:
        grouped.setdefault(tuple(row), []).append(row)
    yield from grouped.items()
