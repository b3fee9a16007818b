//! The table of stories that repeat another release's, and the choice made from it (pure).
//!
//! A row's stories are left to `make test-all` as long as none of the row's files has changed since all of it passed. A
//! file that nothing names belongs to every row: a new file is a risk until somebody says whose.

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use std::collections::BTreeSet;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Table {
    /// Files whose changes are tried by the stories of every run.
    every_run: Vec<String>,
    #[serde(rename = "row")]
    pub rows: Vec<Row>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    pub what: String,
    /// Names of tests in the program `lab`.
    pub stories: Vec<String>,
    /// Paths from the project's root; one that ends with `/` stands for everything below it.
    pub files: Vec<String>,
}

/// Changes since the commit on which everything passed.
#[derive(Debug)]
pub enum Since {
    /// Everything runs, for this reason.
    Unknown(String),
    Changed {
        commit: String,
        files: Vec<String>,
    },
}

/// Rows of the table, each with why its stories are in the run, or None where they are left out.
#[derive(Debug, PartialEq, Eq)]
pub struct Choice<'t>(pub Vec<(&'t Row, Option<String>)>);

impl Table {
    pub fn read(text: &str) -> Result<Self> {
        let table: Self = toml::from_str(text).context("reading the table of tiers")?;
        let mut seen = BTreeSet::new();
        for story in table.rows.iter().flat_map(|row| &row.stories) {
            ensure!(seen.insert(story), "{story} stands in two rows of the table of tiers");
        }
        Ok(table)
    }

    /// Every path that the table names.
    #[cfg(test)]
    pub fn files(&self) -> impl Iterator<Item = &String> {
        self.every_run.iter().chain(self.rows.iter().flat_map(|row| &row.files))
    }

    pub fn choose(&self, since: &Since) -> Choice<'_> {
        let why = |row: &Row| match since {
            Since::Unknown(why) => Some(why.clone()),
            Since::Changed { files, .. } => {
                let changed: Vec<_> =
                    files.iter().filter(|file| self.is_of(file, row)).map(String::as_str).collect();
                match &changed[..] {
                    [] => None,
                    [one] => Some(format!("{one} has changed")),
                    [first, rest @ ..] => Some(format!("{first} and {} more have changed", rest.len())),
                }
            }
        };
        Choice(self.rows.iter().map(|row| (row, why(row))).collect())
    }

    /// Whether a change of this file may break a row's stories where the stories of every run still pass.
    fn is_of(&self, file: &str, row: &Row) -> bool {
        let named = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, file));
        let nobodys = !named(&self.every_run) && !self.rows.iter().any(|row| named(&row.files));
        named(&row.files) || nobodys
    }
}

impl Choice<'_> {
    pub fn left_out(&self) -> impl Iterator<Item = &Row> {
        self.0.iter().filter(|(_, why)| why.is_none()).map(|(row, _)| *row)
    }

    /// The run's tests, in nextest's language.
    pub fn filter(&self) -> String {
        let left: Vec<_> =
            self.left_out().flat_map(|row| &row.stories).map(|story| format!("test(={story})")).collect();
        if left.is_empty() {
            "all()".into()
        } else {
            format!("not (binary(lab) and ({}))", left.join(" or "))
        }
    }
}

fn matches(pattern: &str, file: &str) -> bool {
    if pattern.ends_with('/') { file.starts_with(pattern) } else { file == pattern }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree;
    use std::fs;

    fn example() -> Table {
        Table::read(
            "every-run = ['README.md', 'src/gpu/']\n\
             [[row]]\nwhat = 'crash'\nstories = ['crash::on_11', 'crash::on_13']\nfiles = ['src/hq/', 'packaging/']\n\
             [[row]]\nwhat = 'attacks'\nstories = ['attacks::on_11']\nfiles = ['src/web/', 'src/hq/nginx.rs']\n",
        )
        .unwrap()
    }

    /// Rows that are in the run.
    fn added(files: &[&str]) -> Vec<String> {
        let files = files.iter().map(|&file| file.to_owned()).collect();
        let table = example();
        let choice = table.choose(&Since::Changed { commit: "abc".into(), files });
        choice.0.into_iter().filter(|(_, why)| why.is_some()).map(|(row, _)| row.what.clone()).collect()
    }

    #[test]
    fn a_row_comes_in_with_a_file_of_its_own_and_with_one_that_nothing_names() {
        for (files, rows) in [
            (&[][..], &[][..]),
            (&["README.md", "src/gpu/agent/watch.rs"], &[]),
            (&["src/hq/plan.rs"], &["crash"]),
            (&["src/hq/nginx.rs"], &["crash", "attacks"]),
            (&["src/web/gate.rs", "README.md"], &["attacks"]),
            (&["Cargo.lock"], &["crash", "attacks"]),
            (&["src/gpu"], &["crash", "attacks"]),
            (&["README.md", "a new file"], &["crash", "attacks"]),
        ] {
            assert_eq!(added(files), rows, "{files:?}");
        }
    }

    #[test]
    fn what_is_left_out_is_named_to_nextest_and_nothing_else_is() {
        let table = example();
        let nothing = Since::Changed { commit: "abc".into(), files: vec!["src/web/site.rs".into()] };
        assert_eq!(
            table.choose(&nothing).filter(),
            "not (binary(lab) and (test(=crash::on_11) or test(=crash::on_13)))"
        );
        assert_eq!(table.choose(&Since::Unknown("no pass".into())).filter(), "all()");
    }

    #[test]
    fn a_story_stands_in_one_row() {
        let twice = "every-run = []\n[[row]]\nwhat = 'a'\nstories = ['x', 'x']\nfiles = []\n";
        assert!(Table::read(twice).unwrap_err().to_string().contains("x stands in two rows"));
    }

    #[test]
    fn the_table_names_stories_that_are_told_and_files_that_exist() {
        let table = Table::read(crate::TABLE).unwrap();
        for story in table.rows.iter().flat_map(|row| &row.stories) {
            let (module, name) = story.split_once("::").unwrap();
            let text = fs::read_to_string(format!("{}/tests/lab/{module}.rs", crate::TOP)).unwrap();
            assert!(text.contains(&format!("fn {name}()")), "{story}");
        }
        let Ok(all) = tree::files() else {
            return println!("SKIPPED: the files that the table of tiers names: this is no git checkout");
        };
        for pattern in table.files() {
            assert!(all.iter().any(|file| matches(pattern, file)), "{pattern} names no file");
        }
    }
}
