"""What a pickle of torch.save would do, read without doing it.

`torch.load(weights_only=True)` runs no foreign code, but what it allows may still fill the memory: `bytearray(2**40)`
and `torch.FloatTensor(2**40)` pass, a tensor that is larger than its storage makes the storage grow, and the format
before torch 1.6 makes its storages before it looks whether the file is as long as it says. So the opcodes are walked
first, with a stack of plain values: nothing is imported, called or made. A pickle may name what torch.save writes for
tensors, parameters, dtypes and plain containers.

Training scripts put other objects beside the tensors: an argparse.Namespace, a path, a number of numpy's. `Unpickler`
puts a `Skipped` in the place of each, of a class of ours that does nothing: what the pickle names is not imported, and
its arguments are thrown away. Names that would run something are refused nevertheless: such a file was made to harm.

Source: Python's `pickletools` for the opcodes, and "Restricting Globals" in the page of its `pickle`; torch 2.13
`serialization.py` for what torch.save writes.
"""

from __future__ import annotations

import functools
import io
import math
import pickle
import pickletools
from dataclasses import dataclass
from typing import IO, Any, cast

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how a file begins that torch wrote before 1.6
STORAGES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
}  # fmt: skip
TENSOR = "torch._utils _rebuild_tensor_v2"
PARAMETERS = {"torch._utils _rebuild_parameter", "torch.nn.parameter Parameter"}
NAMED = {
    TENSOR, *PARAMETERS, "torch Size", "torch device",
    "collections OrderedDict", "collections Counter", "_codecs encode", "__builtin__ set", "builtins set",
    *(f"torch {name}Storage" for name in (storage.removesuffix("Storage") for storage in STORAGES)),
    *(f"torch {kind}" for kind in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8")),
    "torch uint8", "torch bool",
}  # fmt: skip
RUNNING = set(
    "__builtin__ _io _pickle builtins code ctypes importlib io marshal nt operator os pickle posix pty runpy shutil "
    "signal socket subprocess sys threading types webbrowser".split()
)  # modules with functions that do something when they are called
VALUES = set(
    "bool bytes complex dict float frozenset getattr int list long object range set slice str tuple unicode "
    "xrange".split()
)  # of the builtins, which do nothing; `member` stands for getattr
CALLED = {TENSOR, *PARAMETERS, "torch Size", "torch device"}  # of torch's
FOREIGN = 1_000
SAVE = "Save a state dict: torch.save(model.state_dict(), path)."
OPCODES = 5_000_000  # a checkpoint with 10,000 tensors has some 400,000


class Damage(ValueError):
    """Why a file is refused, and what to do about it."""

    def __init__(self, reason: str, advice: str = "Get it again from where it came from.") -> None:
        super().__init__(reason)
        self.reason, self.advice = reason, advice


@dataclass(frozen=True)
class Name:
    """An importable thing that the pickle names."""

    text: str


@dataclass(frozen=True)
class Storage:
    """A storage that the pickle asks for."""

    key: str
    elements: int
    width: int


class Skipped:
    """What stands for an object that is no tensor: it takes whatever a pickle does to an object, and keeps nothing."""

    kind = ""  # the name of what it stands for

    def __new__(cls, *_: Any, **__: Any) -> Skipped:
        return object.__new__(cls)

    def take(self, *_: Any, **__: Any) -> None:
        """Nothing is done with it."""

    __init__ = __setstate__ = __setitem__ = append = extend = add = take  # type: ignore[assignment]

    def __call__(self, *_: Any, **__: Any) -> Skipped:
        """What comes of it is skipped too."""
        return self


@functools.lru_cache(FOREIGN)
def stand_in(kind: str) -> type[Skipped]:
    """The class that stands for the one of this name."""
    return type("Skipped", (Skipped,), {"kind": kind})


def member(owner: Any, name: str) -> Skipped:
    """For `getattr`, as which early Pythons 3.11 write members of an Enum: nothing is read, the class is skipped."""
    return owner() if isinstance(owner, type) and issubclass(owner, Skipped) else Skipped()


class Unpickler(pickle.Unpickler):
    """Imports nothing but what `NAMED` names; everything else is a `Skipped`. For pickles that were walked."""

    def find_class(self, module: str, name: str, /) -> Any:
        """What the pickle names."""
        if f"{module} {name}" in NAMED:
            return super().find_class(module, name)
        return member if name == "getattr" else stand_in(f"{module}.{name}")


def load(file: IO[bytes], **_: Any) -> Any:
    """The next pickle in a file: beside `Unpickler`, what `torch.load(pickle_module=)` asks of a module."""
    return Unpickler(file).load()


MARK, PLAIN, MADE = object(), object(), object()  # the opcode, any value that does not matter here, a tensor


def walked(stream: io.BufferedIOBase) -> Walk:
    """The next pickle in `stream`, its every opcode looked at; the stream stands behind it afterwards.

    Raises:
        Damage: if it is no pickle, or would do more than make tensors, plain containers and what can be skipped.
    """
    walk = Walk()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(cast("IO[bytes]", stream))):
            if count > OPCODES:
                raise Damage(f"its pickle has more than {OPCODES:,} opcodes")
            walk.step(opcode.name, argument)
    except (IndexError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise Damage("its pickle is damaged") from error
    except Damage:
        raise
    except ValueError as error:  # what genops says of unknown opcodes and of an early end
        raise Damage(f"its pickle is damaged: {error}") from error
    return walk


class Walk:
    """The stack of an unpickler, with stand-ins for what an unpickler would make.

    storages: what it asks for, by their key.
    foreign: what it names beside `NAMED`.
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.foreign: set[str] = set()

    def step(self, opcode: str, argument: Any) -> None:
        """One opcode."""
        if opcode in ("PROTO", "FRAME", "STOP"):
            return
        if opcode in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
        elif opcode in POPPED:
            self._pop(POPPED[opcode])
            if opcode != "POP" and self.stack[-1] is MADE:
                raise Damage("a tensor is changed after it was made, which torch.save does not do")
        elif opcode in PUSHED:
            self.stack.append(PUSHED[opcode](self, argument))
        else:
            raise Damage(f"its pickle has the opcode {opcode}, which torch.save does not write")

    def _pop(self, count: int) -> tuple[Any, ...]:
        """The last values; down to the last mark for a count of -1."""
        if count == 0:
            return ()
        at = len(self.stack) - count if count > 0 else len(self.stack) - 1 - self.stack[::-1].index(MARK)
        if at < 0:
            raise IndexError
        taken = tuple(self.stack[at + (count < 0) :])
        del self.stack[at:]
        return taken

    def _global(self, text: str) -> Name:
        if text not in NAMED:
            module, _, name = text.partition(" ")
            root = module.partition(".")[0]
            if (root in RUNNING and name not in VALUES) or (root == "torch" and name.startswith("_rebuild")):
                raise _running(text)
            self.foreign.add(text)
            if len(self.foreign) > FOREIGN:
                raise Damage(f"it holds objects of more than {FOREIGN:,} kinds", SAVE)
        return Name(text)

    def _called(self) -> Any:
        """A function with its arguments. Those of torch that are not known here make tensors of other kinds."""
        function, arguments = self._pop(2)
        if not isinstance(function, Name):  # what was skipped is called, and skips it
            return PLAIN
        if function.text.partition(" ")[0].partition(".")[0] == "torch" and function.text not in CALLED:
            raise _running(function.text)
        return self._made(function, arguments)

    def _made(self, function: Name, arguments: Any) -> Any:
        if function.text in PARAMETERS:
            return MADE
        if function.text != TENSOR:
            return PLAIN
        storage, offset, size, stride = arguments[:4]
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if min(offset, *size, *stride, 0) < 0 or len(size) != len(stride):
            raise Damage("a tensor has negative sizes")
        if math.prod(size) > storage.elements or (math.prod(size) and last >= storage.elements):
            raise Damage(f"a tensor of shape {list(size)} is larger than its storage of {storage.elements:,}")
        return MADE

    def _stored(self) -> Storage:
        asked = self._pop(1)[0]
        if asked[0] == "module":
            raise Damage("it holds a whole module with its source, as torch before 1.6 saved them", SAVE)
        kind, storage, key, _, elements, *_ = asked
        width = STORAGES.get(storage.text.removeprefix("torch "), 0)
        if kind != "storage" or not width or elements < 0:
            raise Damage("a tensor has no storage that torch.save would write")
        found = Storage(key, elements, width)
        if self.storages.setdefault(key, found) != found:
            raise Damage(f"the storage {key!r} has two sizes")
        return found


def _running(text: str) -> Damage:
    return Damage(
        f"it holds {text.replace(' ', '.')}, which only unpickling could read",
        "Where you trust it, save the tensors alone: torch.save(model.state_dict(), path).",
    )


POPPED = {"SETITEM": 2, "SETITEMS": -1, "APPEND": 1, "APPENDS": -1, "ADDITEMS": -1, "BUILD": 1, "POP": 1}
PUSHED: dict[str, Any] = {
    "MARK": lambda walk, _: MARK,
    "GLOBAL": lambda walk, text: walk._global(text),
    "REDUCE": lambda walk, _: walk._called(),
    "NEWOBJ": lambda walk, _: walk._made(*walk._pop(2)),
    "BINPERSID": lambda walk, _: walk._stored(),
    "EMPTY_TUPLE": lambda walk, _: (),
    "TUPLE": lambda walk, _: walk._pop(-1),
    **{f"TUPLE{n}": (lambda walk, _, n=n: walk._pop(n)) for n in (1, 2, 3)},
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda walk, index: walk.memo[index]),
    **dict.fromkeys(("EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET", "NONE", "NEWTRUE", "NEWFALSE"), lambda walk, _: PLAIN),
    **dict.fromkeys(("BINFLOAT", "BINBYTES", "SHORT_BINBYTES"), lambda walk, _: PLAIN),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING", "BINSTRING"),
        lambda walk, value: value,
    ),
}
