//! Regular files, with a bound: the one way in which what stands at a path is opened to be read or added to. Whatever else
//! lies there is named and not waited for: a named pipe has nothing to say until somebody writes into it, /dev/zero says
//! nothing without end, and some devices act when they are opened.

use super::{Host, absent};
use crate::ui::Try as _;
use anyhow::{Context as _, Result, anyhow};
use nix::libc;
use std::{
    fmt,
    fs::{self, File, FileType, OpenOptions},
    io::Read as _,
    os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// Bound for a file that has no other: what is read whole is text, and a large one has a megabyte.
const MOST: u64 = 64 << 20;
/// Bound for the settings file, which has 10 KiB with all of its comments.
pub const SETTINGS: u64 = 1 << 20;
/// Bound for this program, which has a quarter of it as it is built for tests.
pub const PROGRAM: u64 = 1 << 30;
/// Bound for what is known of a dataset's files, of which there may be four million.
pub const HASHES: u64 = 1 << 30;

/// Something in place of a file.
#[derive(Debug)]
struct NotAFile {
    path: PathBuf,
    kind: &'static str,
}

impl fmt::Display for NotAFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}, and no regular file", self.path.display(), self.kind)
    }
}

impl std::error::Error for NotAFile {}

fn ensure_file(path: &Path, found: FileType) -> Result<()> {
    let kind = match found {
        kind if kind.is_file() => return Ok(()),
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a named pipe",
        kind if kind.is_socket() => "a socket",
        kind if kind.is_block_device() => "a block device",
        kind if kind.is_char_device() => "a character device",
        _ => "something else",
    };
    Err(NotAFile { path: path.into(), kind }).or_try(format!(
        "`ls -lL {}` shows what it is; put a file in its place, or remove it",
        path.display()
    ))
}

impl Host {
    /// The file's contents, or `None` if there is no such file.
    pub fn read(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        self.read_at_most(path, MOST)
    }

    /// As `read`, for text; bytes that are not UTF-8 are replaced.
    pub fn read_text(&self, path: &Path) -> Result<Option<String>> {
        Ok(self.read(path)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Reads as `read` does; more bytes than `most` are an error.
    pub fn read_at_most(&self, path: &Path, most: u64) -> Result<Option<Vec<u8>>> {
        let doing = || format!("reading {}", path.display());
        let Some(file) = self.open_file(path, OpenOptions::new().read(true)).with_context(doing)? else {
            return Ok(None);
        };
        // What the kernel makes up, in /proc, says that it has no length: that alone proves nothing.
        let len = file.metadata().with_context(doing)?.len();
        let mut bytes = Vec::new();
        if len <= most {
            file.take(most.saturating_add(1)).read_to_end(&mut bytes).with_context(doing)?;
        }
        if len.max(bytes.len() as u64) > most {
            let what = anyhow!("it has more than {} MiB, which is no such file", most >> 20);
            return Err(what)
                .with_context(doing)
                .or_try("look at what it is, and put the file in its place that belongs there");
        }
        Ok(Some(bytes))
    }

    /// Open what has to be a regular file. None: nothing is there, and `options` make nothing.
    pub(super) fn open_file(&self, path: &Path, options: &mut OpenOptions) -> Result<Option<File>> {
        let full = self.path(path);
        // Before it is opened, as opening is an act for some devices; and after, as it may be another by then.
        if let Some(found) = absent(fs::metadata(&full))? {
            ensure_file(path, found.file_type())?;
        }
        let opened = options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(&full);
        let Some(file) = absent(opened)? else { return Ok(None) };
        ensure_file(path, file.metadata()?.file_type())?;
        Ok(Some(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Cmd, System};
    use std::os::unix::{fs::symlink, net::UnixListener};

    /// A root with one of each kind that is no file; and a file of 2 TiB, as long as nobody reads it.
    fn scene() -> (tempfile::TempDir, Host, UnixListener) {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let host = Host::new(dir.path(), System);
        host.run(&Cmd::new("mkfifo", [at("pipe").display().to_string()])).unwrap();
        fs::create_dir(at("dir")).unwrap();
        symlink("/dev/zero", at("zero")).unwrap();
        symlink("pipe", at("link")).unwrap();
        symlink("loop", at("loop")).unwrap();
        File::create(at("long")).unwrap().set_len(2 << 40).unwrap();
        let socket = UnixListener::bind(at("socket")).unwrap();
        (dir, host, socket)
    }

    #[test]
    fn what_is_no_file_is_named_and_not_waited_for() {
        let (_dir, host, _socket) = scene();
        type Way<'a> = Box<dyn Fn(&Path) -> Result<()> + 'a>;
        let ways: Vec<(&str, Way<'_>)> = vec![
            ("read", Box::new(|path| host.read(path).map(drop))),
            ("read_text", Box::new(|path| host.read_text(path).map(drop))),
            ("read_part", Box::new(|path| host.read_part(path, 0, 1).map(drop))),
            ("lines", Box::new(|path| host.lines(path).map(drop))),
            ("ledger", Box::new(|path| host.ledger(path).map(drop))),
            ("append", Box::new(|path| host.append(path).map(drop))),
            ("lock_holder", Box::new(|path| host.lock_holder(path).map(drop))),
            ("copy_from", Box::new(|path| host.copy_from(path, 0, Path::new("/copy")))),
            ("copy to", Box::new(|path| host.copy_from(Path::new("/file"), 0, path))),
            ("log of", Box::new(|path| host.leave_running(&Cmd::new("true", [""; 0]), path))),
        ];
        host.write(Path::new("/file"), 0o600, b"").unwrap();
        let table = [
            ("/pipe", "/pipe is a named pipe"),
            ("/link", "/link is a named pipe"),
            ("/dir", "/dir is a directory"),
            ("/zero", "/zero is a character device"),
            ("/socket", "/socket is a socket"),
            ("/loop", "Too many levels of symbolic links"),
        ];
        for (path, expected) in table {
            for (name, way) in &ways {
                let error = way(Path::new(path)).unwrap_err();
                let said = format!("{error:#}");
                assert!(said.contains(expected) && said.contains(path), "{name}: {said}");
            }
        }
        for path in ["/none", "/file/none"] {
            assert_eq!(host.read(Path::new(path)).unwrap(), None);
        }
    }

    #[test]
    fn what_is_longer_than_such_a_file_is_not_taken_into_memory() {
        let (_dir, host, _socket) = scene();
        let said = format!("{:#}", host.read(Path::new("/long")).unwrap_err());
        assert!(said.contains("reading /long: it has more than 64 MiB"), "{said}");
        let path = Path::new("/file");
        host.write(path, 0o600, &[b'x'; 9]).unwrap();
        assert_eq!(host.read_at_most(path, 9).unwrap().unwrap().len(), 9);
        host.read_at_most(path, 8).unwrap_err();
    }

    #[test]
    fn what_the_kernel_makes_up_is_read_though_it_has_no_length() {
        let host = Host::new("/", System);
        assert!(host.read_text(Path::new("/proc/self/status")).unwrap().unwrap().contains("Threads:"));
        host.read_at_most(Path::new("/proc/self/status"), 9).unwrap_err();
    }
}
