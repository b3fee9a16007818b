//! An `environment.yml` on a machine without conda: a channel as small as they get, made in the project itself. Only uv
//! and the solver come from elsewhere.

use super::*;
use crate::gpu::agent::conda;

/// The interpreter is this machine's own, which finds its library where it was: what is tried is that it is put in
/// place, and that uv installs into it. That conda-forge's runs is conda-forge's word.
const CHANNEL: &str = r##"
import hashlib, io, json, os, sys, tarfile

def package(subdir, name, version, files, depends=(), **more):
    """One as conda builds them, and its row for the index."""
    index = dict(name=name, version=version, build="0", build_number=0, depends=list(depends), subdir=subdir, **more)
    paths = [
        dict(_path=path, path_type="hardlink", sha256=hashlib.sha256(data).hexdigest(), size_in_bytes=len(data))
        for path, data in files.items()
    ]
    info = {"info/index.json": json.dumps(index).encode()}
    info["info/paths.json"] = json.dumps(dict(paths=paths, paths_version=1)).encode()
    file = f"{name}-{version}-0.tar.bz2"
    path = os.path.join("channel", subdir, file)
    with tarfile.open(path, "w:bz2", compresslevel=1) as tar:
        for inside, data in {**files, **info}.items():
            entry = tarfile.TarInfo(inside)
            entry.size, entry.mode = len(data), 0o755
            tar.addfile(entry, io.BytesIO(data))
    with open(path, "rb") as data:
        data = data.read()
    return {file: dict(index, size=len(data), sha256=hashlib.sha256(data).hexdigest())}

own = "linux-aarch64" if os.uname().machine == "aarch64" else "linux-64"
for subdir in ("noarch", own):
    os.makedirs(os.path.join("channel", subdir))
hello = lambda said: {"bin/hello": b"#!/bin/sh\necho " + said + b"\n"}
noarch = package("noarch", "hello", "1.0", hello(b"older"), noarch="generic")
noarch.update(package("noarch", "hello", "2.0", hello(b"hello"), ["lib-hello >=3"], noarch="generic"))
noarch.update(package("noarch", "gpu", "1.0", {"share/gpu": b""}, ["__cuda >=999"], noarch="generic"))
program = os.readlink("/proc/self/exe")
with open(program, "rb") as data:
    python = {"bin/python": data.read()}
version = "%d.%d.%d" % sys.version_info[:3]
python["pyvenv.cfg"] = f"home = {os.path.dirname(program)}\nversion = {version}\n".encode()
python["lib/python%d.%d/site-packages/README" % sys.version_info[:2]] = b""
ours = package(own, "python", version, python)
ours.update(package(own, "lib-hello", "3.1", {"lib/hello": b"3.1"}, ["__glibc >=2.17"]))
for subdir, packages in (("noarch", noarch), (own, ours)):
    with open(os.path.join("channel", subdir, "repodata.json"), "w") as out:
        json.dump({"info": {"subdir": subdir}, "packages": packages, "packages.conda": {}}, out)
"##;

/// A project with such a channel. None where it cannot be tried.
fn world(dependencies: &str) -> Option<World> {
    let world = World::new("");
    if let Some((program, _)) = conda::kin(&world.host) {
        eprintln!("SKIPPED: an environment.yml on a machine without conda: this one has {program}");
        return None;
    }
    for program in [TINY, CHANNEL] {
        let python = Command::new("python3").args(["-c", program]).current_dir(world.at("project")).status();
        assert!(python.unwrap().success());
    }
    write(&world, dependencies);
    Some(world)
}

fn write(world: &World, dependencies: &str) {
    let channel = world.at("project/channel");
    let text = format!(
        "name: any\nchannels: ['file://{}', nodefaults]\nvariables: {{WORD: of the file, LETTER: b}}\n\
         dependencies:\n{dependencies}",
        channel.display()
    );
    fs::write(world.at("project/environment.yml"), text).unwrap();
}

fn prepared(world: &World) -> Option<Result<()>> {
    let prepared = world.with(|errand| errand.prepare(&world.spec, &world.machine));
    let error = prepared.as_ref().err().map(|e| format!("{e:#}")).unwrap_or_default();
    if ["fetching uv", "fetching a solver"].iter().any(|what| error.contains(what)) {
        eprintln!("SKIPPED: an environment.yml on a machine without conda: {error}");
        return None;
    }
    Some(prepared)
}

