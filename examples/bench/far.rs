//! A machine to send things to, on this one: its disk is a file system of its own, so that nobody else's writing is
//! synced with ours. It is reached as it is, over a link of so many bits a second (two network namespaces and tc), or
//! late, by way of somebody who passes everything on after a while.

use crate::note;
use anyhow::{Context as _, Result, ensure};
use std::{
    fs,
    io::{Read, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc::sync_channel,
    },
    thread,
    time::{Duration, Instant},
};
use time::OffsetDateTime;

/// What a good office's line brings, and the way to another region's data centre and back.
pub const MEGABITS: u64 = 200;
pub const ONE_WAY: Duration = Duration::from_millis(20);

/// Holders of namespaces go with us, however we go.
const TIED: [&str; 5] = ["setpriv", "--pdeathsig", "KILL", "--", "unshare"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Plain,
    /// 200 Mbit/s.
    Narrow,
    /// 20 ms each way.
    Late,
    /// Both, as a machine that is rented somewhere.
    Away,
}

impl Link {
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "loopback",
            Self::Narrow => "200 Mbit/s",
            Self::Late => "40 ms",
            Self::Away => "200 Mbit/s, 40 ms",
        }
    }
}

pub struct Far {
    pub dir: tempfile::TempDir,
    near: Child,
    holder: Child,
    sshds: Vec<Child>,
    links: Vec<(Link, SocketAddr)>,
    /// Cuts what goes over the narrow link.
    pub knife: Arc<Knife>,
}

