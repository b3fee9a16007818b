//! The simulated Azure of the demo: a process that outlives the command which started it, answers who asks, and ends when
//! it is told to, or when the headquarters is gone. What is still rented then goes with it.

use anyhow::{Context as _, Result, ensure};
use kit::{
    cloud::{Cloud, Options, Pace, Takes, words},
    cloud_lab::{LabMetal, Metadata},
    experiment::AZURE_CA,
    lab::{self, Machine, Release},
};
use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Shutdown},
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            net::{SocketAddr, UnixListener, UnixStream},
            process::CommandExt as _,
        },
    },
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

/// What it says once it can be asked.
const READY: &str = "ready";

/// Of its socket, which is in no directory and so never left behind.
const NAME: &str = "echoes-demo-azure";

const LOOK: Duration = Duration::from_secs(1);

/// On its way while something else is done: its machines are made ready, once.
pub struct Coming(Child);

/// Start it for this headquarters. Its complaints go to `log`.
pub fn start(headquarters: &Machine, log: File) -> Result<Coming> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["serve-azure", headquarters.name()]);
    // As the forwarder: apart from this terminal, and from where that writes.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).process_group(0);
    Ok(Coming(command.spawn().context("starting the simulated Azure")?))
}

impl Coming {
    /// Wait until it can be asked; what it says instead where it cannot be had here.
    pub fn wait(mut self) -> Result<Option<String>> {
        let mut said = String::new();
        BufReader::new(self.0.stdout.take().context("it was asked for")?).read_line(&mut said)?;
        Ok(Some(said.trim().to_owned()).filter(|said| said != READY))
    }
}

/// Be it.
pub fn serve(headquarters: &str) -> Result<()> {
    match open(headquarters) {
        Ok((listener, cloud, way)) => {
            println!("{READY}");
            answer(&listener, &cloud, headquarters);
            // The machines go with the cloud, and before whoever waits for the end hears of it.
            drop((cloud, way));
            Ok(())
        }
        Err(e) => {
            println!("{e:#}");
            Err(e)
        }
    }
}

fn open(headquarters: &str) -> Result<(UnixListener, Cloud, Metadata)> {
    let listener = UnixListener::bind_addr(&at()?).context("there is one already")?;
    let ip = Machine::find(headquarters)?.ip();
    let metal = LabMetal::new(Release::Bookworm, &["python3-venv"])?;
    let host = IpAddr::V4(lab::host());
    // Nobody wants to watch a machine being waited for: seconds here are minutes at Azure.
    let second = Duration::from_secs(1);
    let takes = Takes {
        vm_create: second,
        vm_delete: second,
        reservation: 5 * second,
        list_lag: second,
        retry_after: Some(1),
        ..Takes::default()
    };
    let options = Options {
        pace: Pace::Running(1.0),
        takes,
        page: 50,
        headquarters_address: ip,
        address: host,
        imds: Some((host, 0)),
        metal: Arc::new(metal),
        ..Options::default()
    };
    let cloud = Cloud::start(options).context("Microsoft's documents are not beside the project")?;
    let way = Metadata::of(&cloud)?;
    Ok((listener, cloud, way))
}

/// Until the end.
fn answer(listener: &UnixListener, cloud: &Cloud, headquarters: &str) {
    // It also has to look whether anybody needs it any more.
    let _waits_never = listener.set_nonblocking(true);
    let mut looked = Instant::now();
    loop {
        match listener.accept() {
            Ok((guest, _)) => {
                let _speaks_soon =
                    (guest.set_nonblocking(false), guest.set_read_timeout(Some(Duration::from_secs(5))));
                if !obey(cloud, guest) {
                    return;
                }
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
        if looked.elapsed() > LOOK {
            if Machine::find(headquarters).is_err() {
                return;
            }
            looked = Instant::now();
        }
    }
}

/// Answer one word; whether to go on. Who asks for the end hears the connection close when there is one.
fn obey(cloud: &Cloud, mut guest: UnixStream) -> bool {
    let mut line = String::new();
    if BufReader::new(&guest).read_line(&mut line).is_err() {
        return true;
    }
    let said = match line.trim() {
        "end" => {
            // Closed by the end of this process, and by nothing sooner.
            std::mem::forget(guest);
            return false;
        }
        "settings" => cloud.settings(AZURE_CA),
        "ca" => cloud.ca().to_owned(),
        line => words::answer(cloud, line).unwrap_or_else(|e| format!("{e:#}\n")),
    };
    // Who went away without listening has heard enough.
    let _gone = guest.write_all(said.as_bytes());
    true
}

/// What it answers to a word.
pub fn ask(word: &str) -> Result<String> {
    let mut stream = UnixStream::connect_addr(&at()?).context("there is no simulated Azure running")?;
    stream.write_all(format!("{word}\n").as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut said = String::new();
    stream.read_to_string(&mut said).context("listening to the simulated Azure")?;
    Ok(said)
}

/// Nothing of it is left when this returns; none there is as good.
pub fn end() -> Result<()> {
    if UnixStream::connect_addr(&at()?).is_err() {
        return Ok(());
    }
    let said = ask("end")?;
    ensure!(said.is_empty(), "the simulated Azure does not end: {said}");
    Ok(())
}

fn at() -> Result<SocketAddr> {
    Ok(SocketAddr::from_abstract_name(NAME)?)
}
