"""`flowkit info`: what flow records hold."""

from __future__ import annotations

from pathlib import Path

import click

from flowkit_cli import output
from flowkit_cli.options import json_option


@click.command()
@click.argument(
    "records", metavar="RECORD...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@json_option
def info(records: tuple[Path, ...], as_json: bool) -> None:
    """What flow records hold, a line each.

    RECORD is a record's folder or pack, or any folder above records.

    \b
    flowkit info flow/jump/a
    flowkit info flow --json | jq .frames
    """
    from flowkit.records import find_records, open_record

    for given in records:
        for path in find_records(given):
            record = open_record(path)
            sidecar = record.sidecar
            if as_json:
                del sidecar["series"]
                series = [
                    {"direction": one.direction, "step": one.step, "fields": one.count}
                    for one in record.series
                ]
                output.json_line({"record": str(path), **sidecar, "series": series})
                continue
            request = sidecar["request"]
            fields = ", ".join(
                f"{one.count} {one.direction}" + (f" of step {one.step}" if one.step > 1 else "")
                for one in record.series
            )
            scale = "own range" if request["bound"] is None else f"+-{request['bound']:g} px"
            if request["format"] in ("npy", "flo"):
                scale = "float"
            damage = sidecar["source"]["damage"]
            output.result(
                f"{path}: {record.frame_count} frames {record.size[1]}x{record.size[0]}"
                + (f" at {record.fps:.4g} fps" if record.fps else "")
                + f"; {fields} fields; {request['method']['name']}, {request['format']}, {scale}"
                + ("" if record.has_frames else "; no frames stored")
                + (f"; damaged source: {damage}" if damage else "")
            )
