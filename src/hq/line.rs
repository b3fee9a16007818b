//! One line of a file that is a package's own: the number of one directive of nginx.conf, which can stand nowhere else. What
//! the line was is noted before it is changed, and comes back with `uninstall`. Nothing else of such a file is touched.

use super::{
    receipt::{Book, Entry, Receipt},
    resource::Seen,
};
use crate::{
    host::{Host, Kind},
    ui::Try as _,
};
use anyhow::{Context as _, Result};
use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
};

/// A directive whose number is at least this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub path: PathBuf,
    /// The block that it stands in.
    pub block: &'static str,
    pub directive: &'static str,
    pub least: u32,
}

/// A line as it was, and as we ever meant it to be.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Replaced {
    /// Empty where there was none.
    pub was: String,
    pub now: BTreeSet<String>,
}

/// Where a directive stands in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// On this line, with this number.
    On(usize, u32),
    /// Not there; its block begins on this line.
    Below(usize),
    Nowhere,
}

impl Line {
    pub fn look(&self, host: &Host, receipt: &Receipt) -> Result<Seen> {
        let text = match host.meta(&self.path)?.map(|meta| meta.kind) {
            None if host.is_live() => return Ok(Seen::Wrong("missing".into())),
            // The package that brings it is yet to come.
            None => return Ok(Seen::Later),
            Some(Kind::File) => host.read_text(&self.path)?.unwrap_or_default(),
            Some(_) => return Ok(Seen::Foreign("not a plain file".into())),
        };
        let ours = receipt.lines.get(&self.path);
        Ok(match self.place(&text) {
            Place::On(_, number) if number >= self.least => Seen::Right,
            Place::On(n, number) => {
                let line = text.lines().nth(n).unwrap_or_default();
                let noted = ours.is_none_or(|ours| ours.was == line || ours.now.contains(line));
                if noted { Seen::Wrong(format!("{} is {number}", self.directive)) } else { Seen::Edited }
            }
            Place::Below(_) => Seen::Wrong(format!("{} is not there", self.directive)),
            Place::Nowhere => Seen::Foreign(format!("a file without a block `{}`", self.block)),
        })
    }

    pub fn make(&self, host: &Host, book: &Book) -> Result<()> {
        let text = host.read_text(&self.path)?.unwrap_or_default();
        let Some((was, now, changed)) = self.change(&text) else {
            let nowhere = || anyhow::bail!("{} has no block `{}`", self.path.display(), self.block);
            return nowhere().or_try("put the package's own file back; `apt-get install --reinstall` does");
        };
        book.note(Entry::Replaced { path: self.path.clone(), was, now })?;
        rewrite(host, &self.path, &self.path, &changed)
    }

    /// As `make`, in a copy of the tree and without a note.
    pub fn stage(&self, host: &Host, at: &Path) -> Result<()> {
        let text = host.read_text(at)?.unwrap_or_default();
        self.change(&text).map_or(Ok(()), |(_, _, changed)| rewrite(host, at, at, &changed))
    }

    /// The line before, the line after, and the text with it. Pure.
    fn change(&self, text: &str) -> Option<(String, String, String)> {
        let mut lines: Vec<String> = text.lines().map(Into::into).collect();
        let (was, now) = match self.place(text) {
            Place::On(n, number) => {
                let was = lines.get(n)?.clone();
                let at = was.find(self.directive)? + self.directive.len();
                let (head, tail) = was.split_at_checked(at)?;
                let now = format!("{head}{}", tail.replacen(&number.to_string(), &self.least.to_string(), 1));
                lines[n].clone_from(&now);
                (was, now)
            }
            Place::Below(n) => {
                let now = format!("    {} {};", self.directive, self.least);
                lines.insert(n + 1, now.clone());
                (String::new(), now)
            }
            Place::Nowhere => return None,
        };
        Some((was, now, joined(&lines)))
    }

