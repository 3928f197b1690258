"""The machine code of Pallas kernels: each is compiled once more, alone.

libtpu writes machine code as text when its flags say so, but the flags hold for a whole process, and writing the code
of all operations of a step makes its compilation half as long again. This file is therefore also a program, which
compiles the kernels of a step in seconds.
"""

import base64
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
from jax.experimental.mosaic.dialects import tpu
from jax.extend.mlir import ir

from codegen_jax.planning.hlo import Array, Instruction, UnknownForm, arrays_in

DTYPES = {"s8": "int8", "s32": "int32", "u32": "uint32", "bf16": "bfloat16", "f32": "float32", "pred": "bool"}


@dataclass(frozen=True)
class Kernel:
    """What the compiler needs for a Pallas kernel: its operands, its results, and a JSON object with its body."""

    operands: tuple[Array, ...]
    results: tuple[Array, ...]
    config: str

    @classmethod
    def of(cls, i: Instruction) -> "Kernel":
        """The kernel of a custom call in a compiled program."""
        start = i.attributes.index('"custom_call_config":')
        config, _ = json.JSONDecoder().raw_decode(i.attributes, i.attributes.index("{", start))
        return cls(operands(i), tuple(i.arrays), json.dumps({"custom_call_config": config}))

    @property
    def grid(self) -> tuple[int, ...]:
        """The sizes of the kernel's grid, which only its body gives."""
        with ir.Context() as context:
            context.allow_unregistered_dialects = True  # the body is in a versioned form of Mosaic's dialect
            tpu.register_dialect(context)
            body = ir.Module.parse(base64.b64decode(json.loads(self.config)["custom_call_config"]["body"]))
            return tuple(ir.DenseI64ArrayAttr(body.body.operations[0].attributes["iteration_bounds"]))


def operands(i: Instruction) -> tuple[Array, ...]:
    """The dtype and dimensions of each operand of a custom call."""
    layouts = re.search(r"operand_layout_constraints=\{(.*?)\}(?:, \w+=|$)", i.attributes)
    return tuple(arrays_in(layouts[1])) if layouts else ()


@cache
def machine_code(kernels: tuple[Kernel, ...], kind: str) -> tuple[str, ...]:
    """The bundles of kernels on a kind of TPU, as text.

    Raises:
        UnknownForm: if the compiler refuses a kernel.
    """
    program = [sys.executable, "-m", "codegen_jax.planning.kernel_code", kind]
    result = subprocess.run(program, input=json.dumps([*map(astuple, kernels)]), capture_output=True, text=True)
    if result.returncode:
        refused = [line for line in result.stderr.splitlines() if "JaxRuntimeError" in line]
        if not refused:
            raise RuntimeError(f"the compilation of Pallas kernels failed:\n{result.stderr}")
        raise UnknownForm("Pallas kernels", f"can't be compiled alone: {refused[-1][:300]}")
    return tuple(json.loads(result.stdout))


def _compile(kernels: list[Any], kind: str) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        flags = {"to": folder, "llo_text": "true", "llo_pass_label_regex": "^final_bundles"}
        written = " ".join(f"--xla_jf_dump_{name}={value}" for name, value in flags.items())
        # libtpu reads the variable when it is loaded, which is not when JAX is imported
        os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {written}"
        from codegen_jax.planning.slices import parse_slice, slice_devices

        device = jax.sharding.SingleDeviceSharding(slice_devices(parse_slice(f"{kind}-2x2"))[0])
        result = []
        for operands, results, config in kernels:
            shape = lambda array: jax.ShapeDtypeStruct(array[1], DTYPES[array[0]], sharding=device)
            call: Any = jax.ffi.ffi_call(
                "tpu_custom_call", [*map(shape, results)], custom_call_api_version=1, legacy_backend_config=config
            )
            jax.jit(call).lower(*map(shape, operands)).compile()
            files = Path(folder).glob("*-ffi_call*-final_bundles.txt")
            result.append(next(files).read_text(errors="replace"))
            for file in Path(folder).iterdir():
                file.unlink()
    return result


if __name__ == "__main__":
    print(json.dumps(_compile(json.load(sys.stdin), sys.argv[1])))
