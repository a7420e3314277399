"""A plugin in Python: hides the request ids of a log."""

import re

import dataflare

REQUEST_ID = re.compile(rb"\breq=[0-9a-f]+")


@dataflare.map_plugin
def mask_ids(value: bytes) -> bytes:
    """Masks request ids."""
    return REQUEST_ID.sub(b"req=*", value)


if __name__ == "__main__":
    from pathlib import Path

    from dataflare.plugins import Chain, Contains

    log = Path(__file__).with_name("data") / "access.log"
    with dataflare.PluginManager() as manager:
        manager.register_plugin("errors", Chain(Contains("ERROR"), mask_ids))
        result = manager.process_batch("errors", dataflare.RecordBatch.from_lines(log.read_bytes()))
        print(result)
        print(result.output)
