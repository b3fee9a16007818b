//! `gpu-run --provider azure` from its first word to its receipt: the program itself, before a simulated Azure that holds
//! each request to Microsoft's documents, on a machine that is this one behind a real sshd with the key that it was given
//! at its first start.

// Tests look at files and processes directly.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stderr)]

#[path = "support/cloud.rs"]
mod cloud;
#[path = "support/gpu_story.rs"]
mod gpu_story;
#[path = "support/here.rs"]
mod here;

use cloud::{Metal, Options, Order, Pace, Takes};
use gpu_story::{Story, T4, words};
use here::Here;
use std::{
    fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// Machines that are this one: what Azure hands down to them is given to an sshd in the namespace of the story.
struct Sshd {
    program: &'static str,
    holder: u32,
    dir: PathBuf,
    port: u16,
    /// The machine that is on.
    on: Mutex<Option<(String, Child)>>,
}

impl Sshd {
    /// None, and said so, where it cannot be had.
    fn new(here: &Here) -> Option<Self> {
        let Some(program) =
            ["/usr/sbin/sshd", "/usr/local/sbin/sshd"].into_iter().find(|at| Path::new(at).exists())
        else {
            eprintln!("SKIPPED: experiments at Azure: there is no sshd here");
            return None;
        };
        // Azure makes the admin; here he is another name of root's, in this namespace alone.
        let (passwd, holder) = (here.path("passwd"), here.holder.id());
        let people = fs::read_to_string("/etc/passwd").unwrap();
        fs::write(&passwd, format!("{people}echoes:x:0:0::/home/echoes:/bin/sh\n")).unwrap();
        let script =
            "mount -t tmpfs none /home && mkdir -p /home/echoes /run/sshd && mount --bind \"$0\" /etc/passwd";
        let made = Command::new("nsenter")
            .args(["--mount", "--target", &holder.to_string(), "sh", "-c", script])
            .arg(&passwd)
            .status();
        assert!(made.unwrap().success());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Some(Self { program, holder, dir: here.dir.path().into(), port, on: Mutex::default() })
    }

    fn start(&self, order: &Order) -> Child {
        let at = |name: &str| self.dir.join(name).display().to_string();
        let data = String::from_utf8(order.custom_data.clone().unwrap()).unwrap();
        let key = data.lines().find_map(|line| line.trim().strip_prefix("ed25519_private: ")).unwrap();
        fs::write(at("host"), serde_json::from_str::<String>(key).unwrap()).unwrap();
        fs::set_permissions(at("host"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(at("authorized"), order.public_keys.join("\n") + "\n").unwrap();
        assert_eq!(order.admin, "echoes");
        let config = format!(
            "Port {}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
             PermitRootLogin yes\nPidFile none\n",
            self.port,
            at("host"),
            at("authorized"),
        );
        fs::write(at("sshd"), config).unwrap();
        let holder = self.holder.to_string();
        let words = ["--mount", "--target", &holder, self.program, "-D", "-f", &at("sshd")];
        Command::new("nsenter").args(words).spawn().unwrap()
    }
}

impl Metal for Sshd {
    fn boot(&self, order: &Order) -> Result<Option<Ipv4Addr>, String> {
        let child = self.start(order);
        *self.on.lock().unwrap() = Some((order.id.clone(), child));
        let since = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            if since.elapsed() > Duration::from_secs(10) {
                return Err("sshd does not come up".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Some(Ipv4Addr::LOCALHOST))
    }

    fn kill(&self, id: &str) {
        let mut on = self.on.lock().unwrap();
        if let Some((_, mut child)) = on.take_if(|(machine, _)| machine == id) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn addresses(&self) -> bool {
        true
    }
}

/// Twenty times as fast as the world: what takes Azure minutes takes seconds here.
fn story() -> Option<Story> {
    let here = Here::new()?;
    let sshd = Arc::new(Sshd::new(&here)?);
    let (port, takes) = (sshd.port, Takes { retry_after: Some(1), ..Takes::default() });
    let there = here.dir.path().display().to_string();
    let options = Options { pace: Pace::Running(20.0), takes, metal: sshd, ..Options::default() };
    Story::new(here, port, &there, options)
}

#[test]
fn what_can_be_had_is_shown_and_nothing_is_rented_without_a_yes() {
    let Some(story) = story() else { return };
    let plan = story.gpu_run("plan", &["--dry-run", "--max-cost", "5"]);
    let said = words(&plan.stderr);
    assert_eq!(plan.status.code(), Some(0), "{said}");
    assert!(said.contains('✓') && said.contains(T4) && said.contains("eastus"), "{said}");
    assert!(said.contains("before it costs $5.00"), "{said}");

    let unasked = story.gpu_run("unasked", &[]);
    assert_eq!(unasked.status.code(), Some(1), "{}", words(&unasked.stderr));
    assert!(words(&unasked.stderr).contains("it costs money, and there is nobody to ask\ntry:   -y"));

    story.cloud.set_quota("lowPriorityCores", 0);
    let short = story.gpu_run("short", &["--spot", "always", "-y"]);
    let said = words(&short.stderr);
    assert_eq!(short.status.code(), Some(81), "{said}");
    assert!(said.contains('✗') && said.contains("ask for a limit of 4"), "{said}");
    assert_eq!(story.cloud.left(), Vec::<String>::new());
    story.cloud.assert_honest();
}

#[test]
fn a_script_runs_on_a_rented_machine_and_nothing_of_that_is_left() {
    let Some(story) = story() else { return };
    story.runs_to_its_receipt();
}
