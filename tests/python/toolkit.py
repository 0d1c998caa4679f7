"""Writes what programs are built against in place of a CANN toolkit: headers made of this project's tables, and links.

    toolkit.py DIRECTORY SOURCES

`DIRECTORY/include` gets one header that declares all functions and operators of `crates/acl-abi/data` and, under every name
that a file of the folder SOURCES includes, a line that includes it. `DIRECTORY/lib64` gets libraries under CANN's names that have the symbols and no
code: what is linked against them finds this project's under `vnpu run`.
"""

import re
import subprocess
import sys
from pathlib import Path

TABLES = Path(__file__).resolve().parents[2] / "crates/acl-abi/data"
SUFFIXES = {".c", ".cpp", ".h"}
# The libraries of a toolkit that programs name, and what is looked for in them.
LIBRARIES = {
    "ascendcl": lambda: {row[0] for row in rows("acl.tsv")},
    "opapi": lambda: [name + phase for name, *_ in rows("aclnn.tsv") for phase in ("", "GetWorkspaceSize")],
    "nnopbase": tuple,
    "acl_op_compiler": tuple,
}

# Types that the tables name and do not define: handles are pointers, aclnn objects opaque.
TYPES = """
typedef int aclError;
typedef int32_t aclnnStatus;
typedef void *aclrtStream;
typedef void *aclrtEvent;
typedef void *aclrtContext;
typedef void *aclrtDrvMemHandle;
typedef void *aclmdlRI;
typedef struct aclTensor aclTensor;
typedef struct aclScalar aclScalar;
typedef struct aclIntArray aclIntArray;
typedef struct aclFloatArray aclFloatArray;
typedef struct aclBoolArray aclBoolArray;
typedef struct aclTensorList aclTensorList;
typedef struct aclScalarList aclScalarList;
typedef struct aclOpExecutor aclOpExecutor;
typedef struct { uint32_t id; aclrtMemLocationType type; } aclrtMemLocation;
typedef struct {
    aclrtMemHandleType handleType;
    aclrtMemAllocationType allocationType;
    aclrtMemAttr memAttr;
    aclrtMemLocation location;
    uint64_t reserve;
} aclrtPhysicalMemProp;
"""

KINDS = {
    "tensor": "const aclTensor *",
    "tensor_out": "aclTensor *",
    "tensor_list": "const aclTensorList *",
    "tensor_list_out": "aclTensorList *",
    "scalar": "const aclScalar *",
    "scalar_list": "const aclScalarList *",
    "int_array": "const aclIntArray *",
    "bool_array": "const aclBoolArray *",
    "float_array": "const aclFloatArray *",
    "str": "const char *",
    "dtype": "aclDataType ",
    "bool": "bool ",
    "i8": "int8_t ",
    "i32": "int32_t ",
    "i64": "int64_t ",
    "u64": "uint64_t ",
    "f32": "float ",
    "f64": "double ",
    "u64_ptr": "uint64_t *",
}
WORDS = {"const", "void", "char", "int", "float", "double", "bool", "unsigned", "size_t"}
WORDS |= {f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)}


def rows(name):
    for line in (TABLES / name).read_text().splitlines():
        if line and not line.startswith("#"):
            yield line.split("\t")


def values():
    """Enumerations, and what is a constant of a header."""
    enums, constants = {}, []
    for owner, name, value in rows("acl_values.tsv"):
        if owner.endswith(".h") and not re.fullmatch(r"\(?-?\d\w*\)?", value):
            continue  # not a number
        if owner.endswith(".h"):
            constants.append(f"#define {name} {value}")
        else:
            enums.setdefault(owner, []).append(f"    {name} = {value},")
    text = [f"typedef enum {{\n{chr(10).join(members)}\n}} {name};" for name, members in enums.items()]
    return enums.keys(), "\n".join(text + constants)


def functions(known):
    """Declarations of the functions all of whose types are known."""
    seen = set()
    for name, _, _, result, arguments in ((row + [""])[:5] for row in rows("acl.tsv")):
        types = [re.sub(r"\w+\s*(\[\])?$", "", a.strip()) if a.strip() != "void" else "" for a in arguments.split(",")]
        words = set(re.findall(r"[A-Za-z_]\w*", " ".join(types + [result])))
        if name not in seen and "..." not in arguments and words <= known:
            seen.add(name)
            yield f"{result} {name}({arguments or 'void'});"


def operators(declared):
    """Declarations of both phases of the operators that the sources do not declare themselves."""
    for name, _, arguments in rows("aclnn.tsv"):
        pairs = [argument.split(":") for argument in arguments.split()]
        if name not in declared and all(kind in KINDS for _, kind in pairs):
            first = "".join(f"{KINDS[kind]}{parameter}, " for parameter, kind in pairs)
            yield f"aclnnStatus {name}GetWorkspaceSize({first}uint64_t *workspaceSize, aclOpExecutor **executor);"
            yield f"aclnnStatus {name}(void *workspace, uint64_t workspaceSize, aclOpExecutor *executor, aclrtStream stream);"


def header(declared):
    enums, text = values()
    known = WORDS | set(enums) | set(re.findall(r"(\w+);", TYPES))
    parts = ["#pragma once", "#include <stdbool.h>", "#include <stddef.h>", "#include <stdint.h>"]
    parts += ["#ifdef __cplusplus", 'extern "C" {', "#endif", text, TYPES, *functions(known), *operators(declared)]
    return "\n".join(parts + ["#ifdef __cplusplus", "}", "#endif", ""])


def main(directory, sources):
    include = directory / "include"
    include.mkdir(parents=True, exist_ok=True)
    text = "\n".join(source.read_text() for source in sources.iterdir() if source.suffix in SUFFIXES)
    declared = set(re.findall(r"aclnnStatus\s+(aclnn\w+?)(?:GetWorkspaceSize)?\(", text))
    (include / "vnpu_acl.h").write_text(header(declared))
    names = set(re.findall(r"#\s*include\s*<((?:acl|aclnn|aclnnop)/[\w/]+\.h)>", text))
    for name in names:
        path = include / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#include <vnpu_acl.h>\n")
    lib = directory / "lib64"
    lib.mkdir(exist_ok=True)
    for name, symbols in LIBRARIES.items():
        so = f"lib{name}.so"
        labels = "".join(f".globl {symbol}\n{symbol}:\n" for symbol in symbols())
        command = ["cc", "-shared", "-nostdlib", f"-Wl,-soname,{so}", "-o", lib / so, "-x", "assembler", "-"]
        subprocess.run(command, check=True, input=f'{labels}.section .note.GNU-stack,"",%progbits\n', text=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
