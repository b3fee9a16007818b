//! The lab itself: what other tests rely on when they boot a machine. Where no machine can be booted these
//! say so and pass, because they are about this host's lab and not about the appliance.

use anyhow::{Context as _, Result, ensure};
use kit::lab::{Disk, Lab, Layer, Machine, Options, Release, differences};
use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

/// False, loudly, where machines cannot be booted.
fn can_boot() -> bool {
    Lab::available()
        .inspect_err(|missing| eprintln!("SKIPPED, no machine can be booted here:\n{missing}"))
        .is_ok()
}

/// The same story on each release, with the time that each part took.
fn on_each(story: impl Fn(Release) -> Result<()>) -> Result<()> {
    if !can_boot() {
        return Ok(());
    }
    Release::ALL.into_iter().try_for_each(|release| story(release).with_context(|| format!("on {release}")))
}

fn timed<T>(what: &str, release: Release, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let done = act()?;
    eprintln!("{release}: {what} {:.2} s", start.elapsed().as_secs_f64());
    Ok(done)
}

#[test]
fn a_machine_boots_clean_reboots_and_keeps_what_it_has() -> Result<()> {
    on_each(|release| {
        timed("base tree", release, || release.base())?;
        let mut machine = timed("boot", release, || Machine::boot(release))?;
        assert_eq!(machine.ok("systemctl --failed --no-legend"), "");
        assert_eq!(machine.state(), "running");
        machine.put(b"x", "/etc/kept", 0o640)?;
        machine.ok("touch /run/lost");
        let boot_id = machine.ok("cat /proc/sys/kernel/random/boot_id");
        timed("reboot", release, || machine.reboot())?;
        assert_ne!(machine.ok("cat /proc/sys/kernel/random/boot_id"), boot_id);
        assert_eq!(machine.ok("stat -c %a /etc/kept"), "640\n");
        assert_eq!(machine.exec("test -e /run/lost").code, 1);
        assert_eq!(machine.state(), "running");
        ensure!(
            machine.ok("journalctl --no-pager -n 200").contains("systemd"),
            "journald has nothing to say"
        );
        Ok(())
    })
}

#[test]
fn a_command_gives_its_status_both_streams_and_takes_input() -> Result<()> {
    if !can_boot() {
        return Ok(());
    }
    let mut machine = Machine::boot(Release::Bookworm)?;
    let out = machine.exec_fed("cat; echo two >&2; exit 3", b"one\n");
    assert_eq!((out.code, out.stdout.as_str(), out.stderr.as_str()), (3, "one\n", "two\n"));
    assert_eq!(machine.exec("kill -9 $$").code, 137);
    let dir = tempfile::tempdir()?;
    let (there, back) = (dir.path().join("there"), dir.path().join("back"));
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[(n % 3) as usize]).collect();
    std::fs::write(&there, &bytes)?;
    machine.push(&there, "/opt/a b/it's", 0o755)?;
    machine.pull("/opt/a b/it's", &back)?;
    assert_eq!(std::fs::read(&back)?, bytes);
    machine.power_cut()?;
    assert_eq!((machine.exec("true").code, machine.state().as_str()), (255, "off"));
    machine.start()?;
    assert_eq!(machine.ok("stat -c %a /opt/a\\ b/it*"), "755\n");
    Ok(())
}

