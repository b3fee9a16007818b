"""Writes, from what `echoes-appliance install` made of this machine, the same work as an Ansible playbook and as a
pyinfra deploy, so that nobody has to believe that they are equal: run here, both must report no change.

usage: role.py DIRECTORY SERVICES_LOCK DOCS_LOCK

One task for each thing, as roles are written. What ours does and these do not: find and format a data disk, prove
every route after nginx reloads and put its configuration back, keep edited files, remember what to take back.
"""

import json
import os
import pwd
import shutil
import stat
import sys
from pathlib import Path

to, services_lock, docs_lock = map(Path, sys.argv[1:])
shutil.rmtree(to, ignore_errors=True)
(to / "files").mkdir(parents=True)
receipt = [json.loads(line) for line in open("/var/lib/echoes-appliance/receipt.jsonl")]


def noted(did, key):
    return list(dict.fromkeys(entry[key] for entry in receipt if entry["did"] == did))


ansible, deploy = [], []
PACKAGES = ["ca-certificates", "nginx", "python3-venv"]
DATA = "/mnt/echoes_data"
OPT = "/opt/echoes-appliance"
units = noted("enabled", "unit") + ["nginx.service"]


def task(name, module, args, pyinfra, notify=(), when_changed=()):
    entry = {"name": name, module: args}
    if notify:
        entry["notify"] = list(notify)
    ansible.append(entry)
    n = len(ansible)
    deploy.append(f"op{n} = {pyinfra}" if when_changed else pyinfra)
    deploy.extend(f"did.setdefault({unit!r}, []).append(op{n})" for unit in when_changed)


def py(operation, name, *args, **kwargs):
    words = [*map(repr, args), f"name={name!r}", *(f"{k}={v!r}" for k, v in kwargs.items())]
    return f"{operation}({', '.join(words)})"


def directory(path):
    at = os.stat(path)
    user, mode = pwd.getpwuid(at.st_uid).pw_name, f"{stat.S_IMODE(at.st_mode):04o}"
    group = next(line.split(":")[0] for line in open("/etc/group") if int(line.split(":")[2]) == at.st_gid)
    args = {"path": path, "state": "directory", "owner": user, "group": group, "mode": mode}
    call = py("files.directory", f"directory {path}", path, user=user, group=group, mode=mode.lstrip("0"))
    task(f"directory {path}", "ansible.builtin.file", args, call)


def put(path, units=()):
    """A file as it is here, and who must take it in."""
    at, source = os.stat(path), to / "files" / path.lstrip("/").replace("/", "_")
    shutil.copy(path, source)
    mode = f"{stat.S_IMODE(at.st_mode):04o}"
    group = next(line.split(":")[0] for line in open("/etc/group") if int(line.split(":")[2]) == at.st_gid)
    args = {"src": str(source), "dest": path, "mode": mode, "owner": "root", "group": group}
    call = py("files.put", f"file {path}", str(source), path, mode=mode.lstrip("0"), user="root", group=group)
    task(f"file {path}", "ansible.builtin.copy", args, call, notify=units, when_changed=units)


def link(path):
    target = os.readlink(path)
    args = {"path": path, "src": target, "state": "link", "force": True}
    task(f"link {path}", "ansible.builtin.file", args, py("files.link", f"link {path}", path, target=target))


def command(name, shell, creates):
    call = f"None if host.get_fact(File, path={creates!r}) else " + py("server.shell", name, [shell])
    task(name, "ansible.builtin.shell", {"cmd": shell, "creates": creates}, call)


def loaded_by(path):
    """The units that take a file in."""
    if path.startswith("/etc/nginx"):
        return ["nginx.service"]
    name = os.path.basename(path)
    return [name] if path.startswith("/etc/systemd/system/") and name in units else []


task("packages", "ansible.builtin.apt",
     {"name": PACKAGES, "state": "present", "install_recommends": False},
     py("apt.packages", "packages", PACKAGES, no_recommends=True))
for group in ["echoes", "mlflow", "tensorboard"]:
    task(f"group {group}", "ansible.builtin.group", {"name": group, "system": True},
         py("server.group", f"group {group}", group, system=True))
for user, extra in [("mlflow", []), ("tensorboard", ["echoes"])]:
    args = {"name": user, "system": True, "group": user, "groups": extra, "append": True, "create_home": False,
            "home": "/", "shell": "/usr/sbin/nologin"}
    task(f"user {user}", "ansible.builtin.user", args,
         py("server.user", f"user {user}", user, system=True, group=user, groups=extra, append=True,
            create_home=False, ensure_home=False, home="/", shell="/usr/sbin/nologin"))
