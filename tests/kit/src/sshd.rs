//! Machines of the simulated Azure that are this one, each behind a real sshd with the key that it was given at its first
//! start, at an address of its own on loopback, in the namespace of the story.

use crate::{
    cloud::{Metal, Order},
    here::Here,
    process::CompletedProcess,
};
use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

/// Who gets between headquarters and a machine, by its id and its place: Azure tells of this address instead.
pub type Between = Box<dyn Fn(&str, SocketAddrV4) -> Ipv4Addr + Send + Sync>;

/// What Azure hands down to a machine is given to an sshd in the namespace of the story.
pub struct Sshd {
    program: &'static str,
    holder: u32,
    dir: PathBuf,
    /// The same for all.
    pub port: u16,
    via: Option<Between>,
    on: Mutex<BTreeMap<String, Child>>,
    /// What a machine's clone is a copy of, where headquarters has a data disk.
    pub image: Mutex<Option<PathBuf>>,
    /// What is on the disk of a machine that has just come, below its admin's home.
    pub brought: Mutex<Option<PathBuf>>,
    /// How many there ever were.
    count: AtomicU8,
}

impl Sshd {
    /// None, and said so, where it cannot be had. Azure makes the admin; here he is another name of root's.
    pub fn new(here: &Here, via: Option<Between>) -> Option<Arc<Self>> {
        Self::made(here, via, 0)
    }

    /// Makes the admin this user, who is not root and cannot become it.
    pub fn of_a_person(here: &Here, id: u32) -> Option<Arc<Self>> {
        Self::made(here, None, id)
    }

    fn made(here: &Here, via: Option<Between>, id: u32) -> Option<Arc<Self>> {
        let program = program("experiments at Azure")?;
        let holder = here.holder.id();
        here.add_person("echoes", id);
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (dir, on, count) = (here.dir.path().into(), Mutex::default(), AtomicU8::new(0));
        let (image, brought) = (Mutex::default(), Mutex::default());
        Some(Arc::new(Self { program, holder, dir, port, via, on, image, brought, count }))
    }

    /// Where the machine is that was made as the `n`th, from 1.
    pub fn address(n: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, 0, 1, n)
    }

    /// What machines have in the place of our agent, from their first start.
    pub fn bring_agent(&self, here: &Here, text: &str) {
        let hash = CompletedProcess::run(Command::new("sha256sum").arg(here.program));
        let disk = here.path("disk");
        let bin = disk.join(".echoes/bin").join(&hash.stdout[..64]);
        fs::create_dir_all(&bin).unwrap();
        let program = bin.join("echoes-appliance");
        let text = text.replace("@REAL@", here.program).replace("@DIR@", here.dir.path().to_str().unwrap());
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        *self.brought.lock().unwrap() = Some(disk);
    }

    fn start(&self, order: &Order, n: u8) -> Child {
        let dir = self.dir.join(format!("machine{n}"));
        fs::create_dir_all(&dir).unwrap();
        let at = |name: &str| dir.join(name).display().to_string();
        let data = String::from_utf8(order.custom_data.clone().unwrap()).unwrap();
        let key = data.lines().find_map(|line| line.trim().strip_prefix("ed25519_private: ")).unwrap();
        fs::write(at("host"), serde_json::from_str::<String>(key).unwrap()).unwrap();
        fs::set_permissions(at("host"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(at("authorized"), order.public_keys.join("\n") + "\n").unwrap();
        assert_eq!(order.admin, "echoes");
        self.clone_disk(&data);
        let config = format!(
            "Port {}\nListenAddress {}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
             PermitRootLogin yes\nPidFile none\n",
            self.port,
            Self::address(n),
            at("host"),
            at("authorized"),
        );
        fs::write(at("sshd"), config).unwrap();
        let holder = self.holder.to_string();
        let words = ["--mount", "--target", &holder, self.program, "-D", "-f", &at("sshd")];
        Command::new("nsenter").args(words).spawn().unwrap()
    }

    /// Where what was on a machine is, for a snapshot of it.
    fn copy(&self, snapshot: &str) -> String {
        self.dir.join(snapshot.rsplit('/').next().unwrap()).display().to_string()
    }

    /// A copy of the data disk's blocks, mounted as the machine is told to.
    fn clone_disk(&self, data: &str) {
        let Some(image) = self.image.lock().unwrap().clone() else { return };
        let said = |key: &str| data.lines().find_map(|line| line.trim().strip_prefix(key)).unwrap();
        let copy = self.dir.join("clone");
        let copied = Command::new("cp").arg("--sparse=always").arg(image).arg(&copy).status();
        assert!(copied.unwrap().success());
        let device = Loop::new(&copy).unwrap();
        let ask = ["-p", "-o", "value", "-s", "UUID", &device.0];
        let uuid = CompletedProcess::run(Command::new("blkid").args(ask));
        assert_eq!(said("What=/dev/disk/by-uuid/"), uuid.stdout.trim());
        let script = "mkdir -p \"$1\" && mount -t ext4 -o \"$2\" \"$0\" \"$1\"";
        inside(self.holder, script, &[&device.0, said("Where="), said("Options=")]);
        // In use for as long as it is mounted, and no longer.
    }
}

/// The path of sshd; without one, says what is skipped.
fn program(what: &str) -> Option<&'static str> {
    let found = ["/usr/sbin/sshd", "/usr/local/sbin/sshd"].into_iter().find(|at| Path::new(at).exists());
    if found.is_none() {
        eprintln!("SKIPPED: {what}: there is no sshd here");
    }
    found
}

