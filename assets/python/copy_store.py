"""Copies an MLflow file store to where a server can own it, changing nothing in the original.

    python copy_store.py OLD NEW UID GID [WITHIN]

OLD is the directory that holds `0/meta.yaml`. NEW must not exist. After it:

    NEW/store/mlruns   the metadata, with every local artifact URI turned into mlflow-artifacts:/…
    NEW/artifacts      the artifacts: hard links where that is possible and readable, else copies

Why the URIs: a client that meets file:///… writes to its own disk and reports success. Why links: artifacts
can be larger than the room left; MLflow replaces an artifact by a rename, so the original's bytes stay.

Artifacts are taken from OLD and from below WITHIN alone. A meta.yaml is anybody's text, and we are root: one
that says file:///root must fetch nothing. The last line printed is a JSON object of what was found.
Runs on Python 3.8 and later.
"""

import json
import os
import re
import shutil
import stat
import sys
from urllib.parse import unquote, urlparse

import yaml

try:
    from yaml import CSafeLoader as Loader
except ImportError:
    from yaml import SafeLoader as Loader

FOUND = dict.fromkeys(
    ["experiments", "runs", "params", "tags", "metrics", "logged_models", "registered_models", "model_versions"], 0
)
FILES = {"linked": 0, "copied": 0}
NOTES = []
ELSEWHERE = []
MOVED = {}  # an old artifact directory's URI -> its new one


def is_local(uri):
    return isinstance(uri, str) and (uri.startswith("file:") or not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", uri))


def path_of(uri):
    path = unquote(urlparse(uri).path) if uri.startswith("file:") else uri
    # A relative one was meant from the directory that holds mlruns.
    return os.path.realpath(os.path.join(os.path.dirname(OLD), path))


def below(path, top):
    return path == top or path.startswith(top + os.sep)


def note(what, path):
    NOTES.append(f"{what}: {path}")


def make_dir(path):
    """As os.makedirs, each new directory the service's own."""
    if not os.path.isdir(path):
        make_dir(os.path.dirname(path))
        os.mkdir(path, 0o750)
        os.chown(path, UID, GID)
        os.chmod(path, 0o2750)


def put(path, data):
    make_dir(os.path.dirname(path))
    with open(path, "wb") as out:
        out.write(data)
    os.chmod(path, 0o640)
    os.chown(path, UID, GID)


def readable(st):
    if st.st_uid == UID:
        return st.st_mode & stat.S_IRUSR
    return st.st_mode & (stat.S_IRGRP if st.st_gid == GID else stat.S_IROTH)


def bring(source, to):
    """The files below `source`, to `to`. Links out of the tree are left behind, and said."""
    make_dir(to)
    for here, dirs, files in os.walk(source):
        there = os.path.join(to, os.path.relpath(here, source)) if here != source else to
        for name in dirs:
            if os.path.islink(os.path.join(here, name)):
                note("a link, not followed", os.path.join(here, name))
            else:
                make_dir(os.path.join(there, name))
        for name in files:
            one = os.path.join(here, name)
            st = os.lstat(one)
            if not stat.S_ISREG(st.st_mode):
                note("not a plain file, left behind", one)
                continue
            if readable(st):
                try:
                    os.link(one, os.path.join(there, name), follow_symlinks=False)
                    FILES["linked"] += 1
                    continue
                except OSError:
                    pass  # Another file system, or one without links: copy.
            target = os.path.join(there, name)
            shutil.copyfile(one, target)
            shutil.copystat(one, target)
            os.chmod(target, 0o640)
            os.chown(target, UID, GID)
            FILES["copied"] += 1


def move(uri, own, tail):
    """The new URI for the artifact directory at `uri`; `own` is where this store itself would keep it."""
    if not is_local(uri):
        return uri
    # Stores get moved, and what they say does not: believe the place before the word.
    clean = uri.rstrip("/")
    source = own if clean.endswith("/" + tail) else path_of(clean)
    if not any(below(os.path.realpath(source), top) for top in TOPS):
        ELSEWHERE.append(uri)
        return uri
    if os.path.isdir(source):
        bring(source, os.path.join(NEW, "artifacts", tail))
    elif source != own:
        note("artifacts are not there any more", source)
        return uri
    MOVED[clean] = "mlflow-artifacts:/" + tail
    return MOVED[clean]


def move_inside(uri):
    """As `move`, for a URI that points into an artifact directory: a registered model's source."""
    if not is_local(uri):
        return uri
    at = uri.rstrip("/")
    while "/" in at:
        if at in MOVED:
            return MOVED[at] + uri[len(at) :]
        at = at.rpartition("/")[0]
    tail = re.search(r"/(\d+/(?:models/)?[^/]+/artifacts)(/.*)?$", uri)
    if tail and "mlflow-artifacts:/" + tail[1] in MOVED.values():
        return "mlflow-artifacts:/" + tail[1] + (tail[2] or "")
    ELSEWHERE.append(uri)
    return uri


def meta(path):
    """What a meta.yaml says, or None: a crash of the old server can leave one empty."""
    try:
        with open(path, encoding="utf-8") as text:
            said = yaml.load(text, Loader=Loader)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, yaml.YAMLError):
        said = None
    if not isinstance(said, dict):
        note("not readable, left behind", path)
        return None
    return said


def put_meta(path, said):
    put(path, yaml.safe_dump(said, default_flow_style=False, allow_unicode=True).encode())


def plain(folder):
    """Plain files below a folder, as (path, name): a key with a slash in it is a folder."""
    for here, _, files in os.walk(folder):
        for name in sorted(files):
            one = os.path.join(here, name)
            if stat.S_ISREG(os.lstat(one).st_mode):
                yield one, os.path.relpath(one, folder)


