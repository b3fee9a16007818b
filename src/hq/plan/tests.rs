//! The loop on real files in a temporary root, with the real `systemctl --root`.

use super::*;
use crate::{
    config::Config,
    hash::sha256,
    host::{Cmd, Exec, Output, System},
    hq::{
        blueprint::{Site, blueprint},
        machine::Machine,
        receipt::Entry,
        service::Service,
    },
};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

/// What of a headquarters can be made in an image: files, links and enabled units.
fn hq(domain: &str, services: &[Service]) -> Vec<Resource> {
    let set = [crate::config::Setting::new("domain", domain).unwrap()];
    let config = Config::parse(Path::new("test"), "", &set).unwrap();
    let machine = Machine {
        nginx: (1, 22),
        python: (3, 11),
        ipv6: true,
        metadata: Vec::new(),
        program: "/usr/bin/echoes-appliance".into(),
        build: "1".into(),
    };
    let services = services.iter().copied().collect();
    let site = Site { config: &config, machine: &machine, services: &services, disk: None };
    let mut all = blueprint(&site).unwrap();
    all.retain(|r| match r {
        Resource::File(_) | Resource::Link { .. } => true,
        Resource::Unit(unit) => unit.name != nginx::UNIT,
        _ => false,
    });
    all
}

fn install_with(host: &Host, wanted: &[Resource], take: &Take) -> Result<Done> {
    let book = Book::at_once(host)?;
    let work = Work { host, take, sweep: Sweep::Unwanted, ui: &Ui::new(true), routes: &|| Ok(()) };
    work.converge(wanted, &book)
}

fn install(host: &Host, wanted: &[Resource]) -> Result<Done> {
    install_with(host, wanted, &Take::default())
}

/// What a plan would say now.
fn planned(host: &Host, wanted: &[Resource]) -> Vec<String> {
    let receipt = Receipt::read(host).unwrap();
    let seen = look(host, wanted, &receipt).unwrap();
    let changes = plan(wanted, &seen, &receipt, &Take::default(), Sweep::Unwanted);
    changes.iter().map(ToString::to_string).collect()
}

fn root() -> (tempfile::TempDir, Host) {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new(dir.path(), System);
    (dir, host)
}

const SITE: &str = "/etc/nginx/sites-available/echoes-mlflow.conf";

#[test]
fn the_second_install_has_nothing_to_do() {
    let (_dir, host) = root();
    let wanted = hq("a.example", &Service::ALL);
    assert_eq!(install(&host, &wanted).unwrap().changes, wanted.len());
    assert_eq!(install(&host, &wanted).unwrap().changes, 0);
    let site = host.read_text(Path::new(SITE)).unwrap().unwrap();
    assert!(site.contains("server_name mlflow.a.example;"), "{site}");
}

#[test]
fn a_new_domain_touches_what_names_it() {
    let (_dir, host) = root();
    install(&host, &hq("a.example", &Service::ALL)).unwrap();
    let planned = planned(&host, &hq("b.example", &Service::ALL));
    assert!(planned.contains(&format!("file {SITE}: differs")), "{planned:?}");
    assert!(
        planned.iter().any(|p| p.starts_with("unit mlflow.service:")),
        "MLflow checks the name: {planned:?}"
    );
    assert!(
        !planned.iter().any(|p| p.contains("snippets/") || p.contains("unit tensorboard")),
        "{planned:?}"
    );
}

#[test]
fn a_service_dropped_goes_and_the_others_stay() {
    let (_dir, host) = root();
    install(&host, &hq("a.example", &Service::ALL)).unwrap();
    let fewer = hq("a.example", &[Service::Mlflow]);
    install(&host, &fewer).unwrap();
    assert!(!host.exists(Path::new("/etc/systemd/system/docs.service")).unwrap());
    assert!(!host.exists(Path::new("/etc/nginx/sites-enabled/echoes-docs.conf")).unwrap());
    assert!(host.exists(Path::new(SITE)).unwrap());
    assert_eq!(planned(&host, &fewer), [""; 0]);
}

#[test]
fn uninstall_is_converging_on_nothing() {
    let (_dir, host) = root();
    install(&host, &hq("a.example", &Service::ALL)).unwrap();
    host.write(Path::new(SITE), 0o644, b"mine").unwrap();
    let done = install(&host, &[]).unwrap();
    assert_eq!(done.stays, [(Undo::File(SITE.into()), "edited since we wrote it".into())]);
    assert_eq!(host.list(Path::new("/etc/nginx/sites-available")).unwrap(), ["echoes-mlflow.conf"]);
    assert_eq!(host.list(Path::new("/etc/systemd/system")).unwrap(), [""; 0]);
    assert!(Receipt::read(&host).unwrap().is_empty());
    assert_eq!(install(&host, &[]).unwrap().changes, 0);
}