impl Far {
    pub fn start() -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "only root has namespaces and mounts");
        // On a disk, and in nobody's checkout.
        let dir = tempfile::Builder::new().prefix("bench-far-").tempdir_in("/var/tmp")?;
        let at = |name: &str| dir.path().join(name);
        for name in ["far", "near"] {
            fs::create_dir(at(name))?;
        }
        sh(
            "cd \"$1\" && truncate -s 6G disk && mkfs.ext4 -q disk && for key in host user; do \
             ssh-keygen -q -t ed25519 -N '' -f $key; done",
            &[dir.path()],
        )?;
        // What a headquarters keeps is on its disk; sockets are not.
        let near = Command::new(TIED[0])
            .args(&TIED[1..])
            .args(["--mount", "--propagation", "private", "sh", "-c"])
            .arg("mount --bind \"$0/near\" /var/lib && mount -t tmpfs none /run && : > \"$0/near-ready\" && exec sleep 86400")
            .arg(dir.path())
            .spawn()?;
        let holder = Command::new(TIED[0])
            .args(&TIED[1..])
            .args(["--mount", "--net", "--propagation", "private", "sh", "-c"])
            .arg(
                "mount -o loop \"$0/disk\" \"$0/far\" && mount -t tmpfs none /run && mkdir /run/sshd && \
                  ip link set lo up && mkdir -p \"$0/far/home\" && : > \"$0/far-ready\" && exec sleep 86400",
            )
            .arg(dir.path())
            .spawn()?;
        let knife = Arc::new(Knife::default());
        let mut far = Self { dir, near, holder, sshds: vec![], links: vec![], knife };
        for ready in ["near-ready", "far-ready"] {
            until(ready, || far.at(ready).exists())?;
        }
        far.connect()?;
        Ok(far)
    }

    fn connect(&mut self) -> Result<()> {
        // Two addresses that nobody has, as the links' own.
        let id = std::process::id() % 250;
        let (here, there) = (format!("eb{id}a"), format!("eb{id}b"));
        let pid = self.holder.id().to_string();
        let script = format!(
            "ip link add {here} type veth peer name {there} netns {pid} && ip addr add 10.213.{id}.1/30 dev {here} && \
             ip link set {here} up && tc qdisc add dev {here} root tbf rate {MEGABITS}mbit burst 256kb latency 100ms && \
             nsenter --net --target {pid} sh -c 'ip addr add 10.213.{id}.2/30 dev {there} && ip link set {there} up && \
             tc qdisc add dev {there} root tbf rate {MEGABITS}mbit burst 256kb latency 100ms'"
        );
        sh(&script, &[])?;
        let plain = self.sshd("127.0.0.1", &["--mount"])?;
        let narrow = self.sshd(&format!("10.213.{id}.2"), &["--mount", "--net"])?;
        let cut = pass(narrow, Duration::ZERO, None, Some(Arc::clone(&self.knife)))?;
        let late = pass(plain, ONE_WAY, None, None)?;
        // PyPI is not reached from the other network namespace: there, the passing on is as slow as the link.
        let away = pass(plain, ONE_WAY, Some(MEGABITS * 1_000_000 / 8), None)?;
        self.links = vec![(Link::Plain, plain), (Link::Narrow, cut), (Link::Late, late), (Link::Away, away)];
        let host = fs::read_to_string(self.at("host.pub"))?;
        let known = self.links.iter().map(|(_, at)| format!("[{}]:{} {host}", at.ip(), at.port()));
        fs::write(self.at("known"), known.collect::<String>())?;
        Ok(())
    }

    /// One on a free port of that address. Everybody who comes lives on the machine's own disk.
    fn sshd(&mut self, ip: &str, spaces: &[&str]) -> Result<SocketAddr> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        // How this host reaches its packages, the machine does too.
        let kept = ["PIP_", "UV_", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE"];
        let env = std::env::vars().filter(|(name, _)| kept.iter().any(|one| name.starts_with(one)));
        let env: String = env.map(|(name, value)| format!(" \"{name}={value}\"")).collect();
        let config = format!(
            "Port {port}\nListenAddress {ip}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
             PermitRootLogin yes\nPidFile none\nMaxStartups 100\nSubsystem sftp internal-sftp\n\
             SetEnv HOME={}{env}\n",
            self.at("host").display(),
            self.at("user.pub").display(),
            self.home().display(),
        );
        let path = self.at(&format!("sshd-{ip}"));
        fs::write(&path, config)?;
        let holder = self.holder.id().to_string();
        let child = Command::new("nsenter")
            .args(spaces)
            .args(["--target", &holder, "/usr/sbin/sshd", "-D", "-f"])
            .arg(&path)
            .spawn()?;
        self.sshds.push(child);
        let at: SocketAddr = format!("{ip}:{port}").parse()?;
        until("sshd", || TcpStream::connect(at).is_ok())?;
        Ok(at)
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where those who come live, by its path over there.
    pub fn home(&self) -> PathBuf {
        self.at("far/home")
    }

    /// A path over there, as it is seen from here.
    pub fn seen(&self, path: &Path) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{}", self.holder.id(), path.display()))
    }

    /// Likewise, of the headquarters.
    pub fn seen_near(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.near.id()))
    }

    pub fn address(&self, link: Link) -> SocketAddr {
        self.links.iter().find(|(one, _)| *one == link).map(|(_, at)| *at).expect("all links are there")
    }

    /// A command as the headquarters.
    pub fn near(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--mount", "--target", &self.near.id().to_string()])
            .arg(program)
            .env_remove("SUDO_USER");
        command
    }

    /// ssh as a person's configuration has it, for this link: one connection for each command.
    pub fn ssh(&self, link: Link, program: &str) -> String {
        format!(
            "{program} -F none -o BatchMode=yes -o StrictHostKeyChecking=yes -o IdentitiesOnly=yes \
             -o UserKnownHostsFile={} -i {} {} {}",
            self.at("known").display(),
            self.at("user").display(),
            if program == "scp" { "-P" } else { "-p" },
            self.address(link).port(),
        )
    }

    /// Nothing is on the machine. Not timed.
    pub fn emptied(&self) -> Result<()> {
        let home = self.seen(&self.home());
        sh("find \"$1\" -mindepth 1 -delete && sync -f \"$1\"", &[&home])
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        for child in self.sshds.iter_mut().chain([&mut self.near, &mut self.holder]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn until(what: &str, seen: impl Fn() -> bool) -> Result<()> {
    let since = Instant::now();
    while !seen() {
        ensure!(since.elapsed() < Duration::from_secs(20), "{what} did not come");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// A few lines of shell that must succeed.
pub fn sh(script: &str, arguments: &[&Path]) -> Result<()> {
    let out = Command::new("sh").args(["-c", script, "sh"]).args(arguments).output()?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "`{script}` ended in {}: {said}", out.status);
    Ok(())
}

/// Ends connections once so many bytes have gone there.
#[derive(Default)]
pub struct Knife {
    left: AtomicU64,
    cut: Mutex<Option<(Instant, OffsetDateTime)>>,
}

impl Knife {
    pub fn after(&self, bytes: u64) {
        *self.cut.lock().expect("nobody panics with it") = None;
        self.left.store(bytes, Ordering::SeqCst);
    }

    pub fn cut(&self) -> Option<(Instant, OffsetDateTime)> {
        *self.cut.lock().expect("nobody panics with it")
    }

    /// Whether that was too much, this once.
    fn takes(&self, bytes: usize) -> bool {
        let left = self.left.load(Ordering::SeqCst);
        let after = left.saturating_sub(bytes as u64);
        self.left.store(after, Ordering::SeqCst);
        let cuts = left > 0 && after == 0;
        if cuts {
            *self.cut.lock().expect("nobody panics with it") =
                Some((Instant::now(), OffsetDateTime::now_utc()));
        }
        cuts
    }
}

/// Pass on what comes, later and at a pace. A connection itself takes the way there and back first.
fn pass(
    to: SocketAddr,
    delay: Duration,
    bytes_a_second: Option<u64>,
    knife: Option<Arc<Knife>>,
) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let at = listener.local_addr()?;
    thread::spawn(move || {
        for here in listener.incoming().flatten() {
            let knife = knife.clone();
            let begin = || -> Result<()> {
                let there = TcpStream::connect(to).context("connecting")?;
                here.set_nodelay(true)?;
                there.set_nodelay(true)?;
                let pace = Pace { delay, bytes_a_second, knife };
                let back = Pace { knife: None, ..pace.clone() };
                flow(there.try_clone()?, here.try_clone()?, back, Instant::now());
                flow(here, there, pace, Instant::now() + delay * 2);
                Ok(())
            };
            if let Err(error) = begin() {
                note(&format!("passing on to {to}: {error:#}"));
            }
        }
    });
    Ok(at)
}

#[derive(Clone)]
struct Pace {
    delay: Duration,
    bytes_a_second: Option<u64>,
    knife: Option<Arc<Knife>>,
}

fn flow(mut from: TcpStream, mut to: TcpStream, pace: Pace, mut free: Instant) {
    // 64 MiB under way at most: more than 200 Mbit/s for a second.
    let (late, due) = sync_channel::<(Instant, Vec<u8>)>(1024);
    let ends = (from.try_clone(), to.try_clone());
    thread::spawn(move || {
        let mut bytes = vec![0; 64 << 10];
        while let Ok(n @ 1..) = from.read(&mut bytes) {
            if pace.knife.as_ref().is_some_and(|knife| knife.takes(n)) {
                for end in [&ends.0, &ends.1].into_iter().flatten() {
                    let _ = end.shutdown(Shutdown::Both);
                }
                return;
            }
            let takes = pace.bytes_a_second.map(|rate| Duration::from_secs_f64(n as f64 / rate as f64));
            free = free.max(Instant::now()) + takes.unwrap_or_default();
            if late.send((free + pace.delay, bytes[..n].to_vec())).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (when, bytes) in due {
            thread::sleep(when.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
}
