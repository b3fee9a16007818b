//! A person's script on an installed headquarters, where its keeper is a unit that root makes: what it has root do is what a
//! keeper needs, and nothing more.

use kit::{
    hq,
    lab::{Machine, Release},
};

/// Takes the keeper's lock away again and again, so that root is asked to start one, and puts links in the place of what root
/// may open.
const LINKS: &str = r#"
import os, pathlib, time
run = pathlib.Path(os.environ["ECHOES_OUT"]).parent
print("uid", os.getuid(), "home", os.environ["HOME"], flush=True)
for n in range(16):
    for name, to in (("watch.lock", "/etc/nologin"), ("agent.log", "/etc/planted"), ("stop.json", "/etc/shadow")):
        try:
            os.unlink(run / name)
        except FileNotFoundError:
            pass
        os.symlink(to, run / name)
    time.sleep(0.5)
for name in ("watch.lock", "stop.json"):
    os.unlink(run / name)
print("nobody followed", not os.path.lexists("/etc/nologin"), flush=True)
"#;

fn put(machine: &Machine, path: &str, text: &str) {
    machine.put(text.as_bytes(), path, 0o644).unwrap();
}

#[test]
fn a_script_s_links_make_root_write_nothing_and_a_stranger_s_process_holds_up_no_end() {
    if !hq::can_boot("a script that plants links") {
        return;
    }
    let machine = hq::installed(Release::Trixie);
    machine.ok("useradd -m ana && useradd -m bob && install -d -o ana /home/ana/project");
    put(&machine, "/home/ana/project/links.py", LINKS);
    put(&machine, "/home/ana/project/short.py", "print('short')\n");
    let run = |name: &str, script: &str| {
        machine.exec(&format!(
            "cd /home/ana/project && SUDO_USER=ana timeout 300 echoes-appliance gpu-run {script} --provider local --name {name}"
        ))
    };
    let out = run("links", "links.py");
    out.assert_code(0).assert_stdout("nobody followed True").assert_stdout("home /home/ana");
    machine.ok("! ls /etc/nologin /etc/planted");

    machine.ok("systemd-run --quiet --uid=bob --setenv=ECHOES_RUN=short sleep 600");
    let out = run("short", "short.py");
    out.assert_code(0)
        .assert_stderr("gone: all of it")
        .assert_stderr("outlived it, and not ours to end: process");
}
