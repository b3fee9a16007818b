//! A unix socket in front of a service that knows TCP alone, and that only a network of its own keeps from the machine's other
//! users. It runs in that network; the socket's directory says who gets through.

use super::{gate, tell};
use crate::host::Host;
use anyhow::{Context as _, Result, ensure};
use libsystemd::daemon::NotifyState;
use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    io::copy_bidirectional,
    net::{TcpStream, UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::Semaphore,
};

/// Connections at once. nginx opens one a request and waits for the others.
const MOST: usize = 512;

/// Connections are few, and nginx tells a person that the service is down.
const PATIENCE: Duration = Duration::from_secs(5);

pub struct Proxy {
    pub socket: PathBuf,
    pub to: SocketAddr,
}

/// Pass connections on until SIGTERM.
pub async fn serve(host: &Host, proxy: Proxy) -> Result<()> {
    let Proxy { socket, to } = proxy;
    ensure!(to.ip().is_loopback(), "{to} is on other machines: only a service on loopback is passed on to");
    let listener = gate::listen(host, &socket)?;
    let mut term = signal(SignalKind::terminate())?;
    tell(&[NotifyState::Ready, NotifyState::Status(format!("{} leads to {to}", socket.display()))]);
    tokio::select! {
        passed = pass(listener, to) => passed,
        _ = term.recv() => {
            tell(&[NotifyState::Stopping]);
            Ok(())
        }
    }
}

async fn pass(listener: UnixListener, to: SocketAddr) -> Result<()> {
    let places = Arc::new(Semaphore::new(MOST));
    loop {
        let place = Arc::clone(&places).acquire_owned().await?;
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(_) => {
                // No file is free; one will be.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        tokio::spawn(async move {
            // Whoever went away has nobody to be told.
            let _ = one(client, to).await;
            drop(place);
        });
    }
}

async fn one(mut client: UnixStream, to: SocketAddr) -> Result<()> {
    let service = tokio::time::timeout(PATIENCE, TcpStream::connect(to)).await;
    let mut service = service.context("it does not answer")?.with_context(|| format!("reaching {to}"))?;
    // A head and a body are two writes; waiting for the first's acknowledgement costs 40 ms.
    service.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut service).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::System;
    use std::path::Path;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    #[tokio::test]
    async fn what_is_said_to_the_socket_reaches_the_service_and_back() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = service.local_addr().unwrap();
        let listener = gate::listen(&host, Path::new("/x.sock")).unwrap();
        let passing = tokio::spawn(pass(listener, to));
        for _ in 0..3 {
            let mut client = UnixStream::connect(dir.path().join("x.sock")).await.unwrap();
            client.write_all(b"ping").await.unwrap();
            client.shutdown().await.unwrap();
            let (mut there, _) = service.accept().await.unwrap();
            let mut said = String::new();
            there.read_to_string(&mut said).await.unwrap();
            there.write_all(b"pong").await.unwrap();
            drop(there);
            let mut back = String::new();
            client.read_to_string(&mut back).await.unwrap();
            assert_eq!((said.as_str(), back.as_str()), ("ping", "pong"));
        }
        passing.abort();
    }

    #[tokio::test]
    async fn it_leads_to_no_other_machine() {
        let host = Host::new("/nowhere", System);
        let far = Proxy { socket: "/x".into(), to: "192.0.2.1:80".parse().unwrap() };
        assert!(serve(&host, far).await.unwrap_err().to_string().contains("192.0.2.1"));
    }
}
