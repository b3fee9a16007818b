//! What the commands that need no machine say, word by word: what is not expected must not be there. The words of
//! clap (usage, help) are clap's; of those only what scripts lean on is held.

// Tests look at files and processes directly.
#![allow(clippy::disallowed_methods, clippy::print_stderr)]

use kit::process::CompletedProcess;
use std::{path::Path, process::Command};
use tempfile::TempDir;

/// Run it in `dir`, whose name is then written as `DIR`, with no environment but a path.
fn run(dir: &Path, arguments: &[&str]) -> CompletedProcess {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).current_dir(dir).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let out = CompletedProcess::run(&mut command);
    let shown = |text: String| {
        assert!(!text.contains(char::REPLACEMENT_CHARACTER), "not UTF-8: {text}");
        text.replace(dir.to_str().unwrap(), "DIR")
    };
    CompletedProcess { code: out.code, stdout: shown(out.stdout), stderr: shown(out.stderr) }
}

fn said(code: i32, out: &str, err: &str) -> CompletedProcess {
    CompletedProcess { code, stdout: out.into(), stderr: err.into() }
}

/// A directory with this settings file in it.
fn settings(text: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("c.toml"), text).unwrap();
    dir
}

/// The appliance, as cargo has built it for these tests.
const PROGRAM: &str = env!("CARGO_BIN_EXE_echoes-appliance");

const DEFAULTS: &str = include_str!("../assets/config.toml");

#[test]
fn help_names_every_verb_and_a_wrong_one_is_a_usage_error() {
    let dir = settings("");
    let help = run(dir.path(), &["--help"]);
    assert_eq!((help.code, help.stderr.as_str()), (0, ""));
    let verbs = [
        "install",
        "plan",
        "validate",
        "status",
        "logs",
        "restart",
        "uninstall",
        "user",
        "config",
        "ca",
        "cert",
        "gpu-run",
        "gpu",
        "help",
    ];
    let listed: Vec<&str> = help
        .stdout
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(listed, verbs);
    let widest = help.stdout.lines().map(str::len).max();
    assert!(widest <= Some(100), "help is wider than 100 columns");
    for verb in &verbs[..13] {
        let of_verb = run(dir.path(), &[verb, "--help"]);
        assert_eq!((of_verb.code, of_verb.stderr.as_str()), (0, ""), "{verb}");
    }
    let version = format!("echoes-appliance {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(run(dir.path(), &["--version"]), said(0, &version, ""));
    for wrong in [
        &["frobnicate"][..],
        &[],
        &["install", "--frob"],
        &["install", "--service", "shop"],
        &["logs", "shop"],
        &["user", "add", "a:b"],
        &["config", "show", "--set", "mlflow"],
        &["validate", "--json", "--junit"],
        &["gpu-run"],
        &["gpu-run", "x.py", "--max-hours", "-1"],
        &["gpu-run", "x.py", "--provider", "ssh://gpu1"],
        &["gpu-run", "x.py", "--name", "Not A Name"],
        &["gpu", "attach", "../etc"],
    ] {
        let answer = run(dir.path(), wrong);
        assert_eq!((answer.code, answer.stdout.as_str()), (2, ""), "{wrong:?}: {}", answer.stderr);
    }
    let shop = run(dir.path(), &["logs", "shop"]).stderr;
    assert!(
        shop.contains("not one of mlflow, tensorboard, dashboard, docs, nginx, auth, run-proxy, renew"),
        "{shop}"
    );
}

#[test]
fn settings_are_written_once_and_mean_the_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    assert_eq!(run(at, &["config", "init", "--stdout"]), said(0, DEFAULTS, ""));
    assert_eq!(run(at, &["config", "init", "--config", "c.toml"]), said(0, "", "wrote DIR/c.toml\n"));
    assert_eq!(std::fs::read_to_string(at.join("c.toml")).unwrap(), DEFAULTS);
    let again = "error: DIR/c.toml is there already\n\
                 try:   `echoes-appliance config show` shows what is in force; --stdout shows the defaults\n";
    assert_eq!(run(at, &["config", "init", "--config", "c.toml"]), said(1, "", again));
    assert_eq!(run(at, &["config", "check", "--config", "c.toml"]), said(0, "", "DIR/c.toml is good\n"));
    let schema = run(at, &["config", "schema"]);
    assert_eq!(schema, said(0, include_str!("../assets/config.schema.json"), ""));
}

