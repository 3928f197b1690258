"""Messages on a pipe: four bytes of length, then JSON."""

import json
import os
import struct

LENGTH = struct.Struct(">I")


def send(descriptor, message):
    content = json.dumps(message).encode()
    view = memoryview(LENGTH.pack(len(content)) + content)
    while view:
        view = view[os.write(descriptor, view) :]


def receive(descriptor):
    """The next message; EOFError at the end of the pipe."""
    (length,) = LENGTH.unpack(_exactly(descriptor, LENGTH.size))
    return json.loads(_exactly(descriptor, length))


def _exactly(descriptor, count):
    parts = []
    while count:
        part = os.read(descriptor, min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