    fn place(&self, text: &str) -> Place {
        let (mut depth, mut inside, mut begins, mut before) = (0_u32, false, None, "");
        for (n, line) in text.lines().enumerate() {
            let code = line.split('#').next().unwrap_or_default();
            for word in words(code) {
                match word {
                    "{" => {
                        if depth == 0 && before == self.block {
                            (inside, begins) = (true, Some(n).filter(|_| !code.contains('}')));
                        }
                        depth += 1;
                    }
                    "}" => {
                        depth = depth.saturating_sub(1);
                        inside &= depth > 0;
                    }
                    number if inside && before == self.directive => {
                        // Where it stands on a line of its own above its number, it is nobody's idea of a setting.
                        if let Ok(number) = number.parse()
                            && code.contains(self.directive)
                        {
                            return Place::On(n, number);
                        }
                    }
                    _ => {}
                }
                before = word;
            }
        }
        begins.map_or(Place::Nowhere, Place::Below)
    }
}

/// Put back the line that stood there. False: it is no longer ours.
pub fn put_back(host: &Host, path: &Path, ours: &Replaced) -> Result<bool> {
    let text = host.read_text(path)?.unwrap_or_default();
    let Some(n) = text.lines().position(|line| ours.now.contains(line)) else { return Ok(false) };
    let mut lines: Vec<String> = text.lines().map(Into::into).collect();
    if ours.was.is_empty() {
        lines.remove(n);
    } else {
        lines[n].clone_from(&ours.was);
    }
    rewrite(host, path, path, &joined(&lines))?;
    Ok(true)
}

/// Which of our lines stands in the file now.
pub fn standing(host: &Host, path: &Path, ours: &Replaced) -> Result<Option<String>> {
    let text = host.read_text(path)?.unwrap_or_default();
    Ok(text.lines().find(|line| ours.now.contains(*line)).map(Into::into))
}

/// With the file's own mode and owner.
fn rewrite(host: &Host, path: &Path, like: &Path, text: &str) -> Result<()> {
    let meta = host.meta(like)?.with_context(|| format!("{} is not there", like.display()))?;
    host.write_owned(path, meta.mode, Some((meta.uid, meta.gid)), text.as_bytes())
}