#[test]
fn sandboxed_units_start_and_are_held_to_it() -> Result<()> {
    on_each(|release| {
        let machine = Machine::boot(release)?;
        let unit = "[Service]\nType=oneshot\nRemainAfterExit=yes\nDynamicUser=yes\nProtectSystem=strict\n\
            ProtectHome=yes\nPrivateTmp=yes\nPrivateDevices=yes\nProtectKernelTunables=yes\nProtectKernelModules=yes\n\
            ProtectControlGroups=yes\nProtectClock=yes\nProtectHostname=yes\nProtectKernelLogs=yes\n\
            RestrictNamespaces=yes\nRestrictAddressFamilies=AF_INET AF_UNIX\nNoNewPrivileges=yes\n\
            SystemCallFilter=@system-service\nSystemCallErrorNumber=EPERM\nMemoryDenyWriteExecute=yes\n\
            LockPersonality=yes\nCapabilityBoundingSet=\nStateDirectory=caged\nMemoryMax=100M\nTasksMax=50\n\
            ExecStart=/bin/sh -c 'touch /var/lib/caged/yes; touch /tmp/mine; touch /etc/no; ls /dev/disk; unshare -U true; true'\n";
        machine.put(unit.as_bytes(), "/etc/systemd/system/caged.service", 0o644)?;
        machine.ok("systemctl daemon-reload && systemctl start caged");
        machine.ok("test -e /var/lib/caged/yes");
        assert_eq!(machine.exec("ls /etc/no /tmp/mine").stdout, "");
        let said = machine.ok("journalctl -u caged --no-pager -o cat");
        for refused in ["'/etc/no': Read-only", "'/dev/disk'", "unshare failed"] {
            ensure!(said.contains(refused), "{refused} is not in:\n{said}");
        }
        Ok(())
    })
}

#[test]
fn packages_come_from_the_registries_and_nginx_answers_the_host() -> Result<()> {
    on_each(|release| {
        let machine = Machine::boot(release)?;
        machine.ok("apt-get update");
        machine.ok(
            "DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends nginx python3-venv",
        );
        let mut page = String::new();
        let mut door = TcpStream::connect((machine.ip(), 80))?;
        door.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        door.read_to_string(&mut page)?;
        ensure!(page.starts_with("HTTP/1.1 200") && page.contains("nginx"), "{page}");
        let mut door = TcpStream::connect((machine.ip6(), 80))?;
        door.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        machine
            .ok("python3 -m venv /opt/v && /opt/v/bin/pip install six && /opt/v/bin/python -c 'import six'");
        Ok(())
    })
}

#[test]
fn machines_run_side_by_side_and_reach_each_other() -> Result<()> {
    if !can_boot() {
        return Ok(());
    }
    let one = Machine::boot(Release::Bookworm)?;
    let two = Machine::boot(Release::Trixie)?;
    let banner = |from: &Machine, to: &Machine| {
        from.ok(&format!(
            "python3 -c 'import socket; print(socket.create_connection((\"{}\", 22), 5).recv(3))'",
            to.ip()
        ))
    };
    assert_eq!((banner(&one, &two).as_str(), banner(&two, &one).as_str()), ("b'SSH'\n", "b'SSH'\n"));
    assert_ne!(one.ip(), two.ip());
    Ok(())
}

#[test]
fn a_disk_is_mounted_at_boot_moves_to_another_machine_and_may_be_missing() -> Result<()> {
    on_each(|release| {
        let options = Options { disks: vec![Disk::blank(64)?, Disk::blank(64)?], ..Options::default() };
        let mut first = Machine::with(release, options)?;
        let blank = first.disk(1).context("there are two")?.sha256()?;
        first.ok("mkfs.ext4 -q -L data /dev/disk/azure/scsi1/lun0");
        let uuid = first.ok("blkid -p -o value -s UUID /dev/disk/azure/scsi1/lun0").trim().to_owned();
        let link = format!("/dev/disk/by-uuid/{uuid}");
        let seen = format!("until [ -e {link} ]; do sleep 0.1; done");
        first.ok(&format!("timeout 5 sh -c '{seen}'"));
        // What the host has is not seen; what we have is, with what is on it.
        assert_eq!(first.ok("lsblk -ndro FSTYPE,LABEL"), "ext4 data\n \n");
        let unit = format!(
            "[Mount]\nWhat={link}\nWhere=/mnt/data\nType=ext4\nOptions=nofail,x-systemd.device-timeout=5s\n\
             [Install]\nWantedBy=local-fs.target\n"
        );
        let mount = |machine: &Machine| -> Result<()> {
            machine.put(unit.as_bytes(), "/etc/systemd/system/mnt-data.mount", 0o644)?;
            machine.ok("systemctl daemon-reload && systemctl enable --now mnt-data.mount");
            Ok(())
        };
        mount(&first)?;
        first.ok("echo mine >/mnt/data/file");
        first.reboot()?;
        assert_eq!(first.ok("cat /mnt/data/file"), "mine\n");

        first.stop()?;
        let disk = first.detach_disk(0)?;
        assert_eq!(first.disk(1).context("one is left")?.sha256()?, blank);
        first.start()?;
        assert_eq!(first.state(), "degraded");
        assert_eq!(first.exec("findmnt /mnt/data").code, 1);
        first.ok("systemctl is-active ssh");

        let mut second = Machine::make(release, Options::default())?;
        second.attach_disk(3, disk)?;
        second.start()?;
        mount(&second)?;
        assert_eq!(
            second.ok("cat /mnt/data/file; readlink -f /dev/disk/azure/scsi1/lun3 | cut -c1-9"),
            "mine\n/dev/loop\n"
        );
        Ok(())
    })
}

