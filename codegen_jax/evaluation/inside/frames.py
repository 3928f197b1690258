"""Messages on a pipe: four length bytes, then JSON."""

import json
import os
import struct

LENGTH = struct.Struct(">I")
LINK = (3, 4)  # descriptors of the pipes from and to the process in the other sandbox
REPORT_PIPE = 5  # descriptor where a task's process reports its result
MAX_BYTES = 16 << 20  # per message: it must fit in the memory of a process


def send(descriptor, message):
    """Write a message; raises ValueError if it is too long."""
    content = json.dumps(message).encode()
    if len(content) > MAX_BYTES:
        raise ValueError(f"a value has {len(content)} bytes, more than {MAX_BYTES}")
    view = memoryview(LENGTH.pack(len(content)) + content)
    while view:
        view = view[os.write(descriptor, view) :]


def receive(descriptor):
    """The next message; raises EOFError at the end of the pipe, and ValueError if it is not a valid message."""
    (length,) = LENGTH.unpack(_exactly(descriptor, LENGTH.size))
    if length > MAX_BYTES:
        raise ValueError("a message is too long")
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
