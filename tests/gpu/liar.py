"""What a machine can put in the place of our agent: it speaks our protocol, is the real agent until it is asked a certain
thing, and then lies. Which lie it is, is the run's name; `lies-RUN` counts them."""

import hashlib
import json
import os
import struct
import subprocess
import sys
import threading
import zlib

REAL, DIR = "@REAL@", "@DIR@"
RUN = sys.argv[sys.argv.index("--run") + 1]
HOME = sys.argv[sys.argv.index("--home") + 1]
MIB = 1 << 20
out = sys.stdout.buffer


def frame(kind, body=b""):
    out.write(kind + struct.pack(">I", len(body)) + body)
    out.flush()


def word(value):
    frame(b"w", json.dumps(value).encode())


def stream(pieces):
    for piece in pieces:
        for at in range(0, len(piece), 128 << 10):
            frame(b"b", piece[at : at + (128 << 10)])
    frame(b"e")


def squeezed(pieces):
    small = zlib.compressobj(1, wbits=-15)
    for piece in pieces:
        yield small.compress(piece)
    yield small.flush()


def pour(value):
    stream(squeezed([json.dumps(value).encode()]))


def endless(piece):
    while True:
        yield piece


def offer(path, length=1, why=None):
    stamp = {"len": length, "nanos": 1, "inode": 1}
    what = {"file": {"stamp": stamp, "age": 60000}} if why is None else {"unreadable": {"why": why, "bytes": 0}}
    return {"root": "out", "path": path, "what": what}


def offers(all):
    stream(squeezed([json.dumps(one).encode() + b"\n" for one in all]))


def give(piece, hash=None):
    word("here")
    stream([piece])
    word({"whole": hash or hashlib.sha256(piece).hexdigest()})


def begun():
    return os.path.exists(f"{HOME}/runs/{RUN}/begun.json")


def once(what):
    mark = f"{DIR}/{what}-{RUN}"
    new = not os.path.exists(mark)
    open(mark, "w").close()
    return new


def bad_names():
    away = f"{DIR}/canary/kept"
    link = [offer("link", why=f"it is a link to {DIR}/canary"), offer("link/kept")]
    odd = [offer("fifo", why="it is no file"), offer("a"), offer("a/b"), offer(".echoes-part-1")]
    paths = ["../x", "../../kept", "../../../canary/kept", away, "a/../../x", "\x1b[2J", "", "."]
    offers([offer(path) for path in paths] + link + odd + [offer("good")])


def huge_word():
    out.write(b"w\xff\xff\xff\xff")
    for piece in endless(bytes(MIB)):
        out.write(piece)


def ever_more_lines():
    for line in endless("\x1b[2Jstill at it"):
        word({"said": line})


def page(words, begins, piece, to=None):
    word({"from": begins, "to": to if to is not None else begins + len(piece), "last": False})
    stream([piece])


def coloured(words):
    word({"said": "\x1b]0;title\x07\x1b[31mred"})
    return "go on"


def broken_off(words):
    if not once("broke-off"):
        return "go on"
    frame(b"x", b"\x1b[2Jnot just now")
    sys.exit(1)


def twice(words):
    word("other")
    kind = b"b"
    while kind != b"e":
        kind, _ = hear()
    pour([0, 0])


def much(words):
    # Somebody else's results come home meanwhile, and leave no room for the last piece of this.
    if words["path"] == "zeros1" and words["from"] > 0 and once("filled"):
        disk = os.statvfs(f"{DIR}/data/azure_results")
        with open(f"{DIR}/data/azure_results/others", "wb") as others:
            others.write(bytes(disk.f_bavail * disk.f_frsize - (2 << 30) - 12 * MIB))
    give(bytes(words["len"]))


# By run: what it is asked, and what it then says. `words` is what came with the question.
LIES = {
    "names": {"list": lambda words: bad_names(), "take": lambda words: give(b"x")},
    "hash": {"list": lambda words: offers([offer("best.pt", 4)]), "take": lambda words: give(b"best", "0" * 64)},
    "zeros": {
        "list": lambda words: offers([offer("zeros", 4)]),
        "take": lambda words: (word("here"), stream(bytes(MIB) for _ in range(10 << 10))),
    },
    "room": {
        "list": lambda words: offers([offer(f"zeros{n}", 24 * MIB) for n in range(427)]),
        "take": much,
    },
    "list": {"list": lambda words: stream([b"\xff" * 1000])},
    "spaces": {"list": lambda words: stream(squeezed(endless(b" " * MIB)))},
    "log": {"log": lambda words: page(words, words["from"], b"\x1b[2J all is well \xff\n" * 200000)},
    "pages": {"log": lambda words: page(words, 5, b"", to=4)},
    "garbage": {"look": lambda words: frame(b"w", b"{garbage")},
    "bytes": {"look": lambda words: frame(b"w", b"\xff\xfe\x80")},
    "huge": {"look": lambda words: huge_word()},
    "words": {"look": lambda words: word({"standing": "\x1b[2J" + "x" * 900000})},
    "waiting": {"look": lambda words: word({"standing": "waiting", "begun": None, "sample": None})},
    "chatter": {},
    "making": {"environment": lambda words: ever_more_lines()},
    "code": {"code": lambda words: word(7)},
    "twice": {"code": twice},
    "escapes": {"code": broken_off, "environment": coloured},
}


def hear():
    head = sys.stdin.buffer.read(5)
    if len(head) < 5:
        sys.exit(0)
    return head[:1], sys.stdin.buffer.read(struct.unpack(">I", head[1:])[0])


def lied(body):
    asked = json.loads(body)
    name, words = (asked, None) if isinstance(asked, str) else next(iter(asked.items()))
    name = words["book"] if name == "book" else name
    lie = LIES[RUN].get(name)
    # Of how a script is that was never started, the truth.
    if lie is None or name == "look" and not begun():
        return False
    with open(f"{DIR}/lies-{RUN}", "a") as lies:
        lies.write("x")
    return lie(words) != "go on"


def attend():
    if RUN == "chatter" and begun():
        with open(f"{DIR}/lies-{RUN}", "a") as lies:
            lies.write("x")
        for piece in endless(b"Welcome! \x1b[2J" * 1000):
            out.write(piece)
    real = subprocess.Popen([REAL] + sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def truth():
        while piece := real.stdout.read1(MIB):
            out.write(piece)
            out.flush()
        # It has no more to say, nor have we.
        os._exit(real.wait())

    threading.Thread(target=truth, daemon=True).start()
    while True:
        kind, body = hear()
        if kind == b"w" and lied(body):
            continue
        real.stdin.write(kind + struct.pack(">I", len(body)) + body)
        real.stdin.flush()


if sys.argv[2] == "attend" and RUN in LIES:
    try:
        attend()
    except BrokenPipeError:
        os._exit(1)
os.execv(REAL, [REAL] + sys.argv[1:])
