//! Azure tells a machine half a minute before it takes it away: Scheduled Events, asked of the metadata address that
//! every machine has there. The answer to the first question may take two minutes; from then on each is quick.

use crate::web::json_at_most;
use anyhow::{Context as _, Result};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

const URL: &str = "http://169.254.169.254/metadata/scheduledevents?api-version=2020-07-01";
/// Bytes of the longest answer that is read; an event has a few hundred.
const MOST: usize = 1 << 20;
/// As often as Microsoft advises.
const BETWEEN: Duration = Duration::from_secs(1);

/// Set when the machine is about to be taken away.
pub fn watch() -> Arc<AtomicBool> {
    let taken = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&taken);
    std::thread::spawn(move || {
        let _ = crate::web::block_on(ask(URL, &told));
    });
    taken
}

async fn ask(url: &str, told: &AtomicBool) -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    // The address is the machine's own: no proxy knows it.
    let client = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([])
        .connect_timeout(Duration::from_secs(5))
        .timeout(Duration::from_secs(150));
    let client = client.build().context("preparing to ask for events")?;
    loop {
        // An answer that does not come is asked for again: nothing else could be done about it.
        if let Ok(answer) = client.get(url).header("Metadata", "true").send().await
            && let Ok(Some(answer)) = json_at_most(answer, MOST).await
            && is_taken(&answer)
        {
            told.store(true, Ordering::Relaxed);
        }
        tokio::time::sleep(BETWEEN).await;
    }
}

/// `Preempt`: a spot machine is taken back. `Terminate`: somebody deletes it. Reboots and freezes it outlives. Pure.
fn is_taken(answer: &serde_json::Value) -> bool {
    let events = answer["Events"].as_array().map(Vec::as_slice).unwrap_or_default();
    events.iter().any(|event| matches!(event["EventType"].as_str(), Some("Preempt" | "Terminate")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::io::{Read as _, Write as _};

    #[test]
    fn only_what_ends_the_machine_is_an_end() {
        let event = |kind: &str| json!({ "DocumentIncarnation": 1, "Events": [{ "EventType": kind }] });
        for (kind, expected) in [
            ("Preempt", true),
            ("Terminate", true),
            ("Reboot", false),
            ("Freeze", false),
            ("Redeploy", false),
        ] {
            assert_eq!(is_taken(&event(kind)), expected, "{kind}");
        }
        assert!(!is_taken(&json!({ "DocumentIncarnation": 0, "Events": [] })));
        assert!(!is_taken(&json!("<html>")));
    }

    #[test]
    fn a_notice_arrives_after_trouble_and_silence() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/events", server.local_addr().unwrap());
        let answers = [
            "HTTP/1.1 500 No\r\nConnection: close\r\n\r\n",
            "",
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"Events\":[{\"EventType\":\"Preempt\"}]}",
        ];
        let serving = std::thread::spawn(move || {
            let mut asked = String::new();
            for answer in answers {
                let (mut stream, _) = server.accept().unwrap();
                let mut bytes = [0; 1024];
                let n = stream.read(&mut bytes).unwrap();
                asked = String::from_utf8_lossy(&bytes[..n]).to_lowercase();
                stream.write_all(answer.as_bytes()).unwrap();
            }
            asked
        });
        let told = AtomicBool::new(false);
        let asking = async {
            tokio::select! {
                asked = ask(&url, &told) => asked,
                () = async { while !told.load(Ordering::Relaxed) { tokio::time::sleep(Duration::from_millis(10)).await } } => Ok(()),
                () = tokio::time::sleep(Duration::from_secs(20)) => anyhow::bail!("no notice"),
            }
        };
        crate::web::block_on(asking).unwrap();
        assert!(serving.join().unwrap().contains("metadata: true"));
    }
}
