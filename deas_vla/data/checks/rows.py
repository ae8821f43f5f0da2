"""Parquet files against the plan: counts, order, types, widths and numbers."""

import io
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deas_vla.data.checks.finding import Finding, cause
from deas_vla.data.checks.plan import File, Plan
from deas_vla.data.layout import picture_size

# What LeRobot counts by. Format 2.0 comes without some, and conversion writes the last two anew.
_COUNTERS = ("episode_index", "frame_index", "index")
_VECTORS = ("observation.state", "action")
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
_DROP = "record those columns again, or drop the episodes in the file"


def check_rows(plan: Plan, file: File) -> Iterator[Finding]:
    """What is wrong with one data file."""
    try:
        with pq.ParquetFile(file.path) as parquet:
            yield from _check_file(plan, file, parquet)
    except FileNotFoundError:
        yield Finding(file.path, f"is missing ({_named(file.episodes)} should be in it)")
    except (OSError, pa.ArrowException) as error:
        yield Finding(file.path, f"is cut or damaged ({cause(error)})")


def _check_file(plan: Plan, file: File, parquet: pq.ParquetFile) -> Iterator[Finding]:
    schema = {field.name: field.type for field in parquet.schema_arrow}
    columns = {
        name: feature
        for name, feature in plan.features.items()
        if feature["dtype"] != "video" and (plan.version != "v2.0" or name in schema)
    }
    typed = list(_check_types(plan, file, columns, schema))
    yield from typed
    rows, expected = parquet.metadata.num_rows, int(plan.lengths[file.episodes].sum())
    if rows != expected:
        yield Finding(file.path, _lost(plan, file, parquet, schema, rows, expected))
        return
    if typed or rows == 0:
        return
    yield from _check_chunks(file, parquet, columns, schema)
    yield from _check_order(plan, file, parquet, schema)
    for name in _VECTORS:
        if name in columns:
            yield from _check_vectors(file, parquet, name, int(columns[name]["shape"][0]))
    for name, feature in columns.items():
        if feature["dtype"] == "image":
            yield from _check_picture(file, parquet, name, feature)


def _check_types(
    plan: Plan, file: File, columns: dict[str, Any], schema: dict[str, pa.DataType]
) -> Iterator[Finding]:
    for name, feature in columns.items():
        declared = feature["dtype"]
        if name not in schema:
            yield Finding(file.path, f"has no column {name}, meta/info.json declares it")
            continue
        kind = schema[name]
        while any(is_list(kind) for is_list in _LISTS):
            kind = kind.value_type
        numeric = any(is_number(kind) for is_number in _NUMBERS)
        if declared not in ("string", "image") and not numeric:
            what = f"holds {kind} in column {name}, meta/info.json declares {declared}"
            yield Finding(file.path, what, "write numbers there")
        width = math.prod(feature["shape"])
        if pa.types.is_fixed_size_list(schema[name]) and numeric and len(feature["shape"]) == 1:
            yield from _check_width(file, name, schema[name].list_size, width)


def _check_width(file: File, name: str, have: int, declared: int) -> Iterator[Finding]:
    if have != declared:
        yield Finding(
            file.path,
            f"holds {have} values a frame in column {name}, meta/info.json declares {declared}",
            "correct meta/info.json or restore the file",
        )


def _lost(
    plan: Plan,
    file: File,
    parquet: pq.ParquetFile,
    schema: dict[str, pa.DataType],
    rows: int,
    expected: int,
) -> str:
    """Which episode has other frames than its metadata say."""
    said = f"holds {rows} frames, meta/ says {expected}"
    if not pa.types.is_integer(schema.get("episode_index", pa.null())):
        return said
    index = _column(parquet, "episode_index")
    within = index[(index >= 0) & (index < len(plan.lengths))].astype(np.int64)
    have = np.bincount(within, minlength=len(plan.lengths))[file.episodes]
    want = plan.lengths[file.episodes]
    for k in np.flatnonzero(have != want)[:1]:
        return f"{said} (episode {file.episodes[k]} has {have[k]} of {want[k]})"
    return said


def _check_chunks(
    file: File,
    parquet: pq.ParquetFile,
    columns: dict[str, Any],
    schema: dict[str, pa.DataType],
) -> Iterator[Finding]:
    """Widths of lists and empty cells, from what the file's end says of its parts."""
    metadata = parquet.metadata
    values, empty = dict.fromkeys(columns, 0), dict.fromkeys(columns, 0)
    for group in range(metadata.num_row_groups):
        part = metadata.row_group(group)
        for k in range(part.num_columns):
            chunk = part.column(k)
            name = _owner(chunk.path_in_schema, columns)
            if name is None or columns[name]["dtype"] in ("string", "image"):
                continue
            values[name] += chunk.num_values
            if chunk.statistics is not None and chunk.statistics.has_null_count:
                empty[name] += chunk.statistics.null_count
    for name, feature in columns.items():
        if empty[name]:
            yield Finding(file.path, f"has {empty[name]} empty cells in column {name}", _DROP)
        elif values[name] and any(is_list(schema[name]) for is_list in _LISTS):
            have, width = values[name] / metadata.num_rows, math.prod(feature["shape"])
            if have != width:
                said = f"{have:.6g}" + ("" if have.is_integer() else " (it changes)")
                yield Finding(
                    file.path,
                    f"holds {said} values a frame in column {name}, "
                    f"meta/info.json declares {width}",
                    "correct meta/info.json or restore the file",
                )