def copy_files(source, to, change=None):
    n = 0
    for one, name in plain(source):
        with open(one, "rb") as data:
            bytes_ = data.read()
        put(os.path.join(to, name), change(one, bytes_) if change else bytes_)
        n += 1
    return n


def whole_lines(one, data):
    """Metric lines without repeats and torn ends: the database refuses both, and the whole import with them."""
    kept = {}
    for line in data.splitlines():
        parts = line.split()
        try:
            point = (int(parts[0]), float(parts[1]), int(parts[2]) if len(parts) > 2 else 0)
        except (IndexError, ValueError):
            if line.strip():
                note("a torn metric line, left behind", one)
            continue
        ts, value, step = point
        # NaN is not equal to itself, and Infinity is stored as the largest number.
        kept.setdefault((ts, step, "nan" if value != value else value), line)
    FOUND["metrics"] += len(kept)
    return b"".join(line + b"\n" for line in kept.values())


def names(folder):
    try:
        return sorted(e.name for e in os.scandir(folder) if e.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def copy_run(source, to, tail):
    said = meta(os.path.join(source, "meta.yaml"))
    if said is None:
        return
    said["artifact_uri"] = move(said.get("artifact_uri"), os.path.join(source, "artifacts"), tail + "/artifacts")
    put_meta(os.path.join(to, "meta.yaml"), said)
    FOUND["runs"] += 1
    for part in names(source):
        if part != "artifacts":
            n = copy_files(
                os.path.join(source, part), os.path.join(to, part), whole_lines if part == "metrics" else None
            )
            if part in ("params", "tags"):
                FOUND[part] += n


def copy_experiment(source, to, exp):
    said = meta(os.path.join(source, "meta.yaml"))
    if said is None:
        return
    if is_local(said.get("artifact_location")):
        # Also where the old place was elsewhere: what is logged from now on comes to the server.
        said["artifact_location"] = "mlflow-artifacts:/" + exp
    put_meta(os.path.join(to, "meta.yaml"), said)
    FOUND["experiments"] += 1
    for part in names(source):
        here, there = os.path.join(source, part), os.path.join(to, part)
        if part == "models":
            for model in names(here):
                said = meta(os.path.join(here, model, "meta.yaml"))
                if said is None:
                    continue
                own = os.path.join(here, model, "artifacts")
                said["artifact_location"] = move(said.get("artifact_location"), own, f"{exp}/models/{model}/artifacts")
                for sub in names(os.path.join(here, model)):
                    if sub != "artifacts":
                        copy_files(os.path.join(here, model, sub), os.path.join(there, model, sub))
                put_meta(os.path.join(there, model, "meta.yaml"), said)
                FOUND["logged_models"] += 1
        elif part == "traces":
            for trace in names(here):
                own = os.path.join(here, trace, "artifacts")
                tail = f"{exp}/traces/{trace}/artifacts"
                if os.path.isdir(own):
                    bring(own, os.path.join(NEW, "artifacts", tail))

                def change(one, data, tail=tail):
                    if os.path.basename(one) == "mlflow.artifactLocation" and is_local(data.decode()):
                        return ("mlflow-artifacts:/" + tail).encode()
                    return data

                for one, name in plain(os.path.join(here, trace)):
                    if not name.startswith("artifacts" + os.sep):
                        with open(one, "rb") as data:
                            put(os.path.join(there, trace, name), change(one, data.read()))
        elif part in ("tags", "datasets"):
            copy_files(here, there)
        elif part != ".trash":
            copy_run(here, there, f"{exp}/{part}")


def copy_registry(source, to):
    for model in names(source):
        said = meta(os.path.join(source, model, "meta.yaml"))
        if said is None:
            continue
        put_meta(os.path.join(to, model, "meta.yaml"), said)
        FOUND["registered_models"] += 1
        for part in names(os.path.join(source, model)):
            here, there = os.path.join(source, model, part), os.path.join(to, model, part)
            if part.startswith("version-"):
                said = meta(os.path.join(here, "meta.yaml"))
                if said is None:
                    continue
                for field in ("source", "storage_location"):
                    if said.get(field) is not None:
                        said[field] = move_inside(said[field])
                copy_files(os.path.join(here, "tags"), os.path.join(there, "tags"))
                put_meta(os.path.join(there, "meta.yaml"), said)
                FOUND["model_versions"] += 1
            else:
                copy_files(here, there)


def main():
    to = os.path.join(NEW, "store", "mlruns")
    make_dir(to)
    make_dir(os.path.join(NEW, "artifacts"))
    for shelf in ("", ".trash"):
        for exp in names(os.path.join(OLD, shelf)):
            if exp.isdigit():
                print(f"experiment {exp}", flush=True)
                copy_experiment(os.path.join(OLD, shelf, exp), os.path.join(to, shelf, exp), exp)
    copy_registry(os.path.join(OLD, "models"), os.path.join(to, "models"))
    out = {"found": FOUND, "files": FILES, "elsewhere": sorted(set(ELSEWHERE))[:20], "notes": NOTES[:20]}
    print(json.dumps(out), flush=True)


if __name__ == "__main__":
    OLD, NEW = os.path.realpath(sys.argv[1]), os.path.abspath(sys.argv[2])
    UID, GID = int(sys.argv[3]), int(sys.argv[4])
    TOPS = [OLD] + [os.path.realpath(top) for top in sys.argv[5:]]
    os.umask(0o027)
    main()
