"""Reads what wandb wrote offline."""

from __future__ import annotations

import importlib
import json
import struct
import time


def wandb_records(data: bytes):
    """What a .wandb file holds: LevelDB's log format, blocks of 32 KiB after 7 bytes."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:  # the rest of a block is empty
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def from_wandb(folder):
    """(step, metric, value) of the finished offline runs below a folder."""
    messages = importlib.import_module("wandb.proto.wandb_internal_pb2")
    found = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        records = []
        for _ in range(100):  # another process writes the end, soon after `finish`
            records = [messages.Record.FromString(d) for d in wandb_records(path.read_bytes())]
            if records and records[-1].WhichOneof("record_type") == "exit":
                break
            time.sleep(0.1)
        for record in records:
            items = {"/".join([*i.nested_key]) or i.key: i.value_json for i in record.history.item}
            step = int(items.get("_step", -1))
            values = {k: json.loads(v) for k, v in items.items() if not k.startswith("_")}
            found += [(step, k, v) for k, v in values.items() if isinstance(v, (int, float))]
    return found