def _owner(path: str, columns: dict[str, Any]) -> str | None:
    """The column that a leaf of the schema belongs to: ``action.list.element`` to ``action``."""
    while path not in columns:
        path, dot, _ = path.rpartition(".")
        if not dot:
            return None
    return path


def _check_order(
    plan: Plan, file: File, parquet: pq.ParquetFile, schema: dict[str, pa.DataType]
) -> Iterator[Finding]:
    """Episodes whole and in their order, frames of each counted up, instructions that exist."""
    lengths = plan.lengths[file.episodes]
    first = np.cumsum(lengths) - lengths  # in the file
    frame = np.arange(lengths.sum()) - np.repeat(first, lengths)
    expected = {
        "episode_index": np.repeat(file.episodes, lengths),
        "frame_index": frame,
        "index": np.repeat(plan.first[file.episodes], lengths) + frame,
    }
    made_anew = ("frame_index", "index") if plan.version == "v2.0" else ()
    for name in _COUNTERS:
        if name not in schema or name in made_anew:
            continue
        have = _column(parquet, name)
        wrong = np.flatnonzero(have != expected[name])
        if len(wrong):
            row = int(wrong[0])
            yield Finding(
                file.path,
                f"has {name}={have[row]} in row {row}, {expected[name][row]} belongs there "
                f"({len(wrong)} rows are shuffled, lost or doubled)",
            )
            return
    if "task_index" in schema:
        task = _column(parquet, "task_index")
        wrong = np.flatnonzero((task < 0) | (task >= plan.tasks))
        for row in wrong[:1]:
            what = f"has task_index={task[row]} in row {row}, meta/ lists {plan.tasks} tasks"
            yield Finding(file.path, what, "restore meta/ and the file together")
    if "timestamp" in schema and not plan.version.startswith("v2") and plan.fps > 0:
        time = _column(parquet, "timestamp")
        wrong = np.flatnonzero(~(np.abs(time - frame / plan.fps) < 0.5 / plan.fps))
        for row in wrong[:1]:
            what = f"has timestamp={time[row]} in row {row}, frame {frame[row]} at {plan.fps} fps"
            yield Finding(file.path, what, f"write {frame[row] / plan.fps:.3f} there")


def _check_vectors(file: File, parquet: pq.ParquetFile, name: str, width: int) -> Iterator[Finding]:
    """Every frame of the same width, every value a number; read in parts."""
    row = 0
    for batch in parquet.iter_batches(2**16, columns=[name]):
        cells = batch.column(0)
        values = cells
        if any(is_list(cells.type) for is_list in _LISTS):
            values = cells.flatten()
            sizes = pc.list_value_length(cells).to_numpy(zero_copy_only=False)
            for odd in np.flatnonzero(sizes != width)[:1]:
                what = f"holds {sizes[odd]} values in row {row + odd} of column {name}"
                yield Finding(file.path, f"{what}, meta/info.json declares {width}", _DROP)
                return
        numbers = values.to_numpy(zero_copy_only=False)
        for at in np.flatnonzero(~np.isfinite(numbers))[:1]:
            what = f"holds {numbers[at]} in row {row + at // width} of column {name}"
            yield Finding(file.path, what, _DROP)
            return
        row += len(cells)


def _check_picture(
    file: File, parquet: pq.ParquetFile, name: str, feature: dict[str, Any]
) -> Iterator[Finding]:
    """The first picture of a camera whose frames are images in the file."""
    from PIL import Image, UnidentifiedImageError

    cell = next(parquet.iter_batches(1, columns=[name])).column(0)[0].as_py()
    try:
        width, height = Image.open(io.BytesIO(cell["bytes"])).size
    except (TypeError, KeyError, UnidentifiedImageError) as error:
        yield Finding(file.path, f"holds no picture in column {name} ({cause(error)})")
        return
    declared = picture_size(feature)
    if (height, width) != declared:
        yield Finding(
            file.path,
            f"holds pictures of {height} x {width} in column {name}, meta/info.json declares "
            f"{declared[0]} x {declared[1]}",
            "correct meta/info.json or restore the file",
        )


def _column(parquet: pq.ParquetFile, name: str) -> NDArray[Any]:
    """A column of one number a row, (N,)."""
    column = parquet.read(columns=[name])[name].combine_chunks()
    if any(is_list(column.type) for is_list in _LISTS):
        column = column.flatten()
    values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values


def _named(episodes: NDArray[np.int64]) -> str:
    if len(episodes) == 1:
        return f"episode {episodes[0]}"
    return f"episodes {episodes[0]} to {episodes[-1]}"
