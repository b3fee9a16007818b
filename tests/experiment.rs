//! The sample experiment by itself, as somebody runs it who has Python and nothing of ours: that it learns, that it goes on
//! where it was, and that its gradient is one.

// Tests look at files and processes directly.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stderr)]

use kit::process::CompletedProcess;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/experiment");

/// A Python with its NumPy, made once for each version. None, and said so, where that cannot be had.
fn python() -> Option<PathBuf> {
    let wanted = fs::read_to_string(format!("{SAMPLE}/requirements.txt")).unwrap();
    let numpy = wanted.lines().find(|line| line.starts_with("numpy==")).expect("the requirements name NumPy");
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("target/experiment-{numpy}"));
    let python = venv.join("bin/python");
    // Both tests may come here at once.
    let lock = fs::File::create(venv.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    if venv.join("complete").exists() {
        return Some(python);
    }
    let made = |program: &Path, args: &[&str]| Command::new(program).args(args).output();
    let steps = [
        made(Path::new("python3"), &["-m", "venv", "--clear", &venv.to_string_lossy()]),
        made(&python, &["-m", "pip", "install", "--quiet", "--only-binary", ":all:", numpy]),
    ];
    for step in steps {
        let failed = match step {
            Ok(out) if out.status.success() => continue,
            Ok(out) => String::from_utf8_lossy(&out.stderr).trim().to_owned(),
            Err(e) => e.to_string(),
        };
        assert!(std::env::var_os("CI").is_none(), "CI must have Python and {numpy}: {failed}");
        eprintln!("SKIPPED: the sample experiment by itself: no {numpy} here: {failed}");
        return None;
    }
    fs::write(venv.join("complete"), "").unwrap();
    Some(python)
}

fn run(python: &Path, out: &Path, arguments: &[&str]) -> CompletedProcess {
    let mut command = Command::new(python);
    command.current_dir(SAMPLE).args(arguments).env("ECHOES_OUT", out).env_remove("MLFLOW_TRACKING_URI");
    CompletedProcess::run(command.env("PYTHONDONTWRITEBYTECODE", "1"))
}

#[test]
fn it_learns_in_as_many_pieces_as_it_is_given_time_for_and_says_so_when_it_has_not() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let script = "experiments/train_comprehensive.py";
    let short = run(&python, dir.path(), &[script, "--models", "lstm", "--epochs", "1"]);
    assert!(short.assert_code(1).text().contains("not learnt"), "{short}");

    let whole = run(&python, dir.path(), &[script]);
    assert!(whole.assert_code(0).text().contains("lstm: going on after epoch 1 of 12"), "{whole}");
    let results: Value = serde_json::from_slice(&fs::read(dir.path().join("results.json")).unwrap()).unwrap();
    let baseline = results["baseline"]["mean"].as_f64().unwrap();
    for name in ["esn", "lstm"] {
        let error = results["models"][name]["test_error"].as_f64().unwrap();
        assert!(error < baseline / 10.0, "{results}");
    }
    let table = fs::read_to_string(dir.path().join("predictions.csv")).unwrap();
    assert_eq!((table.lines().next(), table.lines().count()), (Some("target,esn,lstm"), 1001));
}

#[test]
fn its_own_tests_pass() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = run(&python, dir.path(), &["-m", "unittest", "discover", "tests"]);
    assert!(out.assert_code(0).text().contains("OK"), "{out}");
}