#[test]
fn a_snapshot_is_booted_by_others_and_none_sees_the_others_changes() -> Result<()> {
    on_each(|release| {
        let mut maker = Machine::boot(release)?;
        maker.ok("echo layer >/etc/layer; rm /etc/issue; mv /usr/share/doc /usr/share/papers");
        let layer = timed("snapshot", release, || maker.snapshot())?;
        let on_it = || Options { layer: Some(layer.clone()), ..Options::default() };
        let one = timed("boot from a snapshot", release, || Machine::with(release, on_it()))?;
        let two = Machine::with(release, on_it())?;
        maker.start()?;
        one.ok("echo one >/etc/layer");
        for machine in [&two, &maker] {
            let said = machine.ok("cat /etc/layer; ls /etc/issue 2>&1 || true; ls -d /usr/share/papers/apt /usr/share/doc 2>&1 || true");
            ensure!(
                said.starts_with("layer\n")
                    && said.contains("papers/apt")
                    && said.matches("No such file").count() == 2,
                "{said}"
            );
        }
        Ok(())
    })
}

#[test]
fn a_manifest_names_every_difference_and_no_other() -> Result<()> {
    if !can_boot() {
        return Ok(());
    }
    let machine = Machine::boot(Release::Bookworm)?;
    let before = machine.manifest()?;
    ensure!(before.len() > 3000 && before["/etc/shadow"].mode == 0o640, "this is no root file system");
    machine.ok("cd /srv && echo new >file && ln -s file link && chmod 600 /etc/issue && rm /etc/motd && touch /run/no /tmp/no");
    let all = differences(&before, &machine.manifest()?);
    let short: Vec<_> = all
        .iter()
        .filter(|l| !l.contains("/var/log/"))
        .map(|l| l.split(':').next().unwrap_or_default())
        .collect();
    assert_eq!(short, ["~ /etc/issue", "- /etc/motd", "+ /srv/file", "+ /srv/link"]);
    Ok(())
}

#[test]
fn nothing_is_left_of_a_machine_even_after_a_panic() -> Result<()> {
    if !can_boot() {
        return Ok(());
    }
    let name = mine("shortlived");
    let options = Options { name: Some(name.clone()), disks: vec![Disk::blank(8)?], ..Options::default() };
    let machine = Machine::with(Release::Bookworm, options)?;
    let dir = machine.root().parent().context("it has one")?.to_owned();
    let device = machine.disk(0).context("it has one")?.device().to_owned();
    let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        machine.ok("echo out; echo err >&2; exit 4");
    }));
    let said = died.expect_err("ok() panics when a command fails");
    let said = said.downcast_ref::<String>().cloned().unwrap_or_default();
    for word in [name.as_str(), "ended with 4", "out\n", "err\n", "--- journal"] {
        ensure!(said.contains(word), "{word} is not in:\n{said}");
    }
    assert_gone(&name, &dir, &device)
}

