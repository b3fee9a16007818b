//! What we serve ourselves, always behind nginx: static sites, the dashboard, and the gate that nginx asks
//! before it lets anybody in. All of it listens on unix sockets, which only nginx and we reach.

pub mod client;
pub mod dashboard;
pub mod gate;
pub mod memory;
pub mod peer;
pub mod proxy;
pub mod reach;
pub mod run_proxy;
pub mod site;
pub mod tries;

use anyhow::{Context as _, Result};
use axum::{Router, serve::Listener};
use libsystemd::daemon::{NotifyState, notify};
use std::{
    future::Future,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::signal::unix::{SignalKind, signal};

/// Answers under way get this long after SIGTERM; a reader on a slow line is not worth a hanging restart.
const LAST_ANSWERS: Duration = Duration::from_secs(10);

/// Carry one of our servers out, to its end.
pub fn run(server: impl Future<Output = Result<()>>) -> Result<()> {
    // Another part of this process may have chosen already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.context("starting the async runtime")?.block_on(server)
}

/// One answer from the async side, for the synchronous rest.
pub fn block_on<T>(asking: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("starting the async runtime")?.block_on(asking)
}

/// The JSON of an answer. None: it is no JSON, or has more bytes than `most`; whoever tells these apart reads it by himself.
pub async fn json_at_most(
    mut answer: reqwest::Response,
    most: usize,
) -> reqwest::Result<Option<serde_json::Value>> {
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await? {
        if body.len() + piece.len() > most {
            return Ok(None);
        }
        body.extend_from_slice(&piece);
    }
    Ok(serde_json::from_slice(&body).ok())
}

/// For MLflow: at its socket, or where a URL says. A redirect or a proxy could only lead away from this machine.
fn mlflow_client(socket: Option<&Path>) -> reqwest::ClientBuilder {
    let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
    match socket {
        Some(socket) => client.unix_socket(socket),
        None => client,
    }
}

/// Serve until SIGTERM or SIGINT. Tells systemd when it listens, what it serves and when it stops.
async fn attend<L>(listener: L, app: Router, status: &str) -> Result<()>
where
    L: Listener,
    L::Addr: std::fmt::Debug,
{
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    tell(&[NotifyState::Ready, NotifyState::Status(status.to_owned())]);
    attend_until(listener, app, async move {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        tell(&[NotifyState::Stopping]);
    })
    .await
}

/// As `attend`, without systemd: until `stop` ends, and then no longer than `LAST_ANSWERS`.
async fn attend_until<L>(
    listener: L,
    app: Router,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<()>
where
    L: Listener,
    L::Addr: std::fmt::Debug,
{
    let (stopped, stopping) = tokio::sync::oneshot::channel();
    let stop = async move {
        stop.await;
        let _ = stopped.send(());
    };
    let served = axum::serve(listener, app).with_graceful_shutdown(stop);
    tokio::select! {
        served = async { served.await } => served.context("serving"),
        () = async { let _ = stopping.await; tokio::time::sleep(LAST_ANSWERS).await } => Ok(()),
    }
}

/// Without systemd there is nobody to tell, and that is fine: libsystemd then does nothing.
fn tell(state: &[NotifyState]) {
    let _ = notify(false, state);
}

/// A lock is held for a few instructions that leave things whole; a panic elsewhere does not spoil it.
pub fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