#[test]
fn settings_that_a_flag_wrote_stay_as_long_as_anything_does() {
    let (_dir, host) = root();
    let path = Path::new(crate::config::PATH);
    let note = Entry::Wrote { path: path.into(), hash: sha256(b"x"), dirs: vec![] };
    Book::at_once(&host).unwrap().note(note).unwrap();
    host.write(path, 0o640, b"x").unwrap();
    install(&host, &hq("a.example", &[Service::Docs])).unwrap();
    assert!(host.exists(path).unwrap());
    install(&host, &[]).unwrap();
    assert!(!host.exists(path).unwrap());
}

#[test]
fn what_is_not_ours_is_not_touched() {
    let (_dir, host) = root();
    host.write(Path::new(SITE), 0o644, b"theirs").unwrap();
    let err = install(&host, &hq("a.example", &Service::ALL)).unwrap_err();
    assert!(format!("{err:#}").contains(&format!("{SITE} is there already")), "{err:#}");
    assert_eq!(host.read(Path::new(SITE)).unwrap().unwrap(), b"theirs");
    assert!(!host.exists(Path::new("/etc/systemd/system/mlflow.service")).unwrap(), "nothing was begun");
}

#[test]
fn an_edit_is_kept_until_it_is_taken() {
    let (_dir, host) = root();
    let wanted = hq("a.example", &Service::ALL);
    install(&host, &wanted).unwrap();
    host.write(Path::new(SITE), 0o644, b"edited").unwrap();
    assert_eq!(install(&host, &wanted).unwrap().edited, [Path::new(SITE)]);
    assert_eq!(host.read(Path::new(SITE)).unwrap().unwrap(), b"edited");
    let take = Take { all: false, paths: [SITE.into()].into() };
    assert_eq!(install_with(&host, &wanted, &take).unwrap().changes, 1);
    assert_eq!(planned(&host, &wanted), [""; 0]);
}

#[test]
fn a_crash_between_note_and_write_still_uninstalls() {
    let (_dir, host) = root();
    install(&host, &hq("a.example", &Service::ALL)).unwrap();
    let never = Entry::Wrote { path: SITE.into(), hash: sha256(b"never written"), dirs: vec![] };
    Book::at_once(&host).unwrap().note(never).unwrap();
    install(&host, &[]).unwrap();
    assert!(!host.exists(Path::new(SITE)).unwrap());
}

#[test]
fn the_receipt_may_be_cut_at_any_line() {
    let (_dir, host) = root();
    let wanted = hq("a.example", &[Service::Docs]);
    install(&host, &wanted).unwrap();
    let path = Path::new(super::super::receipt::PATH);
    let whole = host.read_text(path).unwrap().unwrap();
    for cut in 0..whole.lines().count() {
        let (_dir, host) = root();
        let lines: Vec<_> = whole.lines().take(cut).collect();
        // The machine is where the crash left it: all that was noted was done, but for the last.
        let text = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        host.write(path, 0o600, text.as_bytes()).unwrap();
        install(&host, &wanted).unwrap();
        assert_eq!(planned(&host, &wanted), [""; 0], "cut at {cut}");
        install(&host, &[]).unwrap();
        assert!(Receipt::read(&host).unwrap().is_empty(), "cut at {cut}");
    }
}

/// Fails at the n-th command, as a power cut would.
struct Fuse(Arc<AtomicU32>);

impl Exec for Fuse {
    fn exec(&self, cmd: &Cmd, say: &mut dyn FnMut(&str)) -> Result<Output> {
        let left = self.0.load(Relaxed);
        anyhow::ensure!(left > 0, "cut");
        self.0.store(left - 1, Relaxed);
        System.exec(cmd, say)
    }
}

#[test]
fn an_install_cut_short_is_finished_by_the_next() {
    let wanted = hq("a.example", &Service::ALL);
    for fuse in 0.. {
        let (dir, host) = root();
        let left = Arc::new(AtomicU32::new(fuse));
        let cut = install(&Host::new(dir.path(), Fuse(Arc::clone(&left))), &wanted);
        install(&host, &wanted).unwrap();
        assert_eq!(planned(&host, &wanted), [""; 0], "fuse {fuse}");
        if cut.is_ok() {
            return;
        }
    }
}
