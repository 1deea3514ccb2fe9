"""`flowkit info`: what flow records hold."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowkit.stores.urls import Place, Url
from flowkit_cli import output
from flowkit_cli.options import json_option
from flowkit_cli.store_options import PlacePath, store_options

if TYPE_CHECKING:
    from flowkit.records.reading import Record


@click.command()
@click.argument(
    "records", metavar="RECORD...", nargs=-1, required=True, type=PlacePath(path_type=Path)
)
@json_option
@store_options
def info(records: tuple[Place, ...], as_json: bool) -> None:
    """What flow records hold, a line each.

    RECORD is a record's folder or pack, or any folder above records, here or in a store.

    \b
    flowkit info flow/jump/a
    flowkit info flow --json | jq .frames
    flowkit info s3://bucket/flow/jump
    """
    from flowkit.errors import FlowkitError, RecordError
    from flowkit.records.reading import find_records, open_record

    failed = False
    paths: list[Place] = []
    for given in records:
        try:
            before = len(paths)
            paths += find_records(given)
            if len(paths) == before:
                raise RecordError(
                    f"{given}: no flow records there: flowkit extract makes them",
                    absent=isinstance(given, Url),  # a store has no empty folders
                )
        except FlowkitError as error:
            if error.absent:  # which stops before the first line
                raise
            failed = True
            output.error(f"flowkit: error: {error}")
    for path in paths:
        try:
            record = open_record(path, max_frame_mpx=math.inf)
            output.json_line(_event(record)) if as_json else output.result(_line(record))
        except FlowkitError as error:  # one odd record never hides the others
            failed = True
            output.error(f"flowkit: error: {error}")
    if failed:
        sys.exit(1)


def _event(record: Record) -> dict[str, Any]:
    """One line of --json: the sidecar, but of each series only what it is."""
    series = [
        {"direction": one.direction, "step": one.step, "fields": one.count} for one in record.series
    ]
    return {"record": str(record.path), **record.sidecar, "series": series}


def _line(record: Record) -> str:
    sidecar = record.sidecar
    request = sidecar["request"]
    fields = ", ".join(
        f"{one.count} {one.direction}" + (f" of step {one.step}" if one.step > 1 else "")
        for one in record.series
    )
    bound, method = request.get("bound"), request.get("method", {"name": "unknown method"})
    scale = "own range" if bound is None else f"+-{bound:g} px"
    if request["format"] in ("npy", "flo"):
        scale = "float"
    damage = sidecar.get("source", {}).get("damage")
    return (
        f"{record.path}: {record.frame_count} frames {record.size[1]}x{record.size[0]}"
        + (f" at {record.fps:.4g} fps" if record.fps else "")
        + f"; {fields} fields; {method['name']}, {request['format']}, {scale}"
        + (f"; {_camera(sidecar)}" if "stabilize" in request else "")
        + ("" if record.has_frames else "; no frames stored")
        + (f"; damaged source: {damage}" if damage else "")
    )


def _camera(sidecar: dict[str, Any]) -> str:
    """What became of the camera's motion in a record of stabilized flow."""
    text = f"camera's motion taken off by {sidecar['request']['stabilize']['name']}"
    plain = sidecar.get("plain_fields", 0)
    return text + (f", but of {output.count(plain, 'field')}" if plain else "")
