//! The documentation as a static site: this appliance's handbook, or the team's own MkDocs project. Built where
//! nobody sees it and swapped in whole.

use super::{
    python,
    receipt::{Book, Entry, Receipt},
    resource::{Seen, hash_of, missing_dirs},
};
use crate::{
    host::{Cmd, Host, Kind},
    ui::{Step, Try as _},
};
use anyhow::{Context as _, Result, ensure};
use std::{
    fmt,
    path::{Path, PathBuf},
};

/// Where the handbook's source is laid out to be built.
const HANDBOOK: &str = "/var/lib/echoes-appliance/handbook";

/// The handbook's source. A row here, a file in `assets/handbook/`: a test compares them.
macro_rules! handbook {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../assets/handbook/", $name)))),*]
    };
}
const PAGES: &[(&str, &str)] = handbook![
    "mkdocs.yml",
    "docs/index.md",
    "docs/install.md",
    "docs/settings.md",
    "docs/commands.md",
    "docs/data-disk.md",
    "docs/access.md",
    "docs/certificates.md",
    "docs/gpu.md",
    "docs/troubleshooting.md",
    "docs/handbook.css",
    "docs/handbook.js",
];

/// The names of the handbook's files.
#[cfg(test)]
pub fn pages() -> impl Iterator<Item = &'static str> {
    PAGES.iter().map(|(name, _)| *name)
}

#[derive(Debug, Clone, PartialEq)]
pub struct Site {
    /// The team's project; None for the handbook.
    source: Option<PathBuf>,
    /// Where it is served from.
    to: PathBuf,
}

impl Site {
    pub fn new(source: Option<PathBuf>, to: PathBuf) -> Self {
        Self { source, to }
    }

    pub fn owns(&self) -> Vec<PathBuf> {
        let handbook = self.source.is_none().then(|| HANDBOOK.into());
        [Some(self.to.clone()), handbook].into_iter().flatten().collect()
    }

    pub fn look(&self, host: &Host, receipt: &Receipt) -> Result<Seen> {
        if !host.exists(&self.to.join("index.html"))? {
            return Ok(Seen::Wrong("not built".into()));
        }
        match receipt.loaded.get(&self.to_string()) {
            Some(hash) if *hash == self.hash(host)? => Ok(Seen::Right),
            _ => Ok(Seen::Wrong("its source changed".into())),
        }
    }

    pub fn make(&self, host: &Host, book: &Book, step: &Step) -> Result<()> {
        let source = match &self.source {
            Some(source) => source.clone(),
            None => {
                self.lay_out(host, book)?;
                HANDBOOK.into()
            }
        };
        let config = source.join("mkdocs.yml");
        if !host.exists(&config)? {
            return Err(anyhow::anyhow!("{} is not there", config.display())).or_try(
                "set docs.source to the directory that holds mkdocs.yml, or to \"\" for the handbook",
            );
        }
        let hash = self.hash(host)?;
        book.note(Entry::Built { path: self.to.clone(), dirs: missing_dirs(host, &self.to)? })?;
        let next = self.to.with_extension("next");
        book.note(Entry::Built { path: next.clone(), dirs: Vec::new() })?;
        host.remove_tree(&next)?;
        host.make_dir(&next)?;
        // A project's plugins are programs: they run as a user who owns nothing but the directory they fill.
        let (mkdocs, to) = (
            python::link(&python::DOCS).join("bin/mkdocs").display().to_string(),
            next.display().to_string(),
        );
        let sandbox = |property: &str| format!("--property={property}");
        let build = Cmd::new(
            "systemd-run",
            [
                "--quiet".into(),
                "--wait".into(),
                "--pipe".into(),
                "--collect".into(),
                sandbox("DynamicUser=yes"),
                sandbox("ProtectSystem=strict"),
                // The source may well be in somebody's home.
                sandbox("ProtectHome=read-only"),
                sandbox("PrivateDevices=yes"),
                sandbox("PrivateTmp=yes"),
                sandbox("NoNewPrivileges=yes"),
                sandbox("StateDirectory=echoes-docs-build"),
                sandbox("MemoryMax=1G"),
                sandbox("RuntimeMaxSec=300"),
                mkdocs,
                "build".into(),
                "--quiet".into(),
                "--config-file".into(),
                config.display().to_string(),
                "--site-dir".into(),
                "/var/lib/echoes-docs-build/site".into(),
            ],
        );
        host.run_saying(&build, &mut |line| step.detail(line))
            .with_context(|| format!("building {}", source.display()))
            .or_try("mend what MkDocs names; every user must be able to read the source")?;
        const BUILT: &str = "/var/lib/private/echoes-docs-build";
        let site = Path::new(BUILT).join("site");
        // A plugin may have put a link there, which cp would follow; links in there it copies as they are.
        let is_dir = host.meta(&site)?.is_some_and(|meta| meta.kind == Kind::Dir);
        ensure!(is_dir, "building {}: what was built is no directory", source.display());
        host.run(&Cmd::new("cp", ["-r", "--no-preserve=all", &format!("{}/.", site.display()), &to]))?;
        host.remove_tree(Path::new(BUILT))?;
        host.remove(Path::new("/var/lib/echoes-docs-build"))?;
        host.remove_tree(&self.to)?;
        host.rename(&next, &self.to)?;
        // In this order: a site that is noted as built is not built again because of what is noted after it.
        book.note(Entry::Loaded { what: self.to_string(), hash })?;
        book.note(Entry::Removed { path: next })
    }

    fn lay_out(&self, host: &Host, book: &Book) -> Result<()> {
        let at = Path::new(HANDBOOK);
        book.note(Entry::Built { path: at.into(), dirs: missing_dirs(host, at)? })?;
        PAGES.iter().try_for_each(|(name, text)| host.write(&at.join(name), 0o644, text.as_bytes()))
    }

    /// What it is built from: every file of the source, and the version of MkDocs.
    fn hash(&self, host: &Host) -> Result<String> {
        let mut files = vec![python::marker_of(&python::DOCS)];
        let Some(source) = &self.source else {
            let pages: String = PAGES.iter().map(|(name, text)| format!("{name}\n{text}\n")).collect();
            return hash_of(host, &files, &pages);
        };
        files.push(source.join("mkdocs.yml"));
        walk(host, &source.join("docs"), &mut files)?;
        hash_of(host, &files, "")
    }
}

fn walk(host: &Host, dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for name in host.list(dir)? {
        let path = dir.join(name);
        match host.meta(&path)?.map(|meta| meta.kind) {
            Some(Kind::Dir) => walk(host, &path, files)?,
            Some(Kind::File) => files.push(path),
            _ => {}
        }
    }
    Ok(())
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) => write!(f, "documentation of {}", source.display()),
            None => write!(f, "documentation: the handbook"),
        }
    }
}
