//! What a run was made from, as tags of the MLflow runs that its script begins: the checkout's commit and what differs
//! from it, and the hashes of code, environment and datasets. Whoever looks at a number a year later finds what made it.

use super::tree::{Tree, What};
use crate::{
    hash::hex,
    host::{Cmd, Host},
};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::{collections::BTreeMap, path::Path};

/// By name. Those that begin with `mlflow.` are MLflow's own, and it shows them as such.
pub type Tags = BTreeMap<String, String>;

/// MLflow takes them from here for every run that is begun, without a word in the script (`SystemEnvironmentContext`).
pub const CONTEXT: &str = "MLFLOW_RUN_CONTEXT";

/// Which try of the script on its machine began an MLflow run; left out for the first.
pub const TAG_ATTEMPT: &str = "echoes.attempt";

/// What an environment is made from: see `agent::environment`.
const RECIPES: [&str; 5] =
    ["uv.lock", "pyproject.toml", "requirements.txt", "environment.yml", "environment.yaml"];

/// For the script's environment; nothing where there is no MLflow to tell.
pub fn variable(tags: &Tags) -> Option<(String, String)> {
    (!tags.is_empty()).then(|| (CONTEXT.into(), json!(tags).to_string()))
}

/// The variable's value for a later try of the script. What is not ours stays as it is.
pub fn of_attempt(value: &str, attempt: u32) -> String {
    match serde_json::from_str::<Tags>(value) {
        Ok(mut tags) => {
            tags.insert(TAG_ATTEMPT.into(), attempt.to_string());
            json!(tags).to_string()
        }
        Err(_) => value.into(),
    }
}

/// What git knows. A checkout's own settings may have git start programs, so it is its person who asks, and git itself
/// refuses to look at somebody else's. What cannot be found out is not said.
pub fn checkout(host: &Host, project: &Path, owner: &str) -> Tags {
    let script = r#"git() { command git -c core.fsmonitor=false -c core.hooksPath=/dev/null -C "$at" "$@"; }
at=$0; git rev-parse --verify HEAD || exit 1
git diff --no-ext-diff --no-textconv --quiet HEAD --
[ $? != 1 ] || git diff --no-ext-diff --no-textconv --binary HEAD -- | sha256sum"#;
    let words = ["sh".to_owned(), "-c".into(), script.into(), project.display().to_string()];
    let cmd = if owner == "root" {
        Cmd::new("sh", words[1..].iter().cloned())
    } else {
        let person = ["-u".to_owned(), owner.into(), "--".into()];
        Cmd::new("runuser", person.into_iter().chain(words))
    };
    match host.ask(&cmd.env("GIT_OPTIONAL_LOCKS", "0")) {
        Ok(out) if out.ok() => told(&out.stdout),
        _ => Tags::new(),
    }
}

/// The commit, and the hash of what differs from it if anything does.
fn told(said: &str) -> Tags {
    let hex = |word: &str| word.len() >= 40 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let mut words = said.lines().map(|line| line.split_whitespace().next().unwrap_or_default());
    let mut tags = Tags::new();
    if let Some(commit) = words.next().filter(|word| hex(word)) {
        tags.insert("mlflow.source.git.commit".into(), commit.into());
        if let Some(diff) = words.next().filter(|word| hex(word)) {
            tags.insert("echoes.dirty".into(), diff.into());
        }
    }
    tags
}

/// What is sent as code, and what in it says which packages are needed.
pub fn code(tree: &Tree) -> Tags {
    let mut hash = Sha256::new();
    let mut any = false;
    for entry in &tree.0 {
        if let What::File { hash: file, .. } = &entry.what
            && RECIPES.iter().any(|recipe| recipe.as_bytes() == entry.path.as_bytes())
        {
            hash.update(format!("{} {file}\n", entry.path));
            any = true;
        }
    }
    let environment = any.then(|| ("echoes.environment".to_owned(), hex(&hash.finalize())));
    [("echoes.code".to_owned(), tree.hash())].into_iter().chain(environment).collect()
}

/// A dataset, by the hash of all that is in it.
pub fn data(name: &str, tree: &Tree) -> (String, String) {
    (format!("echoes.data.{name}"), tree.hash())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{gpu::tree::Entry, host::System, host::beneath::Rel};

    #[test]
    fn a_commit_is_told_and_what_differs_from_it() {
        let (commit, diff) = ("a".repeat(40), "b".repeat(64));
        let clean = told(&format!("{commit}\n"));
        assert_eq!(clean, [("mlflow.source.git.commit".into(), commit.clone())].into());
        let dirty = told(&format!("{commit}\n{diff}  -\n"));
        assert_eq!((dirty.len(), dirty["echoes.dirty"].as_str()), (2, diff.as_str()));
        assert_eq!(told("fatal: not a git repository\n"), Tags::new());
    }

    #[test]
    fn a_real_checkout_says_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().to_str().unwrap();
        let host = Host::new("/", System);
        let git = |words: &[&str]| {
            let first = ["-C", at, "-c", "user.name=a", "-c", "user.email=a@b.c"];
            host.run(&Cmd::new("git", first.iter().chain(words).copied())).unwrap()
        };
        git(&["init", "-q"]);
        host.write(&dir.path().join("a.py"), 0o644, b"1\n").unwrap();
        git(&["add", "."]);
        git(&["commit", "-q", "-m", "first"]);
        // As this process's own user: others are asked by way of runuser, which is root's.
        let look = || checkout(&host, dir.path(), "root");
        let commit = git(&["rev-parse", "HEAD"]).trim().to_owned();
        assert_eq!(look(), [("mlflow.source.git.commit".into(), commit)].into());
        host.write(&dir.path().join("a.py"), 0o644, b"2\n").unwrap();
        let first = look();
        assert_eq!(first["echoes.dirty"].len(), 64);
        assert_eq!(look(), first);
        host.write(&dir.path().join("a.py"), 0o644, b"3\n").unwrap();
        assert_ne!(look()["echoes.dirty"], first["echoes.dirty"]);
        let none = tempfile::tempdir().unwrap();
        assert_eq!(checkout(&host, none.path(), "root"), Tags::new());
    }

    #[test]
    fn an_environment_is_the_same_whatever_became_of_the_code() {
        let file = |path: &str, hash: &str| Entry {
            path: Rel::new(path).unwrap(),
            what: What::File { len: 1, exec: false, hash: hash.into() },
        };
        let of = |train: &str, lock: &str| code(&Tree(vec![file("train.py", train), file("uv.lock", lock)]));
        let (first, other) = (of("1", "1"), of("2", "1"));
        assert_ne!(first["echoes.code"], other["echoes.code"]);
        assert_eq!(first["echoes.environment"], other["echoes.environment"]);
        assert_ne!(of("1", "2")["echoes.environment"], first["echoes.environment"]);
        assert!(!code(&Tree(vec![file("train.py", "1")])).contains_key("echoes.environment"));
        assert_eq!(variable(&Tags::new()), None);
        let said = variable(&[("echoes.run".to_owned(), "r1".to_owned())].into()).unwrap();
        assert_eq!(said, ("MLFLOW_RUN_CONTEXT".into(), r#"{"echoes.run":"r1"}"#.into()));
        assert_eq!(of_attempt(&said.1, 2), r#"{"echoes.attempt":"2","echoes.run":"r1"}"#);
        assert_eq!(of_attempt("theirs", 2), "theirs");
    }
}
