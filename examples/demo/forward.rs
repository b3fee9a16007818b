//! The way from this host's loopback, where browsers look for *.localhost, to the machine: a small process that
//! outlives the command which started it, and ends by itself when the machine is gone.

use anyhow::{Context as _, Result, bail, ensure};
use kit::lab::Machine;
use std::{
    io::{BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    time::Duration,
};
use tokio::net::{TcpListener, TcpStream};

const PORTS: [u16; 2] = [443, 80];

/// What it says once it listens.
const READY: &str = "ready";

/// Whether browsers of this host can be sent to the machine; names who is in the way. Only the usual ports will
/// do: redirects carry no other, and MLflow takes writes from pages of `https://mlflow.localhost` alone.
pub fn check_ports() -> Result<()> {
    for port in PORTS {
        if std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err() {
            let said = Command::new("ss").args(["-Hltnp", &format!("sport = :{port}")]).output();
            let said = said.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default();
            let who = said.split("((\"").nth(1).and_then(|rest| rest.split('"').next());
            bail!(
                "port {port} of this host is taken by {}: the demo's pages need it. Stop that, then run this again",
                who.unwrap_or("somebody we cannot see")
            );
        }
    }
    Ok(())
}

/// Start the process that runs `run`, and wait until it listens.
pub fn start(machine: &Machine) -> Result<u32> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["forward", machine.name(), &machine.ip().to_string()]);
    // A group of its own: what the terminal sends to `make demo` is not for it.
    // Nor does it hold on to where that writes: `make demo | tee log` is to end.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    let mut child = command.spawn().context("starting the forwarder")?;
    let mut said = String::new();
    BufReader::new(child.stdout.take().context("it was asked for")?).read_line(&mut said)?;
    ensure!(said.trim() == READY, "the forwarder did not start: {}", said.trim());
    Ok(child.id())
}

/// Forward for as long as the machine is there.
pub fn run(machine: &str, to: IpAddr) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        for port in PORTS {
            let v4 = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
            tokio::spawn(serve(v4.with_context(|| format!("listening on port {port}"))?, (to, port).into()));
            // A host without IPv6 has no ::1 to listen on, and nobody there who would ask it.
            if let Ok(v6) = TcpListener::bind((Ipv6Addr::LOCALHOST, port)).await {
                tokio::spawn(serve(v6, (to, port).into()));
            }
        }
        println!("{READY}");
        while Machine::find(machine).is_ok_and(|machine| IpAddr::V4(machine.ip()) == to) {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Ok(())
    })
}

async fn serve(listener: TcpListener, to: SocketAddr) {
    loop {
        // Out of file descriptors: those in use will end.
        let Ok((mut here, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        tokio::spawn(async move {
            if let Ok(mut there) = TcpStream::connect(to).await {
                let _nodelay = (here.set_nodelay(true), there.set_nodelay(true));
                // However it ends, both ends of it close; who cares for the reason is at one of them.
                let _ended = tokio::io::copy_bidirectional(&mut here, &mut there).await;
            }
        });
    }
}
