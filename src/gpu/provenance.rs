//! What a run was made from, as tags of the MLflow runs that its script begins: the checkout's commit and what differs
//! from it, and the hashes of code, environment and datasets. Whoever looks at a number a year later finds what made it.

use super::tree::{Tree, What};
use crate::hash::hex;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

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
    use crate::{gpu::tree::Entry, host::beneath::Rel};

    #[test]
    fn an_environment_is_the_same_whatever_became_of_the_code() {
        let file = |path: &str, hash: &str| Entry {
            path: Rel::new(path).unwrap(),
            what: What::file(1, 0o644, hash.into()),
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
