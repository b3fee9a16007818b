"""Makes what an environment.yml names, on a machine that has no conda.

    python conda.py read FILE             what it says, as JSON; nothing is fetched
    python conda.py make PREFIX CACHE     that JSON on standard input: solved, fetched, and put below PREFIX

What is read is what conda reads: channels, dependencies and variables, and of ~/.condarc and the CONDA_ variables which
channels there are, and where. Where nobody names a channel it is Anaconda's `defaults`, as with conda. `pip:` is not for
us: whoever called installs it afterwards. Channels are strict: a package comes from the first one that has it. Runs on
Python 3.8 and later.
"""

import asyncio
import json
import os
import re
import sys

READ = {"name", "prefix", "channels", "dependencies", "variables"}
# Anaconda's own packages, as channels at the place where all others are.
DEFAULTS = ["anaconda", "r"]


class Refused(Exception):
    pass


def load(path):
    import yaml

    with open(path, encoding="utf-8") as text:
        try:
            said = yaml.safe_load(text) or {}
        except yaml.YAMLError as e:
            raise Refused(f"{path} cannot be read: {e}")
    if not isinstance(said, dict):
        raise Refused(f"{path} cannot be read: it is not a list of `name: value`")
    return said


def words(said, key):
    """The list there, of words alone."""
    them = said.get(key) or []
    if not isinstance(them, list) or not all(isinstance(one, str) for one in them):
        raise Refused(f"`{key}` must be a list of words, and is {them!r}")
    return them


def settings(env):
    """Where channels are, in this order: the environment, ~/.condarc, conda's own."""
    rc = os.path.expanduser(env.get("CONDARC", "~/.condarc"))
    rc = load(rc) if os.path.isfile(rc) else {}
    named = [name.strip() for name in env.get("CONDA_CHANNELS", "").split(",") if name.strip()]
    return {
        "alias": env.get("CONDA_CHANNEL_ALIAS") or rc.get("channel_alias"),
        "channels": named or words(rc, "channels") or ["defaults"],
        "defaults": words(rc, "default_channels") or DEFAULTS,
    }


def dependencies(said):
    """The packages, and what is for pip."""
    packages, pip = [], []
    for one in said.get("dependencies") or []:
        if isinstance(one, str):
            packages.append(one)
        elif isinstance(one, dict) and list(one) == ["pip"]:
            pip += words(one, "pip")
        elif isinstance(one, dict) and all(re.fullmatch(r"sel\(\w+\)", key) for key in one):
            # As micromamba reads it: what is for other systems is passed over.
            packages += [spec for key, spec in one.items() if key in ("sel(linux)", "sel(unix)")]
        else:
            raise Refused(f"`dependencies` has {one!r}, which is neither a package nor a list for pip")
    name = re.compile(r"(?:.*::)?\s*([A-Za-z0-9_.-]*)")
    if pip and "python" not in {name.match(one)[1].lower() for one in packages}:
        # As conda does, or there would be nothing to install into.
        packages.append("python")
    return packages, pip


def read(path, env):
    said = load(path)
    where = settings(env)
    packages, pip = dependencies(said)
    channels = [name for name in words(said, "channels") if name != "nodefaults"] or where["channels"]
    variables = said.get("variables") or {}
    if not isinstance(variables, dict):
        raise Refused(f"`variables` must be a list of `name: value`, and is {variables!r}")
    return {
        "packages": packages,
        "pip": pip,
        "channels": [one for name in channels for one in (where["defaults"] if name == "defaults" else [name])],
        "defaults": where["defaults"],
        "alias": where["alias"],
        "root": os.path.dirname(os.path.abspath(path)),
        "variables": {str(name): str(value) for name, value in variables.items()},
        "passed over": sorted(str(key) for key in said if key not in READ),
    }


def progress():
    """A line for each tenth of the packages."""
    from rattler import InstallerReporter

    class Progress(InstallerReporter):
        done = 0

        def on_transaction_start(self, total_operations):
            self.total = total_operations

        def on_transaction_operation_complete(self, operation):
            self.done += 1
            if self.done * 10 // self.total > (self.done - 1) * 10 // self.total:
                print(f"{self.done} of {self.total} packages are in place", flush=True)

    return Progress()


async def make(said, prefix, cache):
    from rattler import (
        Channel,
        ChannelConfig,
        ChannelPriority,
        Client,
        Gateway,
        MatchSpec,
        VirtualPackage,
        VirtualPackageOverrides,
        install,
        solve,
    )

    for key in said["passed over"]:
        print(f"`{key}` is passed over, as conda does", flush=True)
    alias = {"channel_alias": said["alias"]} if said["alias"] else {}
    config = ChannelConfig(root_dir=said["root"], **alias)
    channels = [Channel(name, config) for name in said["channels"]]
    specs = []
    for text in said["packages"]:
        where, of, rest = text.rpartition("::")
        try:
            if of:
                where = re.sub("/(noarch|linux-[a-z0-9]+)$", "", where.strip())
                channel = Channel(said["defaults"][0] if where == "defaults" else where, config)
                channels.append(channel)
                specs.append(MatchSpec(f"{channel.base_url}::{rest}"))
            else:
                specs.append(MatchSpec(text))
        except Exception as e:
            raise Refused(f"`dependencies` has {text!r}, which names no package: {e}")
    channels = list({channel.base_url: channel for channel in channels}.values())
    places = ", ".join(channel.base_url for channel in channels)
    print(f"looking for {len(specs)} packages and what they need in {places}", flush=True)

    # As uv is told: three tries are too few where a hiccup lasts half a minute.
    client = Client.default_client(max_retries=6)
    try:
        records = await solve(
            channels,
            specs,
            gateway=Gateway(cache_dir=os.path.join(cache, "repodata"), client=client),
            # With what this machine has: __glibc, __cuda.
            virtual_packages=VirtualPackage.detect(VirtualPackageOverrides.from_env()),
            channel_priority=ChannelPriority.Strict,
        )
    except Exception as e:
        raise Refused(f"looking for {', '.join(said['packages'])} in {places}: {str(e).strip()}")
    size = sum(record.size or 0 for record in records)
    print(f"fetching what is not here yet of {len(records)} packages, {size / 1e6:.0f} MB", flush=True)
    try:
        await install(
            records,
            target_prefix=prefix,
            cache_dir=os.path.join(cache, "pkgs"),
            client=client,
            # As conda does. Whose packages these are runs them as soon as the script does.
            execute_link_scripts=True,
            reporter=progress(),
        )
    except Exception as e:
        raise Refused(f"installing {len(records)} packages from {places}: {str(e).strip()}")
    meta = os.path.join(prefix, "conda-meta")
    os.makedirs(meta, exist_ok=True)
    # Where conda keeps it, too.
    with open(os.path.join(meta, "state"), "w", encoding="utf-8") as out:
        json.dump({"version": 1, "env_vars": said["variables"]}, out)


def main(verb, *rest):
    try:
        if verb == "read":
            print(json.dumps(read(*rest, os.environ)))
        else:
            asyncio.run(make(json.load(sys.stdin), *rest))
        status = 0
    except (Refused, OSError) as e:
        print(e, file=sys.stderr)
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Without taking the interpreter down around the library's threads, which now and then is a segmentation fault.
    os._exit(status)


if __name__ == "__main__":
    main(*sys.argv[1:])