#[test]
fn an_environment_yml_needs_no_conda_on_the_machine() {
    let Some(mut world) = world("- hello\n- pip:\n  - -e .\n  - -r more.txt # ours\n") else { return };
    fs::write(world.at("project/more.txt"), "--no-index\n--find-links .\ntiny==1.0\n").unwrap();
    fs::write(
        world.at("project/train.py"),
        "import os, subprocess, sys, tiny\n\
         hello = subprocess.run(['hello'], capture_output=True, text=True).stdout.strip()\n\
         print(tiny.word, hello, os.environ['WORD'], os.environ['LETTER'])\n\
         print(sys.prefix == os.environ['CONDA_PREFIX'], sys.prefix)\n",
    )
    .unwrap();
    world.spec.script = "train.py".into();
    let Some(prepared) = prepared(&world) else { return };
    prepared.unwrap_or_else(|e| panic!("{e:#}"));
    let said = world.said.lock().unwrap().join("\n");
    assert!(said.contains("looking for 2 packages") && said.contains("3 of 3 packages"), "{said}");
    world.with(|errand| errand.start(&world.spec, &world.machine).unwrap());
    assert_eq!(world.ended(), Exit::Code(0));
    assert!(world.fetched().is_empty());
    let log = world.here("log.txt");
    let envs = world.at("machine/envs");
    // What was ordered for the run weighs more than what the file says.
    let expected = format!("tiny hello of the file ä\nTrue {}/", envs.display());
    assert!(log.starts_with(&expected), "{log}");

    world.said.lock().unwrap().clear();
    world.spec.run = RunId::try_from("r2".to_owned()).unwrap();
    world.with(|errand| errand.prepare(&world.spec, &world.machine).unwrap());
    let said = world.said.lock().unwrap().join("\n");
    assert!(said.ends_with("the environment is there already"), "{said}");
    // What its lines for pip name is a part of it.
    fs::write(world.at("project/more.txt"), "--no-index\n--find-links .\n").unwrap();
    world.with(|errand| errand.prepare(&world.spec, &world.machine).unwrap());
    let made = fs::read_dir(&envs).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir());
    assert_eq!(made.count(), 2);
    what_is_read(&world);
}

/// As the fetched solver's own Python reads it.
fn what_is_read(world: &World) {
    let cache = world.at("machine/cache");
    let tools = fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().path());
    let tool = tools.into_iter().find(|path| path.join("conda.py").exists()).unwrap();
    let file = world.at("project/environment.yml");
    let read = |text: &str, rc: &str| {
        fs::write(&file, text).unwrap();
        fs::write(world.at("condarc"), rc).unwrap();
        let mut python = Command::new(tool.join("bin/python"));
        python
            .arg("-I")
            .arg(tool.join("conda.py"))
            .arg("read")
            .arg(&file)
            .env("CONDARC", world.at("condarc"));
        for name in ["CONDA_CHANNELS", "CONDA_CHANNEL_ALIAS"] {
            python.env_remove(name);
        }
        let out = python.output().unwrap();
        let said = String::from_utf8(out.stdout).unwrap();
        let said: serde_json::Value = serde_json::from_str(&said).unwrap_or_default();
        (said, String::from_utf8(out.stderr).unwrap())
    };
    let of = |text: &str, rc: &str, key: &str| read(text, rc).0[key].to_string();
    let table = [
        ("dependencies: [a]", "", "channels", r#"["anaconda","r"]"#),
        ("dependencies: [a]", "channels: [c]", "channels", r#"["c"]"#),
        ("channels: [d, nodefaults]", "channels: [c]", "channels", r#"["d"]"#),
        ("channels: [d, defaults]", "default_channels: [e]", "channels", r#"["d","e"]"#),
        ("channels: [d]", "channel_alias: https://m", "alias", r#""https://m""#),
        ("dependencies: [a, pip: [b]]", "", "packages", r#"["a","python"]"#),
        ("dependencies: [c::python=3.9, pip: [b]]", "", "packages", r#"["c::python=3.9"]"#),
        ("dependencies: [sel(linux): a, sel(win): b]", "", "packages", r#"["a"]"#),
        ("dependencies: [a]\nprefix: /x\nplatforms: [z]", "", "passed over", r#"["platforms"]"#),
        ("variables: {A: 1}", "", "variables", r#"{"A":"1"}"#),
    ];
    for (text, rc, key, expected) in table {
        assert_eq!(of(text, rc, key), expected, "{text}");
    }
    for (text, expected) in [
        ("dependencies: [a", "environment.yml cannot be read"),
        ("- a", "it is not a list of `name: value`"),
        ("dependencies: [uv: [a]]", "neither a package nor a list for pip"),
        ("channels: a", "`channels` must be a list of words"),
        ("variables: [a]", "`variables` must be"),
    ] {
        let said = read(text, "").1;
        assert!(said.contains(expected), "{text}: {said}");
    }
}

#[test]
fn a_package_that_cannot_be_had_is_named() {
    let Some(world) = world("- nosuch\n") else { return };
    for (dependencies, name, tried) in [
        ("- nosuch\n", "No candidates were found for nosuch", "the channel that has it"),
        ("- hello=7\n", "No candidates were found for hello 7", "the channel that has it"),
        ("- gpu\n", "__cuda >=999, for which no candidates", "GPU driver"),
        ("- ./none::hello\n", "none/", "the channel's name"),
    ] {
        write(&world, dependencies);
        let Some(prepared) = prepared(&world) else { return };
        let said = format!("{:#}", prepared.unwrap_err());
        assert!(said.contains(name) && said.contains(tried), "{said}");
    }
    // What fails leaves nothing that would be taken for whole.
    write(&world, "- hello=1\n");
    let Some(prepared) = prepared(&world) else { return };
    prepared.unwrap_or_else(|e| panic!("{e:#}"));
}
