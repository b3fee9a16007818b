//! nginx changes are transactions: staged, tested where they are staged, swapped in, loaded, proven by a request
//! to every route, and put back as they were when the proof fails. What nginx serves is never half of anything.

use super::{
    line::{self, Line},
    plan::Change,
    receipt::{Book, Entry, Receipt},
    resource::{Resource, Unit, last_words},
    undo::{Fate, Undo},
};
use crate::{
    hash::sha256,
    host::{Cmd, Host, Kind, System},
    patience::Patience,
    ui::{Try as _, Ui},
};
use anyhow::{Context as _, Result, bail, ensure};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

pub const UNIT: &str = "nginx.service";
const TREE: &str = "/etc/nginx";

/// Connections that one worker may have. Debian's 768 are two hundred readers' and one laptop's that says nothing; each costs
/// half a kilobyte before it is used. The files of nginx's unit are four times as many.
const CONNECTIONS: u32 = 8192;

/// The one line that can only stand in nginx's own file.
pub fn connections() -> Line {
    let path = Path::new(TREE).join("nginx.conf");
    Line { path, block: "events", directive: "worker_connections", least: CONNECTIONS }
}

/// A copy of the whole tree with our changes in it.
const STAGE: &str = "/var/lib/echoes-appliance/nginx/stage";

/// The tree as it was before the swap, until the proof.
const BEFORE: &str = "/var/lib/echoes-appliance/nginx/before";

/// Whether a path is part of what nginx reads.
pub fn is_nginx(path: Option<&Path>) -> bool {
    path.is_some_and(|path| path.starts_with(TREE))
}

/// Carry out all of `changes` or none. Does nothing when there are none. Returns what had to stay, and why.
pub fn transaction(
    host: &Host,
    changes: &[Change],
    unit: Option<&Unit>,
    book: &Book,
    ui: &Ui,
    routes: &dyn Fn() -> Result<()>,
) -> Result<Vec<(Undo, String)>> {
    if changes.is_empty() {
        return Ok(Vec::new());
    }
    let files: Vec<&Change> =
        changes.iter().filter(|c| !matches!(c, Change::Make(Resource::Unit(_), _))).collect();
    let installed = host.is_live() && host.exists(Path::new("/usr/sbin/nginx"))?;
    let step = ui.step(format_args!("nginx: {}", summary(changes)));
    if installed && !files.is_empty() {
        step.detail("testing");
        stage(host, &files, book)?;
        if let Err(refused) = test(host) {
            host.remove_tree(Path::new(STAGE))?;
            book.note(Entry::Removed { path: STAGE.into() })?;
            return Err(refused)
                .or_try("mend the file nginx names, then run this again; what is served has not changed");
        }
        // After a kill between swap and proof, the tree to go back to is the one from before that swap.
        if !host.exists(Path::new(BEFORE))? {
            copy(host, TREE, BEFORE, book)?;
        }
    }
    let mut stays = Vec::new();
    for change in &files {
        stays.extend(apply(host, change, book)?);
    }
    if let Some(unit) = unit.filter(|_| installed) {
        unit.enable(host, book)?;
    }
    if installed {
        step.detail("loading");
        let proof = load(host, unit).and_then(|()| if unit.is_some() { routes() } else { Ok(()) });
        if let Err(broken) = proof {
            put_back(host, &files, book)?;
            let back = load(host, None);
            forget(host, book)?;
            let put_back = match back {
                Ok(()) => "the configuration from before is back".to_owned(),
                Err(e) => {
                    format!("the configuration from before is back, but nginx does not take it either: {e:#}")
                }
            };
            return Err(broken.context(format!("nginx did not serve with its new configuration; {put_back}")));
        }
        if let Some(unit) = unit {
            book.note(Entry::Loaded { what: unit.name.clone(), hash: unit.loading(host)? })?;
        }
        forget(host, book)?;
    }
    step.done();
    Ok(stays)
}

/// Take in what lies outside nginx's own tree (certificates), and prove it. A running nginx that refuses it keeps
/// what it has; putting that back on disk is the caller's matter.
pub fn take_in(host: &Host, unit: &Unit, book: &Book, proof: &dyn Fn() -> Result<()>) -> Result<()> {
    let loading = unit.loading(host)?;
    load(host, Some(unit))?;
    proof()?;
    book.note(Entry::Loaded { what: unit.name.clone(), hash: loading })
}