/// A machine that the team owns: this one, behind an sshd in the namespace of the story, for everybody who lives there.
pub struct Owned {
    child: Child,
    dir: PathBuf,
    port: u16,
}

impl Owned {
    /// None, and said so, where it cannot be had.
    pub fn new(here: &Here) -> Option<Self> {
        let program = program("experiments over ssh")?;
        let at = |name: &str| here.path(name).display().to_string();
        for key in ["host", "user"] {
            let words = ["-q", "-t", "ed25519", "-N", "", "-f", &at(key)];
            assert!(Command::new("ssh-keygen").args(words).status().unwrap().success());
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = fs::read_to_string(at("host.pub")).unwrap();
        fs::write(at("known"), format!("[127.0.0.1]:{port} {host}")).unwrap();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
             PidFile none\nMaxStartups 100\nMaxSessions 100\n",
            at("host"),
            at("user.pub"),
        );
        fs::write(at("sshd"), config).unwrap();
        // In the namespace, whose /run is empty: sshd wants a directory in there.
        let script = "mkdir -p /run/sshd && exec \"$0\" -D -f \"$1\"";
        let holder = here.holder.id().to_string();
        let words = ["--mount", "--target", &holder, "sh", "-c", script, program, &at("sshd")];
        let child = Command::new("nsenter").args(words).spawn().unwrap();
        here.until("sshd", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Some(Self { child, dir: here.dir.path().into(), port })
    }

    /// Settings by which a command here finds it, as `KEY=VALUE`.
    pub fn settings(&self) -> [String; 2] {
        let setting = |key: &str, name: &str| format!("gpu.{key}={}", self.dir.join(name).display());
        [setting("known_hosts", "known"), setting("ssh_key", "user")]
    }

    pub fn url(&self, person: &str) -> String {
        format!("ssh://{person}@127.0.0.1:{}", self.port)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An image as a disk, given back when dropped.
pub struct Loop(pub String);

impl Loop {
    pub fn new(image: &Path) -> Option<Self> {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(image).output().ok()?;
        let made = CompletedProcess::from(made);
        (made.code == 0).then(|| Self(made.stdout.trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

/// Done in a namespace.
pub fn inside(holder: u32, script: &str, words: &[&str]) {
    let holder = holder.to_string();
    let shell = ["--mount", "--target", &holder, "sh", "-c", script];
    assert!(Command::new("nsenter").args(shell).args(words).status().unwrap().success(), "{script}");
}

impl Metal for Sshd {
    fn boot(&self, order: &Order) -> Result<Option<Ipv4Addr>, String> {
        let n = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(copy) = &order.copy {
            inside(self.holder, "cp -a \"$0\"/. /home/echoes", &[&self.copy(copy)]);
        }
        let child = self.start(order, n);
        {
            let mut on = self.on.lock().unwrap();
            if let Some(brought) = &*self.brought.lock().unwrap() {
                inside(self.holder, "cp -a \"$0\"/. /home/echoes", &[brought.to_str().unwrap()]);
            }
            on.insert(order.id.clone(), child);
        }
        let since = Instant::now();
        while TcpStream::connect((Self::address(n), self.port)).is_err() {
            if since.elapsed() > Duration::from_secs(10) {
                return Err("sshd does not come up".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let place = SocketAddrV4::new(Self::address(n), self.port);
        Ok(Some(self.via.as_ref().map_or(*place.ip(), |between| between(&order.id, place))))
    }

    fn keep(&self, _id: &str, copy: &str) {
        inside(self.holder, "rm -rf \"$0\" && cp -a /home/echoes \"$0\"", &[&self.copy(copy)]);
    }

    /// All machines share one disk here, which is gone with the last of them.
    fn remove(&self, id: &str) {
        self.kill(id);
        // The next one may be about to come.
        let on = self.on.lock().unwrap();
        if on.is_empty() {
            inside(self.holder, "find /home/echoes -mindepth 1 -delete", &[]);
        }
    }

    fn kill(&self, id: &str) {
        if let Some(mut child) = self.on.lock().unwrap().remove(id) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn addresses(&self) -> bool {
        true
    }
}
