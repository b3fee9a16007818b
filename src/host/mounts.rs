//! The kernel's table of mounts, read. Pure.

use std::path::{Path, PathBuf};

/// Of this process's own view.
pub const TABLE: &str = "/proc/self/mountinfo";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub at: PathBuf,
    /// What of its file system is there: `/`, or what is bound.
    pub root: PathBuf,
    /// Of its device, as in `8:32`.
    pub number: String,
    /// As in `ext4`.
    pub kind: String,
    pub read_only: bool,
}

/// All of them; of two in one place the later one is seen.
pub fn all(table: &str) -> Vec<Mount> {
    table.lines().filter_map(mount).collect()
}

/// The one that a path is on.
pub fn holding(table: &str, path: &Path) -> Option<Mount> {
    let on = all(table).into_iter().filter(|mount| path.starts_with(&mount.at));
    on.max_by_key(|mount| mount.at.components().count())
}

fn mount(line: &str) -> Option<Mount> {
    // Before the dash are fields of which some may be missing.
    let (first, last) = line.split_once(" - ")?;
    let fields: Vec<_> = first.split(' ').collect();
    let [_, _, number, root, at, options, ..] = fields[..] else { return None };
    Some(Mount {
        at: unescape(at).into(),
        root: unescape(root).into(),
        number: number.into(),
        kind: last.split(' ').next()?.into(),
        read_only: options.split(',').any(|option| option == "ro"),
    })
}

/// The table writes blanks and backslashes in octal.
pub fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_on_the_innermost_mount_and_of_two_there_on_the_later_one() {
        let table = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
                     40 22 8:17 / /mnt rw - ext4 /dev/sdb1 rw\n\
                     41 40 8:32 / /mnt/echoes_data ro,relatime - ext4 /dev/sdc rw\n\
                     42 40 8:48 /sub\\040dir /mnt/echoes_data rw - xfs /dev/sdd rw\n";
        let on = |path: &str| holding(table, Path::new(path)).map(|mount| mount.number).unwrap();
        assert_eq!(
            (on("/mnt/echoes"), on("/mnt"), on("/home")),
            ("8:17".into(), "8:17".into(), "8:1".into())
        );
        let data = holding(table, Path::new("/mnt/echoes_data/a")).unwrap();
        let seen = (data.number.as_str(), data.root.to_str(), data.kind.as_str(), data.read_only);
        assert_eq!(seen, ("8:48", Some("/sub dir"), "xfs", false));
        assert!(all(table)[2].read_only);
        assert_eq!(holding("nonsense", Path::new("/")), None);
    }
}