fn summary(changes: &[Change]) -> String {
    match changes {
        [Change::Make(Resource::Unit(_), why)] => why.clone(),
        [one] => one.to_string(),
        many => {
            let files = many.iter().filter(|c| !matches!(c, Change::Make(Resource::Unit(_), _))).count();
            format!("{files} files of its configuration")
        }
    }
}

/// Copy the live tree and make the changes in the copy.
fn stage(host: &Host, files: &[&Change], book: &Book) -> Result<()> {
    copy(host, TREE, STAGE, book)?;
    let staged = Host::new(host.path(Path::new(STAGE)), System);
    for change in files {
        let moved = |path: &Path| PathBuf::from("/").join(path.strip_prefix(TREE).unwrap_or(path));
        match change {
            Change::Make(Resource::File(file), _) => {
                staged.write(&moved(&file.path), file.mode, file.text.as_bytes())?;
            }
            Change::Make(Resource::Line(line), _) => line.stage(&staged, &moved(&line.path))?,
            Change::Undo(Undo::Line { path, line }) => drop(line::put_back(&staged, &moved(path), line)?),
            Change::Make(Resource::Link { path, target }, _) => staged.link(&moved(path), target)?,
            Change::Make(Resource::SetAside { path, .. }, _) => staged.remove(&moved(path))?,
            Change::Undo(undo @ (Undo::File(path) | Undo::Link(path)))
                if undo.fate(host, &book.receipt())? == Fate::Goes =>
            {
                staged.remove(&moved(path))?;
            }
            Change::Undo(Undo::Aside { path, target }) if host.exists(target)? => {
                staged.link(&moved(path), target)?
            }
            _ => {}
        }
    }
    Ok(())
}

fn copy(host: &Host, from: &str, to: &str, book: &Book) -> Result<()> {
    let to = Path::new(to);
    if !book.receipt().built.contains(to) {
        let dirs = super::resource::missing_dirs(host, to)?;
        book.note(Entry::Built { path: to.into(), dirs })?;
    }
    let half = to.with_extension("half");
    host.remove_tree(to)?;
    host.remove_tree(&half)?;
    host.make_dir(half.parent().context("a copy needs a directory")?)?;
    host.run(&Cmd::new("cp", ["-a", from, &half.display().to_string()]))?;
    host.rename(&half, to)
}

/// The copies have served.
fn forget(host: &Host, book: &Book) -> Result<()> {
    for copy in [BEFORE, STAGE].map(Path::new) {
        host.remove_tree(copy)?;
        book.note(Entry::Removed { path: copy.into() })?;
    }
    Ok(())
}

/// nginx's own test, with the staged tree bound over the real one in a mount namespace of its own: every path in
/// it, also Debian's absolute includes, is tested as it will be.
fn test(host: &Host) -> Result<()> {
    const IN_ITS_PLACE: &str = "mount --bind \"$1\" /etc/nginx && exec nginx -t -q";
    let stage = host.path(Path::new(STAGE)).display().to_string();
    let out = host.ask(&Cmd::new("unshare", ["--mount", "sh", "-c", IN_ITS_PLACE, "sh", &stage]))?;
    if !out.ok() {
        bail!("nginx refuses its new configuration: {}", complaint(&out.stderr));
    }
    Ok(())
}

/// What nginx found wrong, without its stamps: the first line that is no mere warning.
fn complaint(said: &str) -> String {
    let grave = |line: &&str| line.contains("[emerg]") || line.contains("[alert]") || line.contains("[crit]");
    let line = said.lines().find(grave).or(said.lines().last()).unwrap_or("it does not say why");
    line.split_once("] ").map_or(line, |(_, rest)| rest).trim().to_owned()
}

/// What had to stay after all, and why.
fn apply(host: &Host, change: &Change, book: &Book) -> Result<Option<(Undo, String)>> {
    let silent = Ui::new(true).step("");
    Ok(match change {
        Change::Make(resource, _) => {
            resource.make(host, book, &silent)?;
            None
        }
        Change::Undo(undo) => undo.undo(host, book, &silent)?.map(|why| (undo.clone(), why)),
    })
}