fn joined(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// Words, braces and semicolons.
fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split_whitespace()
        .flat_map(|word| word.split_inclusive(['{', '}', ';']))
        .flat_map(|word| {
            let end = word.strip_suffix(['{', '}', ';']);
            end.and_then(|rest| Some([rest, word.strip_prefix(rest)?])).unwrap_or([word, ""])
        })
        .filter(|word| !word.is_empty())
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line `{} {}` of {}", self.directive, self.least, self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        host::System,
        hq::undo::{Fate, Undo, unwanted},
    };

    const AT: &str = "/etc/nginx/nginx.conf";

    /// As Debian has it.
    const DEBIAN: &str = "user www-data;\nworker_processes auto;\n# events { worker_connections 9999999; }\ninclude /etc/nginx/modules-enabled/*.conf;\n\nevents {\n\tworker_connections 768;\n\t# multi_accept on;\n}\n\nhttp {\n\tsendfile on;\n}\n";

    fn line() -> Line {
        Line { path: AT.into(), block: "events", directive: "worker_connections", least: 8192 }
    }

    fn machine(text: &str) -> (tempfile::TempDir, Host, Book) {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        host.write(Path::new(AT), 0o640, text.as_bytes()).unwrap();
        let book = Book::at_once(&host).unwrap();
        (dir, host, book)
    }

    fn text(host: &Host) -> String {
        host.read_text(Path::new(AT)).unwrap().unwrap()
    }

    #[test]
    fn one_line_is_changed_and_comes_back_as_it_was() {
        for (before, after) in [
            (DEBIAN.to_owned(), DEBIAN.replace("worker_connections 768;", "worker_connections 8192;")),
            (
                "events { worker_connections 1024; }\nhttp {}\n".into(),
                "events { worker_connections 8192; }\nhttp {}\n".into(),
            ),
            ("events{worker_connections\t1024;}\n".into(), "events{worker_connections\t8192;}\n".into()),
            (
                "events\n{\n  use epoll;\n}\n".into(),
                "events\n{\n    worker_connections 8192;\n  use epoll;\n}\n".into(),
            ),
            ("events { # few\n}\n".into(), "events { # few\n    worker_connections 8192;\n}\n".into()),
        ] {
            let (_dir, host, book) = machine(&before);
            let wrong = line().look(&host, &book.receipt()).unwrap();
            assert!(matches!(wrong, Seen::Wrong(_)), "{wrong:?}: {before}");
            line().make(&host, &book).unwrap();
            assert_eq!(text(&host), after);
            assert_eq!(host.meta(Path::new(AT)).unwrap().unwrap().mode, 0o640);
            assert_eq!(line().look(&host, &book.receipt()).unwrap(), Seen::Right);
            line().make(&host, &book).unwrap();
            let undo = unwanted(&book.receipt(), &[]);
            let undo = undo.iter().find(|undo| matches!(undo, Undo::Line { .. })).unwrap();
            assert_eq!(undo.fate(&host, &book.receipt()).unwrap(), Fate::Goes);
            undo.undo(&host, &book, &crate::ui::Ui::new(true).step("")).unwrap();
            assert_eq!(text(&host), before);
            assert!(book.receipt().lines.is_empty());
        }
    }

    #[test]
    fn more_than_enough_is_somebody_elses_and_stays() {
        let (_dir, host, book) = machine(&DEBIAN.replace("768", "20000"));
        assert_eq!(line().look(&host, &book.receipt()).unwrap(), Seen::Right);
        assert!(book.receipt().lines.is_empty());
    }

    #[test]
    fn an_edit_of_our_line_is_drift_and_is_kept() {
        let (_dir, host, book) = machine(DEBIAN);
        line().make(&host, &book).unwrap();
        let edited = text(&host).replace("8192", "900");
        host.write(Path::new(AT), 0o644, edited.as_bytes()).unwrap();
        assert_eq!(line().look(&host, &book.receipt()).unwrap(), Seen::Edited);
        let undo = unwanted(&book.receipt(), &[])
            .into_iter()
            .find(|undo| matches!(undo, Undo::Line { .. }))
            .unwrap();
        assert!(matches!(undo.fate(&host, &book.receipt()).unwrap(), Fate::Stays(_)));
        undo.undo(&host, &book, &crate::ui::Ui::new(true).step("")).unwrap();
        assert_eq!(text(&host), edited);
    }

    #[test]
    fn a_kill_between_the_note_and_the_line_is_gone_on_with() {
        let (_dir, host, book) = machine(DEBIAN);
        let (was, now, _) = line().change(DEBIAN).unwrap();
        book.note(Entry::Replaced { path: AT.into(), was, now }).unwrap();
        assert!(matches!(line().look(&host, &book.receipt()).unwrap(), Seen::Wrong(_)));
        let undo = unwanted(&book.receipt(), &[])
            .into_iter()
            .find(|undo| matches!(undo, Undo::Line { .. }))
            .unwrap();
        assert_eq!(undo.fate(&host, &book.receipt()).unwrap(), Fate::Gone);
        line().make(&host, &book).unwrap();
        assert_eq!(book.receipt().lines[Path::new(AT)].was, "\tworker_connections 768;");
    }

    #[test]
    fn a_file_without_the_block_is_left_alone() {
        for text in [
            "http { worker_connections 5; }\n",
            "",
            "stream { events { worker_connections 5; } }\n",
            "events {}\n",
        ] {
            let (_dir, host, book) = machine(text);
            assert!(matches!(line().look(&host, &book.receipt()).unwrap(), Seen::Foreign(_)), "{text}");
            assert!(line().make(&host, &book).is_err());
        }
    }
}