for name in ["ucf101", "logs", "tfruns", "azure_results", "mlruns", "mlruns/artifacts", "mlruns/backups"]:
    directory(f"{DATA}/{name}")

# The environments, under the same directories, so that both find done what ours has done.
env = {name: os.readlink(f"{OPT}/{name}") for name in ["services", "docs"]}
uv = next(str(path) for path in Path(f"{OPT}/env").glob("uv-*"))
command("uv", f"python3 -m venv {uv} && {uv}/bin/pip install --quiet uv && touch {uv}/.complete", f"{uv}/.complete")
for name, lock in [("services", services_lock), ("docs", docs_lock)]:
    shutil.copy(lock, to / "files" / f"{name}.txt")
    at = env[name]
    command(f"environment {name}",
            f". /root/uv.sh && {uv}/bin/uv venv --quiet --no-project --python /usr/bin/python3 --clear {at} && "
            f"{uv}/bin/uv pip install --quiet --python {at}/bin/python --require-hashes --no-build --no-deps "
            f"--compile-bytecode -r {to}/files/{name}.txt && touch {at}/.complete", f"{at}/.complete")
    link(f"{OPT}/{name}")

secret = [path for path in noted("created", "path") if os.path.isfile(path)]
for tree in noted("built", "path"):
    if tree.startswith("/var/lib/echoes-appliance/tls/"):
        secret += [str(path) for path in sorted(Path(tree).rglob("*.pem")) if "current" not in path.parts]
written = [path for path in noted("wrote", "path") if os.path.isfile(path)]
sources = [str(path) for path in sorted(Path("/var/lib/echoes-appliance/handbook").rglob("*")) if path.is_file()]
dirs = {os.path.dirname(path) for path in [*secret, *written, *sources]}
ours = ("/var/lib/echoes-appliance", "/etc/echoes-appliance", "/var/www")
# And what no package brings, like /etc/sysusers.d.
missing = {path for entry in receipt for path in entry.get("dirs", [])}
for path in sorted({path for path in dirs if path.startswith(ours)} | {path for path in missing if os.path.isdir(path)}):
    directory(path)
for path in [*written, *secret, *sources]:
    put(path, loaded_by(path))
for path in sorted(Path("/var/lib/echoes-appliance/tls").glob("*/current")):
    link(str(path))
site = "/var/www/docs/site"
command("documentation", f"{OPT}/docs/bin/mkdocs build --quiet --config-file /var/lib/echoes-appliance/handbook/mkdocs.yml --site-dir {site}", f"{site}/index.html")
for path in noted("linked", "path"):
    link(path)
task("the distribution's site", "ansible.builtin.file", {"path": "/etc/nginx/sites-enabled/default", "state": "absent"},
     py("files.link", "the distribution's site", "/etc/nginx/sites-enabled/default", present=False))
for unit in units:
    # A timer whose moment after the boot has passed is active and "elapsed", which pyinfra takes for stopped.
    running = None if unit.endswith("-boot.timer") else True
    task(f"unit {unit}", "ansible.builtin.systemd_service", {"name": unit, "enabled": True, "state": "started"},
         py("systemd.service", f"unit {unit}", unit, running=running, enabled=True))

handlers = [{"name": unit, "ansible.builtin.systemd_service":
             {"name": unit, "daemon_reload": True, "state": "reloaded" if unit == "nginx.service" else "restarted"}}
            for unit in units]
play = [{"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": ansible, "handlers": handlers}]
# JSON is YAML.
(to / "playbook.yml").write_text(json.dumps(play, indent=1))
restarts = [
    f"if {unit!r} in did:\n    systemd.service(name={'restart ' + unit!r}, service={unit!r}, daemon_reload=True, "
    f"{'reloaded' if unit == 'nginx.service' else 'restarted'}=True, _if=any_changed(*did[{unit!r}]))"
    for unit in units
]
head = ["from pyinfra import host", "from pyinfra.facts.files import File",
        "from pyinfra.operations import apt, files, server, systemd", "from pyinfra.operations.util import any_changed", "did = {}"]
(to / "deploy.py").write_text("\n".join([*head, *deploy, *restarts]) + "\n")
print(len(ansible))