/// Take in what is in the tree now. A running nginx keeps the old configuration when it refuses the new one, and
/// says so only in its log: so test first.
fn load(host: &Host, unit: Option<&Unit>) -> Result<()> {
    let running = host.ask(&Cmd::new("systemctl", ["is-active", "--quiet", UNIT]))?.ok();
    if unit.is_none() && !running {
        return Ok(());
    }
    let test = host.ask(&Cmd::new("nginx", ["-t", "-q"]))?;
    if !test.ok() {
        bail!("nginx refuses its configuration: {}", complaint(&test.stderr));
    }
    host.ask(&Cmd::new("systemctl", ["reset-failed", UNIT]))?;
    let before = workers(host)?;
    raise_limit(host)?;
    host.run(&Cmd::new("systemctl", ["reload-or-restart", UNIT])).or_find(|| last_words(host, UNIT))?;
    // Until the old workers stop accepting, an answer may be the old configuration's.
    Patience::seconds(10).until(|| {
        let now = workers(host)?;
        let fresh = !now.is_empty() && now.iter().all(|worker| !before.contains(worker));
        ensure!(
            fresh,
            "nginx still answers with its old configuration 10 s after it was told to load the new one"
        );
        Ok(())
    })
}

/// Gives a running nginx the number of open files that its unit has now: its new workers get the old one's otherwise, until it
/// is started anew, which would drop connections.
fn raise_limit(host: &Host) -> Result<()> {
    let show = |what: &str| -> Result<String> {
        let out = host.ask(&Cmd::new("systemctl", ["show", "-p", what, "--value", UNIT]))?;
        Ok(out.stdout.trim().to_owned())
    };
    let (main, limit) = (show("MainPID")?, show("LimitNOFILE")?);
    if main != "0" && limit.parse::<u64>().is_ok() {
        let prlimit = |words: &[&str]| host.ask(&Cmd::new("prlimit", [&["--pid", &main], words].concat()));
        if !prlimit(&[&format!("--nofile={limit}:{limit}")])?.ok() {
            // A container's root may not go beyond what it was given; systemd then takes that as well.
            let most = prlimit(&["--nofile", "--output=HARD", "--noheadings", "--raw"])?.stdout;
            // What renews certificates may not do this, and need not: the limit is not what it has changed.
            prlimit(&[&format!("--nofile={most}:{most}", most = most.trim())])?;
        }
    }
    Ok(())
}

/// The processes that accept connections: children of nginx's main process that are not on their way out.
fn workers(host: &Host) -> Result<Vec<String>> {
    let main = host.ask(&Cmd::new("systemctl", ["show", "-p", "MainPID", "--value", UNIT]))?.stdout;
    let main = main.trim();
    let children =
        host.read_text(Path::new(&format!("/proc/{main}/task/{main}/children")))?.unwrap_or_default();
    let mut workers = Vec::new();
    for child in children.split_whitespace() {
        // A process that ends while we look has no title any more.
        let title =
            host.read_text(Path::new(&format!("/proc/{child}/cmdline"))).ok().flatten().unwrap_or_default();
        if title.starts_with("nginx: worker process") && !title.contains("shutting down") {
            workers.push(child.to_owned());
        }
    }
    Ok(workers)
}

