//! What of a run's results is not home, and why: how much, and the first names. For the run's journal, its receipt and who
//! watches. Pure.

use super::wire::shown;
use crate::hq::disk::size_words;
use serde::{Deserialize, Serialize};

/// So many names are told; the count is of all.
const FIRST: usize = 10;

/// Of a name, and of a reason: they are somebody else's words.
const WORDS: usize = 200;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    pub count: u64,
    /// As far as one sees; of a directory that cannot be looked into, none.
    pub bytes: u64,
    /// By name.
    pub first: Vec<LeftFile>,
    /// What has nothing in it that could be missed, the first by name: sockets, links to what is not this run's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub special: Vec<LeftFile>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LeftFile {
    pub path: String,
    pub why: String,
}

impl Left {
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn add(&mut self, path: &str, why: &str, bytes: u64) {
        self.count += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        insert(&mut self.first, path, why);
    }

    pub fn add_special(&mut self, path: &str, what: &str) {
        insert(&mut self.special, path, what);
    }

    /// In one sentence.
    pub fn words(&self) -> String {
        let first: Vec<_> = self.first.iter().map(|file| format!("{}: {}", file.path, file.why)).collect();
        let more = self.count.saturating_sub(self.first.len() as u64);
        let more = if more == 0 { String::new() } else { format!("; and {more} more") };
        let files = if self.count == 1 { "1 file".into() } else { format!("{} files", self.count) };
        let bytes = if self.bytes == 0 { String::new() } else { format!(", {}", size_words(self.bytes)) };
        format!("{files}{bytes}: {}{more}", first.join("; "))
    }
}

/// The first by name are kept.
fn insert(first: &mut Vec<LeftFile>, path: &str, why: &str) {
    let cut = |text: &str| shown(&text.chars().take(WORDS).collect::<String>());
    let file = LeftFile { path: cut(path), why: cut(why) };
    let at = first.partition_point(|other| *other < file);
    if at < FIRST {
        first.insert(at, file);
        first.truncate(FIRST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_counted_and_the_first_of_it_named() {
        let mut left = Left::default();
        assert!(left.is_empty());
        left.add("out/a\u{1b}[2J", "permission denied", 1);
        assert_eq!(left.words(), "1 file, 1 bytes: out/a\\u{1b}[2J: permission denied");
        (0..20).for_each(|n| left.add(&format!("out/{n}"), &"x".repeat(1000), 3 << 20));
        assert_eq!((left.count, left.bytes, left.first.len()), (21, (60 << 20) + 1, FIRST));
        assert!(left.words().starts_with("21 files, ") && left.words().ends_with("; and 11 more"));
        assert_eq!(left.first[0].path, "out/0");
        left.add_special("out/pipe", "a named pipe");
        assert_eq!(left.count, 21, "nothing was computed that is in it");
        assert!(left.words().len() < 10 * (2 * WORDS + 10));
    }
}