#[test]
fn what_is_in_force_is_shown_without_its_password() {
    let dir = settings("domain = \"a.test\"\n\n[docs]\nport = 9000\n");
    let set = "mlflow.backend=postgresql://u:hunter2@db/x";
    let shown = run(dir.path(), &["--config", "c.toml", "config", "show", "--set", set]);
    assert_eq!((shown.code, shown.stderr.as_str()), (0, ""));
    assert!(!shown.stdout.contains("hunter2"), "{}", shown.stdout);
    for line in ["domain = \"a.test\"", "backend = \"postgresql://(hidden)\"", "port = 9000", "port = 5000"] {
        assert!(shown.stdout.lines().any(|shown| shown == line), "{line} is not in {}", shown.stdout);
    }
    // What is shown is again a settings file, but for what was hidden.
    let plain = run(dir.path(), &["--config", "c.toml", "config", "show"]);
    let again = settings(&plain.stdout);
    assert_eq!(run(again.path(), &["--config", "c.toml", "config", "show"]), plain);
}

#[test]
fn bad_settings_are_told_by_file_line_and_what_is_allowed() {
    const TRY: &str = "try:   `echoes-appliance config init --stdout` shows every setting with its meaning\n";
    let table = [
        (
            "domain = \"a.test\"\n\n[mlflow]\nprot = 1\n",
            "error: checking DIR/c.toml\n  because: TOML parse error at line 4, column 1\n  |\n\
             4 | prot = 1\n  | ^^^^\n\
             unknown field `prot`, expected one of `enabled`, `auth`, `port`, `listen`, `backend`, `artifacts`, `managed_identity`, `import`, `memory_max`\n",
        ),
        (
            "domain = \"a.test\\nserver {}\"\n",
            "error: checking DIR/c.toml\n  because: TOML parse error at line 1, column 10\n  |\n\
             1 | domain = \"a.test\\nserver {}\"\n  |          ^^^^^^^^^^^^^^^^^^^\n\
             \"a.test\\nserver {}\" is not a domain name: lower-case letters, digits and hyphens, in labels of at most 63, joined by dots\n",
        ),
        (
            "domain = \"a.test; return 200\"\n",
            "error: checking DIR/c.toml\n  because: TOML parse error at line 1, column 10\n  |\n\
             1 | domain = \"a.test; return 200\"\n  |          ^^^^^^^^^^^^^^^^^^^^\n\
             \"a.test; return 200\" is not a domain name: lower-case letters, digits and hyphens, in labels of at most 63, joined by dots\n",
        ),
        (
            "# ours\n[docs]\nenabled = \"yes\"\n",
            "error: checking DIR/c.toml\n  because: TOML parse error at line 3, column 11\n  |\n\
             3 | enabled = \"yes\"\n  |           ^^^^^\n\
             invalid type: string \"yes\", expected a boolean\n",
        ),
    ];
    for (text, error) in table {
        let dir = settings(text);
        let expected = said(78, "", &format!("{error}{TRY}"));
        assert_eq!(run(dir.path(), &["--config", "c.toml", "config", "check"]), expected);
    }
    let dir = settings("");
    let absent = run(dir.path(), &["--config", "absent.toml", "config", "check"]);
    assert_eq!(absent, said(78, "", "error: DIR/absent.toml is not there\n"));
    let taken = run(dir.path(), &["--config", "c.toml", "config", "check", "--set", "docs.port=443"]);
    assert_eq!(taken, said(78, "", &format!("error: docs.port = 443 belongs to ssh or nginx\n{TRY}")));
}

#[test]
fn settings_that_are_no_file_or_have_no_end_are_named_and_not_waited_for() {
    let dir = settings("");
    let at = |name: &str| dir.path().join(name);
    let made = Command::new("mkfifo").arg(at("pipe")).status().unwrap();
    assert!(made.success());
    std::os::unix::fs::symlink("/dev/zero", at("zero")).unwrap();
    std::fs::write(at("long"), vec![b'#'; (1 << 20) + 1]).unwrap();
    for (name, kind) in [("pipe", "a named pipe"), ("zero", "a character device"), (".", "a directory")] {
        let asked = at(name);
        let place = if name == "." { "DIR".to_owned() } else { format!("DIR/{name}") };
        let error = format!(
            "error: reading {place}\n  because: {place} is {kind}, and no regular file\n\
             try:   `ls -lL {place}` shows what it is; put a file in its place, or remove it\n"
        );
        for verb in [["config", "check"], ["config", "show"]] {
            let verb = verb.into_iter().chain(["--config", asked.to_str().unwrap()]).collect::<Vec<_>>();
            assert_eq!(run(dir.path(), &verb), said(78, "", &error), "{verb:?}");
        }
    }
    let long = run(dir.path(), &["config", "check", "--config", "long"]);
    assert!(long.code == 78 && long.stderr.contains("because: it has more than 1 MiB"), "{long:?}");
}

#[test]
fn a_setting_that_ends_within_a_letter_is_refused() {
    let dir = settings("");
    for set in ["mlflow.memory_max=ü", "gpu.grace=1ü", "gpu.grace=99999999999999999999h"] {
        let refused = run(dir.path(), &["config", "check", "--config", "c.toml", "--set", set]);
        assert!(refused.code == 78 && refused.stderr.contains(" is not a"), "{set}: {refused:?}");
    }
}