/// Make every path of ours what it was before, and ours or not as it was before: those that changed, and, after a
/// kill between swap and proof, those that only the killed run changed.
fn put_back(host: &Host, files: &[&Change], book: &Book) -> Result<()> {
    let before = Host::new(host.path(Path::new(BEFORE)), System);
    let receipt = book.receipt();
    let Receipt { files: ours, links, aside, lines, .. } = &*receipt;
    let noted = ours.keys().chain(links.keys()).chain(aside.keys()).chain(lines.keys()).cloned();
    let changed = files.iter().filter_map(|change| match change {
        Change::Make(resource, _) => resource.path().map(Into::into),
        Change::Undo(undo) => undo.path().map(Into::into),
    });
    let paths: BTreeSet<PathBuf> = noted.chain(changed).filter(|path| is_nginx(Some(path))).collect();
    for path in paths {
        let was = PathBuf::from("/").join(path.strip_prefix(TREE).unwrap_or(&path));
        match before.meta(&was)? {
            None => {
                let again = files.iter().find_map(|change| match change {
                    Change::Undo(Undo::Aside { path: aside, target }) if *aside == path => {
                        Some(target.clone())
                    }
                    _ => None,
                });
                if let Some(target) = again {
                    book.note(Entry::SetAside { path: path.clone(), target })?;
                }
                host.remove(&path)?;
            }
            Some(meta) => match meta.kind {
                Kind::Link(target) => {
                    book.note(match book.receipt().aside.contains_key(&path) {
                        true => Entry::PutBack { path: path.clone() },
                        false => {
                            Entry::Linked { path: path.clone(), target: target.clone(), dirs: Vec::new() }
                        }
                    })?;
                    host.link(&path, &target)?;
                }
                _ => {
                    let bytes = before.read(&was)?.unwrap_or_default();
                    // Of such a file one line alone is ours. Where that was to go it is ours again.
                    let line = files.iter().find_map(|change| match change {
                        Change::Undo(Undo::Line { path: at, line }) if *at == path => Some(line.clone()),
                        _ => None,
                    });
                    if let Some(line) = line.as_ref().or(lines.get(&path)) {
                        if let Some(now) = line::standing(&before, &was, line)? {
                            book.note(Entry::Replaced { path: path.clone(), was: line.was.clone(), now })?;
                        }
                        host.write_owned(&path, meta.mode, Some((meta.uid, meta.gid)), &bytes)?;
                        continue;
                    }
                    // One that was to go was ours; one that somebody edited stays what it is, edited.
                    if !book.receipt().files.contains_key(&path) {
                        book.note(Entry::Wrote {
                            path: path.clone(),
                            hash: sha256(&bytes),
                            dirs: Vec::new(),
                        })?;
                    }
                    host.write_owned(&path, meta.mode, Some((meta.uid, meta.gid)), &bytes)?;
                }
            },
        }
    }
    Ok(())
}

/// The sites of others that claim to answer for every name, where ours must: `file:line` of each. Pure.
pub fn default_servers(file: &str, text: &str) -> Vec<String> {
    let claims = |line: &str| {
        let code = line.split('#').next().unwrap_or("").trim();
        let words: Vec<_> = code.trim_end_matches(';').split_whitespace().collect();
        words.first() == Some(&"listen")
            && words.iter().any(|w| matches!(*w, "default_server" | "default"))
            && words.get(1).is_some_and(|at| matches!(at.rsplit(':').next(), Some("80" | "443")))
    };
    text.lines()
        .enumerate()
        .filter(|(_, line)| claims(line))
        .map(|(n, _)| format!("{file}:{}", n + 1))
        .collect()
}

/// Which of others' sites stand in the way, by file and line.
pub fn rivals(host: &Host, ours: &dyn Fn(&Path) -> bool) -> Result<Vec<String>> {
    let mut rivals = Vec::new();
    for dir in ["/etc/nginx/conf.d", "/etc/nginx/sites-enabled"] {
        for name in host.list(Path::new(dir))? {
            let path = Path::new(dir).join(name);
            if !ours(&path)
                && let Some(text) = host.read_text(&path).unwrap_or_default()
            {
                rivals.extend(default_servers(&path.display().to_string(), &text));
            }
        }
    }
    Ok(rivals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rival_is_named_by_file_and_line() {
        let text = "server {\n  listen 80 default_server;\n  listen [::]:443 ssl default_server;\n  # listen 80 default_server;\n  listen 8080 default_server;\n}\n";
        assert_eq!(
            default_servers("/etc/nginx/sites-enabled/shop", text),
            ["/etc/nginx/sites-enabled/shop:2", "/etc/nginx/sites-enabled/shop:3"]
        );
    }

    #[test]
    fn nginx_complains_in_one_line() {
        let said = "nginx: [warn] old\nnginx: [emerg] unknown directive \"x\" in /etc/nginx/a:1\nnginx: configuration file /etc/nginx/nginx.conf test failed\n";
        assert_eq!(complaint(said), "unknown directive \"x\" in /etc/nginx/a:1");
    }
}
