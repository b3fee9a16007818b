//! What the manual says is what the program has: the same settings, questions, commands and exit codes. Read from
//! the sources as text, so that forgetting one of the two fails here.

#![allow(clippy::disallowed_methods)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn read(path: &str) -> String {
    let at = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&at).unwrap_or_else(|e| panic!("{}: {e}", at.display()))
}

/// What stands between `before` and the next `after`, each time.
fn between<'a>(text: &'a str, before: &str, after: &str) -> Vec<&'a str> {
    text.split(before).skip(1).filter_map(|rest| Some(rest.split_once(after)?.0)).collect()
}

#[test]
fn every_question_of_validate_is_in_the_manual() {
    // However rustfmt breaks the lines.
    let probe: String =
        read("src/hq/probe.rs").split_whitespace().collect::<Vec<_>>().join(" ").replace("( ", "(");
    let page = read("assets/handbook/docs/troubleshooting.md");
    let alone: Vec<_> =
        [between(&probe, " add(row(\"", "\""), between(&probe, " add(soft(\"", "\"")].concat();
    assert!(alone.len() >= 7, "the table has another form now: {alone:?}");
    let table = between(&probe, "const OF_SERVICES", "];").concat();
    let each = between(&table, " (\"", "\"");
    assert!(each.len() >= 9, "the table has another form now: {each:?}");
    let services = ["mlflow", "tensorboard", "dashboard", "docs", "SERVICE"];
    for what in each {
        assert!(
            services.iter().any(|service| page.contains(&format!("`{service}.{what}`"))),
            "SERVICE.{what}"
        );
    }
    for id in alone {
        assert!(page.contains(&format!("`{id}`")), "{id}");
    }
}

#[test]
fn every_setting_is_in_the_manual() {
    let page = read("assets/handbook/docs/settings.md");
    let mut section = String::new();
    let mut counted = 0;
    for line in read("assets/config.toml").lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            assert!(page.contains(&format!("**`[{name}]`**")), "[{name}]");
            section =
                page.split(&format!("**`[{name}]`**")).nth(1).unwrap().split("**`[").next().unwrap().into();
        } else if let Some((key, value)) = line.split_once(" = ").filter(|(key, _)| !key.starts_with('#')) {
            let here = if section.is_empty() { &page } else { &section };
            assert!(here.contains(&format!("`{key}`")), "{key}");
            assert!(here.contains(&format!("`{value}`")), "{key}: the default {value}");
            counted += 1;
        }
    }
    assert!(counted > 20, "{counted}");
}

#[test]
fn every_verb_is_in_the_manual() {
    let cli = read("src/cli.rs");
    let tree = between(&cli, "enum Command {", "\n}").concat();
    let page = read("assets/handbook/docs/commands.md");
    let mut hidden = false;
    let mut counted = 0;
    for line in tree.lines().map(str::trim) {
        if line.starts_with("#[command(hide = true") {
            hidden = true;
        } else if let Some((name, _)) =
            line.split_once('(').filter(|(n, _)| n.starts_with(char::is_uppercase))
        {
            let verb = if name == "GpuRun" { "gpu-run".into() } else { name.to_lowercase() };
            let said = page.contains(&format!("| `{verb}")) || page.contains(&format!("`{verb} "));
            assert!(hidden || said, "{verb}");
            (hidden, counted) = (false, counted + 1);
        }
    }
    assert!(counted >= 10, "{counted}");
}

/// A file of the manual that the program does not carry would be missing from the built site.
#[test]
fn the_program_carries_every_file_of_the_manual() {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/handbook");
    let mut found = BTreeSet::new();
    let mut dirs = vec![base.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                found.insert(path.strip_prefix(&base).unwrap().display().to_string());
            }
        }
    }
    let docs = read("src/hq/docs.rs");
    let rows = between(&docs, "= handbook![", "];").concat();
    let carried: BTreeSet<String> = between(&rows, "    \"", "\"").into_iter().map(Into::into).collect();
    assert_eq!(found, carried);
}

/// Links between the Markdown files that people read without MkDocs.
#[test]
fn links_in_the_readme_lead_somewhere() {
    for page in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"] {
        for link in between(&read(page), "](", ")").into_iter().filter(|link| !link.starts_with("http")) {
            let file = link.split('#').next().unwrap_or_default();
            assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(file).exists(), "{page}: {link}");
        }
    }
}

#[test]
fn what_nginx_shuts_is_what_the_manual_says_is_shut() {
    let site = read("templates/nginx/sites-available/echoes-mlflow.conf");
    // Of a regular expression what a person would write.
    let plain = |word: &str| {
        word.replace("[a-z-]*", "").replace('?', "").replace("/+", "/").trim_matches('/').to_owned()
    };
    let mut shut = BTreeSet::new();
    for location in site.split("location ").filter(|block| block.contains("Not for remote users")) {
        let pattern =
            location.split(" {\n").next().unwrap().trim_start_matches("~* ^/+").trim_end_matches("(/|$)");
        let pattern =
            pattern.trim_start_matches("(ajax-api|api)/+[0-9.]+/*").trim_start_matches("mlflow/+[a-z/-]+/");
        let pattern = pattern.trim_start_matches("(mlflow/+)?").trim_matches(['(', ')']);
        shut.extend(pattern.split('|').map(plain));
    }
    assert!(shut.contains("assistant") && shut.contains("invoke") && shut.len() >= 9, "{shut:?}");
    let page = read("assets/handbook/docs/access.md");
    let table = page.split("## What is blocked, and why").nth(1).unwrap();
    let mlflows = table.lines().filter_map(|line| line.strip_prefix("| MLflow's ")?.split(" | ").next());
    let said: BTreeSet<String> =
        mlflows.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(Into::into).collect();
    assert_eq!(said, shut);
    // And the numbers.
    assert!(site.contains("client_max_body_size 32m;") && table.contains("32 MB"));
    assert!(read("src/hq/nginx.rs").contains("CONNECTIONS: u32 = 8192") && table.contains("8,192"));
    assert!(read("templates/nginx/snippets/echoes-site.conf").contains("client_header_timeout 10s;"));
    assert!(table.contains("for ten seconds"));
}