/// A name that no other run of these tests gives its machine.
fn mine(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

/// What the next test tells the process that it kills.
const ORPHAN: &str = "ECHOES_LAB_ORPHAN";

/// Started by the next test in a process of its own, to be killed.
#[test]
#[ignore = "waits for ever; another test runs it and kills it"]
fn victim() -> Result<()> {
    let name = std::env::var(ORPHAN)?;
    let options = Options { name: Some(name), disks: vec![Disk::blank(8)?], ..Options::default() };
    let machine = Machine::with(Release::Bookworm, options)?;
    println!("device {}", machine.disk(0).context("it has one")?.device().display());
    std::thread::sleep(Duration::from_secs(600));
    Ok(())
}

#[test]
fn what_a_killed_test_left_is_swept_by_the_next_and_the_living_are_spared() -> Result<()> {
    if !can_boot() {
        return Ok(());
    }
    let alive = Machine::boot(Release::Bookworm)?;
    let name = mine("orphan");
    let mut victim = Command::new(std::env::current_exe()?)
        .env(ORPHAN, &name)
        .args(["--ignored", "--exact", "machines::victim", "--nocapture"])
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let mut said = std::io::BufReader::new(victim.stdout.take().context("it was asked for")?);
    let mut line = String::new();
    while !line.contains("device ") {
        line.clear();
        ensure!(std::io::BufRead::read_line(&mut said, &mut line)? > 0, "the victim did not boot");
    }
    let device = line.split_once("device ").context("just seen")?.1.trim().to_owned();
    // No story beside this one sweeps meanwhile.
    let gate = std::fs::File::options().append(true).open("/var/cache/echoes-lab/gate")?;
    gate.lock()?;
    victim.kill()?;
    victim.wait()?;
    let orphan = Machine::find(&name)?;
    assert_eq!(orphan.state(), "running");
    drop(gate);

    let next = Machine::boot(Release::Bookworm)?;
    let dir = orphan.root().parent().context("it has one")?.to_owned();
    assert_gone(&name, &dir, Path::new(&device))?;
    assert_eq!((alive.state(), next.state()), ("running".into(), "running".into()));
    Ok(())
}

#[test]
fn a_cached_layer_is_made_once_for_a_key() -> Result<()> {
    if !can_boot() {
        return Ok(());
    }
    // A key of this run's own, so that the first is really the first.
    let key = format!("{:?}", std::time::SystemTime::now());
    let made = std::cell::Cell::new(0);
    let get = |key: &str| {
        Layer::cached(Release::Bookworm, "labstory", key, |machine| {
            made.set(made.get() + 1);
            machine.ok("echo cached >/etc/cached");
            Ok(())
        })
    };
    let layer = get(&key)?;
    let again = get(&key)?;
    assert_eq!(made.get(), 1);
    let machine = Machine::with(Release::Bookworm, Options { layer: Some(again), ..Options::default() })?;
    assert_eq!(machine.ok("cat /etc/cached"), "cached\n");
    // The old one is in use, so a new key does not take it away.
    let _newer = get(&format!("{key} newer"))?;
    assert_eq!(made.get(), 2);
    assert_eq!(machine.ok("cat /etc/cached"), "cached\n");
    drop(layer);
    Ok(())
}

fn assert_gone(name: &str, dir: &Path, device: &Path) -> Result<()> {
    ensure!(!dir.exists(), "{} is still there", dir.display());
    ensure!(
        !Path::new("/run/netns").join(format!("echoes-lab-{name}")).exists(),
        "its network is still there"
    );
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    ensure!(!mounts.contains(&format!("machines/{name}/")), "still mounted");
    let groups =
        Command::new("find").args(["/sys/fs/cgroup", "-path", &format!("*/echoes-lab/{name}")]).output()?;
    ensure!(groups.stdout.is_empty(), "its cgroup is still there");
    // The number may already be another's; then it has another file behind it.
    let behind = Command::new("losetup").args(["-n", "-O", "BACK-FILE"]).arg(device).output()?;
    let behind = String::from_utf8_lossy(&behind.stdout).into_owned();
    ensure!(!behind.contains("(deleted)"), "{} still has {behind}", device.display());
    Ok(())
}
