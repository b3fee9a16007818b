"""Tries what a script may and may not do on the headquarters itself; what came of each is in $ECHOES_OUT/tried.json."""

import ctypes
import json
import mmap
import multiprocessing
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
from multiprocessing import shared_memory

DATA = pathlib.Path("/mnt/echoes_data")
OUT = pathlib.Path(os.environ["ECHOES_OUT"])
TRIED = {}


def tried(what):
    try:
        TRIED[what.__name__] = what()
    except BaseException as error:
        TRIED[what.__name__] = f"refused: {type(error).__name__}: {error}"
    return what


def run(*words, **more):
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, **more)
    said = (done.stdout + done.stderr).strip()[:400]
    return said if done.returncode == 0 else f"refused: {done.returncode}: {said}"


# What would make more of a script than its person.


@tried
def sudo():
    return run("sudo", "-n", "id")


@tried
def etc():
    return open("/etc/nologin", "w").name


@tried
def home():
    return open(os.path.expanduser("~/.bashrc"), "a").name


@tried
def setuid():
    shutil.copy("/bin/true", OUT / "mine")
    os.chmod(OUT / "mine", 0o4755)
    return "made"


@tried
def another_process():
    for process in pathlib.Path("/proc").iterdir():
        try:
            if b"sleep\x00777" in (process / "cmdline").read_bytes():
                return open(process / "mem", "r+b").name
        except (FileNotFoundError, NotADirectoryError):
            pass
    raise ProcessLookupError("nobody of mine sleeps")


@tried
def own_systemd():
    runtime = f"/run/user/{os.getuid()}"
    return run("systemd-run", "--user", "--wait", "id", env={**os.environ, "XDG_RUNTIME_DIR": runtime})


@tried
def system_bus():
    return run("busctl", "list")


@tried
def namespace():
    return run("unshare", "--user", "--map-root-user", "id")


@tried
def others_results():
    return os.listdir(DATA / "azure_results/others")


@tried
def move_others_results():
    os.rename(DATA / "azure_results/others", DATA / "azure_results/mine")
    return "moved"


@tried
def disk():
    for name in ("/dev/sda", "/dev/vda", "/dev/loop0", "/dev/kmsg", "/dev/mem"):
        if os.path.exists(name):
            return open(name, "rb").name
    raise FileNotFoundError("no disk")


@tried
def metadata():
    socket.create_connection(("169.254.169.254", 80), timeout=5).close()
    return "reached"


# What training does.


@tried
def home_is_read():
    return len(open(os.path.expanduser("~/.bashrc")).read()) > 0


@tried
def event_files():
    (DATA / "tfruns/mine").mkdir()
    (DATA / "tfruns/mine/events").write_text("x")
    return oct((DATA / "tfruns/mine").stat().st_mode)


@tried
def event_files_by_link():
    os.symlink(DATA / "tfruns", "tfruns")
    pathlib.Path("tfruns/linked").mkdir()
    pathlib.Path("tfruns/linked/events").write_text("x")
    return "written"


@tried
def copies_of_data():
    shutil.copytree(DATA / "tfruns", "/tmp/first")
    return run("cp", "-a", str(DATA / "tfruns"), "/tmp/second")


@tried
def pool():
    with multiprocessing.Pool(3) as pool:
        return sum(pool.map(abs, range(100)))


@tried
def spawned():
    context = multiprocessing.get_context("fork")
    child = context.Process(target=os.getpid)
    child.start()
    child.join()
    return child.exitcode


@tried
def shared():
    memory = shared_memory.SharedMemory(create=True, size=1 << 20)
    memory.buf[0] = 7
    memory.close()
    memory.unlink()
    return "shared"


@tried
def compiled():
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(b"\xb8\x2a\x00\x00\x00\xc3")
    at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return ctypes.CFUNCTYPE(ctypes.c_int)(at)()


@tried
def sparse():
    with open(OUT / "sparse", "wb") as file:
        file.truncate(100 << 30)
    return (OUT / "sparse").stat().st_size


@tried
def caches():
    names = ["XDG_CACHE_HOME", "TORCH_HOME", "HF_HOME", "KERAS_HOME"]
    for name in names:
        at = pathlib.Path(os.environ[name])
        at.mkdir(parents=True, exist_ok=True)
        (at / "fetched").write_text("x")
    return [os.environ[name] for name in names]


@tried
def temporary():
    return os.path.dirname(tempfile.mkdtemp())


@tried
def autolog():
    import mlflow

    mlflow.set_experiment("sandbox")
    with mlflow.start_run() as run:
        mlflow.log_metric("loss", 0.5)
        mlflow.log_text("x", "note.txt")
    return mlflow.get_run(run.info.run_id).info.status


(OUT / "tried.json").write_text(json.dumps(TRIED, indent=1))
print(json.dumps(TRIED, indent=1))