#[test]
fn a_machine_without_a_headquarters_says_so() {
    if Path::new("/var/lib/echoes-appliance/receipt.jsonl").exists() {
        eprintln!("SKIPPED: the words where there is no headquarters: this machine is one");
        return;
    }
    let dir = settings("");
    let root = nix::unistd::geteuid().is_root();
    let expected = if root {
        "error: there is no headquarters on this machine\ntry:   sudo echoes-appliance install\n"
    } else {
        "error: only root may do this\ntry:   sudo echoes-appliance …\n"
    };
    for verb in [&["validate"][..], &["validate", "--json"]] {
        assert_eq!(run(dir.path(), verb), said(1, "", expected), "{verb:?}");
    }
}

#[test]
fn a_size_that_was_retired_is_refused_at_once_with_what_took_its_place() {
    let dir = settings("");
    for (size, instead) in [
        ("Standard_NC6s_v3", "Standard_NC4as_T4_v3 (one T4) or Standard_NC24ads_A100_v4 (one A100)"),
        ("standard_nc12s_v3", "Standard_NC24ads_A100_v4 (one A100) or Standard_NC64as_T4_v3 (four T4)"),
        ("Standard_NC24s_v3", "Standard_NC48ads_A100_v4 (two A100) or Standard_NC64as_T4_v3 (four T4)"),
    ] {
        let error = format!(
            "error: {size} was retired by Azure on 2025-09-30 and cannot be rented any more\n\
             try:   --vm-size with {instead}\n"
        );
        // Neither the script nor the settings are looked at before, which are not there.
        let arguments = ["gpu-run", "--config", "absent.toml", "absent.py", "--vm-size", size];
        assert_eq!(run(dir.path(), &arguments), said(2, "", &error));
    }
}

#[test]
fn what_a_run_will_be_is_shown_before_anything_is_done() {
    let dir = settings("[gpu]\nmax_cost = 5\n");
    let init = std::process::Command::new("git").args(["init", "--quiet"]).arg(dir.path()).status();
    assert!(init.unwrap().success(), "git is needed for this test");
    std::fs::create_dir_all(dir.path().join("experiments")).unwrap();
    std::fs::write(dir.path().join("experiments/train.py"), "").unwrap();
    std::fs::write(dir.path().join(".gitignore"), "/c.toml\n").unwrap();
    let arguments = |more: &'static [&'static str]| {
        let first =
            ["--config", "c.toml", "gpu-run", "experiments/train.py", "--name", "esn", "--provider", "local"];
        [first.as_slice(), more].concat()
    };
    let plan = run(dir.path(), &arguments(&["--dry-run", "--max-hours", "0.5"]));
    let expected = "esn: experiments/train.py of DIR\n  1  local      free\n\
                    code: 2 files, 8 bytes\n\
                    ends: at the latest after 30 min, and before it costs $5.00\n\
                    grace: 1 min to save, when it has to end\n\
                    results: /mnt/echoes_data/azure_results/esn, at most 10,000,000 files and what is free\n";
    assert_eq!(plan, said(0, "", expected));
    let printed = run(
        dir.path(),
        &arguments(&["--print-spec", "--secret", "KEY", "--env", "A=b=c", "--", "--epochs", "50"]),
    );
    assert_eq!((printed.code, printed.stderr.as_str()), (0, ""));
    for line in [
        r#"  "run": "esn","#,
        r#"  "source": "local","#,
        r#"  "project": "DIR","#,
        r#"  "script": "experiments/train.py","#,
        r#"  "max_seconds": null,"#,
        r#"  "max_cost": 5000000,"#,
        r#"  "grace": 60"#,
    ] {
        assert!(printed.stdout.lines().any(|printed| printed == line), "{line} is not in {}", printed.stdout);
    }
    let flat: String = printed.stdout.split_whitespace().collect();
    let rest = r#""arguments":["--epochs","50"]"#;
    assert!(flat.contains(rest) && flat.contains(r#""env":[["A","b=c"]]"#), "{flat}");
    assert!(flat.contains(r#""secrets":["KEY"]"#), "{flat}");

    let refused = run(dir.path(), &arguments(&["--vm-size", "Standard_NC4as_T4_v3"]));
    let error =
        "error: --vm-size says what to rent, and on local nothing is rented\ntry:   leave --vm-size out\n";
    assert_eq!(refused, said(2, "", error));
    let outside = run(dir.path(), &arguments(&["--out", "../x"]));
    assert_eq!(outside, said(1, "", "error: --out ../x leads out of the checkout\n"));
    let data = run(dir.path(), &arguments(&["--data", "no-such-set"]));
    let error = "error: there is no dataset no-such-set: /mnt/echoes_data/no-such-set is not there\n";
    assert_eq!(data, said(1, "", error));
}
